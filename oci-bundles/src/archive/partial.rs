//! What is being made, under a name of its own until it is whole.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};

use super::ArchiveError;

/// Between the name of the destination and the process that makes it.
const MIDDLE: &[u8] = b".partial-";

/// Entries of the destination's directory that are looked at for leftovers. A directory of more keeps them.
const SIBLINGS_MAX: usize = 100_000;

/// A file or directory beside its destination, removed when it is dropped before its commit.
#[derive(Debug)]
pub struct Partial {
    path: PathBuf,
    dest: PathBuf,
    is_committed: bool,
}

impl Partial {
    /// A name beside a destination at which nothing may be yet. What a crash left of an earlier try is removed.
    pub fn beside(dest: &Path) -> Result<Self, ArchiveError> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        if fs::symlink_metadata(dest).is_ok() {
            return Err(ArchiveError::Exists {
                path: dest.to_owned(),
            });
        }
        let name = dest.file_name().ok_or_else(|| {
            let error = io::Error::new(io::ErrorKind::InvalidInput, "not the name of a file");
            ArchiveError::storage("write", dest, error)
        })?;
        let prefix = prefix(name);
        remove_leftovers(&parent(dest), &prefix);
        let mut own = prefix;
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        own.push(format!("{}-{count}", std::process::id()));
        Ok(Self {
            path: dest.with_file_name(own),
            dest: dest.to_owned(),
            is_committed: false,
        })
    }

    /// Where it is until its commit.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes it a file, for its owner only.
    pub fn create_file(&self) -> Result<File, ArchiveError> {
        File::options()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&self.path)
            .map_err(|error| ArchiveError::storage("create", &self.path, error))
    }

    /// Makes it a directory, for its owner only.
    pub fn create_dir(&self) -> Result<(), ArchiveError> {
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&self.path)
            .map_err(|error| ArchiveError::storage("create", &self.path, error))
    }

    /// Gives it its name; never replaces what has come there meanwhile. With `sync` the name outlives a power cut.
    pub fn commit(mut self, sync: bool) -> Result<(), ArchiveError> {
        let flags = RenameFlags::RENAME_NOREPLACE;
        match renameat2(AT_FDCWD, &self.path, AT_FDCWD, &self.dest, flags) {
            Ok(()) => {}
            Err(nix::Error::EEXIST) => {
                return Err(ArchiveError::Exists {
                    path: self.dest.clone(),
                });
            }
            // File systems without that flag: what is there is looked for instead.
            Err(nix::Error::EINVAL) if fs::symlink_metadata(&self.dest).is_err() => {
                fs::rename(&self.path, &self.dest)
                    .map_err(|error| ArchiveError::storage("rename", &self.path, error))?;
            }
            Err(error) => return Err(ArchiveError::storage("rename", &self.path, error)),
        }
        self.is_committed = true;
        if sync {
            let parent = parent(&self.dest);
            let synced = File::open(&parent).and_then(|dir| dir.sync_all());
            synced.map_err(|error| ArchiveError::storage("sync", &parent, error))?;
        }
        Ok(())
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.is_committed {
            remove(&self.path);
        }
    }
}

fn parent(dest: &Path) -> PathBuf {
    match dest.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

/// `.<name>.partial-`, to which the process adds its pid and a number.
fn prefix(name: &OsStr) -> OsString {
    let mut prefix = OsString::from(".");
    prefix.push(name);
    prefix.push(OsStr::from_bytes(MIDDLE));
    prefix
}

/// Best effort: the next one to come tries again.
fn remove(path: &Path) {
    if let Ok(found) = fs::symlink_metadata(path) {
        drop(if found.is_dir() {
            fs::remove_dir_all(path)
        } else {
            fs::remove_file(path)
        });
    }
}

/// Removes what processes that are gone have left of this destination.
fn remove_leftovers(dir: &Path, prefix: &OsStr) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.take(SIBLINGS_MAX).flatten() {
        let name = entry.file_name();
        if let Some(pid) = maker(&name, prefix) {
            remove_if_left(&entry.path(), pid);
        }
    }
}

/// Removes what processes that are gone have left in a directory, of whatever destination. Best effort, as above.
pub fn sweep(dir: &Path) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.take(SIBLINGS_MAX).flatten() {
        let name = entry.file_name();
        if let Some(dest) = destination(&name)
            && let Some(pid) = maker(&name, &prefix(dest))
        {
            remove_if_left(&entry.path(), pid);
        }
    }
}

fn remove_if_left(path: &Path, maker: u32) {
    if !Path::new("/proc").join(maker.to_string()).exists() {
        remove(path);
    }
}

/// The name of what something partial is to become.
fn destination(name: &OsStr) -> Option<&OsStr> {
    let rest = name.as_bytes().strip_prefix(b".")?;
    let at = rest.windows(MIDDLE.len()).rposition(|part| part == MIDDLE)?;
    rest.get(..at)
        .filter(|name| !name.is_empty())
        .map(OsStr::from_bytes)
}

/// The pid in the name of something partial.
fn maker(name: &OsStr, prefix: &OsStr) -> Option<u32> {
    let rest = name.as_bytes().strip_prefix(prefix.as_bytes())?;
    let (pid, count) = std::str::from_utf8(rest).ok()?.split_once('-')?;
    let _count: u64 = count.parse().ok()?;
    pid.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_committed_is_removed_and_what_others_left_too() {
        let dir = tempfile::tempdir().unwrap();
        let dest = dir.path().join("a");
        // No pid is as high.
        let left = dir.path().join(".a.partial-4294967295-0");
        let others = [".b.partial-4294967295-0", ".a.partial-1-0", ".a.partial-x"];
        fs::create_dir(&left).unwrap();
        fs::write(left.join("file"), "").unwrap();
        for other in others {
            fs::write(dir.path().join(other), "").unwrap();
        }
        let partial = Partial::beside(&dest).unwrap();
        assert!(!left.exists());
        drop(partial.create_file().unwrap());
        assert!(partial.path().exists());
        drop(partial);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), others.len());
    }

    #[test]
    fn a_sweep_takes_what_the_dead_have_left_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let left = [".a.partial-4294967295-0", ".b.partial-x.partial-4294967295-7"];
        let stays = [
            ".a.partial-1-0",
            ".partial-4294967295-0",
            "a.partial-4294967295-0",
            ".a.partial-x",
            "a",
        ];
        for name in left.iter().chain(&stays) {
            fs::write(dir.path().join(name), "").unwrap();
        }
        sweep(dir.path());
        for (names, expected) in [(&left[..], false), (&stays[..], true)] {
            for name in names {
                assert_eq!(dir.path().join(name).exists(), expected, "{name}");
            }
        }
    }

    #[test]
    fn a_commit_replaces_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let dest = dir.path().join("a");
        let partial = Partial::beside(&dest).unwrap();
        partial.create_dir().unwrap();
        fs::write(&dest, "precious").unwrap();
        assert!(matches!(partial.commit(true), Err(ArchiveError::Exists { .. })));
        assert_eq!(fs::read(&dest).unwrap(), b"precious");
        assert!(matches!(Partial::beside(&dest), Err(ArchiveError::Exists { .. })));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
