//! The directory of a dump that is not complete yet.
//!
//! ```text
//!   .NAME.partial-PID/   containerd's shim writes images and CRIU's log here; synced, and with a manifest of ours
//!   NAME/                its name once it is complete
//! ```

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use oci_bundles::checkpoint;
use oci_bundles::manifest::{Manifest, NAME};

use super::foreign::failed;
use super::outcome::has_inventory;
use crate::error::Error;
use crate::output;

/// Entries of the directory that are looked at for leftovers. A directory of more keeps them.
const SIBLINGS_MAX: usize = 100_000;

/// It goes with this, unless it is completed or kept.
#[derive(Debug)]
pub struct Partial(PathBuf);

impl Partial {
    /// Makes it, beside a path at which nothing may be yet, and removes what dumps left of that name that were killed.
    ///
    /// # Errors
    /// Something is there, or it cannot be made.
    pub fn make(path: &Path) -> Result<Self, Error> {
        if path.symlink_metadata().is_ok() {
            return Err(Error::usage(format!("{} is there already", path.display())));
        }
        let prefix = prefix(path);
        sweep(parent(path), &prefix);
        let mut name = prefix;
        name.push(std::process::id().to_string());
        let partial = path.with_file_name(name);
        let made = fs::DirBuilder::new().mode(0o700).create(&partial);
        made.map_err(|source| failed("make", &partial, &source))?;
        Ok(Self(partial))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Writes into it whose it is and what a restore must know.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn describe(&self, manifest: &Manifest) -> io::Result<()> {
        fs::write(self.0.join(NAME), serde_json::to_vec(manifest)?)
    }

    /// Describes it, with the digests of all its files, and gives it its name, for good. Returns the bytes.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn complete(&self, manifest: &Manifest, path: &Path) -> io::Result<u64> {
        let parts = checkpoint::parts(&self.0).map_err(io::Error::other)?;
        self.describe(&Manifest {
            parts,
            ..manifest.clone()
        })?;
        let mut size = 0;
        for entry in fs::read_dir(&self.0)? {
            let file = File::open(entry?.path())?;
            size += file.metadata()?.len();
            file.sync_all()?;
        }
        File::open(&self.0)?.sync_all()?;
        fs::rename(&self.0, path)?;
        File::open(parent(path))?.sync_all()?;
        Ok(size)
    }

    /// Leaves it where it is.
    pub fn keep(mut self) -> PathBuf {
        std::mem::take(&mut self.0)
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.0.as_os_str().is_empty() {
            remove(&self.0);
        }
    }
}

fn remove(path: &Path) {
    if let Err(source) = fs::remove_dir_all(path)
        && source.kind() != io::ErrorKind::NotFound
    {
        output::warning(&format!("failed to remove {}: {source}", path.display()));
    }
}

fn parent(path: &Path) -> &Path {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    parent.unwrap_or(Path::new("."))
}

/// What stands before the pid.
fn prefix(path: &Path) -> OsString {
    let mut prefix = OsString::from(".");
    prefix.push(path.file_name().unwrap_or_default());
    prefix.push(".partial-");
    prefix
}

/// Removes what processes left that are gone, but not what may be all that is left of a container.
fn sweep(dir: &Path, prefix: &OsStr) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.take(SIBLINGS_MAX).flatten() {
        let maker = maker(&entry.file_name(), prefix);
        let is_left = maker.is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists());
        if is_left && entry.path().is_dir() && !has_inventory(&entry.path()) {
            remove(&entry.path());
        }
    }
}

/// The pid in the name of something partial.
fn maker(name: &OsStr, prefix: &OsStr) -> Option<u32> {
    let pid = name.as_bytes().strip_prefix(prefix.as_bytes())?;
    std::str::from_utf8(pid).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use oci_bundles::manifest::SCHEMA;

    use super::*;
    use crate::error::Kind;

    #[test]
    fn a_dump_is_seen_whole_or_not_at_all() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("saved");
        drop(Partial::make(&path).expect("made"));
        assert_eq!(fs::read_dir(dir.path()).expect("list").count(), 0, "given up");
        let partial = Partial::make(&path).expect("made");
        fs::write(partial.path().join("inventory.img"), "12345").expect("write");
        let manifest = Manifest {
            schema: SCHEMA,
            ..Manifest::default()
        };
        let size = partial.complete(&manifest, &path).expect("complete");
        drop(partial);
        assert!(path.join("inventory.img").is_file() && size > 5);
        assert_eq!(fs::read_dir(dir.path()).expect("list").count(), 1);
        let manifest = checkpoint::look(&path).expect("whole").expect("a manifest");
        assert_eq!(manifest.parts.len(), 1, "{manifest:?}");
        assert_eq!(
            Partial::make(&path).map(|_| ()).expect_err("there").kind,
            Kind::Usage
        );
    }

    #[test]
    fn what_the_dead_left_goes_unless_a_container_is_in_it() {
        let dir = tempfile::tempdir().expect("a directory");
        // No pid is as high.
        let left = ".a.partial-4294967295";
        let stays = [
            ".a.partial-4294967294",
            ".a.partial-1",
            ".a.partial-x",
            ".b.partial-4294967295",
        ];
        for name in stays.iter().chain([&left]) {
            fs::create_dir(dir.path().join(name)).expect("a directory");
        }
        fs::write(dir.path().join(stays[0]).join("inventory.img"), "").expect("a file");
        drop(Partial::make(&dir.path().join("a")).expect("made"));
        assert!(!dir.path().join(left).exists());
        for name in stays {
            assert!(dir.path().join(name).exists(), "{name}");
        }
    }
}
