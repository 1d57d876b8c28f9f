//! `cedana ps --watch`: the list again and again.

use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until, timeout};

use super::{Args, row, text};
use crate::context::Context;
use crate::error::Error;
use crate::jobs::Jobs;
use crate::output;

/// What shims publish is seen at once; that a process died behind their backs, or a checkpoint was removed, within this.
const SLOW: Duration = Duration::from_secs(2);

/// A thousand containers that start at once are a few pictures, not a thousand.
const PACE: Duration = Duration::from_millis(200);

/// To the first row of an empty screen. What has scrolled out of it is the user's, and stays.
const CLEAR: &str = "\x1b[H\x1b[2J";

/// Shows the jobs whenever they are others than before, until somebody ends it. In a pipe it is one table, or one line of JSON,
/// after another.
///
/// # Errors
/// There is no registry, or standard output cannot be written.
pub async fn run(args: &Args, context: &Context) -> Result<(), Error> {
    let mut jobs = Jobs::open(context).await?;
    // Before the first look, or what happens in between is missed.
    let events = Events::of(context.spool()?.directory());
    let mut shown = String::new();
    loop {
        let next = Instant::now() + PACE;
        let picture = picture(&jobs, args, context)?;
        if picture != shown {
            let clear = if output::colours() && !context.json {
                CLEAR
            } else {
                ""
            };
            output::stdout(&format!("{clear}{picture}"))?;
            shown = picture;
        }
        match &events {
            // Whether it was an event or the time does not matter: we look in both cases.
            Some(events) => drop(timeout(SLOW, events.next()).await),
            None => tokio::time::sleep(SLOW).await,
        }
        sleep_until(next).await;
        jobs.refresh().await?;
    }
}

fn picture(jobs: &Jobs, args: &Args, context: &Context) -> Result<String, Error> {
    let rows = row::rows(jobs.all(), args.all);
    if !context.json {
        return Ok(text(&rows, output::colours()));
    }
    let line = serde_json::to_string(&rows)
        .map_err(|source| Error::failed(format!("failed to write as JSON: {source}")))?;
    Ok(format!("{line}\n"))
}

/// Changes of a directory.
struct Events {
    happened: Arc<Notify>,
}

impl Events {
    /// None where they cannot be had: a directory that is not there yet, a host whose watches are all taken.
    fn of(directory: &Path) -> Option<Self> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC).ok()?;
        let changes = AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_DELETE | AddWatchFlags::IN_CREATE;
        let _watch = inotify.add_watch(directory, changes).ok()?;
        let happened = Arc::new(Notify::new());
        let told = Arc::clone(&happened);
        // It waits in its read until the process ends. If that fails, what is left is the slow look.
        let _thread = thread::Builder::new()
            .name("events".to_owned())
            .spawn(move || {
                while inotify.read_events().is_ok() {
                    told.notify_one();
                }
            })
            .ok()?;
        Some(Self { happened })
    }

    /// Returns when something has changed; all that has since is one event.
    async fn next(&self) {
        self.happened.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_record_that_is_published_is_an_event() {
        let dir = tempfile::tempdir().expect("a directory");
        let events = Events::of(dir.path()).expect("events");
        std::fs::write(dir.path().join("one"), "").expect("a file");
        timeout(Duration::from_secs(10), events.next())
            .await
            .expect("in time");
        assert!(
            timeout(Duration::from_millis(50), events.next()).await.is_err(),
            "it is told once"
        );
        assert!(Events::of(&dir.path().join("nowhere")).is_none());
    }
}
