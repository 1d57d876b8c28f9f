//! Where the dump under way goes, written down in the bundle: whoever cleans up after a shim that was killed in the middle of it
//! has to know (`delete`). It lies in memory with the bundle, and is gone with it.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::criu::file::read_regular;

const NAME: &str = "dumping";

/// A path has fewer.
const BYTES_MAX: u64 = 8192;

/// Writes it down.
///
/// # Errors
/// What the file system says.
pub(super) fn set(bundle: &Path, dest: &Path) -> io::Result<()> {
    fs::write(bundle.join(NAME), dest.as_os_str().as_bytes())
}

/// Crosses it out.
pub(super) fn clear(bundle: &Path) {
    // What stays names a place in which nothing is staged.
    let _ = fs::remove_file(bundle.join(NAME));
}

/// Where the dump went that was under way, if one was.
pub(crate) fn read(bundle: &Path) -> Option<PathBuf> {
    let dest = read_regular(&bundle.join(NAME), BYTES_MAX).ok()?;
    Some(PathBuf::from(OsStr::from_bytes(&dest)))
}
