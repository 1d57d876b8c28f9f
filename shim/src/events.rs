//! What happened to a container, told to containerd: once, in order, and not lost while containerd is away.
//!
//! ```text
//!  container --publish--> queue --one at a time--> containerd (ttrpc Forward)
//! ```
//! [`Event`] is plain Rust; protobuf begins in `encode`. The order of publishing is the order of arrival: a forward that
//! fails is tried again before the next one is sent, since clients rely on start before exit before delete.

mod encode;
mod publisher;

use std::time::SystemTime;

use oci_bundles::mounts::Mount;

use crate::stdio::StdioRequest;

pub use publisher::Publisher;

/// One fact in the life of a container. Process ids are the host's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The container exists; its process waits to be started.
    Create {
        /// The container.
        container_id: String,
        /// Path of its bundle.
        bundle: String,
        /// The mounts of its root file system.
        rootfs: Vec<Mount>,
        /// Where its stdio goes.
        io: StdioRequest,
        /// Directory it is restored from; empty for a fresh start.
        checkpoint: String,
        /// Its init process.
        pid: u32,
    },
    /// The init process runs.
    Start {
        /// The container.
        container_id: String,
        /// Its init process.
        pid: u32,
    },
    /// A process has ended.
    Exit {
        /// The container.
        container_id: String,
        /// The exec, or the container again for the init process.
        id: String,
        /// The process.
        pid: u32,
        /// Exit code, or 128 plus the signal.
        exit_status: u32,
        /// When it ended.
        exited_at: SystemTime,
    },
    /// An exec is known but not started.
    ExecAdded {
        /// The container.
        container_id: String,
        /// The exec.
        exec_id: String,
    },
    /// An exec runs.
    ExecStarted {
        /// The container.
        container_id: String,
        /// The exec.
        exec_id: String,
        /// Its process.
        pid: u32,
    },
    /// The kernel killed a process of the container for want of memory.
    Oom {
        /// The container.
        container_id: String,
    },
    /// All its processes are frozen.
    Paused {
        /// The container.
        container_id: String,
    },
    /// Its processes go on.
    Resumed {
        /// The container.
        container_id: String,
    },
    /// A checkpoint of it is complete.
    Checkpointed {
        /// The container.
        container_id: String,
        /// Directory of the checkpoint.
        checkpoint: String,
    },
    /// The container is gone.
    Delete {
        /// The container.
        container_id: String,
        /// Empty for the init process; execs are not reported.
        id: String,
        /// Its init process.
        pid: u32,
        /// Exit code, or 128 plus the signal.
        exit_status: u32,
        /// When it ended.
        exited_at: SystemTime,
    },
}

/// Whoever is told. Must not block: it is called from the tasks that own containers.
pub trait EventSink: std::fmt::Debug + Send + Sync {
    /// Takes an event; the order of calls is the order in which it is told.
    fn publish(&self, event: Event);
}

/// A sink for tests, which remembers what it was told.
#[cfg(test)]
#[derive(Debug, Default)]
pub struct Recording {
    events: std::sync::Mutex<Vec<Event>>,
    told: tokio::sync::Notify,
}

#[cfg(test)]
impl Recording {
    /// Everything so far, in order.
    pub fn events(&self) -> Vec<Event> {
        self.events.lock().unwrap().clone()
    }

    /// Waits until some event satisfies `is_it` (now or from now on); panics after ten seconds.
    pub async fn wait_for(&self, is_it: impl Fn(&Event) -> bool) -> Event {
        let search = async {
            loop {
                let told = self.told.notified();
                if let Some(event) = self.events().into_iter().find(|event| is_it(event)) {
                    return event;
                }
                told.await;
            }
        };
        let limit = std::time::Duration::from_secs(10);
        tokio::time::timeout(limit, search)
            .await
            .unwrap_or_else(|_| panic!("not among {:?}", self.events()))
    }
}

#[cfg(test)]
impl EventSink for Recording {
    fn publish(&self, event: Event) {
        self.events.lock().unwrap().push(event);
        self.told.notify_waiters();
    }
}
