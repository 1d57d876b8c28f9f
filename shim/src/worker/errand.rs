//! A worker that is asked once and answers once: a line of JSON in, a line of JSON out. The shim's side and the worker's.

use std::ffi::OsStr;
use std::fmt::Display;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
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
    pub async fn answer<T: DeserializeOwned>(mut self, limit: Duration) -> Result<T, ErrandError> {
        let mut text = Vec::new();
        let mut limited = (&mut self.answer).take(ANSWER_BYTES_MAX);
        match timeout(limit, limited.read_to_end(&mut text)).await {
            Err(_) => return Err(ErrandError::TimedOut(limit)),
            Ok(Err(error)) => return Err(ErrandError::Worker(error.to_string())),
            Ok(Ok(_)) => {}
        }
        match serde_json::from_slice(&text) {
            Ok(Answer::Done(answer)) => Ok(answer),
            Ok(Answer::Failed(why)) => Err(ErrandError::Failed(why)),
            Err(_) => Err(ErrandError::Worker("it ended without an answer".to_owned())),
        }
    }
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
        let errand = Errand::start(&reaper, "--list", &"an order").expect("started");
        let answer = errand.answer::<String>(Duration::from_secs(30)).await;
        assert!(matches!(answer, Err(ErrandError::Worker(_))), "{answer:?}");
    }
}
