//! Files that CRIU does not save: the writable layer, and `/dev/shm` where the client mounts it from the host.
//!
//! ```text
//!   save-files       the overlay's upper directory --> rootfs-diff.tar, deleted.files      (while the container stands)
//!                    the host's side of /dev/shm   --> devshm-checkpoint.tar
//!   put-back-files   such a tar --> an upper directory, a root file system, a /dev/shm      (before CRIU restores)
//!                    another engine's, and its list of what is deleted --> a root file system
//! ```
//!
//! Invariants: the paths of an order are the shim's and those of the live request, never of a checkpoint; what is in a tar may be
//! anybody's, and stays where it is put ([`oci_bundles::rootfs`]).

mod layer;
mod put_back;
mod save;
pub(crate) mod shm;

use std::path::PathBuf;

use oci_bundles::rootfs::Tree;
use serde::{Deserialize, Serialize};

pub(super) use put_back::put_back;
pub(super) use save::save;

/// The kinds of worker.
pub(crate) const SAVE: &str = "save-files";
pub(crate) const PUT_BACK: &str = "put-back-files";

/// What is to be saved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SaveOrder {
    /// The container's init.
    pub init: i32,
    /// Its bundle.
    pub bundle: PathBuf,
    /// Where the parts go.
    pub root: PathBuf,
    /// Its writable layer is wanted.
    pub layer: bool,
    /// Its `/dev/shm` is, if the client mounts that.
    pub shm: bool,
}

/// What was saved.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Saved {
    /// The writable layer.
    pub layer: bool,
    /// Why it was not, though it was wanted.
    pub no_layer: Option<String>,
    /// How many files of it cannot be said in it.
    pub unsayable: u64,
    /// The first of them, for people, as the container calls them.
    pub names: Vec<String>,
    /// `/dev/shm`.
    pub shm: bool,
    /// Why it was not.
    pub no_shm: Option<String>,
    /// Bytes of files in both.
    pub bytes: u64,
}

/// What is to be put back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PutBackOrder {
    /// The tar; none where only something is deleted.
    pub tar: Option<PathBuf>,
    /// A [list](oci_bundles::rootfs::deleted) of what goes after that.
    pub deleted: Option<PathBuf>,
    /// Where its files go.
    pub to: PathBuf,
    /// What that is.
    pub into: Into,
    /// The bundle, in which stands what devices the container may have.
    pub bundle: PathBuf,
}

/// Where files are put.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Into {
    /// A fresh upper directory, whose overlay is not mounted.
    Upper,
    /// A root file system that is.
    Merged,
    /// The same, and the tar is another engine's.
    Foreign,
    /// A file system in memory, which is emptied first.
    Memory,
    /// A directory on one that is not the container's alone, of which it may take half of what is free. Emptied first.
    Share,
}

impl Into {
    fn tree(self) -> Tree {
        match self {
            Self::Upper => Tree::Upper,
            Self::Merged => Tree::Merged,
            Self::Foreign => Tree::Listed,
            Self::Memory | Self::Share => Tree::Own,
        }
    }
}

/// What was put back.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PutBack {
    /// Bytes of files.
    pub bytes: u64,
    /// How many devices were left out that the container may not have.
    pub left_out: u64,
    /// The first of them, for people: an answer has an end, and a name need not be text.
    pub names: Vec<String>,
}

/// Names told of devices that are left out.
pub(super) const NAMES_MAX: usize = 5;

/// The first of these, as text.
pub(super) fn some(paths: &[PathBuf]) -> Vec<String> {
    let names = paths.iter().take(NAMES_MAX);
    names.map(|path| path.display().to_string()).collect()
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    #[test]
    fn an_answer_takes_names_that_are_no_text_and_few_of_many() {
        let path = PathBuf::from(OsStr::from_bytes(b"dev/\xff"));
        let names = some(&vec![path; 100_000]);
        assert_eq!(names, vec!["dev/\u{fffd}"; NAMES_MAX]);
        assert!(serde_json::to_string(&names).is_ok());
    }
}
