//! Removes a tree, and nothing that is mounted in it.
//!
//! Each directory is opened from the one above it, by a kernel that goes through no symlink and into no mount (`openat2`, Linux 5.6).

use std::ffi::OsStr;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat2};
use nix::unistd::{UnlinkatFlags, unlinkat};
use rustix::fs::Dir;

use crate::archive::limits::DEPTH_MAX;
use crate::archive::place::how;

/// Removes what has this name in a directory, with all that is below it. After a failure a part of that may be gone.
///
/// # Errors
/// Something is mounted there or below, and stays as it is; it is deeper than [`DEPTH_MAX`]; or what the disk says.
pub(super) fn remove_at(dir: impl AsFd, name: &Path) -> io::Result<()> {
    remove_below(dir, name, name, DEPTH_MAX)
}

/// A mount that is in the way.
pub(super) fn mounted(path: &Path) -> io::Error {
    let what = format!("something is mounted at {}", path.display());
    io::Error::new(io::ErrorKind::ResourceBusy, what)
}

/// `path` is what `name` is called in messages.
fn remove_below(dir: impl AsFd, name: &Path, path: &Path, depth: usize) -> io::Result<()> {
    let said = |errno| match errno {
        Errno::EBUSY | Errno::EXDEV => mounted(path),
        _ => io::Error::from(errno),
    };
    // It is not followed, neither as a symlink nor as a mount.
    match unlinkat(&dir, name, UnlinkatFlags::NoRemoveDir) {
        Err(Errno::EISDIR) => {}
        result => return result.map_err(said),
    }
    let deeper = depth.checked_sub(1).ok_or_else(|| {
        let what = format!("{} is too deep", path.display());
        io::Error::new(io::ErrorKind::InvalidInput, what)
    })?;
    let flags = OFlag::O_DIRECTORY | OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let mut inside = Dir::new(openat2(&dir, name, how(flags)).map_err(said)?)?;
    while let Some(entry) = inside.read() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name == b"." || name == b".." {
            continue;
        }
        let name = Path::new(OsStr::from_bytes(name));
        match remove_below(inside.fd()?, name, &path.join(name), deeper) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    unlinkat(&dir, name, UnlinkatFlags::RemoveDir).map_err(said)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};

    use super::*;

    #[test]
    fn a_tree_goes_with_all_that_is_in_it_and_no_deeper_than_allowed() {
        let dir = tempfile::tempdir().expect("a directory");
        let fd = File::open(dir.path()).expect("opened");
        let top = dir.path().join("top");
        let deepest = |count| top.join("d/".repeat(count));
        fs::create_dir_all(deepest(DEPTH_MAX - 1)).expect("directories");
        for count in 0..3000 {
            fs::write(top.join(format!("file-{count}")), "").expect("a file");
        }
        std::os::unix::fs::symlink("/nowhere", deepest(1).join("link")).expect("a link");
        remove_at(&fd, Path::new("top")).expect("removed");
        assert_eq!(fs::read_dir(dir.path()).expect("listed").count(), 0);
        let error = remove_at(&fd, Path::new("top")).expect_err("not there");
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        fs::create_dir_all(deepest(DEPTH_MAX)).expect("directories");
        let error = remove_at(&fd, Path::new("top")).expect_err("too deep");
        assert!(error.to_string().ends_with("d is too deep"), "{error}");
    }
}
