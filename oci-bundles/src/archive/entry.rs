//! One entry of a tar, as it is meant: not as it stands in the file.

use std::ffi::OsString;
use std::path::{Component, Path, PathBuf};

use super::limits::{DEPTH_MAX, PATH_BYTES_MAX};

/// An entry without its data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Where it goes, relative: only plain names. Empty for the top directory itself.
    pub path: PathBuf,
    /// What it is.
    pub kind: Kind,
    /// The permission bits, set-id and sticky bits among them.
    pub mode: u32,
    /// The owner's user id.
    pub uid: u32,
    /// The owner's group id.
    pub gid: u32,
    /// When it was changed: seconds since 1970, and nanoseconds.
    pub mtime: (i64, u32),
    /// Bytes of a file, holes included; zero for all else.
    pub size: u64,
    /// What of a sparse file is there; nothing: all of it.
    pub parts: Option<Vec<Span>>,
    /// Extended attributes.
    pub xattrs: Vec<(OsString, Vec<u8>)>,
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link to whatever this says.
    Symlink(PathBuf),
    /// Another name for an entry that came before; checked as [`Entry::path`] is.
    HardLink(PathBuf),
    /// A character device: major and minor number.
    CharDevice(u32, u32),
    /// A block device: major and minor number.
    BlockDevice(u32, u32),
    /// A fifo.
    Fifo,
}

/// A stretch of a sparse file that has data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// Where it begins in the file.
    pub at: u64,
    /// Its bytes.
    pub len: u64,
}

impl Entry {
    /// An entry of a kind, owned by root, with nothing else known.
    pub fn new(path: PathBuf, kind: Kind, mode: u32) -> Self {
        Self {
            path,
            kind,
            mode,
            uid: 0,
            gid: 0,
            mtime: (0, 0),
            size: 0,
            parts: None,
            xattrs: Vec::new(),
        }
    }

    /// The bytes that its data takes in the archive, padding not counted.
    pub fn stored_bytes(&self) -> u64 {
        match &self.parts {
            Some(parts) => parts.iter().map(|part| part.len).sum(),
            None => self.size,
        }
    }
}

/// A name from an archive as a path that goes only down: `.` and doubled slashes are dropped. Whatever could lead
/// elsewhere is refused with the reason, not mended: somebody meant something by it.
pub fn plain_path(name: &Path) -> Result<PathBuf, &'static str> {
    let bytes = name.as_os_str().as_encoded_bytes();
    if bytes.len() > PATH_BYTES_MAX {
        return Err("its name is too long");
    }
    if bytes.contains(&0) {
        return Err("its name has a zero byte");
    }
    let mut plain = PathBuf::new();
    if bytes == b"/" {
        // The top itself, as a diff of a root calls it.
        return Ok(plain);
    }
    for (depth, component) in name.components().enumerate() {
        match component {
            Component::Normal(_) if depth >= DEPTH_MAX => return Err("it is too deep"),
            Component::Normal(part) => plain.push(part),
            Component::CurDir => {}
            Component::ParentDir => return Err("its name goes up"),
            Component::RootDir | Component::Prefix(_) => return Err("its name is absolute"),
        }
    }
    Ok(plain)
}

/// Whether a symlink in a directory so deep cannot lead out of the top one, whatever other such links there are:
/// it goes up first, at most to the top, and then only down.
#[cfg(any(test, feature = "archive"))]
pub fn stays_inside(target: &Path, depth: usize) -> bool {
    let mut ups = 0;
    let mut is_down = false;
    for component in target.components() {
        match component {
            Component::Normal(_) => is_down = true,
            Component::CurDir => {}
            Component::ParentDir if is_down => return false,
            Component::ParentDir => ups += 1,
            Component::RootDir | Component::Prefix(_) => return false,
        }
    }
    ups <= depth
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_go_down_or_are_refused() {
        for (name, plain) in [
            ("a", Ok("a")),
            ("./a//b/./c/", Ok("a/b/c")),
            (".", Ok("")),
            ("", Ok("")),
            ("a..b/...", Ok("a..b/...")),
            ("/", Ok("")),
            ("/a", Err("its name is absolute")),
            ("//", Err("its name is absolute")),
            ("..", Err("its name goes up")),
            ("a/../b", Err("its name goes up")),
            ("a/\0", Err("its name has a zero byte")),
        ] {
            assert_eq!(plain_path(Path::new(name)), plain.map(PathBuf::from), "{name:?}");
        }
        assert_eq!(
            plain_path(Path::new(&"a/".repeat(PATH_BYTES_MAX))),
            Err("its name is too long")
        );
        assert_eq!(
            plain_path(Path::new(&"a/".repeat(DEPTH_MAX + 1))),
            Err("it is too deep")
        );
        assert!(plain_path(Path::new(&"a/".repeat(DEPTH_MAX))).is_ok());
    }

    #[test]
    fn links_stay_inside() {
        for (target, depth, inside) in [
            ("a", 0, true),
            ("../a", 1, true),
            ("./../a/b", 1, true),
            ("../a", 0, false),
            ("../../a", 1, false),
            ("/a", 5, false),
            // Through another link, `x` may be the top: going up from there leads out.
            ("x/..", 5, false),
        ] {
            assert_eq!(
                stays_inside(Path::new(target), depth),
                inside,
                "{target} at {depth}"
            );
        }
    }
}
