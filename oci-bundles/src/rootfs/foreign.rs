//! A diff of another engine's, which goes into a root file system that is mounted: it has not every directory above what it has.
//!
//! ```text
//!   podman, CRI-O      a plain tar of what was added and changed, and a list of what was deleted (containers/podman, pkg/checkpoint/crutils)
//!   containerd's CRI   a layer of OCI's, with whiteouts, packed with gzip        (containerd, internal/cri/server/container_checkpoint_linux.go)
//! ```

use std::fs::File;
use std::io::{BufReader, Read, Seek};
use std::path::Path;

use flate2::bufread::MultiGzDecoder;

use super::Tree;
use super::apply::{Allowed, Applied, apply_to};
use crate::archive::{ArchiveError, OnProgress};

/// Bytes read of a diff at once.
const READ_BYTES: usize = 256 << 10;

/// What begins a gzip (RFC 1952).
const GZIP: [u8; 2] = [0x1f, 0x8b];

/// Puts the diff into a root file system. `name` is what it is called in messages.
///
/// # Errors
/// As [`super::apply::apply`].
pub fn apply(
    mut diff: File,
    name: &Path,
    root: &Path,
    allowed: &Allowed<'_>,
    on_progress: &mut OnProgress<'_>,
) -> Result<Applied, ArchiveError> {
    let mut head = Vec::new();
    let begun = diff.by_ref().take(GZIP.len() as u64).read_to_end(&mut head);
    begun
        .and_then(|_| diff.rewind())
        .map_err(|error| ArchiveError::storage("read", name, error))?;
    let plain = BufReader::with_capacity(READ_BYTES, diff);
    match head == GZIP {
        true => {
            let layer = MultiGzDecoder::new(plain);
            apply_to(Tree::Merged, layer, name, root, allowed, on_progress)
        }
        false => apply_to(Tree::Listed, plain, name, root, allowed, on_progress),
    }
}
