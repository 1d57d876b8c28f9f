//! What becomes of a container that CRIU was told it may end, when CRIU or its runc does not come to its end.
//!
//! By then the dump is whole and on the disk. Either no process has been touched, and the container goes on as if nothing had
//! been said; or the ending has begun, and is brought to its end: half an application is none, and its checkpoint is complete.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::steps::FREEZE_DEADLINE;
use super::{DumpCause, Dumping};
use crate::criu::{proc, stray};

/// Between two looks.
const LOOK: Duration = Duration::from_millis(2);

/// A signal that was sent takes this long at most to be seen, pending or in what it did.
const SIGNAL_TIME: Duration = Duration::from_millis(20);

impl Dumping<'_> {
    /// Whether the container has ended, or is ended now, so that the dump stands. If not, it goes on as it was.
    ///
    /// `pids` are its processes as they were before CRIU came.
    pub(super) async fn has_ended_it(&mut self, pids: &[i32]) -> Result<bool, DumpCause> {
        // It may still end the tasks by itself.
        self.end_criu().await?;
        sleep(SIGNAL_TIME).await;
        if pids.iter().all(|pid| proc::is_unharmed(*pid)) {
            // It was not made use of.
            self.agreed = false;
            return Ok(false);
        }
        tracing::warn!(id = self.job.id, "ending a container that CRIU had begun to end");
        self.end_rest().await?;
        Ok(true)
    }

    async fn end_rest(&self) -> Result<(), DumpCause> {
        for pid in self.pids() {
            stray::kill(pid);
        }
        // Under cgroup v1 what is frozen does not die.
        self.job.cgroup.thaw(FREEZE_DEADLINE).await?;
        let end = Instant::now() + FREEZE_DEADLINE;
        while proc::is_running(self.job.init_pid) {
            if Instant::now() > end {
                let limit = FREEZE_DEADLINE.as_secs();
                return Err(DumpCause::TimedOut(format!("end the container within {limit} s")));
            }
            sleep(LOOK).await;
        }
        Ok(())
    }
}
