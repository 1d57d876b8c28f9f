//! How far a dump or restore is, for whoever asks, and the wish that it be given up.
//!
//! Nothing is measured unless somebody asks: the acts only say which phase they are in and where they write.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;

/// How long a question waits for something to move.
const ANSWER_LIMIT: Duration = Duration::from_secs(1);

/// Files that are looked at for the bytes written: a dump has a dozen, and three for each process.
const FILES_MAX: usize = 10_000;

/// Where an act is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Step {
    /// Counts phases, over all acts of the container.
    pub count: u64,
    /// `dump` or `restore`; empty when neither is under way.
    pub verb: &'static str,
    /// The phase.
    pub phase: &'static str,
    /// The directory that is being filled.
    pub fills: PathBuf,
    /// Bytes to be expected; zero if unknown.
    pub total: u64,
}

impl Step {
    /// Bytes written so far.
    pub fn bytes(&self) -> u64 {
        if self.fills.as_os_str().is_empty() {
            0
        } else {
            size_of(&self.fills)
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

    /// The act is over.
    pub fn ends(&self) {
        self.change(|step| {
            let count = step.count;
            *step = Step {
                count,
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

/// The size of the files in a directory, in bytes.
pub fn size_of(dir: &Path) -> u64 {
    let files = fs::read_dir(dir).into_iter().flatten().flatten().take(FILES_MAX);
    files
        .filter_map(|file| file.metadata().ok())
        .filter(fs::Metadata::is_file)
        .map(|file| file.len())
        .sum()
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
    }
}
