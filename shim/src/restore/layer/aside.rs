//! The names beside a writable layer: of the one that was there before, and of those that are being removed.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File};
use std::io::{self, ErrorKind};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, chown};
use std::path::{Path, PathBuf};

/// What a layer is called that is kept in case the restore fails.
const BEFORE: &str = "cedana-before";

/// What one is called that is removed; a number follows where an earlier one is still there.
const GONE: &str = "cedana-gone";

/// Removals that may be under way, or have failed, before no name is found any more.
const GONE_MAX: u32 = 100;

/// The layer that was there before.
pub(super) fn before(upper: &Path) -> PathBuf {
    beside(upper, BEFORE)
}

/// Beside a layer, so on the same file system, and gone with the snapshot.
fn beside(upper: &Path, what: &str) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(upper.file_name().unwrap_or_default());
    name.push(".");
    name.push(what);
    upper.with_file_name(name)
}

/// Puts the directory aside and makes an empty one like it.
pub(super) fn renew(upper: &Path) -> io::Result<()> {
    let (was, before) = (fs::metadata(upper)?, before(upper));
    fs::rename(upper, &before)?;
    let made = DirBuilder::new().mode(was.mode() & 0o7777).create(upper);
    made.and_then(|()| chown(upper, Some(was.uid()), Some(was.gid())))
        .inspect_err(|_| {
            // Of the two errors the first one tells more.
            drop(fs::remove_dir(upper).and_then(|()| fs::rename(&before, upper)));
        })
}

/// Takes its name from the layer of before; tells the one that it has now.
pub(super) fn give_up(upper: &Path) -> io::Result<PathBuf> {
    let before = before(upper);
    for number in 0..GONE_MAX {
        let gone = match number {
            0 => beside(upper, GONE),
            _ => beside(upper, &format!("{GONE}-{number}")),
        };
        match fs::rename(&before, &gone) {
            // An earlier one is being removed, or could not be.
            Err(error) if is_taken(error.kind()) => {}
            renamed => return renamed.map(|()| gone),
        }
    }
    Err(ErrorKind::AlreadyExists.into())
}

fn is_taken(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::DirectoryNotEmpty | ErrorKind::AlreadyExists)
}

/// What removals have left, or have not come to.
pub(super) fn given_up(upper: &Path) -> Vec<PathBuf> {
    let first = beside(upper, GONE);
    let first = first.file_name().unwrap_or_default().as_bytes();
    let Some(Ok(entries)) = upper.parent().map(fs::read_dir) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter(|entry| entry.file_name().as_bytes().starts_with(first))
        .map(|entry| entry.path())
        .collect()
}

/// Removes a layer that was given up. Takes as long as it has files.
pub fn remove(gone: &Path) {
    // Not before it is certain that it will not have its old name again after a crash of the host.
    let named = gone.parent().map_or(Ok(()), |dir| File::open(dir)?.sync_all());
    if let Err(error) = named.and_then(|()| fs::remove_dir_all(gone))
        && error.kind() != ErrorKind::NotFound
    {
        tracing::warn!(layer = %gone.display(), %error, "the layer that was replaced stays until the next create");
    }
}
