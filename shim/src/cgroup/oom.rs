//! Being told when the kernel kills for want of memory.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::unistd::read;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::{Cgroup, CgroupError, Tree, events, files};

/// Room for the events of one read; they have no names, so 16 bytes each.
const EVENTS_BYTES: usize = 256;

/// A watch for OOM kills in a cgroup. Costs one descriptor (two on cgroup v1) and nothing while nothing happens.
#[derive(Debug)]
pub struct OomWatch {
    source: Source,
}

#[derive(Debug)]
enum Source {
    /// Modifications of `memory.events` and `cgroup.events`.
    V2 {
        inotify: AsyncFd<OwnedFd>,
        dir: PathBuf,
        killed: u64,
    },
    /// Counts notifications of `memory.oom_control`; also signalled when the cgroup is removed.
    V1 { event: AsyncFd<OwnedFd>, dir: PathBuf },
}

impl Cgroup {
    /// Starts to watch. On cgroup v2 a kill before this call is told as well, by the first answer; on v1 it is not.
    pub fn oom_watch(&self) -> Result<OomWatch, CgroupError> {
        let source = match &self.tree {
            Tree::V2(dir) => watch_v2(dir)?,
            Tree::V1(_) => {
                let dir = self.dir("memory").ok_or_else(|| {
                    CgroupError::Unsupported("the memory hierarchy is not mounted".to_owned())
                })?;
                self.check_not_shared(dir)?;
                watch_v1(dir)?
            }
        };
        Ok(OomWatch { source })
    }
}

impl OomWatch {
    /// The next out-of-memory; several that happen before they are asked for are one. None when the cgroup is
    /// gone or can no longer be watched. Cancelling and calling again loses nothing.
    pub async fn next(&mut self) -> Option<()> {
        match &mut self.source {
            Source::V2 { inotify, dir, killed } => next_v2(inotify, dir, killed).await,
            Source::V1 { event, dir } => next_v1(event, dir).await,
        }
    }

    /// Whether there was an out-of-memory that [`Self::next`] has not told yet; it is told by this. For the moment
    /// when the container's init has exited and its cgroup is about to be removed: what is asked then is not lost.
    pub fn is_pending(&mut self) -> bool {
        match &mut self.source {
            Source::V2 { dir, killed, .. } => has_new_kill(dir, killed).unwrap_or(false),
            Source::V1 { event, dir } => has_count(event) && is_there(dir),
        }
    }
}

fn watch_v2(dir: &Path) -> Result<Source, CgroupError> {
    let path = dir.join("memory.events");
    let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)
        .map_err(|error| files::failed("watch", &path, error.into()))?;
    // The second file changes when the last process goes, which is before the directory is removed: kernfs tells
    // the watchers of a file nothing of its removal.
    for path in [&path, &dir.join("cgroup.events")] {
        let _watch = inotify
            .add_watch(path, AddWatchFlags::IN_MODIFY)
            .map_err(|error| files::failed("watch", path, error.into()))?;
    }
    let inotify = events::register(inotify.into(), Interest::READABLE)
        .map_err(|error| files::failed("watch", &path, error))?;
    Ok(Source::V2 {
        inotify,
        dir: dir.to_owned(),
        killed: 0,
    })
}

async fn next_v2(inotify: &AsyncFd<OwnedFd>, dir: &Path, killed: &mut u64) -> Option<()> {
    loop {
        if has_new_kill(dir, killed)? {
            return Some(());
        }
        let state = files::read_optional(&dir.join("cgroup.events"))?;
        if files::keyed(&state, "populated") == Some(0) {
            return None;
        }
        let mut ready = inotify.readable().await.ok()?;
        // What the events say does not matter, only that there were some; the files are read again.
        let mut events = [0; EVENTS_BYTES];
        while read(inotify.get_ref(), &mut events).is_ok_and(|length| length > 0) {}
        ready.clear_ready();
    }
}

/// Whether the count of kills has grown. None when the cgroup is gone.
fn has_new_kill(dir: &Path, killed: &mut u64) -> Option<bool> {
    let text = files::read_optional(&dir.join("memory.events"))?;
    let before = std::mem::replace(killed, files::keyed(&text, "oom_kill").unwrap_or(*killed));
    Some(*killed > before)
}

fn watch_v1(dir: &Path) -> Result<Source, CgroupError> {
    let path = dir.join("memory.oom_control");
    let control = File::open(&path).map_err(|error| files::failed("watch", &path, error))?;
    let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
        .map_err(|error| files::failed("watch", &path, error.into()))?;
    let registration = format!("{} {}", event.as_fd().as_raw_fd(), control.as_raw_fd());
    files::write(&dir.join("cgroup.event_control"), &registration)?;
    let event = events::register(event.into(), Interest::READABLE)
        .map_err(|error| files::failed("watch", &path, error))?;
    Ok(Source::V1 {
        event,
        dir: dir.to_owned(),
    })
}

async fn next_v1(event: &AsyncFd<OwnedFd>, dir: &Path) -> Option<()> {
    loop {
        let mut ready = event.readable().await.ok()?;
        if has_count(event) {
            return is_there(dir).then_some(());
        }
        ready.clear_ready();
    }
}

/// Takes the notifications there are.
fn has_count(event: &AsyncFd<OwnedFd>) -> bool {
    read(event.get_ref(), &mut [0; size_of::<u64>()]).is_ok()
}

/// Removal of the cgroup notifies as well; then its files are gone.
fn is_there(dir: &Path) -> bool {
    dir.join("cgroup.event_control").exists()
}
