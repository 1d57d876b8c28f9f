//! The dump that a shim was making when it was killed.

use std::fs;
use std::io::ErrorKind;
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
    let memory = in_memory::dir(bundle);
    let mut told = match fs::remove_dir_all(&memory) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            vec![format!("remove {}: {error}", memory.display())]
        }
        _ => Vec::new(),
    };
    let Some(dest) = mark::read(bundle) else {
        return told;
    };
    let shapes = Shape::ALL.into_iter();
    told.extend(
        shapes.filter_map(|shape| match Staged::of(&dest, shape).recover(Trust::Sizes) {
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
        }),
    );
    told
}
