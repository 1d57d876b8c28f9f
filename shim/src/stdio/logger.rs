//! A logging binary: containerd's protocol for programs that take a container's output.
//!
//! It gets the read ends of the container's stdout and stderr as descriptors 3 and 4, and as 5 a pipe that it closes
//! (or, in version 2 of the protocol, writes a byte to) when it is ready; CONTAINER_ID and CONTAINER_NAMESPACE are its
//! whole environment. It ends when both streams have ended.

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::Interest;

use super::location::LoggerCommand;
use super::{Context, Pipe, StdioError, descriptor};
use crate::reap::ExitWatch;
use crate::spawn;

/// How long a logger may go on after the end of the streams before it is asked to end. Go's shim asks at once, which
/// cuts off what a logger without a handler for SIGTERM has not read yet.
const EOF_GRACE: Duration = Duration::from_secs(2);

/// How long a logger may go on after it was asked to end: 12 s as in Go's shim, which grants 10 s for cleaning up.
const TERM_GRACE: Duration = Duration::from_secs(12);

/// A started logging binary. Dropping it ends it.
#[derive(Debug)]
pub(super) struct Logger {
    path: PathBuf,
    pid: Pid,
    exit: ExitWatch,
    /// The read end of the pipe that says "ready", until it has.
    ready: Option<OwnedFd>,
    must_say_ready: bool,
    asked_to_end: AtomicBool,
}

impl Logger {
    /// Starts the program; does not wait until it is ready.
    pub fn start(
        command: &LoggerCommand,
        context: &Context<'_>,
        stdout: OwnedFd,
        stderr: OwnedFd,
    ) -> Result<Self, StdioError> {
        let ready = Pipe::open()?;
        super::set_nonblocking(&ready.read)?;
        let mut program = Command::new(&command.path);
        // The container's names come last, so that the query cannot forge them.
        let _ = program
            .args(&command.arguments)
            .env_clear()
            .envs(command.environment.iter().map(|(name, value)| (name, value)))
            .env("CONTAINER_ID", context.id)
            .env("CONTAINER_NAMESPACE", context.namespace)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        spawn::pass_fds(&mut program, vec![(stdout, 3), (stderr, 4), (ready.write, 5)]);
        let spawned = context.reaper.spawn(&mut program);
        // With the command go our copies of what the logger got; they would hide the logger's end from the container.
        drop(program);
        let child = spawned.map_err(|source| StdioError::Logger {
            path: command.path.clone(),
            source,
        })?;
        Ok(Self {
            path: command.path.clone(),
            pid: Pid::from_raw(child.pid),
            exit: child.exit,
            ready: Some(ready.read),
            must_say_ready: command.must_say_ready,
            asked_to_end: AtomicBool::new(false),
        })
    }

    /// Waits until the program is ready. The caller sets the deadline.
    pub async fn ready(&mut self) -> Result<(), StdioError> {
        let Some(ready) = self.ready.take() else {
            return Ok(());
        };
        let said = self.read_ready(ready).await;
        said.map_err(|source| StdioError::Logger {
            path: self.path.clone(),
            source,
        })
    }

    async fn read_ready(&self, ready: OwnedFd) -> io::Result<()> {
        let ready = descriptor::poll(ready, Interest::READABLE)?;
        let mut byte = [0];
        let length = ready
            .async_io(Interest::READABLE, |fd| Ok(nix::unistd::read(fd, &mut byte)?))
            .await?;
        if length == 0 && self.must_say_ready {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "it ended without being ready",
            ));
        }
        Ok(())
    }

    /// Waits until the program has ended by itself, or because it was asked to. The caller sets the deadline.
    pub async fn finished(&self) {
        if tokio::time::timeout(EOF_GRACE, self.exit.wait()).await.is_err() {
            tracing::warn!(logger = %self.path.display(), "logging binary goes on after the end of the output");
            self.ask_to_end();
            let _ = self.exit.wait().await;
        }
    }

    /// Ends the program without waiting for it: politely the first time, by force after [`TERM_GRACE`] or when it has
    /// already been asked.
    pub fn stop(&self) {
        if self.exit.now().is_some() {
            return;
        }
        if self.asked_to_end.load(Ordering::Relaxed) {
            end_by_force(self.pid, &self.exit);
            return;
        }
        self.ask_to_end();
        let (pid, exit) = (self.pid, self.exit.clone());
        // Without a runtime the process itself is ending, and with it goes the other end of the logger's pipes.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            drop(runtime.spawn(async move {
                if tokio::time::timeout(TERM_GRACE, exit.wait()).await.is_err() {
                    end_by_force(pid, &exit);
                }
            }));
        }
    }

    fn ask_to_end(&self) {
        self.asked_to_end.store(true, Ordering::Relaxed);
        send(self.pid, &self.exit, Signal::SIGTERM);
    }
}

impl Drop for Logger {
    fn drop(&mut self) {
        self.stop();
    }
}

fn end_by_force(pid: Pid, exit: &ExitWatch) {
    send(pid, exit, Signal::SIGKILL);
}

/// Signals a child that is not reaped yet, so its pid cannot have become another's.
fn send(pid: Pid, exit: &ExitWatch, signal: Signal) {
    if exit.now().is_none()
        && let Err(error) = kill(pid, signal)
    {
        tracing::warn!(%pid, %signal, %error, "signal to logging binary failed");
    }
}
