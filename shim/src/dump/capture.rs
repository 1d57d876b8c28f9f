//! The dump's side of the capture: a worker that takes the pages, and what it says.

use std::ffi::OsStr;
use std::io::Write;
use std::path::Path;
use std::process::{ChildStdin, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::net::unix::pipe;
use tokio::time::timeout;

use super::DumpCause;
use crate::capture::{Answer, Order, Part, Plan};
use crate::reap::{ExitWatch, Reaper};
use crate::spawn;

/// A container with less than this in memory is written out before a worker would be up.
pub(super) const WORTH_IT: u64 = 32 << 20;

/// How long a worker may take to be ready: it touches memory, at a GiB in a quarter of a second.
const READY_LIMIT: Duration = Duration::from_secs(30);

/// How long the rest may take to be read once CRIU has ended: what a few pipes hold.
const DRAIN_LIMIT: Duration = Duration::from_secs(30);

/// A line of the worker's: a hundred bytes for each file.
const LINE_BYTES_MAX: u64 = 256 * 1024;

/// More memory than this is left to others, whatever is free: half.
const FREE_SHARE: u64 = 2;

/// Two pieces of a worker's memory, at their largest.
const SPARE_MAX: u64 = 32 << 20;

/// What has become of the pages.
#[derive(Debug)]
pub(super) enum Taken {
    /// Each is in a file of these.
    Written(Vec<Part>),
    /// All of them are still in the worker's memory, and are to be these.
    Kept(Vec<Part>),
}

/// A worker at work. Dropped, it is killed, and CRIU with it loses its readers.
#[derive(Debug)]
pub(super) struct Capture {
    pid: i32,
    exit: ExitWatch,
    orders: Option<ChildStdin>,
    answers: BufReader<pipe::Receiver>,
}

impl Capture {
    /// Starts a worker for these images and waits until CRIU may begin.
    pub(super) async fn start(reaper: &Reaper, plan: &Plan) -> Result<Self, DumpCause> {
        let failed = |what: &str| DumpCause::Capture(format!("start the worker: {what}"));
        let program = std::env::current_exe().map_err(|error| failed(&error.to_string()))?;
        let mut command = Command::new(if program.exists() {
            program.as_os_str()
        } else {
            OsStr::new("/proc/self/exe")
        });
        let _ = command
            .arg("capture")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        spawn::die_with_parent(&mut command);
        let mut child = reaper
            .spawn(&mut command)
            .map_err(|error| failed(&error.to_string()))?;
        let stdout = child.stdout.take().ok_or_else(|| failed("it has no stdout"))?;
        let answers =
            pipe::Receiver::from_owned_fd(stdout.into()).map_err(|error| failed(&error.to_string()))?;
        let mut capture = Self {
            pid: child.pid,
            exit: child.exit.clone(),
            orders: child.stdin.take(),
            answers: BufReader::new(answers),
        };
        capture.tell(plan)?;
        match capture.hear(READY_LIMIT).await? {
            Answer::Ready => Ok(capture),
            other => Err(failed(&format!("it says {other:?}"))),
        }
    }

    /// The worker's pid.
    pub(super) fn pid(&self) -> i32 {
        self.pid
    }

    /// Resolves when the worker has ended: before it was told to, nothing good.
    pub(super) async fn ended(&self) {
        let _ = self.exit.wait().await;
    }

    /// Tells the worker that CRIU is done; when this returns, it has all pages. The application may be standing meanwhile.
    pub(super) async fn drain(&mut self, limit: Duration) -> Result<u64, DumpCause> {
        self.tell(&Order::Finish)?;
        match self.hear(limit.min(DRAIN_LIMIT)).await? {
            Answer::Drained { bytes } => Ok(bytes),
            other => Err(DumpCause::Capture(format!(
                "take the last pages: the worker says {other:?}"
            ))),
        }
    }

    /// Waits until all pages are on the disk, or digested and kept.
    pub(super) async fn taken(&mut self, limit: Duration) -> Result<Taken, DumpCause> {
        match self.hear(limit).await? {
            Answer::Written { files } => Ok(Taken::Written(files)),
            Answer::Kept { files } => Ok(Taken::Kept(files)),
            other => Err(DumpCause::Capture(format!(
                "write the pages: the worker says {other:?}"
            ))),
        }
    }

    /// Has an archive made of a checkpoint and the pages that are kept; when this returns it is on the disk. Tells its bytes.
    pub(super) async fn pack(&mut self, order: &Order, limit: Duration) -> Result<u64, DumpCause> {
        self.tell(order)?;
        match self.hear(limit).await? {
            Answer::Packed { bytes } => Ok(bytes),
            other => Err(DumpCause::Capture(format!(
                "pack the checkpoint: the worker says {other:?}"
            ))),
        }
    }

    fn tell(&mut self, what: &impl serde::Serialize) -> Result<(), DumpCause> {
        let failed = |error: &dyn std::fmt::Display| DumpCause::Capture(format!("tell the worker: {error}"));
        let mut line = serde_json::to_vec(what).map_err(|error| failed(&error))?;
        line.push(b'\n');
        // Far less than a pipe holds, so this does not wait for the worker.
        match &mut self.orders {
            Some(orders) => orders.write_all(&line).map_err(|error| failed(&error)),
            None => Ok(()),
        }
    }

    async fn hear(&mut self, limit: Duration) -> Result<Answer, DumpCause> {
        let mut line = Vec::new();
        let mut limited = (&mut self.answers).take(LINE_BYTES_MAX);
        let read = timeout(limit, limited.read_until(b'\n', &mut line)).await;
        let said = |what: String| Err(DumpCause::Capture(what));
        match read {
            Err(_) => return said(format!("hear from the worker within {} s", limit.as_secs())),
            Ok(Err(error)) => return said(format!("hear from the worker: {error}")),
            Ok(Ok(0)) => return said("hear from the worker: it is gone".to_owned()),
            Ok(Ok(_)) => {}
        }
        match serde_json::from_slice(&line) {
            Ok(Answer::Failed { error }) => said(error),
            Ok(answer) => Ok(answer),
            Err(error) => said(format!("understand the worker: {error}")),
        }
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        if self.exit.now().is_none() {
            // It has nothing to put away that is not put away with the images.
            let _ = kill(Pid::from_raw(self.pid), Signal::SIGKILL);
        }
    }
}

/// What a worker is to be given for a container with this much in memory, which comes in so many files.
pub(super) fn plan(images: &Path, files: u32, resident: u64, limit: u64, keeps: bool) -> Plan {
    let free = available_memory().unwrap_or(0) / FREE_SHARE;
    // CRIU leaves out what was never touched, and adds a little of its own.
    let wanted = resident + resident / 16 + (1 << 20);
    // Each of its threads fills a piece of the memory, and leaves the last one part empty; what is to be kept has to fit all the same.
    let spare = if keeps { (wanted / 2).min(SPARE_MAX) } else { 0 };
    let wanted = wanted + spare;
    let limit = if limit == 0 { u64::MAX } else { limit };
    Plan {
        images: images.to_owned(),
        fifos: images.to_owned(),
        files,
        memory: wanted.min(free).min(limit),
        keeps,
    }
}

/// `MemAvailable` of `/proc/meminfo`, in bytes.
pub(super) fn available_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_what_is_needed_and_no_more_than_is_allowed() {
        let images = Path::new("/images");
        let gib = 1 << 30;
        assert_eq!(plan(images, 3, gib, 64 << 20, true).memory, 64 << 20);
        assert!(plan(images, 1, 0, 0, false).memory <= 1 << 20);
        assert!(
            plan(images, 1, u64::MAX / 2, 0, true).memory < u64::MAX / 4,
            "half of what is free"
        );
    }

    #[tokio::test]
    async fn a_worker_that_is_none_is_a_failure() {
        // The test's own program stands for the worker: it knows no such argument, or runs no test of that name, and ends.
        let reaper = Reaper::new();
        let plan = plan(Path::new("/nonexistent"), 1, 0, 0, false);
        assert!(matches!(
            Capture::start(&reaper, &plan).await,
            Err(DumpCause::Capture(_))
        ));
    }
}
