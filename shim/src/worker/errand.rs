//! A worker that is asked once and answers once: a line of JSON in, a line of JSON out. The shim's side and the worker's.

use std::ffi::OsStr;
use std::fmt::Display;
use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::time::timeout;

use super::WORKER;
use crate::reap::{ExitWatch, Reaper};
use crate::spawn;

/// An order has a few paths in it; a pipe takes this much without anybody reading.
const ORDER_BYTES_MAX: usize = 60 << 10;

/// An answer has a few paths in it, too.
const ANSWER_BYTES_MAX: u64 = 256 << 10;

/// What a worker says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Answer<T> {
    Done(T),
    Failed(String),
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ErrandError {
    /// The worker says what failed: an action and its cause.
    #[error("{0}")]
    Failed(String),
    /// It could not be asked, or what it said is nothing.
    #[error("have a worker do it: {0}")]
    Worker(String),
    /// It took longer than it may, and was killed.
    #[error("have a worker do it within {} s", .0.as_secs())]
    TimedOut(Duration),
    /// It moved nothing for so long, and was killed.
    #[error("the worker has neither read nor written anything for {} s", .0.as_secs())]
    Stalled(Duration),
}

impl ErrandError {
    /// Whether more time might have helped.
    pub fn is_late(&self) -> bool {
        matches!(self, Self::TimedOut(_) | Self::Stalled(_))
    }
}

/// How long an errand may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// In all.
    Whole(Duration),
    /// Without reading or writing anything: what there is to do is not known before.
    Still(Duration),
}

/// A worker under way. Dropped, it is killed.
#[derive(Debug)]
pub struct Errand {
    pid: i32,
    exit: ExitWatch,
    answer: pipe::Receiver,
}

impl Errand {
    /// Starts a worker of this kind with its order.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(reaper: &Reaper, kind: &str, order: &impl Serialize) -> Result<Self, ErrandError> {
        let failed = |error: &dyn Display| ErrandError::Worker(error.to_string());
        let program = std::env::current_exe().map_err(|error| failed(&error))?;
        let mut command = Command::new(match program.exists() {
            true => program.as_os_str(),
            false => OsStr::new("/proc/self/exe"),
        });
        let _ = command
            .args([WORKER, kind])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        spawn::die_with_parent(&mut command);
        let order = serde_json::to_vec(order).map_err(|error| failed(&error))?;
        if order.len() > ORDER_BYTES_MAX {
            return Err(failed(&"the order is too long"));
        }
        let mut child = reaper.spawn(&mut command).map_err(|error| failed(&error))?;
        let pipes = child.stdin.take().zip(child.stdout.take());
        let (mut stdin, stdout) = pipes.ok_or_else(|| failed(&"it has no pipes"))?;
        let errand = Self {
            pid: child.pid,
            exit: child.exit,
            answer: pipe::Receiver::from_owned_fd(OwnedFd::from(stdout)).map_err(|error| failed(&error))?,
        };
        stdin.write_all(&order).map_err(|error| failed(&error))?;
        Ok(errand)
    }

    /// Waits for its answer.
    ///
    /// # Errors
    /// It failed, it ended without one, or it took too long.
    pub async fn answer<T: DeserializeOwned>(mut self, limit: Limit) -> Result<T, ErrandError> {
        let pid = self.pid;
        let mut text = Vec::new();
        let mut limited = (&mut self.answer).take(ANSWER_BYTES_MAX);
        let mut read = pin!(limited.read_to_end(&mut text));
        let mut moved = moved_by(pid);
        loop {
            let (Limit::Whole(time) | Limit::Still(time)) = limit;
            match (timeout(time, &mut read).await, limit) {
                (Ok(Err(error)), _) => return Err(ErrandError::Worker(error.to_string())),
                (Ok(Ok(_)), _) => break,
                (Err(_), Limit::Whole(_)) => return Err(ErrandError::TimedOut(time)),
                (Err(_), Limit::Still(_)) => {
                    let before = std::mem::replace(&mut moved, moved_by(pid));
                    if moved == before {
                        return Err(ErrandError::Stalled(time));
                    }
                }
            }
        }
        match serde_json::from_slice(&text) {
            Ok(Answer::Done(answer)) => Ok(answer),
            Ok(Answer::Failed(why)) => Err(ErrandError::Failed(why)),
            Err(_) => Err(ErrandError::Worker("it ended without an answer".to_owned())),
        }
    }
}

/// What a process has read and written, in bytes. The kernel counts it: no disk is asked.
fn moved_by(pid: i32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/io")).unwrap_or_default();
    let counts = text.lines().filter_map(|line| {
        let (name, count) = line.split_once(": ")?;
        matches!(name, "rchar" | "wchar").then(|| count.parse().unwrap_or(0))
    });
    counts.fold(0, u64::saturating_add)
}

impl Drop for Errand {
    fn drop(&mut self) {
        if self.exit.now().is_none() {
            // One that has just ended has not been reaped yet, so the pid is still its own.
            let _ = kill(Pid::from_raw(self.pid), Signal::SIGKILL);
        }
    }
}

/// The worker's side: reads its order, does it, and answers.
///
/// # Errors
/// The order is none, or nobody hears the answer. What the work says goes into the answer.
pub(super) fn run<O: DeserializeOwned, T: Serialize>(
    work: impl FnOnce(O) -> Result<T, String>,
) -> io::Result<()> {
    let mut text = Vec::new();
    let _ = io::stdin()
        .lock()
        .take(ORDER_BYTES_MAX as u64)
        .read_to_end(&mut text)?;
    let order = serde_json::from_slice(&text)?;
    let answer = match work(order) {
        Ok(done) => Answer::Done(done),
        Err(why) => Answer::Failed(why),
    };
    let mut stdout = io::stdout().lock();
    serde_json::to_writer(&mut stdout, &answer)?;
    stdout.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_worker_that_is_none_is_a_failure() {
        // The test's own program stands for the worker: with this argument it only says what it could do, and ends.
        let reaper = Reaper::new();
        // It may end before it has heard the order.
        let answer = match Errand::start(&reaper, "--list", &"an order") {
            Ok(errand) => {
                errand
                    .answer::<String>(Limit::Whole(Duration::from_secs(30)))
                    .await
            }
            Err(error) => Err(error),
        };
        assert!(matches!(answer, Err(ErrandError::Worker(_))), "{answer:?}");
    }

    /// A shell in the place of a worker.
    fn errand(reaper: &Reaper, script: &str) -> Errand {
        let mut command = Command::new("sh");
        let _ = command.args(["-c", script]).stdout(Stdio::piped());
        let mut child = reaper.spawn(&mut command).expect("a shell");
        let stdout = OwnedFd::from(child.stdout.take().expect("a pipe"));
        Errand {
            pid: child.pid,
            exit: child.exit,
            answer: pipe::Receiver::from_owned_fd(stdout).expect("a pipe"),
        }
    }

    #[tokio::test]
    async fn who_moves_something_has_time_and_who_does_not_has_an_end() {
        let reaper = Reaper::new();
        let still = Limit::Still(Duration::from_millis(400));
        let works = "i=0; while [ $i -lt 30 ]; do echo >/dev/null; sleep 0.02; i=$((i+1)); done; echo '{\"done\": 7}'";
        assert_eq!(errand(&reaper, works).answer::<i32>(still).await.ok(), Some(7));
        let hangs = errand(&reaper, "exec sleep 60").answer::<i32>(still).await;
        assert!(matches!(hangs, Err(ErrandError::Stalled(_))), "{hangs:?}");
        let whole = Limit::Whole(Duration::from_millis(50));
        let late = errand(&reaper, works).answer::<i32>(whole).await;
        assert!(late.is_err_and(|error| error.is_late()));
    }
}
