//! What is in a file system in memory, as the file that CRIU wants of `tar --create --gzip`, and back.
//!
//! CRIU has every tmpfs of a container packed by GNU tar and gzip while the container stands: 20 s for a GiB. The same
//! format without compressing anything goes as fast as memory: a deflate stream may be of blocks that are stored. What is made
//! here every gzip and every tar reads, and what they make is read here.
//!
//! Invariants: as those of [`crate::rootfs`]; what is read may be anybody's.

mod stored;
#[cfg(test)]
mod tests;

use std::io::{Read, Write};
use std::path::Path;

use flate2::read::GzDecoder;

use crate::archive::{ArchiveError, OnProgress};
use crate::rootfs::Tree;
use crate::rootfs::apply::{Allowed, Applied, apply_to};
use crate::rootfs::make::{Made, make_of};

pub use stored::Stored;

/// Writes all of a file system, but nothing that is mounted in it.
///
/// # Errors
/// What the disk says of either side; [`ArchiveError`] has the path.
pub fn save(top: &Path, out: impl Write, on_progress: &mut OnProgress<'_>) -> Result<Made, ArchiveError> {
    let failed = |error| ArchiveError::storage("write the files of", top, error);
    let stored = Stored::new(out).map_err(failed)?;
    let (made, stored) = make_of(Tree::Own, top, stored, on_progress)?;
    let _out = stored.finish().map_err(failed)?;
    Ok(made)
}

/// Puts what was written into a file system. `name` is what it is called in messages.
///
/// # Errors
/// It is damaged, hostile or larger than allowed, or what the kernel says.
pub fn put_back(
    saved: impl Read,
    name: &Path,
    top: &Path,
    allowed: &Allowed<'_>,
    on_progress: &mut OnProgress<'_>,
) -> Result<Applied, ArchiveError> {
    apply_to(Tree::Own, GzDecoder::new(saved), name, top, allowed, on_progress)
}
