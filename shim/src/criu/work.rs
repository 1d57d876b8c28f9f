//! The directory CRIU works in: its logs, its statistics, and under cgroup v1 its mounts.
//!
//! To reach the hierarchies of cgroup v1 CRIU mounts all of them below `.criu.cgyard.XXXXXX` in there, in our mount
//! namespace. A CRIU that is killed leaves them. What is removed below them is removed from the host's cgroups, so
//! nothing is removed before everything is unmounted.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, ErrorKind, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use oci_bundles::mounts;

use crate::error::chain;

/// How every temporary directory begins that CRIU makes: `.criu.cgyard.XXXXXX`, `.criu.mntns.XXXXXX`.
const CRIU_PREFIX: &str = ".criu.";

/// The last line of CRIU's log of a dump that failed.
const LAST_WORD: &str = "Dumping FAILED.";

/// As much of the end of a log as holds its last lines, in bytes.
const LOG_END: u64 = 1024;

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
    if !ours {
        return unmount_in_foreign(dir);
    }
    if !dir.exists() {
        return Ok(());
    }
    unmount(dir)?;
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Unmounts what a CRIU that was killed left in a client's directory. That one may be a mount itself, or hold mounts of the
/// client's: only what lies in directories that CRIU made is touched, and of those only what is empty then is removed.
///
/// # Errors
/// The first mount that stays, or what the file system says; a directory that is not there is fine.
pub fn unmount_in_foreign(dir: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        // Of the entry itself: a link is not followed to where somebody else's mounts are.
        if !is_crius(&entry.file_name()) || !entry.file_type()?.is_dir() {
            continue;
        }
        let path = entry.path();
        unmount(&path)?;
        if let Err(error) = fs::remove_dir(&path) {
            tracing::debug!(path = %path.display(), %error, "a directory of criu stays");
        }
    }
    Ok(())
}

/// Whether the log of a dump ends with CRIU's own word that it failed: it has put back by then what it had changed.
pub fn has_failed(dir: &Path) -> bool {
    let read_end = || {
        let mut log = fs::File::open(dir.join("dump.log"))?;
        let length = log.metadata()?.len();
        let _ = log.seek(SeekFrom::Start(length.saturating_sub(LOG_END)))?;
        let mut end = Vec::new();
        let _ = log.take(LOG_END).read_to_end(&mut end)?;
        Ok::<_, io::Error>(end)
    };
    read_end().is_ok_and(|end| String::from_utf8_lossy(&end).contains(LAST_WORD))
}

fn is_crius(name: &OsStr) -> bool {
    name.as_encoded_bytes().starts_with(CRIU_PREFIX.as_bytes())
}

fn unmount(dir: &Path) -> io::Result<()> {
    mounts::unmount_recursive(dir).map_err(|errors| {
        io::Error::other(
            errors
                .iter()
                .map(|error| chain(error))
                .collect::<Vec<_>>()
                .join("; "),
        )
    })
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

    #[test]
    fn a_criu_that_failed_by_itself_has_the_last_word() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        assert!(!has_failed(dir.path()), "no log");
        let log = "x".repeat(3000);
        for (end, expected) in [
            ("Error (criu/cr-dump.c:2128): Dumping FAILED.\n", true),
            ("Locked\n", false),
        ] {
            fs::write(dir.path().join("dump.log"), format!("{log}\n{end}")).expect("write");
            assert_eq!(has_failed(dir.path()), expected, "{end}");
        }
    }

    #[test]
    fn in_a_clients_directory_only_what_criu_made_is_removed() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        for name in [".criu.cgyard.a1b2c3", "theirs", ".criu.cgyard.full"] {
            fs::create_dir(dir.path().join(name)).expect("make");
        }
        fs::write(dir.path().join(".criu.cgyard.full/file"), "").expect("write");
        remove_after_kill(dir.path(), false).expect("unmount");
        for (name, stays) in [
            (".criu.cgyard.a1b2c3", false),
            ("theirs", true),
            (".criu.cgyard.full/file", true),
        ] {
            assert_eq!(dir.path().join(name).exists(), stays, "{name}");
        }
    }

    #[test]
    #[ignore = "mounts, which takes root"]
    fn mounts_of_a_client_stay_and_those_of_criu_go() {
        use nix::mount::{MntFlags, MsFlags, mount, umount2};
        let dir = tempfile::tempdir().expect("a temporary directory");
        let tmpfs = |path: &Path| {
            fs::create_dir_all(path).expect("make");
            mount(Some("tmpfs"), path, Some("tmpfs"), MsFlags::empty(), None::<&str>).expect("mount");
        };
        let itself = dir.path().join("work");
        tmpfs(&itself);
        tmpfs(&itself.join("theirs"));
        tmpfs(&itself.join(".criu.cgyard.a1b2c3"));
        tmpfs(&itself.join(".criu.cgyard.a1b2c3/memory"));
        let left = remove_after_kill(&itself, false);
        let table = fs::read_to_string("/proc/self/mountinfo").expect("read");
        for path in [itself.join("theirs"), itself.clone()] {
            umount2(&path, MntFlags::MNT_DETACH).expect("a mount of the client's is there");
        }
        left.expect("unmount");
        assert!(!table.contains("cgyard"), "{table}");
    }
}
