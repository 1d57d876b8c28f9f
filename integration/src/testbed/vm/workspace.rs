//! A directory on the host for one run: the guest's copy of this program, and the machine's logs.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::testbed::cache;

/// Prefix of the directories' names; the process id of the testbed follows.
const PREFIX: &str = "machine-";

/// The directory. Dropping it removes it.
#[derive(Debug)]
pub struct Workspace(PathBuf);

impl Workspace {
    /// Makes it, and removes those of testbeds that were killed before they could.
    pub fn make() -> Result<Self> {
        let cache = cache::directory()?;
        for stale in stale(&cache) {
            // If it cannot be removed now, a later testbed will.
            let _ = fs::remove_dir_all(stale);
        }
        let path = cache.join(format!("{PREFIX}{}", std::process::id()));
        fs::create_dir(&path).with_context(|| format!("make {}", path.display()))?;
        Ok(Self(path))
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// A copy of this program. The file it was started from may be replaced by a build at any time.
    pub fn copy_program(&self) -> Result<PathBuf> {
        let program = self.0.join("testbed");
        let _ = fs::copy("/proc/self/exe", &program).context("copy this program")?;
        Ok(program)
    }
}

impl Drop for Workspace {
    fn drop(&mut self) {
        // If it cannot be removed now, a later testbed will.
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn stale(cache: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(cache).into_iter().flatten().flatten();
    let of_the_dead = |entry: &fs::DirEntry| {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| name.strip_prefix(PREFIX));
        pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists())
    };
    entries.filter(of_the_dead).map(|entry| entry.path()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_directories_of_the_dead_are_stale() {
        let cache = tempfile::tempdir().unwrap();
        // The kernel's highest process id is far below.
        for name in ["machine-1", "machine-99999999", "vm-99999999"] {
            fs::create_dir(cache.path().join(name)).unwrap();
        }
        assert_eq!(stale(cache.path()), [cache.path().join("machine-99999999")]);
    }
}
