//! The dump that a shim was making when it was killed.

use std::fs;
use std::path::Path;

use oci_bundles::layout::Shape;
use oci_bundles::staged::{Found, Staged, Trust};

use crate::dump::{in_memory, mark};

/// Completes it if all of it was written, else takes it away. Returns what somebody should know.
///
/// Sizes tell enough: the machine is still up, so what was written is there. There are five seconds for all of a clean-up, and
/// digests of much memory take longer; if they do not do, `cedana` sweeps later.
pub(super) fn settle(bundle: &Path) -> Vec<String> {
    // Images of which some are nowhere else are no dump; the bundle may stay, and they take memory.
    drop(fs::remove_dir_all(in_memory::dir(bundle)));
    let Some(dest) = mark::read(bundle) else {
        return Vec::new();
    };
    let shapes = Shape::ALL.into_iter();
    shapes
        .filter_map(|shape| match Staged::of(&dest, shape).recover(Trust::Sizes) {
            Ok(Found::Completed(place)) => Some(format!(
                "a dump was under way that was complete: it is {}",
                place.display()
            )),
            Ok(Found::Kept(kept)) => Some(format!(
                "a dump was under way; its images, perhaps the only copy of the container, are kept in {}",
                kept.display()
            )),
            Ok(Found::Nothing | Found::InUse | Found::Removed) => None,
            Err(error) => Some(format!("clear away the dump to {}: {error}", dest.display())),
        })
        .collect()
}
