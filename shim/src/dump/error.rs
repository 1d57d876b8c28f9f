//! Why there is no dump.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::DumpJob;
use crate::cgroup::CgroupError;
use crate::criu::CriuError;
use crate::criu::images::ImageError;
use crate::criu::telling::Telling;
use crate::error::{Error, chain};
use crate::phases::Failed;
use crate::worker::errand::ErrandError;

/// The kernel's words (ENOSPC, EDQUOT) for a disk that takes no more.
const FULL: [&str; 2] = ["No space left on device", "Disk quota exceeded"];

/// What is said of it where it comes from CRIU's log (`criu::telling`).
const MAKE_ROOM: &str = "make room";

/// A dump that failed and was taken back.
#[derive(Debug)]
pub struct DumpError {
    /// The container.
    pub id: String,
    /// The phase that failed.
    pub phase: &'static str,
    /// Why.
    pub cause: DumpCause,
    /// What could not be taken back: the phase and its error.
    pub unwinding: Vec<(&'static str, DumpCause)>,
    /// Whether the init is still alive.
    pub alive: bool,
    /// Where the images of a container are that has ended, complete as far as CRIU came.
    pub kept: Option<PathBuf>,
}

/// Why a phase failed.
#[derive(Debug, Error)]
pub enum DumpCause {
    /// The container cannot be dumped as it is; the text says what is in the way and what to do.
    #[error("{0}")]
    Refused(String),
    /// The directory for a new checkpoint is there already.
    #[error("make {}: it exists already; give the checkpoint another name", .0.display())]
    Exists(PathBuf),
    /// CRIU is missing or does not run.
    #[error(transparent)]
    NoCriu(#[from] CriuError),
    /// CRIU failed.
    #[error("{telling}{}{}", listed(culprits), log.as_deref().map(named).unwrap_or_default())]
    Criu {
        /// Its own line, what it means and what to do.
        telling: Telling,
        /// What was found in the container that cannot be saved.
        culprits: Vec<String>,
        /// Where its log is kept.
        log: Option<PathBuf>,
    },
    /// It took longer than it may.
    #[error("{0}; a larger cedana.dump.timeout gives it more time")]
    TimedOut(String),
    /// The worker that takes the pages failed.
    #[error("{0}")]
    Capture(String),
    /// Files that CRIU leaves out were not saved.
    #[error("save the container's files: {0}")]
    Worker(ErrandError),
    /// A client gave it up.
    #[error("given up, as asked")]
    Cancelled,
    /// CRIU would not go away; tasks of the container may stand still.
    #[error("end CRIU, which still holds the container's processes")]
    CriuStays,
    /// The cgroup could not be frozen or thawed.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// The images are not complete.
    #[error(transparent)]
    Images(#[from] ImageError),
    /// A file or directory of ours.
    #[error("{action} {}: {source}", path.display())]
    Files {
        /// What was tried.
        action: &'static str,
        /// With what.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
}

impl From<ErrandError> for DumpCause {
    fn from(error: ErrandError) -> Self {
        match error.is_late() {
            true => Self::TimedOut(format!("save the container's files: {error}")),
            false => Self::Worker(error),
        }
    }
}

impl DumpCause {
    pub(super) fn files<'a>(
        action: &'static str,
        path: &'a Path,
    ) -> impl FnOnce(io::Error) -> Self + use<'a> {
        move |source| Self::Files {
            action,
            path: path.to_owned(),
            source,
        }
    }
}

/// What to do about a full disk, unless that is said: whoever meets it, a worker or we, has only the kernel's words.
fn remedy(cause: &str) -> &'static str {
    let is_full = FULL.iter().any(|words| cause.contains(words));
    match is_full && !cause.contains(MAKE_ROOM) {
        true => ": the disk is full; make room or choose another directory, and try again",
        false => "",
    }
}

fn listed(culprits: &[String]) -> String {
    culprits.iter().map(|culprit| format!("; {culprit}")).collect()
}

fn named(log: &Path) -> String {
    format!("; the log is {}", log.display())
}

impl DumpError {
    pub(super) fn new(job: &DumpJob, failed: Failed<DumpCause>, kept: Option<PathBuf>) -> Self {
        Self {
            id: job.id.clone(),
            phase: failed.phase,
            cause: failed.cause,
            unwinding: failed.unwinding,
            alive: Path::new("/proc")
                .join(job.init_pid.to_string())
                .join("root")
                .exists(),
            kept,
        }
    }
}

impl fmt::Display for DumpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cause = chain(&self.cause);
        write!(f, "dump container {} ({}): {cause}", self.id, self.phase)?;
        f.write_str(remedy(&cause))?;
        for (phase, error) in &self.unwinding {
            write!(f, "; and to take back {phase}: {}", chain(error))?;
        }
        f.write_str(match self.alive {
            true => "; the container goes on",
            false => "; the container has ended",
        })?;
        match &self.kept {
            Some(images) => write!(
                f,
                "; its images, the only copy of it, are kept in {}",
                images.display()
            ),
            None => Ok(()),
        }
    }
}

impl std::error::Error for DumpError {}

impl From<DumpError> for Error {
    fn from(error: DumpError) -> Self {
        let text = error.to_string();
        match error.cause {
            DumpCause::Refused(_) => Self::FailedPrecondition(text),
            DumpCause::Criu { ref telling, .. } if telling.lasting => Self::FailedPrecondition(text),
            DumpCause::Exists(_) => Self::AlreadyExists(text),
            DumpCause::NoCriu(_) => Self::Unimplemented(text),
            DumpCause::TimedOut(_) => Self::Unavailable(text),
            // Else it came too late: the text says what is left.
            DumpCause::Cancelled if error.alive && error.kept.is_none() => Self::Cancelled(text),
            _ => Self::Internal(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_has_its_remedy_once() {
        for (cause, expected) in [
            (
                "write /d/pages-1.img: No space left on device (os error 28)",
                true,
            ),
            ("pack /d: write /d.tar: Disk quota exceeded (os error 122)", true),
            ("No space left on device: the disk is full; make room", false),
            ("write /d: Input/output error (os error 5)", false),
        ] {
            assert_eq!(remedy(cause).contains("make room"), expected, "{cause}");
        }
    }
}
