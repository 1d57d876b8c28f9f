//! Which checkpoint is meant.

use std::path::{Path, PathBuf};

use jobs::record::Checkpoint;
use jobs::registry::Job;
use oci_bundles::archive::ArchiveError;
use oci_bundles::checkpoint::CheckpointError;

use crate::context::Context;
use crate::error::{Error, Kind};
use crate::jobs::Jobs;

/// A checkpoint.
#[derive(Debug, Clone)]
pub struct Target {
    /// Where it is.
    pub path: PathBuf,
    /// What the registry knows of it, if anything.
    pub known: Option<(Job, Checkpoint)>,
}

impl Target {
    /// What people call it: its id if it has one that they could have typed, else its path.
    pub fn shown(&self) -> String {
        self.path.display().to_string()
    }
}

/// The registry, unless there is none: a path needs none.
///
/// # Errors
/// As [`Jobs::open`].
pub async fn registry(context: &Context) -> Result<Option<Jobs>, Error> {
    match context.database() {
        Ok(_) => Jobs::open(context).await.map(Some),
        Err(_) => Ok(None),
    }
}

/// All that the registry knows, the newest of each job first.
pub fn all(jobs: &Jobs) -> Vec<Target> {
    let of_job = |job: &Job| {
        let each = jobs.checkpoints(job).into_iter().map(|checkpoint| Target {
            path: checkpoint.path.clone(),
            known: Some((job.clone(), checkpoint)),
        });
        each.collect::<Vec<_>>()
    };
    jobs.all().iter().flat_map(of_job).collect()
}

/// The checkpoint of an id, of a unique beginning of one, or at a path.
///
/// # Errors
/// There is none, or more than one.
pub fn find(jobs: Option<&Jobs>, text: &str) -> Result<Target, Error> {
    let known = jobs.map(all).unwrap_or_default();
    if !text.contains('/') {
        match by_id(&known, text)? {
            Some(target) => return Ok(target),
            None if !Path::new(text).exists() => {
                return Err(Error::not_found(format!("there is no checkpoint {text}"))
                    .hint("cedana checkpoint ls lists those of all jobs; one in a file or directory is named by its path"));
            }
            None => {}
        }
    }
    let path = Path::new(text).canonicalize().map_err(|source| {
        let kind = match source.kind() {
            std::io::ErrorKind::NotFound => Kind::NotFound,
            _ => Kind::Failed,
        };
        Error::new(kind, format!("failed to find the checkpoint {text}: {source}"))
    })?;
    let met = known.into_iter().find(|target| target.path == path);
    Ok(met.unwrap_or(Target { path, known: None }))
}

fn by_id(known: &[Target], text: &str) -> Result<Option<Target>, Error> {
    let id = |target: &&Target| target.known.as_ref().map(|(_, checkpoint)| checkpoint.id.clone());
    let begins = |target: &&Target| !text.is_empty() && id(target).is_some_and(|id| id.starts_with(text));
    let mut met: Vec<&Target> = known.iter().filter(begins).collect();
    if met.iter().any(|target| id(target).as_deref() == Some(text)) {
        met.retain(|target| id(target).as_deref() == Some(text));
    }
    match met.as_slice() {
        [] => Ok(None),
        [one] => Ok(Some((*one).clone())),
        many => {
            let paths: Vec<String> = many.iter().map(|target| target.shown()).collect();
            Err(Error::usage(format!("{text} may be any of {}", paths.join(", ")))
                .hint("say one of these paths"))
        }
    }
}

impl From<CheckpointError> for Error {
    fn from(error: CheckpointError) -> Self {
        let kind = match &error {
            CheckpointError::Archive(ArchiveError::Cancelled) => Kind::Interrupted,
            CheckpointError::Archive(ArchiveError::Exists { .. }) => Kind::WrongState,
            CheckpointError::NoCheckpoint(_) => Kind::Usage,
            _ => Kind::Failed,
        };
        match kind {
            Kind::Interrupted => Self::new(kind, "interrupted: everything is as it was"),
            _ => Self::new(kind, format!("failed to {error}")),
        }
    }
}

#[cfg(test)]
pub mod samples {
    use super::*;

    /// One that the registry knows nothing of but id and time.
    pub fn checkpoint(id: &str, at: u64) -> Checkpoint {
        Checkpoint {
            id: id.to_owned(),
            path: format!("/checkpoints/{id}").into(),
            at,
            size: 5 << 20,
            left_running: true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_needs_no_registry_and_an_id_does() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().display().to_string();
        let target = find(None, &path).expect("there");
        assert!(target.known.is_none());
        assert_eq!(target.path, dir.path().canonicalize().expect("a path"));
        for text in ["1f", "/nowhere/at/all"] {
            assert_eq!(find(None, text).expect_err(text).kind, Kind::NotFound);
        }
    }
}
