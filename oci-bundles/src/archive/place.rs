//! Makes files below a directory, and never anywhere else.
//!
//! The kernel holds to that (`openat2`, Linux 5.6): no component of a path is a symlink, goes up or crosses a mount.

use std::ffi::OsString;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::{Mode, fchmod, mkdirat};
use nix::unistd::linkat;
#[cfg(any(test, feature = "archive"))]
use nix::unistd::symlinkat;

/// A directory in which things are made.
#[derive(Debug)]
pub struct Place {
    top: OwnedFd,
    /// The directory that something was last made in: mostly the next goes there too.
    last: Option<(PathBuf, OwnedFd)>,
    /// Directories made so far.
    dirs_made: u64,
}

impl Place {
    /// The directory at a path, which is its caller's own and may go through symlinks.
    pub fn open(path: &Path) -> nix::Result<Self> {
        let flags = OFlag::O_DIRECTORY | OFlag::O_PATH | OFlag::O_CLOEXEC;
        Ok(Self {
            top: nix::fcntl::open(path, flags, Mode::empty())?,
            last: None,
            dirs_made: 0,
        })
    }

    /// How many directories were made, those above what was asked for among them.
    pub fn dirs_made(&self) -> u64 {
        self.dirs_made
    }

    /// A new file for writing; with its mode, whatever the umask.
    pub fn create_file(&mut self, path: &Path, mode: Mode) -> nix::Result<File> {
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
        let parent = self.parent(path)?;
        let file = openat2(
            parent,
            name(path)?,
            how(flags).mode(Mode::S_IRUSR | Mode::S_IWUSR),
        )?;
        fchmod(&file, mode)?;
        Ok(file.into())
    }

    /// A directory, for its owner only; one that is there is fine.
    pub fn create_dir(&mut self, path: &Path) -> nix::Result<()> {
        let _dir = self.dir(path)?;
        Ok(())
    }

    /// Sets the mode of a directory.
    #[cfg(feature = "archive")]
    pub fn set_dir_mode(&mut self, path: &Path, mode: Mode) -> nix::Result<()> {
        let flags = OFlag::O_DIRECTORY | OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        let at = if path.as_os_str().is_empty() {
            Path::new(".")
        } else {
            path
        };
        fchmod(openat2(&self.top, at, how(flags))?, mode)
    }

    /// A symlink. Its target is the caller's to judge.
    #[cfg(any(test, feature = "archive"))]
    pub fn create_symlink(&mut self, path: &Path, target: &Path) -> nix::Result<()> {
        let parent = self.parent(path)?;
        symlinkat(target, parent, name(path)?)
    }

    /// Another name for a file here.
    pub fn create_link(&mut self, path: &Path, first: &Path) -> nix::Result<()> {
        let flags = OFlag::O_DIRECTORY | OFlag::O_PATH | OFlag::O_CLOEXEC;
        let from = match first.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => openat2(&self.top, parent, how(flags))?,
            _ => openat2(&self.top, ".", how(flags))?,
        };
        let to = self.parent(path)?;
        // Without AT_SYMLINK_FOLLOW a symlink gets a second name, and is not followed.
        linkat(from, name(first)?, to, name(path)?, AtFlags::empty())
    }

    /// The directory that a path is in, made if need be, and the path's last part.
    pub fn split<'a>(&mut self, path: &'a Path) -> nix::Result<(&OwnedFd, &'a Path)> {
        Ok((self.parent(path)?, name(path)?))
    }

    /// What is at a path, symlinks as themselves, for asking and naming only.
    pub fn look(&self, path: &Path) -> nix::Result<OwnedFd> {
        let at = match path.as_os_str().is_empty() {
            true => Path::new("."),
            false => path,
        };
        openat2(
            &self.top,
            at,
            how(OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC),
        )
    }

    /// The names in a directory, sorted.
    pub fn names(&self, path: &Path) -> nix::Result<Vec<OsString>> {
        let at = match path.as_os_str().is_empty() {
            true => Path::new("."),
            false => path,
        };
        let flags = OFlag::O_DIRECTORY | OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        let mut dir = nix::dir::Dir::from_fd(openat2(&self.top, at, how(flags))?)?;
        let mut names = Vec::new();
        for entry in dir.iter() {
            let name = entry?.file_name().to_bytes().to_vec();
            if name != b"." && name != b".." {
                names.push(OsString::from_vec(name));
            }
        }
        names.sort();
        Ok(names)
    }

    fn parent(&mut self, path: &Path) -> nix::Result<&OwnedFd> {
        self.dir(path.parent().unwrap_or(Path::new("")))
    }

    /// A directory below the top, made with those above it if need be.
    fn dir(&mut self, path: &Path) -> nix::Result<&OwnedFd> {
        if path.as_os_str().is_empty() {
            return Ok(&self.top);
        }
        if self.last.as_ref().is_none_or(|(last, _)| last != path) {
            let fd = self.open_or_make(path)?;
            self.last = Some((path.to_owned(), fd));
        }
        self.last.as_ref().map(|(_, fd)| fd).ok_or(Errno::ENOENT)
    }

    fn open_or_make(&mut self, path: &Path) -> nix::Result<OwnedFd> {
        let flags = OFlag::O_DIRECTORY | OFlag::O_PATH | OFlag::O_CLOEXEC;
        match openat2(&self.top, path, how(flags)) {
            Err(Errno::ENOENT) => {}
            result => return result,
        }
        let mut dir: Option<OwnedFd> = None;
        for part in path.iter() {
            let at = dir.as_ref().unwrap_or(&self.top);
            match mkdirat(at, part, Mode::S_IRWXU) {
                Ok(()) => self.dirs_made += 1,
                Err(Errno::EEXIST) => {}
                Err(error) => return Err(error),
            }
            dir = Some(openat2(at, part, how(flags))?);
        }
        dir.ok_or(Errno::ENOENT)
    }
}

/// How something is opened from a directory: beneath it, and through neither symlinks nor mounts.
pub fn how(flags: OFlag) -> OpenHow {
    OpenHow::new().flags(flags).resolve(
        ResolveFlag::RESOLVE_BENEATH
            | ResolveFlag::RESOLVE_NO_SYMLINKS
            | ResolveFlag::RESOLVE_NO_MAGICLINKS
            | ResolveFlag::RESOLVE_NO_XDEV,
    )
}

fn name(path: &Path) -> nix::Result<&Path> {
    path.file_name().map(Path::new).ok_or(Errno::EISDIR)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_made_elsewhere() {
        let dir = tempfile::tempdir().unwrap();
        let (top, outside) = (dir.path().join("top"), dir.path().join("outside"));
        std::fs::create_dir(&top).unwrap();
        std::fs::create_dir(&outside).unwrap();
        std::fs::write(outside.join("secret"), "").unwrap();
        std::os::unix::fs::symlink("../outside", top.join("up")).unwrap();
        std::os::unix::fs::symlink("../outside/new", top.join("dangling")).unwrap();
        // What leads nowhere else is not followed either: two names for one place are a way to be fooled.
        std::fs::create_dir(top.join("real")).unwrap();
        std::os::unix::fs::symlink("real", top.join("alias")).unwrap();
        let mut place = Place::open(&top).unwrap();
        let mode = Mode::S_IRUSR;
        for path in ["up/a", "../a", "a/../../b", "/a", "dangling", "up/x/y", "alias/a"] {
            assert!(place.create_file(Path::new(path), mode).is_err(), "{path}");
            assert!(
                place.create_symlink(Path::new(path), Path::new("t")).is_err(),
                "{path}"
            );
        }
        for path in ["up", "up/d", "../d", "dangling"] {
            assert!(place.create_dir(Path::new(path)).is_err(), "{path}");
        }
        for first in ["up/secret", "../outside/secret"] {
            assert!(
                place.create_link(Path::new("l"), Path::new(first)).is_err(),
                "{first}"
            );
        }
        assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 1);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
        drop(place.create_file(Path::new("a/b/c"), mode).unwrap());
        place.create_link(Path::new("a/l"), Path::new("a/b/c")).unwrap();
        assert!(top.join("a/l").exists());
    }
}
