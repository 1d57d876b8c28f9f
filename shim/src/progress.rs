//! How far a dump or restore is, for whoever asks, and the wish that it be given up.
//!
//! Nothing is measured unless somebody asks: the acts only say which phase they are in and where they write.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;

/// How long a question waits for something to move.
const ANSWER_LIMIT: Duration = Duration::from_secs(1);

/// Files that are looked at for the bytes written: a dump has a dozen, and three for each process.
const FILES_MAX: usize = 10_000;

/// What the kernel counts a file's room in.
const BLOCK_BYTES: u64 = 512;

/// Where an act is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Step {
    /// Counts phases, over all acts of the container.
    pub count: u64,
    /// `dump` or `restore`; empty when neither is under way.
    pub verb: &'static str,
    /// The phase; when neither is under way, the last one that was begun.
    pub phase: &'static str,
    /// The directory that is being filled.
    pub fills: PathBuf,
    /// Bytes to be expected; zero if unknown.
    pub total: u64,
    /// The worker that takes them, while it does; zero without one.
    pub worker: i32,
}

impl Step {
    /// Bytes written so far.
    pub fn bytes(&self) -> u64 {
        match (self.worker, self.fills.as_os_str().is_empty()) {
            (0, true) => 0,
            (0, false) => written_to(&self.fills),
            (worker, _) => read_by(worker),
        }
    }
}

/// The place where an act tells its steps; every container has one.
#[derive(Debug, Clone)]
pub struct Progress(Arc<watch::Sender<Step>>);

impl Default for Progress {
    fn default() -> Self {
        Self(Arc::new(watch::channel(Step::default()).0))
    }
}

impl Progress {
    /// A phase begins.
    pub fn begins(&self, verb: &'static str, phase: &'static str) {
        self.change(|step| {
            step.verb = verb;
            step.phase = phase;
        });
    }

    /// This many bytes are going to be written here.
    pub fn fills(&self, dir: &Path, total: u64) {
        self.change(|step| {
            step.fills = dir.to_owned();
            step.total = total;
        });
    }

    /// They are written here from now on.
    pub fn are_in(&self, dir: &Path) {
        self.change(|step| dir.clone_into(&mut step.fills));
    }

    /// They go through this worker; through none any more, if zero.
    pub fn goes_through(&self, worker: i32) {
        self.change(|step| step.worker = worker);
    }

    /// The phase that was begun last.
    pub fn last_phase(&self) -> &'static str {
        self.0.borrow().phase
    }

    /// The act is over.
    pub fn ends(&self) {
        self.change(|step| {
            let Step { count, phase, .. } = *step;
            *step = Step {
                count,
                phase,
                ..Step::default()
            };
        });
    }

    /// The present step, once it is another than the one seen, or after a second.
    pub async fn after(&self, seen: u64) -> Step {
        let mut steps = self.0.subscribe();
        let _ = timeout(ANSWER_LIMIT, steps.wait_for(|step| step.count != seen)).await;
        self.0.borrow().clone()
    }

    fn change(&self, change: impl FnOnce(&mut Step)) {
        self.0.send_modify(|step| {
            step.count += 1;
            change(step);
        });
    }
}

/// The wish that an act be given up, on the side of who wishes.
#[derive(Debug)]
pub struct Canceller(watch::Sender<bool>);

impl Canceller {
    /// Both sides.
    pub fn new() -> (Self, Cancel) {
        let (sender, receiver) = watch::channel(false);
        (Self(sender), Cancel(Some(receiver)))
    }

    /// Wishes it.
    pub fn cancel(&self) {
        let _ = self.0.send_replace(true);
    }
}

/// The same on the side of the act. The default is never cancelled.
#[derive(Debug, Clone, Default)]
pub struct Cancel(Option<watch::Receiver<bool>>);

impl Cancel {
    /// Whether it is to be given up.
    pub fn is_asked(&self) -> bool {
        self.0.as_ref().is_some_and(|asked| *asked.borrow())
    }

    /// Resolves when it is to be given up.
    pub async fn asked(&self) {
        if let Some(asked) = &self.0
            && asked.clone().wait_for(|asked| *asked).await.is_ok()
        {
            return;
        }
        std::future::pending().await
    }
}

/// What a process has read in all, in bytes: `rchar` of `/proc/PID/io`.
fn read_by(pid: i32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/io")).unwrap_or_default();
    let count = text.lines().find_map(|line| line.strip_prefix("rchar:"));
    count.and_then(|count| count.trim().parse().ok()).unwrap_or(0)
}

/// The size of the files in a directory, in bytes.
pub fn size_of(dir: &Path) -> u64 {
    files(dir).map(|file| file.len()).sum()
}

/// What has been written of them: a file may be as long as it is to be before it has all its bytes.
fn written_to(dir: &Path) -> u64 {
    let written = |file: fs::Metadata| file.len().min(file.blocks().saturating_mul(BLOCK_BYTES));
    files(dir).map(written).sum()
}

fn files(dir: &Path) -> impl Iterator<Item = fs::Metadata> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten().take(FILES_MAX);
    entries
        .filter_map(|file| file.metadata().ok())
        .filter(fs::Metadata::is_file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_question_is_answered_by_the_next_step_or_after_a_while() {
        let progress = Progress::default();
        assert_eq!(progress.after(0).await, Step::default(), "nothing moves");
        let asked = tokio::spawn({
            let progress = progress.clone();
            async move { progress.after(0).await }
        });
        tokio::task::yield_now().await;
        progress.begins("dump", "save");
        let step = asked.await.expect("an answer");
        assert_eq!((step.count, step.verb, step.phase), (1, "dump", "save"));
        progress.ends();
        assert_eq!(progress.after(1).await.verb, "");
    }

    #[tokio::test(start_paused = true)]
    async fn a_wish_is_heard_and_none_never_comes() {
        let (canceller, cancel) = Canceller::new();
        assert!(!cancel.is_asked());
        canceller.cancel();
        cancel.asked().await;
        assert!(cancel.is_asked());
        let never = timeout(ANSWER_LIMIT, Cancel(None).asked()).await;
        assert!(never.is_err());
        let (canceller, cancel) = Canceller::new();
        drop(canceller);
        assert!(
            timeout(ANSWER_LIMIT, cancel.asked()).await.is_err(),
            "whoever might wish is gone"
        );
    }

    #[test]
    fn the_bytes_of_a_directory_are_those_of_its_files() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        fs::write(dir.path().join("a"), "123").expect("write");
        fs::create_dir(dir.path().join("b")).expect("make");
        let step = Step {
            fills: dir.path().to_owned(),
            ..Step::default()
        };
        assert_eq!(step.bytes(), 3);
        assert_eq!(Step::default().bytes(), 0);
        let us = i32::try_from(std::process::id()).expect("a pid");
        let worker = Step { worker: us, ..step };
        assert!(worker.bytes() > 3, "this process has read its own program");
    }
}
