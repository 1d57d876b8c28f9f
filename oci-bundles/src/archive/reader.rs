//! The bytes of a tar to entries. Nothing here touches a disk, and nothing in the tar is believed: each number is
//! bounded before it is used, and what two readers could understand differently is refused.

use std::ffi::OsString;
use std::io::{self, Read};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use tar::{EntryType, Header};

use super::ArchiveError;
use super::entry::{Entry, Kind, Span, plain_path};
use super::extended::{Extended, ExtendedError};
use super::limits::{EXTENDED_BYTES_MAX, PATH_BYTES_MAX, TAIL_BYTES_MAX};
use super::solid::is_zero;
use super::sparse::{OldMap, TextMap};
use super::writer::{BLOCK_BYTES, padding};

/// Extended headers that may stand before one entry: a global one, a name, a link's target, the rest.
const EXTENDED_COUNT_MAX: usize = 8;

/// Why a tar could not be read on.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// Reading or decompressing failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// It is not a whole tar.
    #[error("{0}")]
    Damaged(String),
    /// An entry that is not taken.
    #[error("entry {entry:?}: {why}")]
    Refused {
        /// Its name, shortened.
        entry: String,
        /// Why not.
        why: &'static str,
    },
    /// There is too much of something.
    #[error("more than {limit} {what}")]
    TooLarge {
        /// Of what.
        what: &'static str,
        /// What is allowed.
        limit: u64,
    },
}

impl ReadError {
    /// An entry that is not taken.
    pub fn refused(entry: &Path, why: &'static str) -> Self {
        Self::Refused {
            entry: shown(entry),
            why,
        }
    }

    /// The same, about an archive.
    pub fn of(self, archive: &Path) -> ArchiveError {
        let path = archive.to_owned();
        match self {
            // A number from the kernel is about the disk; all else is what decompressors say about what they got.
            Self::Io(source) if source.raw_os_error().is_some() => ArchiveError::Storage {
                action: "read",
                path,
                source,
            },
            Self::Io(source) => ArchiveError::damaged(archive, format!("damaged: {source}")),
            Self::Damaged(what) => ArchiveError::damaged(archive, format!("damaged: {what}")),
            Self::Refused { entry, why } => ArchiveError::Refused { path, entry, why },
            Self::TooLarge { what, limit } => ArchiveError::TooLarge { path, what, limit },
        }
    }
}

/// A name as it is shown: a hostile one must not fill a terminal.
fn shown(name: &Path) -> String {
    const CHARS_MAX: usize = 80;
    let text = name.to_string_lossy();
    match text.char_indices().nth(CHARS_MAX) {
        Some((at, _)) => format!("{}…", text.get(..at).unwrap_or_default()),
        None => text.into_owned(),
    }
}

/// Reads a tar.
pub struct Reader<R> {
    input: R,
    /// Bytes of the current entry's data not read yet.
    rest: u64,
    /// What follows them up to the next header.
    padding: usize,
}

impl<R: Read> Reader<R> {
    /// A tar that comes from there.
    pub fn new(input: R) -> Self {
        Self {
            input,
            rest: 0,
            padding: 0,
        }
    }

    /// Where it comes from.
    #[cfg(feature = "archive")]
    pub fn input(&self) -> &R {
        &self.input
    }

    /// The next entry; data of the one before that was not read is passed over. Nothing at the end, which is
    /// checked to be one.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, ReadError> {
        self.skip()?;
        let mut extended = Extended::default();
        for _ in 0..=EXTENDED_COUNT_MAX {
            let Some(header) = self.header()? else {
                if extended != Extended::default() {
                    return Err(ReadError::Damaged("it ends with an extended header".into()));
                }
                return self.tail().map(|()| None);
            };
            let size = number("size", header.entry_size())?;
            match header.entry_type() {
                EntryType::XHeader => extended.read(&self.small(size)?).map_err(of_extended)?,
                EntryType::XGlobalHeader => {
                    let mut global = Extended::default();
                    global.read(&self.small(size)?).map_err(of_extended)?;
                    // A comment, as `git archive` writes one, is all that has been seen there.
                    if global != Extended::default() {
                        return Err(ReadError::Damaged("a global header that names files".into()));
                    }
                }
                EntryType::GNULongName => extended.path = Some(self.long_name(size)?),
                EntryType::GNULongLink => extended.link = Some(self.long_name(size)?),
                _ => return self.entry(&header, size, extended).map(Some),
            }
        }
        Err(ReadError::Damaged("too many extended headers in a row".into()))
    }

    /// Reads of the current entry's data; nothing at its end.
    pub fn data(&mut self, buffer: &mut [u8]) -> Result<usize, ReadError> {
        let wanted = buffer.len().min(usize::try_from(self.rest).unwrap_or(usize::MAX));
        let count = self.input.read(buffer.get_mut(..wanted).unwrap_or_default())?;
        if count == 0 && wanted > 0 {
            return Err(cut());
        }
        self.rest -= count as u64;
        Ok(count)
    }

    /// Has the input pass over what is left of the current entry's data in a way of its own.
    #[cfg(feature = "archive")]
    pub fn pass(&mut self, pass: impl FnOnce(&mut R, u64) -> io::Result<()>) -> Result<(), ReadError> {
        pass(&mut self.input, self.rest)?;
        self.rest = 0;
        Ok(())
    }

    /// Passes over what is left of the current entry.
    pub fn skip(&mut self) -> Result<(), ReadError> {
        let mut buffer = vec![0; 64 << 10];
        while self.rest > 0 {
            let _count = self.data(&mut buffer)?;
        }
        let mut block = [0; BLOCK_BYTES];
        let padding = std::mem::take(&mut self.padding);
        self.exactly(block.get_mut(..padding).unwrap_or_default())
    }

    fn exactly(&mut self, buffer: &mut [u8]) -> Result<(), ReadError> {
        self.input.read_exact(buffer).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => cut(),
            _ => error.into(),
        })
    }

    /// The next header, its checksum tested; nothing for a block of zeros, which ends a tar.
    fn header(&mut self) -> Result<Option<Header>, ReadError> {
        let mut header = Header::new_old();
        self.exactly(header.as_mut_bytes())?;
        if is_zero(header.as_bytes()) {
            return Ok(None);
        }
        let sum = header.as_bytes().iter().enumerate().map(|(at, byte)| match at {
            // The checksum's own field counts as spaces.
            148..156 => u32::from(b' '),
            _ => u32::from(*byte),
        });
        if number("checksum", header.cksum())? != sum.sum::<u32>() {
            return Err(ReadError::Damaged("a header with a wrong checksum".into()));
        }
        Ok(Some(header))
    }

    /// What follows the block that ends a tar: zeros to the end of the record, and then nothing.
    fn tail(&mut self) -> Result<(), ReadError> {
        let mut buffer = vec![0; 16 << 10];
        let mut total = 0u64;
        loop {
            let count = self.input.read(&mut buffer)?;
            if count == 0 {
                return Ok(());
            }
            total += count as u64;
            if total > TAIL_BYTES_MAX || !is_zero(buffer.get(..count).unwrap_or_default()) {
                return Err(ReadError::Damaged("something follows its end".into()));
            }
        }
    }

    /// The data of an extended header.
    fn small(&mut self, size: u64) -> Result<Vec<u8>, ReadError> {
        if size > EXTENDED_BYTES_MAX {
            return Err(ReadError::TooLarge {
                what: "bytes of an extended header",
                limit: EXTENDED_BYTES_MAX,
            });
        }
        let mut data = vec![0; size as usize];
        self.exactly(&mut data)?;
        self.padding = padding(size);
        self.skip()?;
        Ok(data)
    }

    /// A name too long for a header, in GNU tar's older way.
    fn long_name(&mut self, size: u64) -> Result<PathBuf, ReadError> {
        let mut name = self.small(size)?;
        if name.last() == Some(&0) {
            let _zero = name.pop();
        }
        if name.len() > PATH_BYTES_MAX {
            return Err(ReadError::Damaged("a name that is too long".into()));
        }
        Ok(OsString::from_vec(name).into())
    }

    fn entry(&mut self, header: &Header, size: u64, extended: Extended) -> Result<Entry, ReadError> {
        let said = match extended.path {
            Some(path) => path,
            None => OsString::from_vec(header.path_bytes().into_owned()).into(),
        };
        let path = plain_path(&said).map_err(|why| ReadError::refused(&said, why))?;
        let refuse = |why| ReadError::refused(&said, why);
        let link = extended.link.or_else(|| {
            let link = header.link_name_bytes()?;
            Some(OsString::from_vec(link.into_owned()).into())
        });
        let kind = kind(header, &said, link).map_err(refuse)?;
        let stored = extended.size.unwrap_or(size);
        if kind != Kind::File && (stored > 0 || extended.sparse.is_some()) {
            return Err(refuse("it has data, and is no file"));
        }
        if kind != Kind::Directory && path.as_os_str().is_empty() {
            return Err(refuse("it has no name"));
        }
        self.rest = stored;
        self.padding = padding(stored);
        let narrow = |id: u64| u32::try_from(id).map_err(|_| refuse("its owner is out of range"));
        let mut entry = Entry {
            path,
            kind,
            mode: number("mode", header.mode())? & 0o7777,
            uid: narrow(extended.uid.map_or_else(|| number("owner", header.uid()), Ok)?)?,
            gid: narrow(extended.gid.map_or_else(|| number("group", header.gid()), Ok)?)?,
            mtime: match extended.mtime {
                Some(mtime) => mtime,
                None => (
                    i64::try_from(number("time", header.mtime())?).unwrap_or(i64::MAX),
                    0,
                ),
            },
            size: stored,
            parts: None,
            xattrs: extended.xattrs,
        };
        let of_map = |error: Option<ReadError>| error.unwrap_or_else(|| refuse("its map of holes is wrong"));
        if let Some(real) = extended.sparse {
            entry.size = real;
            entry.parts = Some(self.sparse_map(real).map_err(of_map)?);
        } else if header.entry_type() == EntryType::GNUSparse {
            let (real, parts) = self.old_sparse_map(header).map_err(of_map)?;
            (entry.size, entry.parts) = (real, Some(parts));
        }
        Ok(entry)
    }

    /// The map before a sparse file's data, in whole blocks. `None` is a map that makes no sense.
    fn sparse_map(&mut self, size: u64) -> Result<Vec<Span>, Option<ReadError>> {
        let mut map = TextMap::default();
        loop {
            let mut block = [0; BLOCK_BYTES];
            self.rest = self.rest.checked_sub(BLOCK_BYTES as u64).ok_or(None)?;
            self.exactly(&mut block).map_err(Some)?;
            if map.take(&block).ok_or(None)? {
                return map.spans(size, self.rest).ok_or(None);
            }
        }
    }

    /// The map of GNU tar's older format: in the header, and in blocks after it that its size does not count.
    fn old_sparse_map(&mut self, header: &Header) -> Result<(u64, Vec<Span>), Option<ReadError>> {
        let (mut map, mut goes_on) = OldMap::of(header).ok_or(None)?;
        while goes_on {
            let mut block = [0; BLOCK_BYTES];
            self.exactly(&mut block).map_err(Some)?;
            goes_on = map.take(&block).ok_or(None)?;
        }
        map.spans(self.rest).ok_or(None)
    }
}

/// What an entry is; what is not known is no entry.
fn kind(header: &Header, said: &Path, link: Option<PathBuf>) -> Result<Kind, &'static str> {
    let device = || {
        let major = header.device_major().ok().flatten();
        let minor = header.device_minor().ok().flatten();
        major.zip(minor).ok_or("its device number is not one")
    };
    Ok(match header.entry_type() {
        // Before POSIX a directory was a file whose name ends so.
        EntryType::Regular if said.as_os_str().as_encoded_bytes().ends_with(b"/") => Kind::Directory,
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => Kind::File,
        EntryType::Directory => Kind::Directory,
        EntryType::Symlink => {
            let target = link.filter(|target| !target.as_os_str().is_empty());
            let target = target.ok_or("a link to nothing")?;
            let bytes = target.as_os_str().as_encoded_bytes();
            if bytes.len() > PATH_BYTES_MAX || bytes.contains(&0) {
                return Err("its target is not a path");
            }
            Kind::Symlink(target)
        }
        EntryType::Link => Kind::HardLink(plain_path(&link.ok_or("a link to nothing")?)?),
        EntryType::Char => device().map(|(major, minor)| Kind::CharDevice(major, minor))?,
        EntryType::Block => device().map(|(major, minor)| Kind::BlockDevice(major, minor))?,
        EntryType::Fifo => Kind::Fifo,
        _ => return Err("its type is not known"),
    })
}

fn number<T>(field: &'static str, value: io::Result<T>) -> Result<T, ReadError> {
    value.map_err(|_| ReadError::Damaged(format!("a header whose {field} is no number")))
}

fn of_extended(error: ExtendedError) -> ReadError {
    ReadError::Damaged(error.to_string())
}

fn cut() -> ReadError {
    ReadError::Damaged("it is cut".into())
}
