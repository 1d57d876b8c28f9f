//! A container: its handle for everyone, and the one task that owns it.
//!
//! Handlers put a [`Command`] into the owner's queue and wait for the reply; what only reads is answered from the
//! [`View`], which never waits (containerd gives `State` two seconds, also while a dump runs).
//!
//! The owner decides and never waits either: whatever takes time runs in a task of its own and comes back into the queue
//! as a completion. Long acts on the whole container exclude each other and queue in order; execs start side by side
//! and only wait for those.

mod acts;
pub mod create;
mod execs;
mod exits;
mod facts;
mod filling;
mod queue;
mod saves;

use std::collections::{HashMap, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;

use jobs::record::Record;
use tokio::sync::{mpsc, oneshot, watch};

use crate::cgroup::Metrics;
use crate::dump::{CheckpointOptions, Dumped};
use crate::error::{Error, Result};
use crate::phases::Timing;
use crate::process::{Process, ProcessView};
use crate::progress::Canceller;
use crate::reap::Exit;
use crate::registry::Entry;
use crate::restore::Restored;
use crate::state::Status;
use crate::stdio::StdioRequest;
use crate::worker::page_server::Filling;

use create::Deferred;
pub use facts::Facts;

/// Requests a container may have waiting. Far more than any client sends at once; a client gone mad gets an error.
const QUEUE_MAX: usize = 128;

/// Where a reply goes.
pub type Reply<T> = oneshot::Sender<Result<T>>;

/// How a deleted process ended.
#[derive(Debug, Clone, Copy)]
pub struct Deleted {
    /// Its pid, zero if it never had one.
    pub pid: i32,
    /// Its exit; for a process that never ran, status 0 at the time of the call.
    pub exit: Exit,
}

/// An exec to be reserved.
#[derive(Debug)]
pub struct NewExec {
    /// Its id.
    pub id: String,
    /// Its OCI process, JSON.
    pub spec: Vec<u8>,
    /// Where its stdio goes.
    pub stdio: StdioRequest,
}

/// What the owner is asked. `exec: None` means the init.
#[derive(Debug)]
#[expect(missing_docs, reason = "the names of the Task service's requests")]
pub enum Command {
    Start {
        exec: Option<String>,
        reply: Reply<i32>,
    },
    Exec {
        exec: NewExec,
        reply: Reply<()>,
    },
    Delete {
        exec: Option<String>,
        reply: Reply<Deleted>,
    },
    Kill {
        exec: Option<String>,
        signal: i32,
        all: bool,
        reply: Reply<()>,
    },
    Pause {
        reply: Reply<()>,
    },
    Resume {
        reply: Reply<()>,
    },
    Update {
        resources: Vec<u8>,
        reply: Reply<()>,
    },
    Checkpoint {
        options: Box<CheckpointOptions>,
        /// Instead of the container's own.
        settings: Option<Box<config::Dump>>,
        reply: Reply<Dumped>,
    },
    Restore {
        checkpoint: PathBuf,
        /// What the checkpoint was unpacked from, if it was.
        unpacked_from: Option<PathBuf>,
        /// The list of the memory that was left in that.
        left: Option<PathBuf>,
        settings: Box<config::Restore>,
        reply: Reply<RestoredInPlace>,
    },
    Cancel {
        reply: Reply<()>,
    },
    Record {
        reply: Reply<Record>,
    },
    Resize {
        exec: Option<String>,
        width: u16,
        height: u16,
        reply: Reply<()>,
    },
    CloseIo {
        exec: Option<String>,
        reply: Reply<()>,
    },
    Pids {
        reply: Reply<Vec<(i32, Option<String>)>>,
    },
    Stats {
        reply: Reply<Metrics>,
    },
}

/// A container that runs again.
#[derive(Debug)]
pub struct RestoredInPlace {
    /// Its new init.
    pub pid: i32,
    /// How long each phase took.
    pub timings: Vec<Timing>,
}

/// What everyone may know of a container at any time.
#[derive(Debug, Clone)]
pub struct View {
    /// The init.
    pub init: ProcessView,
    /// The execs by id.
    pub execs: HashMap<String, ProcessView>,
    /// The exclusive act under way, by name.
    pub busy: Option<&'static str>,
}

impl View {
    /// A process of the container.
    ///
    /// # Errors
    /// [`Error::NotFound`] for an unknown exec.
    pub fn process(&self, exec: Option<&str>) -> Result<&ProcessView> {
        match exec {
            None => Ok(&self.init),
            Some(id) => self.execs.get(id).ok_or_else(|| no_exec(id)),
        }
    }

    /// The state clients see: a running exec shares the freezing of its container.
    pub fn status(&self, process: &ProcessView) -> Status {
        match (process.status, self.init.status) {
            (Status::Running, frozen @ (Status::Paused | Status::Pausing)) => frozen,
            (status, _) => status,
        }
    }
}

fn no_exec(id: &str) -> Error {
    Error::NotFound(format!("exec {id} does not exist in this container"))
}

/// A container's handle.
#[derive(Debug, Clone)]
pub struct Container {
    queue: mpsc::Sender<Message>,
    view: watch::Receiver<View>,
    /// What never changes about it.
    pub facts: Arc<Facts>,
}

impl Container {
    /// What is known of it now.
    pub fn view(&self) -> View {
        self.view.borrow().clone()
    }

    /// Asks the owner and waits for its reply. Dropping the future does not interrupt what was begun.
    ///
    /// # Errors
    /// The owner's; [`Error::NotFound`] if the container is gone.
    pub async fn ask<T>(&self, command: impl FnOnce(Reply<T>) -> Command) -> Result<T> {
        let gone = || Error::NotFound(format!("container {} does not exist", self.facts.id));
        let (reply, answer) = oneshot::channel();
        self.queue
            .send(Message::Command(command(reply)))
            .await
            .map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

/// What reaches the owner's queue.
enum Message {
    /// A client's request.
    Command(Command),
    /// A process ended.
    Exited { exec: Option<String>, exit: Exit },
    /// The kernel killed for want of memory.
    Oom,
    /// Something the owner had begun is finished; the closure draws the consequences.
    Completed(Completion),
}

type Completion = Box<dyn FnOnce(&mut Owner) + Send>;

/// The state of a container. Only its own task ever sees it.
struct Owner {
    facts: Arc<Facts>,
    init: Process,
    execs: HashMap<String, Process>,
    /// Its processes came out of a checkpoint, stopped, and wait to be let go.
    restored: Option<Restored>,
    /// A restore that has to wait for `Start`.
    deferred: Option<Deferred>,
    /// Its memory is still on its way.
    filling: Option<Filling>,
    /// The exclusive act under way, by name.
    busy: Option<&'static str>,
    /// Execs whose runc is under way.
    starting: usize,
    /// Commands that wait for the exclusive act or for the starting execs.
    waiting: VecDeque<Command>,
    /// The init's exit, kept back until it may be told.
    held_exit: Option<Exit>,
    /// It was killed while it was, or was being, frozen.
    dying: bool,
    /// What outlived the init is being killed.
    killing: bool,
    /// It has been deleted: the task ends.
    gone: bool,
    /// Gives up the dump under way.
    canceller: Option<Canceller>,
    /// Its entry in the registry.
    entry: Entry,
    queue: mpsc::Sender<Message>,
    view: watch::Sender<View>,
}

impl Owner {
    fn snapshot(&self) -> View {
        View {
            init: self.init.view(),
            execs: self
                .execs
                .iter()
                .map(|(id, process)| (id.clone(), process.view()))
                .collect(),
            busy: self.busy,
        }
    }

    fn process(&mut self, exec: Option<&str>) -> Result<&mut Process> {
        match exec {
            None => Ok(&mut self.init),
            Some(id) => self.execs.get_mut(id).ok_or_else(|| no_exec(id)),
        }
    }
}
