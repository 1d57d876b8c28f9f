//! What waits for a disk, beside the shim's only thread.

use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::timeout;

use super::DumpCause;

/// Runs what takes as long as the disk does beside the shim's only thread.
pub(super) async fn beside<T: Send + 'static>(
    what: &Path,
    work: impl FnOnce() -> Result<T, DumpCause> + Send + 'static,
) -> Result<T, DumpCause> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(DumpCause::files("work on", what)(error.into())))
}

/// The same, for what is done while the container stands: a disk that hangs does not keep it so. What has been begun goes on, and
/// what comes of it is not asked any more.
pub(super) async fn beside_within<T: Send + 'static>(
    limit: Duration,
    what: &Path,
    work: impl FnOnce() -> Result<T, DumpCause> + Send + 'static,
) -> Result<T, DumpCause> {
    let waited = timeout(limit, beside(what, work)).await;
    waited.unwrap_or_else(|_| {
        let (what, limit) = (what.display(), limit.as_secs());
        Err(DumpCause::TimedOut(format!(
            "work on {what}: its disk does not answer within {limit} s"
        )))
    })
}

/// The same for what has to be taken back if it is done too late.
pub(super) async fn beside_or_back<T: Send + 'static>(
    limit: Duration,
    what: &Path,
    work: impl FnOnce() -> Result<T, DumpCause> + Send + 'static,
    take_back: impl FnOnce(T) + Send + 'static,
) -> Result<T, DumpCause> {
    let (sender, mut receiver) = oneshot::channel();
    let do_it = move || {
        if let Err(Ok(late)) = sender.send(work()) {
            take_back(late);
        }
        Ok(())
    };
    let done = beside_within(limit, what, do_it).await;
    // From here on it is too late.
    receiver.close();
    match (receiver.try_recv(), done) {
        (Ok(done), _) => done,
        (Err(_), Err(error)) => Err(error),
        (Err(_), Ok(())) => Err(DumpCause::files("work on", what)(ErrorKind::BrokenPipe.into())),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn what_is_done_too_late_is_taken_back() {
        let what = Path::new("/images");
        let no = |_: u32| panic!("it was in time");
        let done = beside_or_back(Duration::from_secs(10), what, || Ok(7), no).await;
        assert!(matches!(done, Ok(7)), "{done:?}");
        let fails = || Err(DumpCause::Cancelled);
        let done = beside_or_back(Duration::from_secs(10), what, fails, no).await;
        assert!(matches!(done, Err(DumpCause::Cancelled)), "{done:?}");

        let (go_on, waits) = mpsc::channel::<()>();
        let (took_back, taken_back) = mpsc::channel();
        let work = move || {
            let _gone = waits.recv();
            Ok(7)
        };
        let take_back = move |late: u32| took_back.send(late).expect("heard");
        let done = beside_or_back(Duration::from_millis(1), what, work, take_back).await;
        assert!(matches!(done, Err(DumpCause::TimedOut(_))), "{done:?}");
        drop(go_on);
        assert_eq!(taken_back.recv_timeout(Duration::from_secs(10)), Ok(7));
    }
}
