//! Why a container was not restored.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use oci_bundles::archive::ArchiveError;
use oci_bundles::spec::SpecError;
use thiserror::Error;

use crate::cgroup::CgroupError;
use crate::criu::CriuError;
use crate::criu::images::ImageError;
use crate::criu::telling::Telling;
use crate::error::{Error, chain};
use crate::phases::Failed;
use crate::worker::errand::ErrandError;
use crate::worker::page_server::PageServerError;

/// A restore that failed and was taken back.
#[derive(Debug)]
pub struct RestoreError {
    /// The container.
    pub id: String,
    /// The phase that failed.
    pub phase: &'static str,
    /// Why.
    pub cause: RestoreCause,
    /// What could not be taken back: the phase and its error.
    pub unwinding: Vec<(&'static str, RestoreCause)>,
}

/// Why a phase failed.
#[derive(Debug, Error)]
pub enum RestoreCause {
    /// runc knows a container of that id; it is left alone.
    #[error("make container {0}: it exists already")]
    Exists(String),
    /// CRIU is missing or does not run.
    #[error(transparent)]
    NoCriu(#[from] CriuError),
    /// CRIU or runc failed.
    #[error("{telling}{}", log.as_deref().map(|log| format!("; the log is {}", log.display())).unwrap_or_default())]
    Criu {
        /// Its own line, what it means and what to do.
        telling: Telling,
        /// Where its log is kept.
        log: Option<PathBuf>,
    },
    /// It took longer than it may.
    #[error("{0}; a larger cedana.restore.timeout gives it more time")]
    TimedOut(String),
    /// The images are not complete.
    #[error(transparent)]
    Images(#[from] ImageError),
    /// The processor is another one.
    #[error(
        "use the checkpoint: this processor lacks what the one of the dump had ({0}), and a program that uses it dies; restore on such a \
         one, or set the annotation cedana.restore.skip-cpu-check to true"
    )]
    Processor(String),
    /// Its processes may more than the container.
    #[error(
        "use the checkpoint: its processes come with what the container may not have ({0}); restore it into a container that may, if you \
         trust it"
    )]
    Rights(String),
    /// The cgroup of the restored container.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// runc said it had restored, but left no pid.
    #[error("find the restored process: {0} holds no pid")]
    NoPid(String),
    /// The bundle's configuration.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// The container is there, but its loopback interface is down.
    #[error("bring up the loopback interface")]
    Loopback(#[source] io::Error),
    /// The list of what was left in an archive.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// What was left in an archive was not taken out.
    #[error("take the memory out of the archive: {0}")]
    Memory(ErrandError),
    /// What was to give memory does not, and does not go away.
    #[error(transparent)]
    Served(PageServerError),
    /// Files of the checkpoint were not put back.
    #[error("put the container's files back: {0}")]
    Worker(ErrandError),
    /// Something of the failed attempt would not go away.
    #[error("remove what is left of the attempt: {0}")]
    Remains(String),
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

impl From<ErrandError> for RestoreCause {
    fn from(error: ErrandError) -> Self {
        match error.is_late() {
            true => Self::TimedOut(format!("put the container's files back: {error}")),
            false => Self::Worker(error),
        }
    }
}

impl RestoreCause {
    pub(super) fn memory(error: ErrandError) -> Self {
        match error.is_late() {
            true => Self::TimedOut(format!("take the memory out of the archive: {error}")),
            false => Self::Memory(error),
        }
    }

    pub(super) fn served(error: PageServerError) -> Self {
        match error {
            PageServerError::TimedOut(_) => Self::TimedOut(error.to_string()),
            error => Self::Served(error),
        }
    }

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

impl RestoreError {
    pub(super) fn new(id: String, failed: Failed<RestoreCause>) -> Self {
        Self {
            id,
            phase: failed.phase,
            cause: failed.cause,
            unwinding: failed.unwinding,
        }
    }
}

impl fmt::Display for RestoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "restore container {} ({}): {}",
            self.id,
            self.phase,
            chain(&self.cause)
        )?;
        for (phase, error) in &self.unwinding {
            write!(f, "; and to take back {phase}: {}", chain(error))?;
        }
        Ok(())
    }
}

impl std::error::Error for RestoreError {}

impl From<RestoreError> for Error {
    fn from(error: RestoreError) -> Self {
        let text = error.to_string();
        error.cause.of_kind(text)
    }
}

impl RestoreCause {
    /// The same for a client, after what was being done.
    pub(crate) fn told(self, doing: &str) -> Error {
        let text = format!("{doing}: {}", chain(&self));
        self.of_kind(text)
    }

    fn of_kind(self, text: String) -> Error {
        match self {
            Self::Exists(_) => Error::AlreadyExists(text),
            Self::Images(_) => Error::InvalidArgument(text),
            Self::Criu { ref telling, .. } if telling.lasting => Error::FailedPrecondition(text),
            Self::Processor(_) | Self::Rights(_) => Error::FailedPrecondition(text),
            Self::NoCriu(_) => Error::Unimplemented(text),
            Self::TimedOut(_) => Error::Unavailable(text),
            _ => Error::Internal(text),
        }
    }
}
