//! The dump, as phases.
//!
//! ```text
//!  find criu -> prepare directories -> freeze -> look at connections -> wake stopped tasks -> configure criu
//!     -> save (runc checkpoint) -> let go on -> verify -> write out -> commit | put back -> put away
//! ```
//!
//! Why these, with what was measured for a small container (kernel 6.18, cgroup v1, CRIU 4.2, runc 1.3):
//! - *find criu* has it look at the kernel, if it has not since the boot: it would while the application stands, for 70 ms.
//! - *freeze*: we freeze the cgroup ourselves. Left to CRIU, which looks every 100 ms whether it has got there, a dump
//!   takes 170 ms in half of the cases and 60 ms in the others; frozen before, it takes 60 ms always.
//! - *look at connections*: what is seen of them decides what is done about them ([`crate::criu::choices`]). And without a connection there is nothing to lock the network for; the lock is six execs of
//!   iptables, 70 of the 130 ms of a dump of a frozen container. Looked at while frozen, the answer holds.
//! - *wake stopped tasks*: under cgroup v1, CRIU hangs for good on a task that is both stopped (SIGTSTP, SIGSTOP) and
//!   frozen. Continuing it while it is frozen changes nothing but that; it is stopped again before anything thaws.
//! - *save* goes into a directory of its own: CRIU leaves the files of an earlier dump beside its own, and a dump that fails must not have
//!   spoilt the one that was there. It is in memory if it can be ([`in_memory`]); else, and afterwards, inside the image directory or, for a
//!   nested checkpoint, beside it.
//! - *let go on*: a container that goes on does not stand still while its images are written to the disk.
//! - *write out* digests every file for the manifest, and syncs it; pages that a worker took come with their digests.
//! - the checkpoint is complete when it is renamed into place: that is the commit.
//!
//! Invariants: when a dump fails, the application goes on as it was, paused if it was paused; only when CRIU has ended it, as
//! a dump with exit has it do, and the commit fails, its images stay where the error says. While it stands, no wait is without an
//! end: not for a program, nor for a disk. Of a shim that is killed, `delete` completes or clears away the dump ([`mark`]). CRIU itself puts the
//! cgroup back to frozen when it found it so; thawing is ours.

mod archive;
mod beside;
mod capture;
mod clear;
mod commit;
pub(crate) mod describe;
mod directories;
mod ending;
mod error;
mod files;
pub(crate) mod hold;
pub(crate) mod in_memory;
pub(crate) mod mark;
mod names;
mod parts;
mod portable;
mod room;
mod save;
mod steps;
mod target;

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use jobs::record::{Checkpoint, Origin};
use jobs::wire::Archive;
use oci_bundles::layout::{Layout, Shape};
use oci_bundles::manifest::Image;

use crate::cgroup::Cgroup;
use crate::criu::Criu;
use crate::criu::choices::{Choices, Seen};
use crate::criu::manifest::Manifest;
use crate::phases::{Phase, Plan, Stopwatch, Timing};
use crate::progress::{Cancel, Progress};
use crate::runc::Runc;
use crate::worker::errand::Errand;

use capture::Capture;
pub use error::{DumpCause, DumpError};
use hold::Hold;
use in_memory::InMemory;
use parts::Parts;
use target::Target;

/// The phases before the commit that follow the save.
const AFTER_SAVE: [&str; 4] = ["let go on", "verify", "write out", "commit"];

/// What a client asks for: containerd's `runc.v1.CheckpointOptions`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CheckpointOptions {
    /// The client sent options at all. Under a runtime name other than `io.containerd.runc.v2`, docker, nerdctl and CRI
    /// send none: the settings say then whether the container ends.
    pub said: bool,
    /// Where the checkpoint goes.
    pub image_path: PathBuf,
    /// How its parts lie there: the Task API says where the images go, so for it they are flat.
    pub shape: Shape,
    /// One file that is wanted instead of a nested directory, beside where that would be.
    pub archive: Option<Archive>,
    /// That directory must not be there yet.
    pub new_directory: bool,
    /// What the client calls the container.
    pub name: Option<String>,
    /// Its image, if the client tells.
    pub image: Option<Image>,
    /// The container ends with the dump.
    pub exit: bool,
    /// Established TCP connections are saved.
    pub open_tcp: bool,
    /// Datagram sockets connected to the host are left out.
    pub external_unix_sockets: bool,
    /// The terminal of a shell is taken along.
    pub terminal: bool,
    /// File locks are saved.
    pub file_locks: bool,
    /// Namespaces whose content is not saved.
    pub empty_namespaces: Vec<String>,
    /// What is done about cgroups: soft, full, strict or ignore.
    pub cgroups_mode: String,
    /// Where CRIU's log and statistics go; empty for a directory that is removed after success.
    pub work_path: String,
    /// An earlier dump on which this one builds, relative to the images; needs a kernel that tracks memory.
    pub parent_path: String,
}

/// What a dump needs.
#[derive(Debug)]
pub struct DumpJob {
    /// How runc is called for the container.
    pub runc: Runc,
    /// containerd's namespace.
    pub namespace: String,
    /// The container.
    pub id: String,
    /// Its bundle.
    pub bundle: PathBuf,
    /// Its init.
    pub init_pid: i32,
    /// Its cgroup.
    pub cgroup: Cgroup,
    /// A client had paused it.
    pub was_paused: bool,
    /// What the client asked for.
    pub options: CheckpointOptions,
    /// What the settings say.
    pub settings: config::Dump,
    /// Who asks how far it is.
    pub progress: Progress,
    /// Who may give it up.
    pub cancel: Cancel,
    /// Whose it is, for the manifest.
    pub origin: Origin,
}

impl DumpJob {
    /// Told of each phase. Once CRIU has come to its end the rest is short, and a container that was to end has: nothing is
    /// given up any more.
    fn begins(&self, phase: &'static str) -> Result<(), DumpCause> {
        self.progress.begins("dump", phase);
        match self.cancel.is_asked() && !AFTER_SAVE.contains(&phase) {
            true => Err(DumpCause::Cancelled),
            false => Ok(()),
        }
    }
}

/// A finished dump.
#[derive(Debug)]
pub struct Dumped {
    /// What it is, for the registry.
    pub checkpoint: Checkpoint,
    /// How long each phase took.
    pub timings: Vec<Timing>,
}

/// A dump under way: the job, and what its phases learned and did.
#[derive(Debug)]
struct Dumping<'j> {
    job: &'j DumpJob,
    criu: Option<Criu>,
    /// What is written before the commit: CRIU's images, and the rest.
    staging: Layout,
    /// Where its log goes.
    work: PathBuf,
    /// The image directory, for this dump alone.
    target: Option<Target>,
    /// CRIU came to its end; a container that was to end has.
    saved: bool,
    /// Where the only copy of a container that has ended is kept, of a dump that failed.
    kept: Option<PathBuf>,
    /// We froze the container; a client had not.
    froze: bool,
    /// There is a freezer.
    freezes: bool,
    /// What is of concern for CRIU's options.
    seen: Seen,
    /// What is done about it.
    choices: Choices,
    /// CRIU locks the network for them.
    locks: bool,
    /// CRIU failed, said so, and took back what it had done.
    criu_ended_itself: bool,
    /// Host pids of tasks that are stopped again before the thaw.
    woken: Vec<i32>,
    environment: Vec<(OsString, OsString)>,
    /// CRIU's image directory, as long as it is not the one where the dump is staged.
    in_memory: Option<InMemory>,
    /// Who takes the pages, if there are many.
    capture: Option<Capture>,
    /// It has them all.
    drained: bool,
    /// Who saves the files that CRIU leaves out.
    files: Option<Errand>,
    /// It has packed them, with all else of the checkpoint, into a file of so many bytes among what is staged.
    packed: Option<u64>,
    /// Where CRIU asks before it ends the container.
    hold: Option<Hold>,
    /// CRIU was told that it may.
    agreed: bool,
    deadline: Duration,
    manifest: Manifest,
    /// What is known of the files of the dump.
    parts: Parts,
    /// When each phase began.
    watch: &'j Stopwatch,
}

/// Up to the commit: a failure takes everything back.
fn before_commit<'j>() -> [Phase<Dumping<'j>, DumpCause>; 12] {
    [
        Phase {
            name: "find criu",
            act: |dump| Box::pin(dump.find_criu()),
            undo: None,
        },
        Phase {
            name: "prepare directories",
            act: |dump| Box::pin(dump.prepare_directories()),
            undo: Some(|dump| Box::pin(dump.remove_directories())),
        },
        Phase {
            name: "start capture",
            act: |dump| Box::pin(dump.start_capture()),
            undo: Some(|dump| {
                Box::pin(async {
                    dump.end_capture();
                    Ok(())
                })
            }),
        },
        Phase {
            name: "freeze",
            act: |dump| Box::pin(dump.freeze()),
            undo: Some(|dump| Box::pin(dump.put_back())),
        },
        Phase {
            name: "look at connections",
            act: |dump| Box::pin(async { dump.look_at_connections() }),
            undo: None,
        },
        Phase {
            name: "wake stopped tasks",
            act: |dump| Box::pin(async { dump.wake_stopped() }),
            undo: Some(|dump| Box::pin(async { dump.stop_woken() })),
        },
        Phase {
            name: "configure criu",
            act: |dump| Box::pin(dump.configure()),
            undo: Some(|dump| Box::pin(async { dump.unconfigure() })),
        },
        Phase {
            name: "save",
            act: |dump| Box::pin(dump.save()),
            undo: Some(|dump| Box::pin(dump.end_criu())),
        },
        Phase {
            name: "let go on",
            act: |dump| Box::pin(dump.let_go_on()),
            undo: None,
        },
        Phase {
            name: "verify",
            act: |dump| Box::pin(dump.verify()),
            undo: None,
        },
        Phase {
            name: "write out",
            act: |dump| Box::pin(dump.write_out_in_time()),
            undo: None,
        },
        Phase {
            name: "commit",
            act: |dump| Box::pin(dump.commit()),
            undo: None,
        },
    ]
}

/// After the commit: the container goes back to what it was doing, and our own files go.
fn after_commit<'j>() -> [Phase<Dumping<'j>, DumpCause>; 4] {
    [
        Phase {
            name: "stop woken tasks",
            act: |dump| Box::pin(async { dump.stop_woken() }),
            undo: None,
        },
        Phase {
            name: "put back",
            act: |dump| Box::pin(dump.put_back()),
            undo: None,
        },
        Phase {
            name: "unconfigure criu",
            act: |dump| Box::pin(async { dump.unconfigure() }),
            undo: None,
        },
        Phase {
            name: "put away",
            act: |dump| Box::pin(async { dump.put_away() }),
            undo: None,
        },
    ]
}

/// Dumps a container. On failure it goes on as before and the image directory is as it was, unless the container had been
/// ended when the commit failed: its images are kept, and named.
///
/// # Errors
/// [`DumpError`] with the phase, the cause, and whatever could not be taken back.
pub async fn dump(job: &DumpJob) -> Result<Dumped, DumpError> {
    let plan = Plan {
        before: &before_commit(),
        after: &after_commit(),
    };
    let watch = Stopwatch::default();
    let mut dumping = Dumping::new(job, &watch);
    let follow = |phase| {
        watch.begins(phase);
        job.begins(phase)
    };
    let result = plan.run(&mut dumping, &follow).await;
    job.progress.ends();
    match result {
        Ok(completed) => {
            for (phase, error) in &completed.late {
                tracing::warn!(
                    id = job.id,
                    phase,
                    error = crate::error::chain(error),
                    "the dump is complete, but not all is put away"
                );
            }
            tracing::info!(id = job.id, images = %job.options.image_path.display(), timings = crate::phases::summary(&completed.timings), "dumped");
            Ok(Dumped {
                checkpoint: dumping.checkpoint(),
                timings: completed.timings,
            })
        }
        Err(failed) => Err(DumpError::new(job, failed, dumping.kept)),
    }
}
