//! The shim's side of a server of pages: starts it, keeps copies of its descriptors, and knows how it ended.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixDatagram as StdDatagram;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::unistd::Pid;
use thiserror::Error;
use tokio::io::Interest;
use tokio::net::UnixDatagram;
use tokio::sync::watch;
use tokio::time::timeout;

use super::pages::{Word, hear};
use super::{SERVE_PAGES, WORKER};
use crate::reap::{Child, ExitWatch, Reaper};
use crate::spawn;

/// It reads a list of every process' memory before it listens: milliseconds, for the largest some hundreds. Of an archive it takes out
/// what CRIU reads itself; that is given as long as the restore is.
const START_DEADLINE: Duration = Duration::from_secs(30);

/// How long one that was killed may take to end: the kernel lets nobody go who waits for a disk.
const END_DEADLINE: Duration = Duration::from_secs(10);

/// Why there is no server.
#[derive(Debug, Error)]
pub enum PageServerError {
    /// It cannot be started.
    #[error("start a server of pages: {0}")]
    Start(#[source] io::Error),
    /// It ended, or said something else, before it listened.
    #[error("start a server of pages: {0}")]
    Ended(String),
    /// It does not come up.
    #[error("start a server of pages: it does not listen after {} s", .0.as_secs())]
    TimedOut(Duration),
    /// The images lack memory.
    #[error("{0}")]
    Damaged(String),
    /// It is there, and can neither be used nor be ended.
    #[error("end a server of pages: it was killed {} s ago, and waits for a disk", .0.as_secs())]
    Stuck(Duration),
}

impl PageServerError {
    /// Whether another way to the memory would fare as this one: who has waited so long for an archive does not wait once more.
    pub fn is_final(&self, in_archive: bool) -> bool {
        match self {
            Self::Start(_) | Self::Ended(_) => false,
            Self::TimedOut(_) => in_archive,
            Self::Damaged(_) | Self::Stuck(_) => true,
        }
    }
}

/// What came of starting one.
#[derive(Debug)]
pub enum Started {
    /// It listens: CRIU may be started.
    Serving(Filling),
    /// These images have to be restored at once, for this reason.
    Unsuitable(String),
}

/// Memory that is being filled. The kernel takes what is missing for zero as soon as the last copy of a descriptor is closed:
/// as long as one clone of this lives, none is.
#[derive(Debug, Clone)]
pub struct Filling {
    pid: i32,
    exit: ExitWatch,
    end: watch::Receiver<Option<End>>,
    socket: Arc<UnixDatagram>,
}

/// How it ended: bytes that were filled, or why not all were.
pub type End = Result<u64, String>;

impl Filling {
    /// Waits until all memory is there, or never will be. The server ends when its processes do, and when it is told to.
    ///
    /// # Errors
    /// Why memory is still missing. Whoever touches it waits for ever.
    pub async fn end(&self) -> End {
        let mut end = self.end.clone();
        let lost = || Err("the server of pages was lost".to_owned());
        match end.wait_for(Option::is_some).await {
            Ok(end) => end.clone().unwrap_or_else(lost),
            Err(_) => lost(),
        }
    }

    /// Lifts the limit of what it gives unasked: somebody waits for all memory.
    pub fn hurry(&self) {
        // One that has ended is in no hurry, and one that has so much to hear has heard this already.
        let _ = self.socket.try_send(Word::Hurry.to_string().as_bytes());
    }

    /// Whether there is still something to wait for.
    pub fn is_under_way(&self) -> bool {
        self.end.borrow().is_none()
    }

    /// Ends it, for a restore that has failed: there must be no process left that it serves.
    ///
    /// # Errors
    /// [`PageServerError::Stuck`].
    pub async fn stop(&self) -> Result<(), PageServerError> {
        end(self.pid, &self.exit, END_DEADLINE).await
    }
}

async fn end(pid: i32, exit: &ExitWatch, limit: Duration) -> Result<(), PageServerError> {
    if exit.now().is_none() {
        // Not reaped yet, so the pid is still its own.
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
    let ended = timeout(limit, exit.wait()).await;
    ended.map(drop).map_err(|_| PageServerError::Stuck(limit))
}

/// What it is to serve.
#[derive(Debug)]
pub struct Order<'a> {
    /// The images.
    pub images: &'a Path,
    /// Where CRIU works, and looks for it.
    pub work: &'a Path,
    /// How many bytes a second it gives unasked; zero for all that goes.
    pub rate: u64,
    /// The list of the memory that is in an archive.
    pub left: Option<&'a Path>,
    /// How long it may take out of that what CRIU reads itself.
    pub deadline: Duration,
}

/// Starts a server, which CRIU will find in its working directory.
///
/// # Errors
/// [`PageServerError`]; nothing is left of it then, unless it is [`PageServerError::Stuck`].
pub async fn start(reaper: &Arc<Reaper>, order: &Order<'_>) -> Result<Started, PageServerError> {
    let (ours, theirs) = pair().map_err(PageServerError::Start)?;
    let mut command = Command::new("/proc/self/exe");
    let _ = command
        .args([WORKER, SERVE_PAGES])
        .arg("-images")
        .arg(order.images)
        .arg("-work")
        .arg(order.work)
        .args(["-rate", &order.rate.to_string()])
        .args(order.left.map(|_| "-left"))
        .args(order.left)
        .env_clear()
        .stdin(Stdio::from(theirs))
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    // What the shim holds open must not stay so for the server's sake.
    spawn::seal_fds(&mut command, 3);
    let child = reaper.spawn(&mut command).map_err(PageServerError::Start)?;
    drop(command);
    let first = async {
        let heard = next(&ours).await.map_err(PageServerError::Start)?;
        match heard {
            Some((Word::Listening, _)) => Ok(None),
            Some((Word::Unsuitable(reason), _)) => Ok(Some(reason)),
            Some((Word::Failed(reason), _)) => Err(PageServerError::Damaged(reason)),
            Some((word, _)) => Err(PageServerError::Ended(word.to_string())),
            None => Err(PageServerError::Ended("it ended at once".to_owned())),
        }
    };
    let limit = match order.left {
        Some(_) => order.deadline.max(START_DEADLINE),
        None => START_DEADLINE,
    };
    let first = timeout(limit, first).await;
    match first.unwrap_or(Err(PageServerError::TimedOut(limit))) {
        Ok(None) => Ok(Started::Serving(follow(child, ours))),
        Ok(Some(reason)) => Ok(Started::Unsuitable(reason)),
        Err(error) => {
            end(child.pid, &child.exit, END_DEADLINE).await?;
            Err(error)
        }
    }
}

fn pair() -> io::Result<(UnixDatagram, OwnedFd)> {
    let flags = SockFlag::SOCK_CLOEXEC;
    // Packets, and a hang-up that both ends see.
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)?;
    let ours = StdDatagram::from(ours);
    ours.set_nonblocking(true)?;
    Ok((UnixDatagram::from_std(ours)?, theirs))
}

async fn next(socket: &UnixDatagram) -> io::Result<Option<(Word, Option<OwnedFd>)>> {
    socket.async_io(Interest::READABLE, || hear(socket.as_fd())).await
}

fn follow(child: Child, socket: UnixDatagram) -> Filling {
    let (sender, end) = watch::channel(None);
    let exit = child.exit.clone();
    let socket = Arc::new(socket);
    let heard = Arc::clone(&socket);
    drop(tokio::spawn(async move {
        let mut kept = HashMap::new();
        let mut last = None;
        while let Ok(Some((word, descriptor))) = next(&heard).await {
            match (word, descriptor) {
                (Word::Keep(number), Some(descriptor)) => drop(kept.insert(number, descriptor)),
                (Word::Forget(number), _) => drop(kept.remove(&number)),
                (word, _) => last = Some(word),
            }
        }
        let exit = exit.wait().await;
        let ended = match last {
            Some(Word::Filled(bytes)) => Ok(bytes),
            Some(Word::Failed(reason)) => Err(reason),
            _ => Err(format!("the server of pages ended with status {}", exit.status)),
        };
        if ended.is_ok() {
            kept.clear();
        }
        drop(sender.send_replace(Some(ended)));
        // Until nobody is left who has to act on the failure before the memory turns to zeros.
        sender.closed().await;
    }));
    Filling {
        pid: child.pid,
        exit: child.exit,
        end,
        socket,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_does_not_end_when_killed_is_not_waited_for() {
        let reaper = Reaper::new();
        let mut command = Command::new("sleep");
        let child = reaper.spawn(command.arg("60")).expect("a child");
        // Nobody reaps it: so looks one that the kernel does not let go.
        let ended = end(child.pid, &child.exit, END_DEADLINE).await;
        assert!(
            matches!(ended, Err(PageServerError::Stuck(END_DEADLINE))),
            "{ended:?}"
        );
        let status = nix::sys::wait::waitpid(Pid::from_raw(child.pid), None);
        assert!(status.is_ok(), "{status:?}");
    }

    #[test]
    fn an_archive_that_took_too_long_is_not_read_once_more() {
        let limit = Duration::from_secs(1);
        for (error, elsewhere, in_archive) in [
            (
                PageServerError::Start(io::ErrorKind::NotFound.into()),
                false,
                false,
            ),
            (PageServerError::Ended(String::new()), false, false),
            (PageServerError::TimedOut(limit), false, true),
            (PageServerError::Stuck(limit), true, true),
        ] {
            assert_eq!(error.is_final(false), elsewhere, "{error}");
            assert_eq!(error.is_final(true), in_archive, "{error}");
        }
    }
}
