//! Memory that is left in an archive: the rest of it is unpacked, and who wants the memory reads it where it is.
//!
//! ```text
//!   unpack_without_memory   archive --> <root>/..., and what is left: of which archive, and where in its tar each file begins
//!   Left::open              --> a Content for each, to be read anywhere; frames are decompressed, and compared, as they are read
//!   Contents::make          --> a file at its place in <root>, whole, or with holes where nobody will read it
//! ```
//!
//! What is left is told beside what was unpacked, never in it: an archive cannot say that its memory is in a file of this machine.
//! It is one archive from the first look to the last: another file under its name, and one that was written to since, are refused;
//! so is whatever is read of one that was written to after it was opened.

use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::fcntl::OFlag;
use serde::{Deserialize, Serialize};

use super::ArchiveError;
use super::contents::{Content, Contents};
use super::entry::{Entry, Kind};
use super::form::Form;
use super::tape::Tape;
use crate::layout::Shape;

/// Smaller files are unpacked: that takes less than to ask for them.
const BYTES_MIN: u64 = 1 << 20;

/// Files that are left at most; the others are unpacked. Each process has one.
const FILES_MAX: usize = 4096;

/// The most that such a list takes: a name of an image is short.
const LIST_BYTES_MAX: u64 = 2 << 20;

const SCHEMA: u32 = 1;

/// Which file it was, and in which state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    /// When it was written to: seconds since 1970 and nanoseconds.
    modified: (i64, i64),
    /// The same of anything about it, which nobody can set; to remove one of its names is such a change, too.
    changed: (i64, i64),
}

impl Stamp {
    pub fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    /// Its bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Whether the same file was not written to since. It may have lost its name.
    pub fn has_same_content(&self, before: &Self) -> bool {
        (self.size, self.modified) == (before.size, before.modified)
    }
}

/// A file that is left.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct LeftFile {
    path: PathBuf,
    size: u64,
    /// Where its entry begins, in the tar.
    at: u64,
}

/// What is to be left while an archive is unpacked.
#[derive(Debug, Default)]
pub struct Leaving {
    files: Vec<LeftFile>,
    bytes: u64,
    bytes_max: u64,
}

impl Leaving {
    /// No more than that is left: what is unpacked is weighed, and an archive that claims to give more than it can is refused so.
    pub fn up_to(bytes_max: u64) -> Self {
        Self {
            bytes_max,
            ..Self::default()
        }
    }

    /// Whether this file is left: large, and by its name the memory of a process.
    pub fn takes(&self, entry: &Entry) -> bool {
        entry.kind == Kind::File
            && entry.size >= BYTES_MIN
            && self.files.len() < FILES_MAX
            && self.bytes.saturating_add(entry.size) <= self.bytes_max
            && is_memory(&entry.path)
    }

    /// Whether a file of that name was left.
    pub fn has(&self, path: &Path) -> bool {
        self.files.iter().any(|file| file.path == path)
    }

    /// Leaves a file that begins there.
    pub fn take(&mut self, entry: Entry, at: u64) {
        self.bytes += entry.size;
        self.files.push(LeftFile {
            path: entry.path,
            size: entry.size,
            at,
        });
    }

    /// What is left of that archive beside what was unpacked to a directory.
    pub fn from(self, (archive, form, stamp): (&Path, Form, Stamp), root: &Path) -> Left {
        Left {
            schema: SCHEMA,
            archive: archive.to_owned(),
            form: form.word().to_owned(),
            stamp,
            root: root.to_owned(),
            files: self.files,
        }
    }
}

/// CRIU's `pages-N.img`, where images lie.
fn is_memory(path: &Path) -> bool {
    let name = path
        .file_name()
        .and_then(|name| name.to_str())
        .unwrap_or_default();
    let number = name
        .strip_prefix("pages-")
        .and_then(|rest| rest.strip_suffix(".img"));
    number.is_some_and(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
        && Shape::ALL.iter().any(|shape| shape.image(name) == path)
}

/// What was left in an archive. It is kept in a file that nobody can write whom the archive is not read for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Left {
    schema: u32,
    archive: PathBuf,
    form: String,
    stamp: Stamp,
    /// Where the rest was unpacked to.
    root: PathBuf,
    files: Vec<LeftFile>,
}

impl Left {
    /// Nothing is.
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// Its bytes.
    pub fn bytes(&self) -> u64 {
        self.files
            .iter()
            .fold(0, |sum, file| sum.saturating_add(file.size))
    }

    /// The bytes of one of them, by its name in the archive.
    pub fn size(&self, path: &Path) -> Option<u64> {
        let file = self.files.iter().find(|file| file.path == path);
        file.map(|file| file.size)
    }

    /// Writes the list into a new file.
    ///
    /// # Errors
    /// What the disk says.
    pub fn write(&self, path: &Path) -> Result<(), ArchiveError> {
        let failed = |error: io::Error| ArchiveError::storage("write", path, error);
        let made = File::options()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path);
        serde_json::to_writer(made.map_err(failed)?, self).map_err(|error| failed(error.into()))
    }

    /// Reads a list that [`Left::write`] has made.
    ///
    /// # Errors
    /// What the disk says; it is none, or one of a later version.
    pub fn read(path: &Path) -> Result<Self, ArchiveError> {
        let failed = |error: io::Error| ArchiveError::storage("read", path, error);
        let mut bytes = Vec::new();
        let file = File::open(path).map_err(failed)?;
        let _count = file
            .take(LIST_BYTES_MAX)
            .read_to_end(&mut bytes)
            .map_err(failed)?;
        let left: Self = serde_json::from_slice(&bytes).map_err(|error| failed(error.into()))?;
        match left.schema {
            SCHEMA => Ok(left),
            _ => Err(ArchiveError::Unsupported {
                path: path.to_owned(),
                what: format!("schema {}, and {SCHEMA} is known", left.schema),
            }),
        }
    }

    /// Opens what is left, of the same archive as it was.
    ///
    /// # Errors
    /// It cannot be read, is another one by now, or was written to.
    pub fn open(&self) -> Result<Contents, ArchiveError> {
        let archive = &self.archive;
        let failed = |error: io::Error| ArchiveError::storage("read", archive, error);
        // Whatever has come to its name since, nobody waits for it.
        let flags = OFlag::O_NONBLOCK.bits();
        let file = File::options()
            .read(true)
            .custom_flags(flags)
            .open(archive)
            .map_err(failed)?;
        if Stamp::of(&file.metadata().map_err(failed)?) != self.stamp {
            return Err(ArchiveError::damaged(
                archive,
                "it was changed while it was restored from",
            ));
        }
        let form = Form::ALL.into_iter().find(|form| form.word() == self.form);
        let tape = match form {
            Some(form) => Tape::new(form, file, self.stamp).map_err(failed)?,
            None => None,
        };
        let tape = Arc::new(tape.ok_or_else(|| failed(io::ErrorKind::Unsupported.into()))?);
        let files = self.files.iter().map(|file| {
            let content = Content::find(&tape, &file.path, file.size, file.at);
            let content = content.map_err(|error| error.of(archive))?;
            Ok((file.path.clone(), Arc::new(content)))
        });
        let files = files.collect::<Result<_, ArchiveError>>()?;
        Ok(Contents::new(archive, &self.root, files))
    }
}

#[cfg(test)]
mod tests;
