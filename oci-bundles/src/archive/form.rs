//! The forms a checkpoint is kept in: the words for them, their suffixes, and how they are told apart.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use super::ArchiveError;

/// What a checkpoint is kept as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Form {
    /// A directory: `none`.
    Directory,
    /// A tar.
    Tar,
    /// A tar through gzip.
    Gzip,
    /// A tar through LZ4.
    Lz4,
    /// A tar through zlib.
    Zlib,
    /// A tar through Zstandard, in frames that can be read alone.
    Zstd,
}

/// Bytes that tell the form: a tar's magic is at 257.
pub(crate) const HEAD_BYTES: usize = 512;

impl Form {
    /// All forms, for help texts.
    pub const ALL: [Self; 6] = [
        Self::Directory,
        Self::Tar,
        Self::Gzip,
        Self::Lz4,
        Self::Zlib,
        Self::Zstd,
    ];

    /// The word for it on a command line and in settings.
    pub fn word(self) -> &'static str {
        match self {
            Self::Directory => "none",
            Self::Tar => "tar",
            Self::Gzip => "gzip",
            Self::Lz4 => "lz4",
            Self::Zlib => "zlib",
            Self::Zstd => "zstd",
        }
    }

    /// What a file name of this form ends with; nothing for a directory.
    pub fn suffix(self) -> &'static str {
        match self {
            Self::Directory => "",
            Self::Tar => ".tar",
            Self::Gzip => ".tar.gz",
            Self::Lz4 => ".tar.lz4",
            Self::Zlib => ".tar.zlib",
            Self::Zstd => ".tar.zst",
        }
    }

    /// The form that a word means; `gz` and `zst` are understood too.
    pub fn parse(word: &str) -> Option<Self> {
        match word {
            "gz" => Some(Self::Gzip),
            "zst" => Some(Self::Zstd),
            _ => Self::ALL.into_iter().find(|form| form.word() == word),
        }
    }
}

impl fmt::Display for Form {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.word())
    }
}

/// The form of what is at a path, by its content: a name proves nothing. Symlinks to it are followed, as it is
/// somebody's own path.
pub fn detect(path: &Path) -> Result<Form, ArchiveError> {
    let failed = |error| ArchiveError::storage("read", path, error);
    let kind = std::fs::metadata(path).map_err(failed)?.file_type();
    if kind.is_dir() {
        return Ok(Form::Directory);
    }
    if kind.is_fifo() || kind.is_socket() || kind.is_char_device() || kind.is_block_device() {
        return Err(ArchiveError::Unsupported {
            path: path.to_owned(),
            what: "neither a directory nor a file".into(),
        });
    }
    let mut head = Vec::with_capacity(HEAD_BYTES);
    let file = File::open(path).map_err(failed)?;
    let read = file.take(HEAD_BYTES as u64).read_to_end(&mut head);
    let _bytes = read.map_err(failed)?;
    of_head(&head).map_err(|what| ArchiveError::Unsupported {
        path: path.to_owned(),
        what: what.into(),
    })
}

/// The form by a file's first bytes, or what it is instead.
pub(crate) fn of_head(head: &[u8]) -> Result<Form, &'static str> {
    match head {
        [] => Err("an empty file"),
        [0x1f, 0x8b, ..] => Ok(Form::Gzip),
        [0x04, 0x22, 0x4d, 0x18, ..] => Ok(Form::Lz4),
        // A skippable frame may stand first; it is Zstandard's or LZ4's, and only the former puts one there.
        [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Ok(Form::Zstd),
        _ if head.get(257..262) == Some(b"ustar") => Ok(Form::Tar),
        [b'B', b'Z', b'h', ..] => {
            Err("compressed by bzip2, which is not supported: unpack it with `bunzip2`")
        }
        [0xfd, b'7', b'z', b'X', b'Z', ..] => {
            Err("compressed by xz, which is not supported: unpack it with `unxz`")
        }
        // Two bytes only, so it stands last: deflate, a window of at most 32 KiB, and a multiple of 31.
        [method, flags, ..]
            if method & 0x0f == 8 && method >> 4 <= 7 && u16::from_be_bytes([*method, *flags]) % 31 == 0 =>
        {
            Ok(Form::Zlib)
        }
        _ => Err("not an archive of a checkpoint"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_suffixes_are_one_to_one() {
        for form in Form::ALL {
            assert_eq!(Form::parse(form.word()), Some(form));
            let sharing = Form::ALL.iter().filter(|other| other.suffix() == form.suffix());
            assert_eq!(sharing.count(), 1, "{form}");
        }
        assert_eq!(Form::parse("gz"), Some(Form::Gzip));
        assert_eq!(Form::parse("zst"), Some(Form::Zstd));
        for word in ["", "ZSTD", "xz", "directory"] {
            assert_eq!(Form::parse(word), None, "{word}");
        }
    }

    #[test]
    fn the_first_bytes_tell_the_form() {
        let mut tar = vec![0; 512];
        tar[257..262].copy_from_slice(b"ustar");
        for (head, form) in [
            (&tar[..], Ok(Form::Tar)),
            (&[0x1f, 0x8b, 8, 0], Ok(Form::Gzip)),
            (&[0x04, 0x22, 0x4d, 0x18], Ok(Form::Lz4)),
            (&[0x28, 0xb5, 0x2f, 0xfd], Ok(Form::Zstd)),
            (&[0x5e, 0x2a, 0x4d, 0x18], Ok(Form::Zstd)),
            (&[0x78, 0x9c], Ok(Form::Zlib)),
            (&[0x78, 0x01], Ok(Form::Zlib)),
            (&[0x78, 0x02], Err("not an archive of a checkpoint")),
            (&[], Err("an empty file")),
            (b"hello, world", Err("not an archive of a checkpoint")),
            (&[0; 512], Err("not an archive of a checkpoint")),
        ] {
            assert_eq!(of_head(head), form, "{:?}", &head[..head.len().min(8)]);
        }
        assert!(of_head(b"BZh91AY").is_err());
    }

    #[test]
    fn what_is_no_file_is_said() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(detect(dir.path()).unwrap(), Form::Directory);
        assert!(matches!(
            detect(&dir.path().join("none")),
            Err(ArchiveError::Storage { .. })
        ));
        assert!(matches!(
            detect(Path::new("/dev/null")),
            Err(ArchiveError::Unsupported { .. })
        ));
    }
}
