//! Extended headers (POSIX.1-2001): `length key=value` records for what does not fit a header.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

/// Attributes that an entry may have.
const XATTRS_MAX: usize = 256;

/// What the extended headers before an entry say.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Extended {
    /// The entry's name.
    pub path: Option<PathBuf>,
    /// The target of a link.
    pub link: Option<PathBuf>,
    /// The bytes of its data.
    pub size: Option<u64>,
    /// The owner.
    pub uid: Option<u64>,
    /// The owner's group.
    pub gid: Option<u64>,
    /// When it was changed: seconds since 1970, and nanoseconds.
    pub mtime: Option<(i64, u32)>,
    /// The size of a sparse file whose map stands before its data.
    pub sparse: Option<u64>,
    /// Extended attributes.
    pub xattrs: Vec<(OsString, Vec<u8>)>,
}

/// Why extended headers were not understood.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExtendedError {
    /// A record is not made as one.
    #[error("an extended header with a record that is none")]
    Record,
    /// A value makes no sense.
    #[error("an extended header whose {0} is not one")]
    Value(&'static str),
    /// Attributes beyond 256.
    #[error("an extended header with too many attributes")]
    TooMany,
    /// Sparse files before format 1.0.
    #[error("a sparse file in one of GNU tar's old formats")]
    OldSparse,
}

impl Extended {
    /// Takes in the records of one header; later ones win.
    pub fn read(&mut self, mut records: &[u8]) -> Result<(), ExtendedError> {
        while !records.is_empty() {
            let (key, value, rest) = split_record(records).ok_or(ExtendedError::Record)?;
            self.set(key, value)?;
            records = rest;
        }
        Ok(())
    }

    fn set(&mut self, key: &[u8], value: &[u8]) -> Result<(), ExtendedError> {
        let path = || Some(PathBuf::from(OsString::from_vec(value.to_vec())));
        match key {
            // In a sparse file's header the path is a stand-in, and this the name; in either order.
            b"GNU.sparse.name" => self.path = path(),
            b"path" if self.sparse.is_none() || self.path.is_none() => self.path = path(),
            b"path" => {}
            b"linkpath" => self.link = path(),
            b"size" => self.size = Some(number(value, "size")?),
            b"uid" => self.uid = Some(number(value, "owner")?),
            b"gid" => self.gid = Some(number(value, "group")?),
            b"mtime" => self.mtime = Some(time(value).ok_or(ExtendedError::Value("time"))?),
            b"GNU.sparse.realsize" => self.sparse = Some(number(value, "size")?),
            b"GNU.sparse.major" if value != b"1" => return Err(ExtendedError::OldSparse),
            b"GNU.sparse.minor" if value != b"0" => return Err(ExtendedError::OldSparse),
            b"GNU.sparse.map" | b"GNU.sparse.numblocks" | b"GNU.sparse.size" => {
                return Err(ExtendedError::OldSparse);
            }
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    self.set_xattr(name, value)?;
                }
            }
        }
        Ok(())
    }

    fn set_xattr(&mut self, name: &[u8], value: &[u8]) -> Result<(), ExtendedError> {
        if name.is_empty() || name.len() > 255 || name.contains(&0) {
            return Err(ExtendedError::Value("attribute"));
        }
        if self.xattrs.len() == XATTRS_MAX {
            return Err(ExtendedError::TooMany);
        }
        self.xattrs
            .push((OsString::from_vec(name.to_vec()), value.to_vec()));
        Ok(())
    }
}

/// The key and value of the first record, and what follows it.
fn split_record(records: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = records.iter().take(20).position(|byte| *byte == b' ')?;
    let length = records.get(..space)?;
    let length: usize = std::str::from_utf8(length).ok()?.parse().ok()?;
    let record = records.get(space + 1..length)?.strip_suffix(b"\n")?;
    let equals = record.iter().position(|byte| *byte == b'=')?;
    Some((
        record.get(..equals)?,
        record.get(equals + 1..)?,
        records.get(length..)?,
    ))
}

fn number(value: &[u8], what: &'static str) -> Result<u64, ExtendedError> {
    let text = std::str::from_utf8(value).ok();
    let text = text.filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
    text.and_then(|text| text.parse().ok())
        .ok_or(ExtendedError::Value(what))
}

/// `seconds[.fraction]`; digits past nanoseconds are dropped.
fn time(value: &[u8]) -> Option<(i64, u32)> {
    let text = std::str::from_utf8(value).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let seconds: i64 = whole.parse().ok()?;
    let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    let nanoseconds: u32 = digits.parse().ok()?;
    if text.starts_with('-') && nanoseconds > 0 {
        return Some((seconds.checked_sub(1)?, 1_000_000_000 - nanoseconds));
    }
    Some((seconds, nanoseconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_say_what_they_say_or_are_refused() {
        let read = |text: &[u8]| {
            let mut extended = Extended::default();
            extended.read(text).map(|()| extended)
        };
        let path = |path: &str| Extended {
            path: Some(path.into()),
            ..Extended::default()
        };
        for (text, wanted) in [
            (&b""[..], Ok(Extended::default())),
            (b"10 path=a\n", Ok(path("a"))),
            (b"10 path=a\n10 path=b\n", Ok(path("b"))),
            (b"13 path=a\nb=\n", Ok(path("a\nb="))),
            (b"15 comment=abc\n", Ok(Extended::default())),
            (b"11 path=a\n", Err(ExtendedError::Record)),
            (b"8 path=a\n", Err(ExtendedError::Record)),
            (b"99999999999999999999 path=a\n", Err(ExtendedError::Record)),
            (b"3 path=a\n", Err(ExtendedError::Record)),
            (b"0 path=a\n", Err(ExtendedError::Record)),
            (b"path=a\n", Err(ExtendedError::Record)),
            (b"11 size=-1\n", Err(ExtendedError::Value("size"))),
            (b"11 size=+1\n", Err(ExtendedError::Value("size"))),
            (b"28 size=18446744073709551616\n", Err(ExtendedError::Record)),
            (
                b"29 size=18446744073709551616\n",
                Err(ExtendedError::Value("size")),
            ),
            (b"22 GNU.sparse.major=0\n", Err(ExtendedError::OldSparse)),
            (b"22 GNU.sparse.map=0,1\n", Err(ExtendedError::OldSparse)),
        ] {
            assert_eq!(read(text), wanted, "{}", String::from_utf8_lossy(text));
        }
        let many = b"21 SCHILY.xattr.a=xy\n".repeat(XATTRS_MAX + 1);
        assert_eq!(read(&many), Err(ExtendedError::TooMany));
    }

    #[test]
    fn times_are_read_as_they_are_written() {
        for (text, wanted) in [
            ("5", Some((5, 0))),
            ("5.5", Some((5, 500_000_000))),
            ("5.0000000079", Some((5, 7))),
            ("-1", Some((-1, 0))),
            ("-0.75", Some((-1, 250_000_000))),
            ("-1.75", Some((-2, 250_000_000))),
            ("", None),
            ("1.-5", None),
            ("1e9", None),
            ("-9223372036854775808.5", None),
        ] {
            assert_eq!(time(text.as_bytes()), wanted, "{text}");
        }
    }
}
