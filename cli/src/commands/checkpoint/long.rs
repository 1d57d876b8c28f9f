//! Work that reads or writes a whole checkpoint: beside the runtime, with progress, and ended by Ctrl+C.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use oci_bundles::archive::{OnProgress, Step};
use oci_bundles::checkpoint::CheckpointError;

use crate::error::Error;
use crate::interrupt::interrupted;
use crate::output::progress::Progress;

/// Does it to its end. Ctrl+C makes its next progress the last.
///
/// # Errors
/// It cannot be begun.
pub async fn run<T: Send + 'static>(
    progress: Arc<Progress>,
    work: impl FnOnce(&mut OnProgress<'_>) -> Result<T, CheckpointError> + Send + 'static,
) -> Result<Result<T, CheckpointError>, Error> {
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let work = tokio::task::spawn_blocking(move || {
        work(&mut |at| {
            let step = match at.step {
                Step::Verify => "reading",
                Step::Pack => "packing",
                Step::Unpack => "unpacking",
            };
            progress.set(step, at.done, at.total);
            match stopped.load(Ordering::Relaxed) {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            }
        })
    });
    tokio::pin!(work);
    loop {
        tokio::select! {
            done = &mut work => {
                return done.map_err(|source| Error::failed(format!("failed to go on: {source}")));
            }
            () = interrupted() => stop.store(true, Ordering::Relaxed),
        }
    }
}
