//! Entries to the bytes of a tar: the format of POSIX.1-2001, with the extended headers that GNU tar, bsdtar and
//! Go's reader understand.

use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use tar::{EntryType, Header};

use super::entry::{Entry, Kind, Span};

/// What a tar is made of; everything in it is a multiple of this.
pub const BLOCK_BYTES: usize = 512;

const ZEROS: [u8; BLOCK_BYTES] = [0; BLOCK_BYTES];

/// Writes a tar.
pub struct Writer<W> {
    out: W,
    /// Bytes of the current entry's data that are still to come.
    rest: u64,
    /// Zeros that follow them.
    padding: usize,
    /// The name of the top directory.
    top: &'static str,
}

impl<W: Write> Writer<W> {
    /// A tar that goes there.
    pub fn new(out: W) -> Self {
        Self {
            out,
            rest: 0,
            padding: 0,
            top: ".",
        }
    }

    /// Calls the top directory `/`, as a diff of a root does: podman's unpacker passes over `.`, and the root would have other permissions
    /// than at the dump, which CRIU compares.
    pub fn of_root(self) -> Self {
        Self { top: "/", ..self }
    }

    /// Begins an entry. If it has data, exactly [`Entry::stored_bytes`] must follow.
    pub fn entry(&mut self, entry: &Entry) -> io::Result<()> {
        if self.rest != 0 {
            return Err(io::Error::other("the data of the entry before is not complete"));
        }
        let map = entry.parts.as_deref().map(|parts| sparse_map(parts, entry.size));
        let map = map.unwrap_or_default();
        let stored = entry.stored_bytes() + map.len() as u64;
        let mut header = Header::new_ustar();
        let mut records = Vec::new();
        fill(&mut header, &mut records, entry, self.top)?;
        header.set_size(stored);
        header.set_cksum();
        if !records.is_empty() {
            self.extended(&entry.path, &records)?;
        }
        self.out.write_all(header.as_bytes())?;
        self.out.write_all(&map)?;
        self.rest = entry.stored_bytes();
        self.padding = padding(stored);
        if self.rest == 0 {
            self.pad()?;
        }
        Ok(())
    }

    /// Adds to the data of the current entry.
    pub fn data(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.rest = self
            .rest
            .checked_sub(bytes.len() as u64)
            .ok_or_else(|| io::Error::other("more data than the entry has"))?;
        self.out.write_all(bytes)?;
        if self.rest == 0 {
            self.pad()?;
        }
        Ok(())
    }

    /// Ends the tar and gives back what it went to.
    pub fn finish(mut self) -> io::Result<W> {
        if self.rest != 0 {
            return Err(io::Error::other("the data of the last entry is not complete"));
        }
        self.out.write_all(&ZEROS)?;
        self.out.write_all(&ZEROS)?;
        Ok(self.out)
    }

    fn pad(&mut self) -> io::Result<()> {
        self.out
            .write_all(ZEROS.get(..self.padding).unwrap_or_default())?;
        self.padding = 0;
        Ok(())
    }

    /// An extended header for the entry after it.
    fn extended(&mut self, path: &Path, records: &[u8]) -> io::Result<()> {
        let mut header = Header::new_ustar();
        let name = path.file_name().unwrap_or_default().as_bytes();
        // Only seen where extended headers are not understood; there it becomes a file of that name.
        let name = [b"PaxHeaders/", name.get(..name.len().min(80)).unwrap_or_default()].concat();
        let _fits = put_name(&mut header.as_old_mut().name, &name);
        header.set_entry_type(EntryType::XHeader);
        header.set_mode(0o600);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(records.len() as u64);
        header.set_cksum();
        self.out.write_all(header.as_bytes())?;
        self.out.write_all(records)?;
        let padding = padding(records.len() as u64);
        self.out.write_all(ZEROS.get(..padding).unwrap_or_default())
    }
}

/// Zeros after so many bytes.
pub fn padding(len: u64) -> usize {
    (len.wrapping_neg() % BLOCK_BYTES as u64) as usize
}

/// Everything but the size; what does not fit becomes extended records.
fn fill(header: &mut Header, records: &mut Vec<u8>, entry: &Entry, top: &str) -> io::Result<()> {
    let mut path = entry.path.as_os_str().as_bytes().to_vec();
    if path.is_empty() {
        path.extend(top.as_bytes());
    }
    let (kind, link) = match &entry.kind {
        Kind::File => (EntryType::Regular, None),
        Kind::Directory => (EntryType::Directory, None),
        Kind::Symlink(target) => (EntryType::Symlink, Some(target)),
        Kind::HardLink(target) => (EntryType::Link, Some(target)),
        Kind::CharDevice(..) => (EntryType::Char, None),
        Kind::BlockDevice(..) => (EntryType::Block, None),
        Kind::Fifo => (EntryType::Fifo, None),
    };
    if entry.kind == Kind::Directory && !path.ends_with(b"/") {
        path.push(b'/');
    }
    if entry.parts.is_some() {
        record(records, b"GNU.sparse.major", b"1");
        record(records, b"GNU.sparse.minor", b"0");
        record(records, b"GNU.sparse.name", &path);
        record(records, b"GNU.sparse.realsize", entry.size.to_string().as_bytes());
    } else if !put_name(&mut header.as_old_mut().name, &path) {
        record(records, b"path", &path);
    }
    if let Some(target) = link {
        let target = target.as_os_str().as_bytes();
        if !put_name(&mut header.as_old_mut().linkname, target) {
            record(records, b"linkpath", target);
        }
    }
    let (seconds, nanoseconds) = entry.mtime;
    if nanoseconds != 0 || seconds < 0 {
        record(records, b"mtime", seconds_text(seconds, nanoseconds).as_bytes());
    }
    for (name, value) in &entry.xattrs {
        record(records, &[b"SCHILY.xattr.", name.as_bytes()].concat(), value);
    }
    header.set_entry_type(kind);
    header.set_mode(entry.mode & 0o7777);
    header.set_uid(entry.uid.into());
    header.set_gid(entry.gid.into());
    header.set_mtime(u64::try_from(seconds).unwrap_or(0));
    if let Kind::CharDevice(major, minor) | Kind::BlockDevice(major, minor) = entry.kind {
        header.set_device_major(major)?;
        header.set_device_minor(minor)?;
    }
    Ok(())
}

/// Seconds with their fraction, as in an extended header. Before 1970 the fraction counts the other way.
fn seconds_text(seconds: i64, nanoseconds: u32) -> String {
    if seconds < 0 && nanoseconds > 0 {
        let (whole, rest) = (seconds + 1, 1_000_000_000 - nanoseconds);
        let sign = if whole == 0 { "-" } else { "" };
        return format!("{sign}{whole}.{rest:09}");
    }
    format!("{seconds}.{nanoseconds:09}")
}

/// Puts a name into a field; false, and as much as fits, if it does not fit.
fn put_name(field: &mut [u8], name: &[u8]) -> bool {
    for (to, from) in field.iter_mut().zip(name) {
        *to = *from;
    }
    name.len() <= field.len()
}

/// Adds `length key=value\n`, where the length counts itself.
fn record(records: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut total = rest + 1;
    while total != rest + total.to_string().len() {
        total = rest + total.to_string().len();
    }
    records.extend(total.to_string().into_bytes());
    records.push(b' ');
    records.extend(key);
    records.push(b'=');
    records.extend(value);
    records.push(b'\n');
}

/// The map of a sparse file, format 1.0, which stands before its data.
fn sparse_map(parts: &[Span], size: u64) -> Vec<u8> {
    let end = parts.last().map_or(0, |part| part.at + part.len);
    // A hole at the end is seen by GNU tar only if an empty part stands behind it.
    let last = (end < size).then_some(Span { at: size, len: 0 });
    let mut map = format!("{}\n", parts.len() + usize::from(last.is_some()));
    for part in parts.iter().chain(&last) {
        map.push_str(&format!("{}\n{}\n", part.at, part.len));
    }
    let mut map = map.into_bytes();
    map.resize(map.len() + padding(map.len() as u64), 0);
    map
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_counts_itself() {
        for (len, text) in [(1, "6 k=v\n"), (92, "99 k="), (93, "101 k="), (94, "102 k=")] {
            let value = if len == 1 {
                b"v".to_vec()
            } else {
                vec![b'x'; len + 1]
            };
            let mut records = Vec::new();
            record(&mut records, b"k", &value);
            let number: usize = text.split(' ').next().unwrap().parse().unwrap();
            assert!(records.starts_with(text.as_bytes()), "{len}");
            assert_eq!(records.len(), number);
        }
    }

    #[test]
    fn times_before_1970_are_written_as_they_are_read() {
        for (time, text) in [
            ((5, 7), "5.000000007"),
            ((-1, 0), "-1.000000000"),
            ((-1, 250_000_000), "-0.750000000"),
            ((-2, 250_000_000), "-1.750000000"),
        ] {
            assert_eq!(seconds_text(time.0, time.1), text);
        }
    }

    #[test]
    fn data_must_be_as_long_as_it_was_said_to_be() {
        let mut entry = Entry::new("a".into(), Kind::File, 0o600);
        entry.size = 3;
        let mut writer = Writer::new(Vec::new());
        writer.entry(&entry).unwrap();
        assert!(writer.data(b"four").is_err());
        let mut writer = Writer::new(Vec::new());
        writer.entry(&entry).unwrap();
        writer.data(b"tw").unwrap();
        assert!(writer.finish().is_err());
    }
}
