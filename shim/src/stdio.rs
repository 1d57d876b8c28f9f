//! A process's standard streams: what the client named on one side, pipes or a terminal on the other.
//!
//! ```text
//!   client                     shim                               container
//!   stdin fifo   --writes-->   [reader, holder]   --copy-->       pipe | pty master
//!   stdout fifo  <--reads--    [writer, keeper]   <--copy--       pipe | pty master
//!   file://                    [appending file]   <--copy--       pipe
//!   binary://                  (only starts it)   <============   pipe, straight to the logger
//!   (empty)                                                       /dev/null
//! ```
//!
//! Invariants:
//! - the container never holds a fifo or a file of the host, only anonymous pipes, a pty or /dev/null: CRIU cannot dump
//!   anything else;
//! - a client that goes away ends nothing. The *holder* keeps stdin from ending until [`Streams::close_stdin`], the
//!   *keeper* lets output wait in the fifo (and then block the container) until another client reads on;
//! - everything of ours is non-blocking and lives on the runtime; a buffer exists only while there is something in it.

mod console;
mod copy;
mod descriptor;
mod fifo;
mod location;
mod logger;
mod output;
mod streams;

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::{Gid, Uid, fchown, pipe2};
use thiserror::Error;
use tokio::time::Instant;

use crate::reap::Reaper;
use console::ConsoleSocket;
use fifo::InputFifo;
use location::Location;
use logger::Logger;
use output::OutputTarget;
pub use streams::Streams;

/// What the client asked for; every field may be empty, which means "nothing there".
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StdioRequest {
    /// Path of the fifo the client writes to.
    pub stdin: String,
    /// Path of a fifo or file, `file:///path`, or `binary:///path?argument=value`.
    pub stdout: String,
    /// As `stdout`. Not used with a terminal, which has only one output, nor with a binary, which gets both.
    pub stderr: String,
    /// One pseudo terminal instead of three pipes.
    pub terminal: bool,
}

/// What the streams of a process need to know about it.
#[derive(Debug)]
pub struct Context<'a> {
    /// containerd's namespace; a logging binary is told.
    pub namespace: &'a str,
    /// The container's id, or the exec's; a logging binary is told.
    pub id: &'a str,
    /// A directory of ours where the console socket may live.
    pub socket_dir: &'a Path,
    /// Owner of the container's pipes on the host (IoUid, IoGid), where it is not root: without it a process in a user
    /// namespace could not open its own /dev/stdout.
    pub owner: Option<(u32, u32)>,
    /// Spawns logging binaries.
    pub reaper: &'a Arc<Reaper>,
}

/// Why a process cannot have its streams.
#[derive(Debug, Error)]
pub enum StdioError {
    /// The request itself is wrong.
    #[error("use {uri:?} as standard stream: {reason}")]
    Invalid {
        /// What the client sent.
        uri: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A path named by the client cannot be opened.
    #[error("open {}", .path.display())]
    Open {
        /// The path.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The logging binary does not start, or ended without having said that it is ready.
    #[error("start logging binary {}", .path.display())]
    Logger {
        /// The program.
        path: PathBuf,
        /// What happened.
        source: io::Error,
    },
    /// The terminal did not arrive, or refuses.
    #[error("set up the terminal")]
    Terminal(#[source] io::Error),
    /// Somebody the streams depend on kept us waiting.
    #[error("get {what} within {} s", .limit.as_secs())]
    Late {
        /// What did not come.
        what: &'static str,
        /// How long we waited.
        limit: Duration,
    },
    /// The kernel refused a pipe or a place in the poll set.
    #[error("make a pipe")]
    Pipe(#[from] io::Error),
}

impl From<nix::Error> for StdioError {
    fn from(errno: nix::Error) -> Self {
        Self::Pipe(errno.into())
    }
}

/// The streams of a process that runc has not made yet. Dropping it closes everything, and ends a logging binary.
#[derive(Debug)]
pub struct Prepared {
    child: [Option<OwnedFd>; 3],
    stdin: Option<(InputFifo, Option<OwnedFd>)>,
    outputs: Vec<(OutputTarget, Option<OwnedFd>)>,
    console: Option<ConsoleSocket>,
    logger: Option<Logger>,
    /// Who owns the container's ends.
    owner: Option<(u32, u32)>,
}

/// Opens what the client named and makes the container's side of it. Does not wait for anyone.
///
/// # Errors
/// [`StdioError::Invalid`] and [`StdioError::Open`] are the client's fault, the others are ours.
pub fn prepare(request: &StdioRequest, context: &Context<'_>) -> Result<Prepared, StdioError> {
    let mut prepared = Prepared {
        child: [None, None, None],
        stdin: None,
        outputs: Vec::new(),
        console: None,
        logger: None,
        owner: context.owner,
    };
    let stdout = location::parse(&request.stdout)?;
    if !request.stdin.is_empty() {
        let fifo = InputFifo::open(Path::new(&request.stdin))?;
        prepared.add_stdin(fifo, request.terminal, context.owner)?;
    }
    if request.terminal {
        prepared.console = Some(ConsoleSocket::bind(context.socket_dir).map_err(StdioError::Terminal)?);
        prepared.add_terminal_output(stdout, context)?;
    } else if let Location::Binary(command) = stdout {
        let (out, err) = (container_output(context.owner)?, container_output(context.owner)?);
        prepared.logger = Some(Logger::start(&command, context, out.read, err.read)?);
        let [_, stdout, stderr] = &mut prepared.child;
        (*stdout, *stderr) = (Some(out.write), Some(err.write));
    } else {
        let mut stderr = location::parse(&request.stderr)?;
        if matches!(stderr, Location::Binary(_)) {
            // Only a binary named for stdout is started; nothing would read this one.
            stderr = Location::Nothing;
        }
        prepared.add_output(1, stdout, context.owner)?;
        prepared.add_output(2, stderr, context.owner)?;
    }
    Ok(prepared)
}

impl Prepared {
    /// What to give runc as its own standard streams, which the container then inherits. /dev/null where there is
    /// nothing, and everywhere with a terminal. A second call gives /dev/null only.
    ///
    /// The `Command` that gets them has to be dropped once runc is started: as long as the shim itself has the
    /// container's ends, no stream ever ends.
    pub fn child_stdio(&mut self) -> [Stdio; 3] {
        std::mem::take(&mut self.child).map(|fd| fd.map_or_else(Stdio::null, Stdio::from))
    }

    /// Gives a pipe to each stream that has nothing, for a restore: what was a pipe at the dump becomes what stands here, and with the
    /// host's `/dev/null` there CRIU could not save the container again ("Can't lookup mount", 4.2). Nothing comes in, and what goes
    /// out goes nowhere.
    ///
    /// # Errors
    /// There are no descriptors.
    pub fn give_pipes(&mut self) -> Result<(), StdioError> {
        if self.console.is_some() {
            return Ok(());
        }
        let owner = self.owner;
        for (slot, end) in self.child.iter_mut().enumerate().filter(|(_, end)| end.is_none()) {
            let pipe = Pipe::open()?;
            if slot == 0 {
                give_to(&pipe.read, owner)?;
                *end = Some(pipe.read);
            } else {
                give_to(&pipe.write, owner)?;
                set_nonblocking(&pipe.read)?;
                *end = Some(pipe.write);
                self.outputs.push((OutputTarget::Nowhere, Some(pipe.read)));
            }
        }
        Ok(())
    }

    /// Where runc is to send the terminal (`--console-socket`), if the process has one.
    pub fn console_socket(&self) -> Option<&Path> {
        self.console.as_ref().map(ConsoleSocket::path)
    }

    /// Starts copying. To be called after runc has returned and with it has sent the terminal.
    ///
    /// # Errors
    /// [`StdioError::Late`] when the terminal or the logging binary does not answer within `deadline`; the process
    /// runs by then, without streams, and is the caller's to kill.
    pub async fn attach(mut self, deadline: Duration) -> Result<Streams, StdioError> {
        // Were the child's ends never taken, they would keep the streams from ending.
        self.child = [None, None, None];
        let until = Instant::now() + deadline;
        if let Some(logger) = &mut self.logger {
            let limited = tokio::time::timeout_at(until, logger.ready()).await;
            limited.map_err(|_| StdioError::Late {
                what: "ready from the logging binary",
                limit: deadline,
            })??;
        }
        let master = match self.console.take() {
            None => None,
            Some(socket) => {
                let limited = tokio::time::timeout_at(until, socket.receive()).await;
                let late = |_| StdioError::Late {
                    what: "the terminal from runc",
                    limit: deadline,
                };
                Some(limited.map_err(late)?.map_err(StdioError::Terminal)?)
            }
        };
        Streams::start(
            self.stdin.take(),
            std::mem::take(&mut self.outputs),
            master,
            self.logger.take(),
        )
    }

    fn add_stdin(
        &mut self,
        fifo: InputFifo,
        terminal: bool,
        owner: Option<(u32, u32)>,
    ) -> Result<(), StdioError> {
        let mut sink = None;
        if !terminal {
            let pipe = Pipe::open()?;
            give_to(&pipe.read, owner)?;
            set_nonblocking(&pipe.write)?;
            let [stdin, ..] = &mut self.child;
            *stdin = Some(pipe.read);
            sink = Some(pipe.write);
        }
        self.stdin = Some((fifo, sink));
        Ok(())
    }

    fn add_output(
        &mut self,
        slot: usize,
        location: Location,
        owner: Option<(u32, u32)>,
    ) -> Result<(), StdioError> {
        let target = match location {
            Location::Nothing | Location::Binary(_) => return Ok(()),
            Location::Path(path) => OutputTarget::open(&path)?,
            Location::File(path) => OutputTarget::create(&path)?,
        };
        let pipe = container_output(owner)?;
        set_nonblocking(&pipe.read)?;
        if let Some(child) = self.child.get_mut(slot) {
            *child = Some(pipe.write);
        }
        self.outputs.push((target, Some(pipe.read)));
        Ok(())
    }

    /// The terminal's output has to be read even if nobody wants it, or the process would block on it.
    fn add_terminal_output(&mut self, stdout: Location, context: &Context<'_>) -> Result<(), StdioError> {
        let target = match stdout {
            Location::Nothing => OutputTarget::Nowhere,
            Location::Path(path) => OutputTarget::open(&path)?,
            Location::File(path) => OutputTarget::create(&path)?,
            Location::Binary(command) => {
                let (out, err) = (Pipe::open()?, Pipe::open()?);
                self.logger = Some(Logger::start(&command, context, out.read, err.read)?);
                set_nonblocking(&out.write)?;
                OutputTarget::Pipe(out.write)
            }
        };
        self.outputs.push((target, None));
        Ok(())
    }
}

/// An anonymous pipe, both ends blocking and closed on exec.
struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
}

impl Pipe {
    fn open() -> Result<Self, StdioError> {
        let (read, write) = pipe2(OFlag::O_CLOEXEC)?;
        Ok(Self { read, write })
    }
}

fn container_output(owner: Option<(u32, u32)>) -> Result<Pipe, StdioError> {
    let pipe = Pipe::open()?;
    give_to(&pipe.write, owner)?;
    Ok(pipe)
}

fn give_to(end: &OwnedFd, owner: Option<(u32, u32)>) -> Result<(), StdioError> {
    if let Some((uid, gid)) = owner {
        fchown(end, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
    }
    Ok(())
}

/// Makes our end of a pipe non-blocking. The container's end is another open file and stays as it is, which matters:
/// few programs expect EAGAIN from their standard output.
fn set_nonblocking(fd: &OwnedFd) -> Result<(), StdioError> {
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    let _ = fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}
