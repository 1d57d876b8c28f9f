//! Small files that several processes read and write at once: seen whole or not at all, and read up to a limit.
//!
//! A file is written under a temporary name and renamed. It is not synced: after a power cut the processes it speaks of
//! are gone, and a sync would cost every container milliseconds.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use nix::fcntl::OFlag;

/// Of the directories: what runs on a machine is not everybody's business.
const DIRECTORY_MODE: u32 = 0o700;

/// Makes temporary names differ within a process; its pid does between processes.
static SERIAL: AtomicU64 = AtomicU64::new(0);

/// What tells that a file is another one than at the last look, without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// A rename brings another inode.
    pub inode: u64,
    /// Last change of its bytes, in nanoseconds since 1970: inode numbers are used again.
    pub changed_nano: i64,
    /// Its bytes.
    pub size: u64,
}

impl Stamp {
    /// The stamp of a file.
    pub fn of(metadata: &std::fs::Metadata) -> Self {
        Self {
            inode: metadata.ino(),
            changed_nano: metadata
                .mtime()
                .saturating_mul(1_000_000_000)
                .saturating_add(metadata.mtime_nsec()),
            size: metadata.size(),
        }
    }
}

/// Whether a name is one of a file that is being written, or was when its writer died.
pub fn is_temporary(name: &str) -> bool {
    name.starts_with('.')
}

/// A name beside `name` that nobody else uses.
pub fn temporary(directory: &Path, name: &str) -> PathBuf {
    let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
    directory.join(format!(".{name}.{}.{serial}", std::process::id()))
}

/// Puts a file there, in place of one that is there. Makes the directory.
pub fn replace(directory: &Path, name: &str, bytes: &[u8], mode: u32) -> io::Result<Stamp> {
    put(directory, name, bytes, mode, |from, to| std::fs::rename(from, to))
}

/// Puts a file there; one that is there is an error, `AlreadyExists`. Makes the directory.
pub fn create(directory: &Path, name: &str, bytes: &[u8], mode: u32) -> io::Result<Stamp> {
    put(directory, name, bytes, mode, move_without_replacing)
}

/// Renames a file, unless there is one of the new name.
pub fn move_without_replacing(from: &Path, to: &Path) -> io::Result<()> {
    std::fs::hard_link(from, to)?;
    std::fs::remove_file(from)
}

fn put(
    directory: &Path,
    name: &str,
    bytes: &[u8],
    mode: u32,
    place: impl Fn(&Path, &Path) -> io::Result<()>,
) -> io::Result<Stamp> {
    let temporary = temporary(directory, name);
    let mut file = match open_new(&temporary, mode) {
        Err(e) if e.kind() == ErrorKind::NotFound => {
            DirBuilder::new()
                .recursive(true)
                .mode(DIRECTORY_MODE)
                .create(directory)?;
            open_new(&temporary, mode)?
        }
        opened => opened?,
    };
    let done = file
        .write_all(bytes)
        .and_then(|()| file.metadata())
        .and_then(|metadata| place(&temporary, &directory.join(name)).map(|()| Stamp::of(&metadata)));
    if done.is_err() {
        // The first error is the one to tell; what stays of this is swept later.
        drop(std::fs::remove_file(&temporary));
    }
    done
}

fn open_new(path: &Path, mode: u32) -> io::Result<File> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)
}

/// Why a file was not read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// It is longer than the limit.
    #[error("it is larger than {0} bytes")]
    TooLarge(u64),
    /// It is a directory, a fifo, a link …
    #[error("it is not a plain file")]
    NotAFile,
    /// The system refused.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Reads a file of `bytes_max` at most; none if there is none. Links are not followed, and a fifo is not waited for.
pub fn read(path: &Path, bytes_max: u64) -> Result<Option<(Vec<u8>, Stamp)>, ReadError> {
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
    let file = match OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits())
        .open(path)
    {
        Ok(file) => file,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        Err(e) if e.raw_os_error() == Some(nix::errno::Errno::ELOOP as i32) => {
            return Err(ReadError::NotAFile);
        }
        Err(e) => return Err(e.into()),
    };
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(ReadError::NotAFile);
    }
    if metadata.len() > bytes_max {
        return Err(ReadError::TooLarge(bytes_max));
    }
    let mut bytes = Vec::with_capacity(usize::try_from(metadata.len()).unwrap_or_default());
    let read = file.take(bytes_max.saturating_add(1)).read_to_end(&mut bytes)?;
    if u64::try_from(read).unwrap_or(u64::MAX) > bytes_max {
        return Err(ReadError::TooLarge(bytes_max));
    }
    Ok(Some((bytes, Stamp::of(&metadata))))
}
