//! One process of a container as its owner knows it: the init, or an exec.

use nix::errno::Errno;
use tokio::sync::watch;

use crate::cgroup::moves::ExpectedMoves;
use crate::error::{Error, Result};
use crate::reap::{Exit, ExitWatch};
use crate::signals;
use crate::state::Status;
use crate::stdio::{StdioRequest, Streams};

/// A process and what belongs to it. Only the container's owner task has one; everybody else reads [`ProcessView`].
#[derive(Debug)]
pub struct Process {
    /// The host's pid; zero before it exists.
    pub pid: i32,
    /// Its own state; that of an exec in a paused container is derived (`View::status`).
    pub status: Status,
    /// Where its stdio goes, as the client said.
    pub stdio: StdioRequest,
    /// What copies its stdio, once it has been attached.
    pub streams: Option<Streams>,
    /// The OCI process of an exec that has not been started.
    pub spec: Vec<u8>,
    /// Its end as the reaper sees it, which may be before it is told.
    pub watch: Option<ExitWatch>,
    /// Whether somebody is starting or deleting it just now.
    pub busy: bool,
    /// An exec is about to be started.
    pub moves: Option<ExpectedMoves>,
    exit: watch::Sender<Option<Exit>>,
}

impl Process {
    /// A process that waits for its start.
    pub fn created(pid: i32, stdio: StdioRequest, streams: Option<Streams>) -> Self {
        Self {
            pid,
            status: Status::Created,
            stdio,
            streams,
            spec: Vec::new(),
            watch: None,
            busy: false,
            moves: None,
            exit: watch::channel(None).0,
        }
    }

    /// Records the end; everyone who waits is told.
    pub fn end(&mut self, exit: Exit) {
        self.status = Status::Stopped;
        let _ = self.exit.send_replace(Some(exit));
    }

    /// How it ended, if it has.
    pub fn exit(&self) -> Option<Exit> {
        *self.exit.borrow()
    }

    /// Sends it a signal. Its pid cannot be another's: a child's pid is only free after the reaper, which runs on the same
    /// thread, has taken its exit.
    ///
    /// # Errors
    /// [`Error::NotFound`] if it has ended, [`Error::InvalidArgument`] if that is no signal.
    pub fn signal(&self, signal: i32) -> Result<()> {
        let finished = || Error::NotFound("process already finished".to_owned());
        if self.watch.as_ref().is_none_or(|watch| watch.now().is_some()) {
            return Err(finished());
        }
        signals::send(self.pid, signal).map_err(|errno| match errno {
            Errno::ESRCH => finished(),
            Errno::EINVAL => Error::InvalidArgument(format!("{signal} is not a signal")),
            errno => Error::Internal(format!("signal process {}: {errno}", self.pid)),
        })
    }

    /// What others may know of it.
    pub fn view(&self) -> ProcessView {
        ProcessView {
            pid: self.pid,
            status: self.status,
            stdio: self.stdio.clone(),
            exit: self.exit.subscribe(),
        }
    }
}

/// A process as handlers see it: a copy, taken without asking the owner.
#[derive(Debug, Clone)]
pub struct ProcessView {
    /// The host's pid; zero before it exists.
    pub pid: i32,
    /// Its state.
    pub status: Status,
    /// Where its stdio goes, as the client said.
    pub stdio: StdioRequest,
    exit: watch::Receiver<Option<Exit>>,
}

impl ProcessView {
    /// How it ended, if it has.
    pub fn exit(&self) -> Option<Exit> {
        *self.exit.borrow()
    }

    /// Waits, without a deadline, for its end. None if it was deleted before it had one.
    pub async fn wait(mut self) -> Option<Exit> {
        // An exec that is deleted unstarted drops the sender: an error, and nothing to report.
        self.exit
            .wait_for(Option::is_some)
            .await
            .ok()
            .and_then(|exit| *exit)
    }
}
