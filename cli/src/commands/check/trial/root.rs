//! The root of the trial's container: the host's programs, seen through mounts.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, symlink};
use std::path::{Path, PathBuf};

/// The directories of a host that a program needs to run. In most distributions all but the first are links into it.
const DIRECTORIES: [&str; 5] = ["usr", "bin", "sbin", "lib", "lib64"];

/// What runc mounts upon.
const MOUNT_POINTS: [&str; 4] = ["proc", "sys", "dev", "tmp"];

/// A directory of ours that has the container's root in it, and room for its checkpoint.
#[derive(Debug)]
pub struct Root {
    directory: PathBuf,
    program: PathBuf,
    mounts: Vec<PathBuf>,
}

/// Where a host has its programs.
const BINARIES: [&str; 2] = ["/usr/bin", "/bin"];

impl Root {
    /// Makes it, for a program that the host has to have.
    ///
    /// # Errors
    /// The program is not there, or the directory cannot be made.
    pub fn make(directory: &Path, program: &str) -> io::Result<Self> {
        let places = BINARIES
            .iter()
            .map(|directory| Path::new(directory).join(program));
        let Some(program) = places.into_iter().find(|path| path.is_file()) else {
            let what = format!("this host has no /bin/{program}");
            return Err(io::Error::new(io::ErrorKind::NotFound, what));
        };
        DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        let mut root = Self {
            directory: directory.to_owned(),
            program,
            mounts: Vec::new(),
        };
        root.lay().inspect_err(|_| root.remove())?;
        Ok(root)
    }

    fn lay(&mut self) -> io::Result<()> {
        let root = self.path();
        fs::create_dir(&root)?;
        for name in MOUNT_POINTS {
            fs::create_dir(root.join(name))?;
        }
        for name in DIRECTORIES {
            let on_host = Path::new("/").join(name);
            match fs::read_link(&on_host) {
                Ok(target) => symlink(target, root.join(name))?,
                Err(_) if on_host.is_dir() => {
                    fs::create_dir(root.join(name))?;
                    self.mounts.push(on_host);
                }
                Err(_) => {}
            }
        }
        Ok(())
    }

    /// The program, there as on the host.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// The directory around it.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The container's root.
    pub fn path(&self) -> PathBuf {
        self.directory.join("rootfs")
    }

    /// What is to be mounted in it, as `ctr` takes it.
    pub fn mounts(&self) -> Vec<String> {
        self.mounts
            .iter()
            .map(|path| format!("type=bind,src={0},dst={0},options=bind:ro", path.display()))
            .collect()
    }

    /// Removes it with all that is in it. Only what is below the directory: what is mounted is the container's business, and
    /// not there outside of it.
    pub fn remove(&self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_directories_are_links_or_mounts_and_nothing_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("trial");
        let root = Root::make(&place, "sleep").unwrap();
        assert!(
            root.mounts().iter().any(|mount| mount.contains("dst=/usr,")),
            "{:?}",
            root.mounts()
        );
        for name in DIRECTORIES
            .iter()
            .filter(|name| Path::new("/").join(name).exists())
        {
            assert!(root.path().join(name).symlink_metadata().is_ok(), "{name}");
        }
        root.remove();
        assert!(!place.exists());
    }

    #[test]
    fn a_host_without_the_program_is_not_tried() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Root::make(&dir.path().join("trial"), "no-such-program").is_err());
    }
}
