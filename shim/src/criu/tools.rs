//! The programs that CRIU calls by name, where one of ours takes the place of the host's: `tar`, for a tmpfs.
//!
//! CRIU looks for it in the `PATH` that it has from runc, which has it from us. Without this directory, or where it cannot
//! be reached (a user namespace that may not pass the bundle), the next one in `PATH` is found, and all is as ever.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use crate::restore::loopback;

/// The name by which CRIU calls it.
pub(crate) const TAR: &str = "tar";

/// Tells our `tar` where the bundle is: which devices the container may have stands there.
pub(crate) const BUNDLE: &str = "CEDANA_BUNDLE";

/// Where programs are looked for that has no `PATH`.
const PATH_DEFAULT: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The directory, below the bundle.
pub(crate) fn dir(bundle: &Path) -> PathBuf {
    bundle.join("criu-tools")
}

/// Makes the directory and returns what runc's environment needs; nothing where that is not possible.
pub(crate) fn make(bundle: &Path) -> Vec<(OsString, OsString)> {
    let dir = dir(bundle);
    match link(&dir) {
        Ok(()) => vec![
            ("PATH".into(), in_front(&dir, env::var_os("PATH"))),
            (BUNDLE.into(), bundle.into()),
        ],
        Err(error) => {
            tracing::warn!(dir = %dir.display(), %error, "CRIU packs what is in memory file systems by the host's tar, which takes its time");
            Vec::new()
        }
    }
}

/// Removes it; none is no error.
///
/// # Errors
/// What the file system says.
pub(crate) fn remove(bundle: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir(bundle)) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// `PATH` without the directories below a bundle.
pub(crate) fn path_without(bundle: &Path, path: &OsStr) -> OsString {
    let others = env::split_paths(path).filter(|entry| *entry != dir(bundle));
    // They were in a path before, so they can be in one.
    env::join_paths(others).unwrap_or_else(|_| PATH_DEFAULT.into())
}

fn link(dir: &Path) -> io::Result<()> {
    let program = loopback::script()?;
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    fs::create_dir(dir)?;
    symlink(program, dir.join(TAR))
}

fn in_front(dir: &Path, path: Option<OsString>) -> OsString {
    let mut all = dir.as_os_str().to_owned();
    all.push(":");
    all.push(path.unwrap_or_else(|| PATH_DEFAULT.into()));
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_directory_stands_first_and_goes_again() {
        let bundle = tempfile::tempdir().expect("a temporary directory");
        let environment = make(bundle.path());
        let path = &environment.first().expect("a path").1;
        let first = env::split_paths(path).next().expect("an entry");
        assert_eq!(
            fs::read_link(first.join(TAR)).expect("a link"),
            env::current_exe().expect("us")
        );
        let without = path_without(bundle.path(), path);
        assert_eq!(Some(without), env::var_os("PATH"));
        assert_eq!(make(bundle.path()).len(), 2, "again");
        remove(bundle.path()).expect("removed");
        remove(bundle.path()).expect("gone already");
        assert!(!first.exists());
        assert!(make(&bundle.path().join("nothing")).is_empty());
    }
}
