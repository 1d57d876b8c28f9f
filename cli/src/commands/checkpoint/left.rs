//! What dumps have left in a directory of checkpoints that did not come to their end: a shim that was killed, a machine that went
//! down. Whoever looks into such a directory clears it up.

use std::path::Path;

use oci_bundles::archive;
use oci_bundles::staged::{self, Found};

use crate::output;

/// Clears it up, and warns of what a user should know. Never in the way of what was asked for.
pub fn sweep(dir: &Path) {
    if !dir.is_dir() {
        return;
    }
    archive::sweep(dir);
    let found = match staged::sweep(dir) {
        Ok(found) => found,
        Err(source) => return output::warning(&format!("failed to look into {}: {source}", dir.display())),
    };
    for (dest, found) in found {
        let dest = dest.display();
        match found {
            Ok(Found::Completed(place)) => output::warning(&format!(
                "the dump to {dest} was interrupted when it was complete: it is {} now",
                place.display()
            )),
            Ok(Found::Kept(kept)) => output::warning(&format!(
                "the dump to {dest} was interrupted; its images, perhaps all that is left of the container, are kept in {}",
                kept.display()
            )),
            Ok(Found::Nothing | Found::InUse | Found::Removed) => {}
            Err(source) => output::warning(&format!("failed to clear away the dump to {dest}: {source}")),
        }
    }
}
