//! The directory CRIU works in: its logs, its statistics, and under cgroup v1 its mounts.
//!
//! To reach the hierarchies of cgroup v1 CRIU mounts all of them below `.criu.cgyard.XXXXXX` in there, in our mount
//! namespace. A CRIU that is killed leaves them. What is removed below them is removed from the host's cgroups, so
//! nothing is removed before everything is unmounted.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use oci_bundles::mounts;

use crate::error::chain;

/// The directory of a container whose client named none. Bundles are on a tmpfs, where 10 MiB of log cost little.
pub fn dir(bundle: &Path) -> PathBuf {
    bundle.join("criu-work")
}

/// Makes it, empty if it is ours.
///
/// # Errors
/// What the file system says.
pub fn make(dir: &Path, ours: bool) -> io::Result<()> {
    if ours {
        remove(dir)?;
    }
    fs::create_dir_all(dir)
}

/// Removes it after CRIU ended as it should; one that is not there is fine.
///
/// # Errors
/// What the file system says.
pub fn remove(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        // A mount point: a CRIU was killed in here.
        Err(error) if error.kind() == ErrorKind::ResourceBusy => remove_after_kill(dir, true),
        result => result,
    }
}

/// Unmounts what a CRIU that was killed left in it, and removes it if it is ours.
///
/// # Errors
/// The first mount that stays, and nothing is removed then; else what the file system says.
pub fn remove_after_kill(dir: &Path, ours: bool) -> io::Result<()> {
    if !dir.exists() {
        return Ok(());
    }
    mounts::unmount_recursive(dir).map_err(|errors| {
        io::Error::other(
            errors
                .iter()
                .map(|error| chain(error))
                .collect::<Vec<_>>()
                .join("; "),
        )
    })?;
    if !ours {
        return Ok(());
    }
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ours_is_made_empty_and_removed_and_a_clients_is_kept() {
        let bundle = tempfile::tempdir().expect("a temporary directory");
        let dir = dir(bundle.path());
        make(&dir, true).expect("make");
        fs::write(dir.join("dump.log"), "").expect("write");
        make(&dir, false).expect("make");
        remove_after_kill(&dir, false).expect("keep");
        assert!(
            dir.join("dump.log").exists(),
            "a client's directory keeps its files"
        );
        make(&dir, true).expect("make");
        assert!(!dir.join("dump.log").exists(), "ours begins empty");
        remove(&dir).expect("remove");
        remove(&dir).expect("remove what is gone");
        remove_after_kill(&dir, true).expect("remove what is gone");
    }
}
