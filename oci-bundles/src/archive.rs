//! A checkpoint as one file: its directory packed into a tar, compressed or not, and taken out again.
//!
//! ```text
//!  <dir>/...  --tree--> entries --writer--> tar --encode--> .<name>.partial-<pid> --sync, read back, rename--> <name>
//!  <name>     --decode--> tar --reader--> entries --place--> .<name>.partial-<pid>/ --rename--> <dest>/
//!  <name>     --tape--> a stretch of the memory in it, where that was left (left)
//! ```
//!
//! Invariants:
//! - an archive is foreign input: nothing in it is followed out of the directory that it is unpacked into, every
//!   size is bounded before memory or disk is given to it, and devices, fifos and sockets are refused;
//! - packing and unpacking are seen whole or not at all: what failed or was given up has left nothing;
//! - an archive of files that `pack` returned was read back and decoded, and every file in it had the digest it had
//!   when it went in;
//! - what we write, the ordinary tools read: `tar --zstd -x`, `tar -xz`, `lz4 -d | tar -x`;
//! - memory is bounded by the number of processors, never by the size of what is packed.

#[cfg(feature = "archive")]
pub mod form;

#[cfg(feature = "archive")]
mod contents;
#[cfg(feature = "archive")]
mod crew;
#[cfg(feature = "archive")]
mod decode;
#[cfg(feature = "archive")]
mod encode;
pub(crate) mod entry;
mod extended;
#[cfg(feature = "archive")]
pub(crate) mod frames;
#[cfg(feature = "archive")]
mod held;
#[cfg(feature = "archive")]
mod left;
pub(crate) mod limits;
#[cfg(feature = "archive")]
pub(crate) mod out;
#[cfg(feature = "archive")]
pub(crate) mod pack;
#[cfg(feature = "archive")]
pub(crate) mod partial;
pub(crate) mod place;
pub(crate) mod reader;
pub(crate) mod solid;
mod sparse;
#[cfg(feature = "archive")]
mod tape;
#[cfg(feature = "archive")]
pub(crate) mod tree;
#[cfg(feature = "archive")]
mod unpack;
pub(crate) mod writer;

#[cfg(feature = "archive")]
#[cfg(test)]
mod hostile;
#[cfg(feature = "archive")]
#[cfg(test)]
mod tests;

use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

#[cfg(feature = "archive")]
pub use contents::{Content, Contents};
pub use entry::Span;
#[cfg(feature = "archive")]
pub use form::{Form, detect};
#[cfg(feature = "archive")]
pub use held::{Held, pack_held};
#[cfg(feature = "archive")]
pub use left::Left;
pub use limits::Limits;
#[cfg(feature = "archive")]
pub use pack::{Packed, Part, pack};
#[cfg(feature = "archive")]
pub use partial::sweep;
#[cfg(feature = "archive")]
pub use tape::TapeError;
#[cfg(feature = "archive")]
pub use unpack::{Unpacked, read_file, read_files, unpack, unpack_without_memory, verify};

/// How far packing or unpacking has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// What it is at.
    pub step: Step,
    /// Bytes done of this step.
    pub done: u64,
    /// Bytes that this step has to do: of files while packing, of the archive otherwise.
    pub total: u64,
}

/// What packing or unpacking is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Files go into the archive.
    Pack,
    /// The archive is read back.
    Verify,
    /// Files come out of the archive.
    Unpack,
}

/// Is told of progress every few hundred kilobytes, on the caller's own thread. `Break` gives up: everything is
/// undone and [`ArchiveError::Cancelled`] returned.
pub type OnProgress<'a> = dyn FnMut(Progress) -> ControlFlow<()> + 'a;

pub(crate) fn tell(on_progress: &mut OnProgress<'_>, progress: Progress) -> Result<(), ArchiveError> {
    match on_progress(progress) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(ArchiveError::Cancelled),
    }
}

/// Why an archive could not be made or used.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The disk or the kernel did not do it; [`ArchiveError::is_full`] tells whether room would help.
    #[error("{action} {}: {source}", path.display())]
    Storage {
        /// What was tried: "read", "write", "create", …
        action: &'static str,
        /// The path that it was about.
        path: PathBuf,
        /// What the kernel answered.
        source: io::Error,
    },
    /// Something is at the destination already.
    #[error("write {}: it exists", path.display())]
    Exists {
        /// The destination.
        path: PathBuf,
    },
    /// No archive, or one of a form that we do not read.
    #[error("read {}: {what}", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// What it is, as far as can be told.
        what: String,
    },
    /// The archive is not as it was written: cut, overwritten, or never whole. Another copy may be good.
    #[error("read {}: {what}", path.display())]
    Damaged {
        /// The archive.
        path: PathBuf,
        /// What is wrong, and where.
        what: String,
    },
    /// An entry that no checkpoint has: somebody made this archive to do harm, or it is something else.
    #[error("unpack {}: entry {entry:?}: {why}", path.display())]
    Refused {
        /// The archive.
        path: PathBuf,
        /// The entry's name, shortened.
        entry: String,
        /// Why it is not unpacked.
        why: &'static str,
    },
    /// It is larger than a limit allows; who trusts it may raise the limit.
    #[error("unpack {}: more than {limit} {what}", path.display())]
    TooLarge {
        /// The archive.
        path: PathBuf,
        /// What there is too much of.
        what: &'static str,
        /// The limit.
        limit: u64,
    },
    /// A file cannot go into an archive.
    #[error("pack {}: {why}", path.display())]
    Unpackable {
        /// The file.
        path: PathBuf,
        /// Why not.
        why: String,
    },
    /// Whoever watches the progress gave up.
    #[error("go on: given up")]
    Cancelled,
}

impl ArchiveError {
    pub(crate) fn storage(action: &'static str, path: &Path, source: impl Into<io::Error>) -> Self {
        Self::Storage {
            action,
            path: path.to_owned(),
            source: source.into(),
        }
    }

    pub(crate) fn damaged(path: &Path, what: impl Into<String>) -> Self {
        Self::Damaged {
            path: path.to_owned(),
            what: what.into(),
        }
    }

    /// More room would help.
    pub fn is_full(&self) -> bool {
        use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
        matches!(self, Self::Storage { source, .. } if matches!(source.kind(), StorageFull | QuotaExceeded | FileTooLarge))
    }
}
