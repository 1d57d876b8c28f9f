//! What is cleared away of dumps that came to nothing.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::thread;
use std::time::Duration;

use oci_bundles::layout::Shape;
use oci_bundles::staged::{Staged, Trust};

use super::DumpCause;

/// A file that came meanwhile is found by the next try; after a second nobody comes any more.
const REMOVE_TRIES: u32 = 100;
const REMOVE_PAUSE: Duration = Duration::from_millis(10);

/// What a dump to this place has left whose shim was killed, or whose machine went down: complete, it is a checkpoint.
///
/// # Errors
/// What the file system says.
pub(super) fn settle_earlier(images: &Path) -> Result<(), DumpCause> {
    for shape in Shape::ALL {
        let found = Staged::of(images, shape).recover(Trust::Digests);
        let found = found.map_err(DumpCause::files("clear away an earlier dump to", images))?;
        tracing::debug!(images = %images.display(), ?found, "looked for an earlier dump");
    }
    Ok(())
}

/// Somebody may have put something beside the images meanwhile.
pub(super) fn remove_empty(dir: &Path) -> Result<(), DumpCause> {
    match fs::remove_dir(dir) {
        Err(error) if !matches!(error.kind(), ErrorKind::NotFound | ErrorKind::DirectoryNotEmpty) => {
            Err(DumpCause::files("remove", dir)(error))
        }
        _ => Ok(()),
    }
}

/// Makes a directory, without what was there before.
pub(super) fn renew(dir: &Path) -> Result<(), DumpCause> {
    remove_tree(dir)?;
    fs::create_dir(dir).map_err(DumpCause::files("make", dir))
}

/// Also while somebody still comes to write into it: a disk that hung lets all go on at once, whom nobody waits for any more too.
pub(super) fn remove_tree(dir: &Path) -> Result<(), DumpCause> {
    for _ in 0..REMOVE_TRIES {
        match fs::remove_dir_all(dir) {
            Err(error) if error.kind() == ErrorKind::DirectoryNotEmpty => thread::sleep(REMOVE_PAUSE),
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(DumpCause::files("remove", dir)(error));
            }
            _ => return Ok(()),
        }
    }
    Err(DumpCause::files("remove", dir)(
        ErrorKind::DirectoryNotEmpty.into(),
    ))
}
