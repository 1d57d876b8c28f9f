//! Who is in a cgroup, killing all of them, and removing what is left.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::time::{Instant, sleep, timeout};

use super::{Cgroup, CgroupError, Tree, events, files};

/// Pauses between two looks where the kernel announces nothing.
const PAUSE_MIN: Duration = Duration::from_millis(1);
const PAUSE_MAX: Duration = Duration::from_millis(50);

/// How long killing waits for a cgroup v1 to freeze first; a quiet one takes a fifth of a millisecond.
const FREEZE_LIMIT: Duration = Duration::from_millis(100);

/// How many levels below the container's cgroup are looked at. systemd in a container makes five or so; the bound
/// keeps a hostile nesting from exhausting the stack.
const DEPTH_MAX: u32 = 64;

impl Cgroup {
    /// Kills every process of the subtree and returns when none is left. A process that cannot die (in the kernel's
    /// D state) ends this with [`CgroupError::Deadline`].
    pub async fn kill_all(&self, limit: Duration) -> Result<(), CgroupError> {
        if let Some(dir) = self.main_dir() {
            self.check_not_shared(dir)?;
        }
        let killed = match &self.tree {
            Tree::V2(dir) => timeout(limit, kill_unified(dir)).await,
            Tree::V1(_) => timeout(limit, self.kill_each()).await,
        };
        killed.unwrap_or_else(|_| Err(self.too_slow("empty", limit)))
    }

    /// Removes the cgroup's directories and those below, in every hierarchy. What is already gone is fine; a busy
    /// one is tried again until the deadline, because the kernel lets go of a dead process' cgroup a little late.
    pub async fn remove(&self, limit: Duration) -> Result<(), CgroupError> {
        if let Some(dir) = self.main_dir() {
            self.check_not_shared(dir)?;
        }
        let end = Instant::now() + limit;
        let mut first_error = None;
        for dir in self.dirs() {
            // A hierarchy the runtime knows nothing of, where the container stayed in our own cgroup.
            if self.check_not_shared(dir).is_err() {
                continue;
            }
            if let Err(error) = self.remove_before(dir, end, limit).await {
                first_error = first_error.or(Some(error));
            }
        }
        first_error.map_or(Ok(()), Err)
    }

    async fn remove_before(&self, dir: &Path, end: Instant, limit: Duration) -> Result<(), CgroupError> {
        let mut pause = PAUSE_MIN;
        loop {
            match remove_tree(dir, 0) {
                Ok(()) => return Ok(()),
                Err(error) if error.raw_os_error() != Some(nix::libc::EBUSY) => {
                    return Err(files::failed("remove", dir, error));
                }
                Err(_) if Instant::now() >= end => {
                    return Err(CgroupError::Deadline {
                        action: "remove",
                        dir: dir.to_owned(),
                        limit,
                    });
                }
                Err(_) => {
                    sleep(pause).await;
                    pause = (pause * 2).min(PAUSE_MAX);
                }
            }
        }
    }

    /// Cgroup v1: freeze so that nobody forks, signal each, thaw so that they die; again until none is left.
    async fn kill_each(&self) -> Result<(), CgroupError> {
        let mut pause = PAUSE_MIN;
        loop {
            if self.procs().is_empty() {
                return Ok(());
            }
            // A task that does not freeze does not fork either: the signals go out all the same.
            drop(timeout(FREEZE_LIMIT, self.set_frozen(true)).await);
            signal_each(&self.procs())?;
            match self.set_frozen(false).await {
                Ok(()) | Err(CgroupError::Gone(_) | CgroupError::Unsupported(_)) => {}
                Err(error) => return Err(error),
            }
            sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }
}

/// Cgroup v2: the kernel kills the subtree at once, forks included (5.14), and tells when it is empty.
async fn kill_unified(dir: &Path) -> Result<(), CgroupError> {
    match files::write(&dir.join("cgroup.kill"), "1") {
        Ok(()) => {}
        Err(CgroupError::Gone(_)) if !dir.is_dir() => return Ok(()),
        Err(CgroupError::Gone(_)) => kill_frozen(dir).await?,
        Err(error) => return Err(error),
    }
    match events::reached(dir, "populated", 0).await {
        Err(CgroupError::Gone(_)) => Ok(()),
        result => result,
    }
}

/// Before 5.14: freeze, so that nobody forks, and signal each.
pub(super) async fn kill_frozen(dir: &Path) -> Result<(), CgroupError> {
    files::write(&dir.join("cgroup.freeze"), "1")?;
    events::reached(dir, "frozen", 1).await?;
    signal_each(&procs(dir))?;
    files::write(&dir.join("cgroup.freeze"), "0")
}

fn signal_each(pids: &[i32]) -> Result<(), CgroupError> {
    for pid in pids {
        match kill(Pid::from_raw(*pid), Signal::SIGKILL) {
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(error) => {
                let path = PathBuf::from(format!("/proc/{pid}"));
                return Err(CgroupError::Io {
                    action: "kill",
                    path,
                    source: error.into(),
                });
            }
        }
    }
    Ok(())
}

/// Pids in a directory and all below, ascending, each once. What vanishes while it is read has no pids.
pub(super) fn procs(dir: &Path) -> Vec<i32> {
    let mut pids = Vec::new();
    collect(dir, 0, &mut pids);
    pids.sort_unstable();
    pids.dedup();
    pids
}

fn collect(dir: &Path, depth: u32, pids: &mut Vec<i32>) {
    if let Some(text) = files::read_optional(&dir.join("cgroup.procs")) {
        // 0 stands for a process outside our pid namespace, which we can do nothing about.
        pids.extend(
            text.lines()
                .filter_map(|line| line.parse::<i32>().ok())
                .filter(|pid| *pid > 0),
        );
    }
    if depth < DEPTH_MAX {
        for child in children(dir) {
            collect(&child, depth + 1, pids);
        }
    }
}

fn children(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(dir) else {
        return Vec::new();
    };
    entries
        .filter_map(Result::ok)
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

fn remove_tree(dir: &Path, depth: u32) -> io::Result<()> {
    match std::fs::remove_dir(dir) {
        Ok(()) => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        // Children make it busy, and so does a process: which of both is only seen by trying.
        Err(error) if error.raw_os_error() == Some(nix::libc::EBUSY) && depth < DEPTH_MAX => {}
        Err(error) => return Err(error),
    }
    for child in children(dir) {
        remove_tree(&child, depth + 1)?;
    }
    std::fs::remove_dir(dir)
}
