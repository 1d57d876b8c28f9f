//! Which jobs there are, and which one is meant.

mod enrich;
pub mod rebuild;

use std::path::Path;

use jobs::record::{Checkpoint, Key, NAME_RULE, Status};
use jobs::registry::find::find;
use jobs::registry::{Adopted, FindError, Job, Registry, RegistryError, Warning};

use crate::context::Context;
use crate::error::Error;
use crate::output;

/// The registry, and the jobs as they were when it was read last.
#[derive(Debug)]
pub struct Jobs {
    registry: Registry,
    all: Vec<Job>,
}

impl Jobs {
    /// Opens the registry, takes in what shims have published, and asks the engines for the names of what is new. What is
    /// wrong with it costs a warning.
    ///
    /// # Errors
    /// It is switched off, is not for this user, or there is not even memory for one.
    pub async fn open(context: &Context) -> Result<Self, Error> {
        let opened = Registry::open(context.database()?);
        let mut jobs = Self {
            registry: opened.registry,
            all: Vec::new(),
        };
        for warning in opened.warnings {
            if let Warning::Unusable { path, text } = &warning
                && !nix::unistd::geteuid().is_root()
            {
                let registry = path.display();
                return Err(
                    Error::failed(format!("failed to open the registry {registry}: {text}"))
                        .hint("run it as root"),
                );
            }
            output::warning(&warning.to_string());
        }
        if opened.is_new {
            rebuild::take_in(&mut jobs.registry, context).await?;
        }
        jobs.refresh().await?;
        Ok(jobs)
    }

    /// Looks again.
    ///
    /// # Errors
    /// As [`Jobs::open`].
    pub async fn refresh(&mut self) -> Result<(), Error> {
        self.registry.refresh()?;
        enrich::enrich(&mut self.registry).await?;
        self.all = self.registry.jobs()?;
        self.warn();
        Ok(())
    }

    /// Shows what the registry has to say of itself since it was asked last.
    fn warn(&mut self) {
        for warning in self.registry.take_warnings() {
            output::warning(&warning.to_string());
        }
    }

    /// All of them, also such as are not shown: [`Job::is_listed`].
    pub fn all(&self) -> &[Job] {
        &self.all
    }

    /// The job that somebody means: its name, its id, what one of them begins with, or NAMESPACE/NAME.
    ///
    /// # Errors
    /// There is none, or more than one.
    pub fn find(&self, text: &str, namespace: Option<&str>) -> Result<Job, Error> {
        find(&self.all, text, namespace)
            .cloned()
            .map_err(|problem| match problem {
                FindError::NotFound => {
                    Error::not_found(format!("there is no job {text}")).hint("cedana ps --all lists all jobs")
                }
                FindError::Ambiguous(choices) => {
                    Error::usage(format!("{text} may be any of {}", choices.join(", ")))
                        .hint("say one of these")
                }
            })
    }

    /// The job of that container.
    pub fn of(&self, key: &Key) -> Option<&Job> {
        self.all.iter().find(|job| job.key == *key)
    }

    /// The job of exactly that name that still has a task.
    pub fn named(&self, name: &str) -> Option<&Job> {
        let has_task = |job: &&Job| job.record.status != Status::Deleted;
        self.all.iter().filter(has_task).find(|job| job.name == name)
    }

    /// Whether a new job cannot have that name.
    pub fn is_taken(&self, name: &str) -> bool {
        self.all.iter().any(|job| job.name == name || job.key.id == name)
    }

    /// What was saved of a job, the newest first.
    pub fn checkpoints(&self, job: &Job) -> Vec<Checkpoint> {
        self.registry.checkpoints(job)
    }

    /// Notes a complete checkpoint of a job. Its shim may have told of it already; a packed one only we know.
    ///
    /// # Errors
    /// The registry does not take it.
    pub fn add_checkpoint(&mut self, key: &Key, checkpoint: &Checkpoint) -> Result<(), Error> {
        let added = self.registry.add_checkpoint(key, checkpoint);
        self.warn();
        Ok(added?)
    }

    /// Forgets the checkpoint at a path, whose files are gone.
    ///
    /// # Errors
    /// The registry does not take it.
    pub fn remove_checkpoint_at(&mut self, path: &Path) -> Result<(), Error> {
        let removed = self.registry.remove_checkpoint_at(path);
        self.warn();
        Ok(removed?)
    }

    /// Makes a container of another shim a job.
    ///
    /// # Errors
    /// The registry does not take it.
    pub fn adopt(&mut self, adopted: &Adopted) -> Result<(), Error> {
        let taken_in = self.registry.adopt(adopted);
        self.warn();
        Ok(taken_in?)
    }

    /// Forgets a job.
    ///
    /// # Errors
    /// The registry does not take it.
    pub fn delete(&mut self, key: &Key) -> Result<(), Error> {
        let deleted = self.registry.delete(key);
        self.warn();
        Ok(deleted?)
    }
}

impl From<RegistryError> for Error {
    fn from(error: RegistryError) -> Self {
        match error {
            RegistryError::Name(_) => Self::usage(error.to_string()),
            RegistryError::NoCheckpoint(_) => Self::not_found(error.to_string()),
            RegistryError::Spool(_) | RegistryError::NotKept { .. } | RegistryError::Broken(_) => {
                Self::failed(error.to_string())
            }
        }
    }
}

/// That a job cannot be called so.
pub fn no_name(name: &str) -> Error {
    Error::usage(format!("{name:?} is no name for a job: a name has {NAME_RULE}"))
}
