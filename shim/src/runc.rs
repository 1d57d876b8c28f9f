//! runc's command line as functions; crun's too, where the two agree.
//!
//! Two of runc's verbs are short enough to do without it when nothing unusual is asked for (measured: each exec of runc
//! costs 8-15 ms, most of it the Go runtime's start): see [`fast`]. `create`, `exec`, `update`, `checkpoint` and
//! `restore` always go through the stock binary.

pub mod fast;
mod report;

use std::ffi::{OsStr, OsString};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use nix::fcntl::OFlag;
use nix::sys::signal::Signal;
use nix::unistd::{Pid, pipe2};
use thiserror::Error;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::time::{sleep, timeout};

use crate::progress::Cancel;
use crate::reap::{Child, Exit, ExitWatch, Reaper};
use crate::spawn;

/// The longest any ordinary runc call may take. It is a safety net, not a budget: a loaded machine may need seconds,
/// and a runc that has not come back by then never will.
pub const CALL_DEADLINE: Duration = Duration::from_secs(120);

/// runc lives for milliseconds, of which its garbage collection takes a third (`runc exec` 25 ms with it, 15 ms without, runc
/// 1.3, two cores). The limit brings the collection back should a call ever grow. A container never sees this: runc's
/// init clears its environment.
const GO_ENVIRONMENT: [(&str, &str); 2] = [("GOGC", "off"), ("GOMEMLIMIT", "128MiB")];

/// How often a call that can become hopeless is looked at: rarely enough to cost nothing, and twice is still soon.
const HOPE_INTERVAL: Duration = Duration::from_secs(2);

/// How much of a runc's own output is kept for the error text.
const OUTPUT_BYTES_MAX: usize = 64 * 1024;

/// Why a call of runc did not do what was asked.
#[derive(Debug, Error)]
pub enum RuncError {
    /// The binary cannot be executed.
    #[error("run {}: {source}", binary.display())]
    Spawn {
        /// The binary as configured.
        binary: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// It ran and failed. The message is the last error in its log, else the end of its output.
    #[error("{message}")]
    Failed {
        /// The exit status, 128 plus signal if it was killed.
        status: u32,
        /// runc's own words.
        message: String,
    },
    /// It waited for something that could not come any more, and was killed.
    #[error("{verb} was waiting for CRIU, which is gone: broken unixpacket, EOF")]
    Hopeless {
        /// The runc verb.
        verb: String,
    },
    /// It was given up, and was killed.
    #[error("{verb} was given up, as asked")]
    Cancelled {
        /// The runc verb.
        verb: String,
    },
    /// It had not ended by the deadline, and was killed.
    #[error("{verb} did not end within {deadline:?} and was killed")]
    TimedOut {
        /// The runc verb.
        verb: String,
        /// The deadline that was set.
        deadline: Duration,
    },
}

impl RuncError {
    /// Whether runc says that it knows no such container: after an exiting checkpoint runc has deleted its own state.
    pub fn is_gone(&self) -> bool {
        matches!(self, Self::Failed { message, .. } if message.contains("does not exist"))
    }
}

/// What one call is given beside its arguments.
#[derive(Debug)]
pub struct Call {
    /// The container's own stdin, stdout and stderr, for verbs whose child inherits them; else runc gets /dev/null and its
    /// output is kept for the error text.
    pub stdio: Option<[Stdio; 3]>,
    /// Added to the environment.
    pub env: Vec<(OsString, OsString)>,
    /// After this, runc is killed.
    pub deadline: Duration,
    /// Fed to its standard input (only without `stdio`); must fit a pipe, 64 KiB.
    pub input: Option<Vec<u8>>,
    /// Asked now and then with runc's pid; if it says twice in a row that this call cannot end well, runc is killed.
    pub is_hopeless: Option<fn(i32) -> bool>,
    /// When this is asked, runc is killed.
    pub cancel: Cancel,
    /// It runs in a mount namespace of its own: [`spawn::own_mounts`].
    pub own_mounts: bool,
}

impl Default for Call {
    fn default() -> Self {
        Self {
            stdio: None,
            env: Vec::new(),
            deadline: CALL_DEADLINE,
            input: None,
            is_hopeless: None,
            cancel: Cancel::default(),
            own_mounts: false,
        }
    }
}

/// One runc with its global flags.
#[derive(Debug, Clone)]
pub struct Runc {
    /// The binary: a path, or a name looked up in `PATH`.
    pub binary: PathBuf,
    /// `--root`: where it keeps its state, the containerd namespace included.
    pub root: PathBuf,
    /// `--log`: appended to by each call.
    pub log: PathBuf,
    /// `--systemd-cgroup`.
    pub systemd_cgroup: bool,
    /// The container has hooks. They inherit runc's environment where their own is not given, so nothing is added to it.
    pub has_hooks: bool,
    /// Who takes its exits.
    pub reaper: Arc<Reaper>,
}

impl Runc {
    /// Whether this is runc by name. A wrapper or another runtime may mean something by every verb, so it gets every one.
    pub fn is_plain(&self) -> bool {
        self.binary.file_name().is_some_and(|name| name == "runc")
    }

    /// Runs one verb to its end.
    ///
    /// # Errors
    /// [`RuncError`], with runc's own last words.
    pub async fn run(&self, args: &[&OsStr], mut call: Call) -> Result<(), RuncError> {
        let log_start = report::length(&self.log);
        let verb = args
            .first()
            .map(|verb| verb.to_string_lossy().into_owned())
            .unwrap_or_default();
        let (mut child, output) = self.spawn(args, &mut call)?;
        if let (Some(mut stdin), Some(input)) = (child.stdin.take(), call.input.take()) {
            // Smaller than a pipe's 64 KiB (see `Call::input`), so this does not wait for runc.
            if let Err(error) = stdin.write_all(&input) {
                tracing::warn!(%error, verb, "runc did not take its input");
            }
        }
        let ended = tokio::select! {
            ended = timeout(call.deadline, finish(&child.exit, output)) => ended,
            () = hopelessness(child.pid, call.is_hopeless) => {
                kill(child.pid);
                return Err(RuncError::Hopeless { verb });
            }
            () = call.cancel.asked() => {
                kill(child.pid);
                return Err(RuncError::Cancelled { verb });
            }
        };
        let Ok((exit, output)) = ended else {
            kill(child.pid);
            return Err(RuncError::TimedOut {
                verb,
                deadline: call.deadline,
            });
        };
        if exit.status == 0 {
            return Ok(());
        }
        let message = report::last_error(&self.log, log_start)
            .or_else(|| report::tail(&output))
            .unwrap_or_else(|| format!("runc {verb} ended with status {} and said nothing", exit.status));
        Err(RuncError::Failed {
            status: exit.status,
            message,
        })
    }

    fn spawn(&self, args: &[&OsStr], call: &mut Call) -> Result<(Child, Option<OwnedFd>), RuncError> {
        let failed = |source| RuncError::Spawn {
            binary: self.binary.clone(),
            source,
        };
        let mut command = Command::new(&self.binary);
        let _ = command
            .arg("--root")
            .arg(&self.root)
            .arg("--log")
            .arg(&self.log)
            .args(["--log-format", "json"]);
        if self.systemd_cgroup {
            let _ = command.arg("--systemd-cgroup");
        }
        if !self.has_hooks {
            let _ = command.envs(GO_ENVIRONMENT);
        }
        let _ = command
            .args(args)
            .envs(call.env.drain(..))
            .env_remove("NOTIFY_SOCKET");
        spawn::die_with_parent(&mut command);
        if call.own_mounts {
            spawn::own_mounts(&mut command);
        }
        let output = if let Some([stdin, stdout, stderr]) = call.stdio.take() {
            let _ = command.stdin(stdin).stdout(stdout).stderr(stderr);
            None
        } else {
            let (read, write) = pipe2(OFlag::O_CLOEXEC).map_err(|errno| failed(errno.into()))?;
            let twin = write.try_clone().map_err(failed)?;
            let stdin = if call.input.is_some() {
                Stdio::piped()
            } else {
                Stdio::null()
            };
            let _ = command.stdin(stdin).stdout(twin).stderr(write);
            Some(read)
        };
        let child = self.reaper.spawn(&mut command).map_err(failed)?;
        Ok((child, output))
    }
}

/// Resolves when runc has turned out to wait in vain; never, if nobody can tell.
async fn hopelessness(pid: i32, is_hopeless: Option<fn(i32) -> bool>) {
    let Some(is_hopeless) = is_hopeless else {
        return std::future::pending().await;
    };
    let mut before = false;
    loop {
        sleep(HOPE_INTERVAL).await;
        let now = is_hopeless(pid);
        if before && now {
            return;
        }
        before = now;
    }
}

/// Waits for the exit, taking the output meanwhile. Not until its end of file: what runc leaves running may hold it open.
async fn finish(exit: &ExitWatch, output: Option<OwnedFd>) -> (Exit, Vec<u8>) {
    let mut kept = Vec::new();
    let Some(mut reader) = output.and_then(|fd| pipe::Receiver::from_owned_fd(fd).ok()) else {
        return (exit.wait().await, kept);
    };
    let mut chunk = [0; 4096];
    let exit = loop {
        tokio::select! {
            biased;
            read = reader.read(&mut chunk) => match read {
                Ok(n) if n > 0 => keep(&mut kept, chunk.get(..n).unwrap_or_default()),
                _ => break exit.wait().await,
            },
            exit = exit.wait() => break exit,
        }
    };
    while let Ok(n @ 1..) = reader.try_read(&mut chunk) {
        keep(&mut kept, chunk.get(..n).unwrap_or_default());
    }
    (exit, kept)
}

/// Keeps the newest output: the reason of a failure comes last.
fn keep(kept: &mut Vec<u8>, chunk: &[u8]) {
    kept.extend_from_slice(chunk);
    let excess = kept.len().saturating_sub(OUTPUT_BYTES_MAX);
    drop(kept.drain(..excess));
}

fn kill(pid: i32) {
    if let Err(errno) = nix::sys::signal::kill(Pid::from_raw(pid), Signal::SIGKILL) {
        tracing::warn!(pid, %errno, "cannot kill runc");
    }
}
