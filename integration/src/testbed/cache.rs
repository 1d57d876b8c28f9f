//! Things built once: `<cache>/<name>-<hash of how it is made>/`.
//!
//! Built under a temporary name, under a lock, and renamed when complete: whatever has the final name is whole, and
//! two testbeds started at once build one thing once.

use std::fs::{self, File};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::fcntl::{Flock, FlockArg};
use sha2::{Digest, Sha256};

/// Where it is unless `CEDANA_TESTBED_CACHE` says otherwise.
const DEFAULT_DIRECTORY: &str = "/var/cache/cedana-testbed";

/// Twelve hex digits tell a handful of recipes apart.
const HASH_DIGITS: usize = 12;

/// The cache's directory, made if it is not there.
pub fn directory() -> Result<PathBuf> {
    let directory =
        std::env::var_os("CEDANA_TESTBED_CACHE").map_or_else(|| DEFAULT_DIRECTORY.into(), PathBuf::from);
    fs::create_dir_all(&directory).with_context(|| format!("make {}", directory.display()))?;
    directory
        .canonicalize()
        .with_context(|| format!("find {}", directory.display()))
}

/// Where the thing of that name, made in the way that `recipe` tells, is or would be.
pub fn place(name: &str, recipe: &str) -> Result<PathBuf> {
    let mut hash = format!("{:x}", Sha256::digest(recipe));
    hash.truncate(HASH_DIGITS);
    Ok(directory()?.join(format!("{name}-{hash}")))
}

/// Gives the directory at `place`, calling `build` for it with a temporary name if it is not there.
pub fn built(place: &Path, build: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    if place.exists() {
        return Ok(());
    }
    let _lock = locked(&place.with_extension("lock"))?;
    if place.exists() {
        return Ok(());
    }
    // The lock is ours, so a partial one is what an interrupted build left.
    let partial = place.with_extension("partial");
    if partial.exists() {
        fs::remove_dir_all(&partial).with_context(|| format!("remove {}", partial.display()))?;
    }
    build(&partial)?;
    fs::rename(&partial, place)
        .with_context(|| format!("rename {} to {}", partial.display(), place.display()))
}

/// Waits for the lock; whoever holds it has deadlines on what it does, and a dead holder has none.
fn locked(path: &Path) -> Result<Flock<File>> {
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(path)
        .with_context(|| format!("open {}", path.display()))?;
    Flock::lock(file, FlockArg::LockExclusive)
        .map_err(|(_, errno)| errno)
        .with_context(|| format!("lock {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_built_is_built_once_and_a_failed_build_leaves_nothing_under_the_name() {
        let directory = tempfile::tempdir().unwrap();
        let place = directory.path().join("thing-1");
        assert!(
            built(&place, |partial| {
                fs::create_dir(partial)?;
                anyhow::bail!("no")
            })
            .is_err()
        );
        assert!(!place.exists());
        built(&place, |partial| Ok(fs::create_dir(partial)?)).unwrap();
        assert!(place.is_dir());
        built(&place, |_| anyhow::bail!("built twice")).unwrap();
    }
}
