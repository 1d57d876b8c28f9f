//! The restore, as phases, and the letting go.
//!
//! ```text
//!  Create: find criu -> read images -> prepare directories -> put back files -> configure criu -> serve pages -> restore (runc restore)
//!          -> read pid -> check rights
//!          | raise loopback -> unconfigure criu -> put away
//!  Start:  release
//! ```
//!
//! CRIU brings the processes back and leaves them stopped (`leave-stopped`), so that `Create` returns a pid that lives
//! and namespaces that exist, and nothing runs before `Start`. Docker 28 opens the network namespace of that pid between
//! the two. Tried: runc does not notice (it reports the container as running), `--detach` returns as ever, and a parent
//! that waits for its children with WUNTRACED sees nothing of it as long as the children are continued first.
//!
//! Invariants: a restore that failed leaves no process, cgroup, mount or runc state, so that the same request can be
//! made again; it is never turned into a fresh start.

mod error;
mod files;
pub(crate) mod layer;
pub mod loopback;
mod rights;
mod steps;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use jobs::record::Key;
use nix::sys::signal::Signal;
use oci_bundles::layout::{Extra, Layout};
use oci_bundles::mounts;
use oci_bundles::spec::SpecView;

use crate::cgroup::Cgroup;
use crate::criu::images::Summary;
use crate::criu::manifest::Manifest;
use crate::criu::{Criu, proc, stray};
use crate::error::chain;
use crate::phases::{self, Phase, Plan, Timing};
use crate::progress::Progress;
use crate::runc::Runc;
use crate::worker::page_server::Filling;

pub use error::{RestoreCause, RestoreError};
use files::Waiting;

/// When a restore has to happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RestoreAt {
    /// In `Create`, stopped.
    Create,
    /// In `Start`: containerd applies the saved writable layer between the two, and CRIU opens files of it.
    Start,
}

/// When the checkpoint in this directory has to be restored. CRI names the images in a nested checkpoint, and the writable layer beside
/// them is not there yet.
pub fn when(checkpoint: &Path) -> RestoreAt {
    match checkpoint.parent() {
        Some(parent) if parent.join(Extra::RootfsDiff.name()).exists() => RestoreAt::Start,
        _ => RestoreAt::Create,
    }
}

/// What a restore needs.
#[derive(Debug)]
pub struct RestoreJob {
    /// How runc is called for the container.
    pub runc: Runc,
    /// containerd's namespace.
    pub namespace: String,
    /// The container.
    pub id: String,
    /// Its bundle, the root file system mounted.
    pub bundle: PathBuf,
    /// The checkpoint: its directory, or that of its images alone.
    pub checkpoint: PathBuf,
    /// The list of its memory that was left in an archive, if some was.
    pub left: Option<PathBuf>,
    /// Where CRIU's log goes; none for a directory that is removed after success.
    pub work_path: Option<PathBuf>,
    /// The init's stdio: anonymous pipes, in the places they had at the dump.
    pub stdio: [Stdio; 3],
    /// Where runc sends the terminal.
    pub console_socket: Option<PathBuf>,
    /// `--no-pivot`.
    pub no_pivot_root: bool,
    /// What the settings say.
    pub settings: config::Restore,
    /// Which job it is.
    pub key: Key,
    /// The checkpoint's writable layer has taken the place of the container's.
    pub layer_is_there: bool,
    /// Who asks how far it is.
    pub progress: Progress,
}

/// A restored container, its processes stopped.
#[derive(Debug)]
pub struct Restored {
    /// Its init.
    pub pid: i32,
    /// Processes that were stopped before the dump already, by the container's own pids: they are not let go.
    stopped: Vec<i32>,
    /// Its memory comes behind it; none if all of it is there.
    pub filling: Option<Filling>,
    /// How long each phase took.
    pub timings: Vec<Timing>,
}

/// A restore under way: the job, and what its phases learned and did.
#[derive(Debug)]
struct Restoring {
    runc: Runc,
    namespace: String,
    id: String,
    bundle: PathBuf,
    /// The checkpoint; flat until it was looked at.
    layout: Layout,
    /// The list of its memory that was left in an archive.
    left: Option<PathBuf>,
    work: PathBuf,
    owns_work: bool,
    spec: SpecView,
    stdio: Option<[Stdio; 3]>,
    console_socket: Option<PathBuf>,
    no_pivot_root: bool,
    settings: config::Restore,
    criu: Option<Criu>,
    summary: Summary,
    manifest: Manifest,
    environment: Vec<(OsString, OsString)>,
    key: Key,
    layer_is_there: bool,
    waiting: Waiting,
    /// The host's side of the container's `/dev/shm`, with what was put back there.
    filled_shm: Option<PathBuf>,
    /// What gives the memory behind the processes.
    filling: Option<Filling>,
    /// Nobody was in the container's cgroup when the restore began.
    cgroup_was_vacant: bool,
    pid: i32,
}

/// Up to the point from which the processes are there.
fn before_commit() -> [Phase<Restoring, RestoreCause>; 9] {
    [
        Phase {
            name: "find criu",
            act: |restore| Box::pin(restore.find_criu()),
            undo: None,
        },
        Phase {
            name: "read images",
            act: |restore| Box::pin(async { restore.read_images() }),
            undo: None,
        },
        Phase {
            name: "prepare directories",
            act: |restore| Box::pin(async { restore.prepare_directories() }),
            undo: Some(|restore| Box::pin(async { restore.remove_directories() })),
        },
        Phase {
            name: "put back files",
            act: |restore| Box::pin(restore.put_back_files()),
            undo: Some(|restore| Box::pin(async { restore.take_back_files() })),
        },
        Phase {
            name: "configure criu",
            act: |restore| Box::pin(async { restore.configure() }),
            undo: Some(|restore| Box::pin(async { restore.unconfigure() })),
        },
        Phase {
            name: "serve pages",
            act: |restore| Box::pin(restore.serve_pages()),
            undo: Some(|restore| Box::pin(restore.stop_serving())),
        },
        Phase {
            name: "restore",
            act: |restore| Box::pin(restore.restore()),
            undo: Some(|restore| Box::pin(restore.remove_remains())),
        },
        Phase {
            name: "read pid",
            act: |restore| Box::pin(async { restore.read_pid() }),
            undo: None,
        },
        Phase {
            name: "check rights",
            act: |restore| Box::pin(async { restore.check_rights() }),
            undo: None,
        },
    ]
}

fn after_commit() -> [Phase<Restoring, RestoreCause>; 3] {
    [
        Phase {
            name: "raise loopback",
            act: |restore| Box::pin(async { restore.raise_loopback() }),
            undo: None,
        },
        Phase {
            name: "unconfigure criu",
            act: |restore| Box::pin(async { restore.unconfigure() }),
            undo: None,
        },
        Phase {
            name: "put away",
            act: |restore| Box::pin(async { restore.put_away() }),
            undo: None,
        },
    ]
}

/// Restores a container and leaves its processes stopped. The init becomes our child; the caller holds a
/// [`crate::reap::StrangerGuard`] meanwhile and watches the pid.
///
/// # Errors
/// [`RestoreError`] with the phase, the cause, and whatever could not be taken back.
pub async fn restore(job: RestoreJob) -> Result<Restored, RestoreError> {
    let plan = Plan {
        before: &before_commit(),
        after: &after_commit(),
    };
    let progress = job.progress.clone();
    let mut restoring = Restoring::new(job);
    let follow = |phase| {
        progress.begins("restore", phase);
        Ok(())
    };
    let result = plan.run(&mut restoring, &follow).await;
    progress.ends();
    match result {
        Ok(completed) => {
            for (phase, error) in &completed.late {
                tracing::warn!(
                    id = restoring.id,
                    phase,
                    error = chain(error),
                    "the container is restored, but not all is put away"
                );
            }
            let timings = phases::summary(&completed.timings);
            tracing::info!(id = restoring.id, pid = restoring.pid, timings, "restored");
            let mut stopped = restoring.manifest.stopped;
            stopped.extend(restoring.summary.stopped);
            Ok(Restored {
                pid: restoring.pid,
                stopped,
                filling: restoring.filling,
                timings: completed.timings,
            })
        }
        Err(failed) => Err(RestoreError::new(restoring.id, failed)),
    }
}

/// Lets the processes of a restored container go. Children go before their parents, so that no parent sees a child
/// stopped; what was stopped before the dump stays so.
///
/// # Errors
/// The container's cgroup cannot be found although its init lives.
pub async fn release(restored: &Restored) -> Result<(), RestoreCause> {
    if !proc::is_running(restored.pid) {
        // It was killed between Create and Start; its exit is told like any other.
        return Ok(());
    }
    let mut pids = Cgroup::of_pid(restored.pid)?.procs();
    if pids.is_empty() {
        pids.push(restored.pid);
    }
    for pid in children_first(&pids, proc::parent) {
        if !proc::inner_pid(pid).is_some_and(|inner| restored.stopped.contains(&inner)) {
            stray::signal(pid, Signal::SIGCONT);
        }
    }
    Ok(())
}

/// Unmounts the root file system that runc binds into its state for CRIU, if it is there: runc forgets it when it is killed.
/// Whoever removes the state with that in it, runc itself included, empties the root file system.
///
/// # Errors
/// Something is still mounted there; the state must not be removed.
pub(crate) async fn unmount_criu_root(state_dir: &Path) -> Result<(), RestoreCause> {
    let told = |errors: Vec<_>| {
        errors
            .iter()
            .map(|error| chain(error))
            .collect::<Vec<_>>()
            .join("; ")
    };
    mounts::unmount_recursive(&state_dir.join("criu-root"))
        .map_err(|errors| RestoreCause::Remains(told(errors)))
}

/// Orders processes by their depth in the tree, deepest first.
fn children_first(pids: &[i32], parent: impl Fn(i32) -> Option<i32>) -> Vec<i32> {
    let depth = |pid: i32| {
        let ancestors = std::iter::successors(Some(pid), |pid| parent(*pid));
        // A pid that is reused while we look could make a loop; no tree is deeper than it has processes.
        ancestors
            .take(pids.len())
            .take_while(|pid| pids.contains(pid))
            .count()
    };
    let mut ordered: Vec<(usize, i32)> = pids.iter().map(|pid| (depth(*pid), *pid)).collect();
    ordered.sort_unstable_by(|a, b| b.cmp(a));
    ordered.into_iter().map(|(_, pid)| pid).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn children_are_let_go_before_their_parents() {
        // 10 -> 4 -> 30, 10 -> 20; 10's parent is outside.
        let parent = |pid| match pid {
            30 => Some(4),
            4 | 20 => Some(10),
            10 => Some(1),
            _ => None,
        };
        assert_eq!(children_first(&[10, 20, 30, 4], parent), [30, 20, 4, 10]);
        assert_eq!(children_first(&[10], parent), [10]);
        assert_eq!(
            children_first(&[7, 8], |pid| Some(15 - pid)).len(),
            2,
            "a loop ends"
        );
    }

    #[test]
    fn a_writable_layer_that_is_still_to_be_applied_defers_the_restore() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let images = dir.path().join("checkpoint");
        assert_eq!(when(&images), RestoreAt::Create);
        std::fs::write(dir.path().join(Extra::RootfsDiff.name()), "").expect("write");
        assert_eq!(when(&images), RestoreAt::Start);
        assert_eq!(when(Path::new("/")), RestoreAt::Create);
    }

    #[test]
    fn the_root_of_a_killed_runc_is_unmounted_and_stays_full() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (state, rootfs) = (dir.path().join("state"), dir.path().join("rootfs"));
        let act = || {
            use nix::mount::{MsFlags, mount};
            let bind =
                |from: Option<&Path>, to: &Path, flags| mount(from, to, None::<&str>, flags, None::<&str>);
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).expect("a mount namespace");
            bind(None, Path::new("/"), MsFlags::MS_PRIVATE | MsFlags::MS_REC).expect("private");
            std::fs::create_dir_all(state.join("criu-root")).expect("make");
            std::fs::create_dir(&rootfs).expect("make");
            std::fs::write(rootfs.join("file"), "").expect("write");
            let runtime = tokio::runtime::Builder::new_current_thread()
                .build()
                .expect("a runtime");
            let unmount = || runtime.block_on(unmount_criu_root(&state));
            unmount().expect("nothing to do");
            bind(Some(&rootfs), &state.join("criu-root"), MsFlags::MS_BIND).expect("bind");
            assert!(state.join("criu-root/file").exists());
            unmount().expect("unmounted");
            assert!(!state.join("criu-root/file").exists());
            assert!(rootfs.join("file").exists());
        };
        std::thread::scope(|scope| scope.spawn(act).join()).expect("no panic");
    }
}
