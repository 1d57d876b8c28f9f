//! A diff of another engine's, which goes into a root file system that is mounted: it has not every directory above what it has.
//!
//! ```text
//!   podman, CRI-O      a plain tar of what was added and changed, and a list of what was deleted (containers/podman, pkg/checkpoint/crutils)
//!   containerd's CRI   a layer of OCI's, with whiteouts, packed with gzip        (containerd, internal/cri/server/container_checkpoint_linux.go)
//! ```

use std::cell::Cell;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek};
use std::path::Path;

use flate2::bufread::MultiGzDecoder;

use super::Tree;
use super::apply::{Allowed, Applied, apply_of, apply_to};
use crate::archive::solid::{HOLE_BYTES, is_zero};
use crate::archive::{ArchiveError, Limits, OnProgress};

/// Bytes read of a diff at once.
const READ_BYTES: usize = 256 << 10;

/// What begins a gzip (RFC 1952).
const GZIP: [u8; 2] = [0x1f, 0x8b];

/// How many times larger than a gzip a layer may be. Its format ends at a thousand (RFC 1951: 258 bytes take two bits), so what an
/// archive may be would never be reached.
const GZIP_RATIO_MAX: u64 = 200;

/// Puts the diff into a root file system. `name` is what it is called in messages.
///
/// # Errors
/// As [`apply_to`]; and a layer is far larger than the gzip it comes out of.
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
    if head != GZIP {
        let plain = BufReader::with_capacity(READ_BYTES, diff);
        return apply_to(Tree::Listed, plain, name, root, allowed, on_progress);
    }
    let bytes = Cell::new(0);
    let weighed = Weighed {
        input: diff,
        bytes: &bytes,
    };
    let layer = MultiGzDecoder::new(BufReader::with_capacity(READ_BYTES, weighed));
    let allowed = Allowed {
        limits: Limits {
            ratio_max: allowed.limits.ratio_max.min(GZIP_RATIO_MAX),
            ..allowed.limits.clone()
        },
        device: allowed.device,
    };
    let packed = Some(&bytes);
    apply_of(packed, Tree::Merged, layer, name, root, &allowed, on_progress)
}

/// A file of which it is known how much was read, holes and zeros not counted: in an archive they are had for nothing.
struct Weighed<'a, R> {
    input: R,
    bytes: &'a Cell<u64>,
}

impl<R: Read> Read for Weighed<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.input.read(buffer)?;
        let blocks = buffer.get(..count).unwrap_or_default().chunks(HOLE_BYTES);
        let solid: usize = blocks.filter(|block| !is_zero(block)).map(<[u8]>::len).sum();
        self.bytes.set(self.bytes.get().saturating_add(solid as u64));
        Ok(count)
    }
}
