//! The files of a directory in the order in which they go into an archive.

use std::collections::VecDeque;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::ArchiveError;
use super::entry::{Entry, Kind};
use super::limits::DEPTH_MAX;

/// Entries that a directory to be packed may have; what is listed is in memory, and what we pack we must unpack.
const ENTRIES_MAX: usize = 1 << 20;

/// From this size on a file goes to the end of an archive, in bytes: what describes a checkpoint is then read
/// without passing over its memory.
const LARGE_BYTES: u64 = 1 << 20;

/// A file to be packed.
#[derive(Debug)]
pub struct Found {
    /// Its entry; a file's size is that of the moment.
    pub entry: Entry,
    /// Where it is.
    pub path: PathBuf,
    /// What names it, if it has other names too: device and inode.
    pub inode: Option<(u64, u64)>,
}

/// All that is below a directory: directories first, then small files, then large ones, each by name. Symlinks are
/// listed, not followed.
pub fn list(dir: &Path) -> Result<Vec<Found>, ArchiveError> {
    let mut found = Vec::new();
    let mut dirs = VecDeque::from([PathBuf::new()]);
    while let Some(relative) = dirs.pop_front() {
        let at = match relative.as_os_str().is_empty() {
            true => dir.to_owned(),
            false => dir.join(&relative),
        };
        let failed = |error| ArchiveError::storage("read", &at, error);
        for child in fs::read_dir(&at).map_err(failed)? {
            let child = child.map_err(failed)?;
            let one = look(&child.path(), relative.join(child.file_name()))?;
            if one.entry.kind == Kind::Directory {
                dirs.push_back(one.entry.path.clone());
            }
            if found.len() == ENTRIES_MAX || one.entry.path.components().count() > DEPTH_MAX {
                return Err(unpackable(dir, "too many files in it, or too deep"));
            }
            found.push(one);
        }
    }
    found.sort_by(|a, b| {
        let class = |found: &Found| match found.entry.kind {
            Kind::Directory => 0,
            _ if found.entry.size < LARGE_BYTES => 1,
            _ => 2,
        };
        class(a)
            .cmp(&class(b))
            .then_with(|| a.entry.path.cmp(&b.entry.path))
    });
    Ok(found)
}

fn look(path: &Path, relative: PathBuf) -> Result<Found, ArchiveError> {
    let failed = |error| ArchiveError::storage("read", path, error);
    let meta = fs::symlink_metadata(path).map_err(failed)?;
    let kind = if meta.is_file() {
        Kind::File
    } else if meta.is_dir() {
        Kind::Directory
    } else if meta.is_symlink() {
        Kind::Symlink(fs::read_link(path).map_err(failed)?)
    } else if meta.file_type().is_fifo() {
        return Err(unpackable(path, "a fifo"));
    } else {
        return Err(unpackable(path, "a device or socket"));
    };
    let mut entry = Entry::new(relative, kind, meta.mode() & 0o7777);
    (entry.uid, entry.gid) = (meta.uid(), meta.gid());
    // Whole seconds: a fraction would cost each file an extended header of 1 KiB, and nobody asks for it.
    entry.mtime = (meta.mtime(), 0);
    let has_names = meta.is_file() && meta.nlink() > 1;
    if meta.is_file() {
        entry.size = meta.len();
    }
    Ok(Found {
        entry,
        path: path.to_owned(),
        inode: has_names.then(|| (meta.dev(), meta.ino())),
    })
}

fn unpackable(path: &Path, why: &str) -> ArchiveError {
    ArchiveError::Unpackable {
        path: path.to_owned(),
        why: why.into(),
    }
}
