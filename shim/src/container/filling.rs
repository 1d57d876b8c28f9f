//! Memory of a restored container that is still on its way.

use std::sync::Arc;
use std::time::Duration;

use nix::libc::SIGKILL;
use tokio::time::timeout;

use super::Owner;
use crate::error::{Error, Result};
use crate::progress::{Cancel, Progress};
use crate::worker::page_server::Filling;

/// How long a dump waits for memory: 12 GiB from a disk that gives 20 MiB a second, and a client that waits so long has given up.
const FILLED_DEADLINE: Duration = Duration::from_secs(600);

/// How long what is killed may take to die.
const KILLED_DEADLINE: Duration = Duration::from_secs(10);

impl Owner {
    /// Follows it to its end. If memory is missing for good, the container is killed: who touches it would wait for ever.
    pub(super) fn follow_filling(&mut self, filling: Option<Filling>) {
        self.filling.clone_from(&filling);
        let Some(filling) = filling else { return };
        let pid = self.init.pid;
        self.aside(async move { filling.end().await }, move |owner, end| {
            let is_this = owner.init.pid == pid;
            match end {
                Err(reason) if is_this => owner.memory_is_lost(&reason),
                Ok(bytes) => {
                    tracing::debug!(id = owner.facts.id, bytes, "all memory is there");
                    owner.filling = owner.filling.take().filter(|_| !is_this);
                }
                Err(_) => {}
            }
        });
    }

    fn memory_is_lost(&mut self, reason: &str) {
        let text = format!("fill the memory of the restored container: {reason}; it is killed");
        tracing::error!(id = self.facts.id, "failed to {text}");
        self.entry.acted("restore", "", Some(&text));
        // Those that are there now; whoever is being forked is found below.
        if let Err(error) = self.kill(None, SIGKILL, true) {
            tracing::debug!(id = self.facts.id, %error, "a container without its memory has ended by itself");
        }
        let facts = Arc::clone(&self.facts);
        let kill = async move {
            match facts.cgroup() {
                Ok(cgroup) if !cgroup.is_shared() => cgroup
                    .kill_all(KILLED_DEADLINE)
                    .await
                    .map_err(|error| error.to_string()),
                Ok(_) => Ok(()),
                Err(error) => Err(error.to_string()),
            }
        };
        // Only then are the descriptors closed that keep missing memory from turning to zeros.
        self.aside(kill, |owner, killed| {
            owner.filling = None;
            if let Err(error) = killed {
                tracing::warn!(
                    id = owner.facts.id,
                    error,
                    "processes outlive the loss of their memory"
                );
            }
        });
    }
}

/// Waits until all memory is there. CRIU takes what is not there for memory that was never touched, and would leave it out.
pub(super) async fn until_filled(
    filling: Option<Filling>,
    progress: &Progress,
    cancel: &Cancel,
) -> Result<()> {
    let Some(filling) = filling else { return Ok(()) };
    progress.begins("dump", "wait for memory");
    filling.hurry();
    let end = tokio::select! {
        end = timeout(FILLED_DEADLINE, filling.end()) => Some(end),
        () = cancel.asked() => None,
    };
    progress.ends();
    let Some(end) = end else {
        return Err(Error::Cancelled("the dump was given up, as asked".to_owned()));
    };
    match end {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(reason)) => Err(Error::FailedPrecondition(format!(
            "dump a container whose memory was not all restored: {reason}"
        ))),
        Err(_) => Err(Error::Unavailable(format!(
            "dump a container that was just restored: its memory is not all there after {} s",
            FILLED_DEADLINE.as_secs()
        ))),
    }
}
