//! The registry: what the command line keeps of all jobs, and how it finds one.
//!
//! ```text
//!  jobs.d/*.json  --refresh--> jobs.db (SQLite, WAL)  --jobs, find--> Job
//!                                ^ adopt, enrich, add_checkpoint …
//! ```
//!
//! Opening it never fails: a database that is missing is made, one that is damaged is put aside and made anew from the spool,
//! and for one that is locked, newer, unwritable or has no room there is one in memory, and a warning. The same holds for what
//! turns up later.

pub mod find;
pub mod job;

mod assembly;
mod intake;
mod opening;
mod recovery;
mod rows;
mod store;
mod warning;

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};

pub use find::FindError;
pub use job::{EngineKind, Job, Saved};
pub use warning::Warning;

use nix::fcntl::Flock;

use crate::record::{Checkpoint, Key, Process, Record, Shim, Status, Stdio};
use crate::spool::{self, Spool, SpoolError};
use crate::time;
use assembly::{assemble, bare_record, unpublished};
use intake::Spools;
use opening::Identity;
use rows::{Kept, Row};
use store::{Store, StoreError};

const REBUILD: &str = "rebuild";

/// What the registry cannot do.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// A namespace or an id that no container can have.
    #[error(transparent)]
    Name(#[from] SpoolError),
    /// There is no checkpoint of this id.
    #[error("there is no checkpoint {0}")]
    NoCheckpoint(String),
    /// The record of a job cannot be removed.
    #[error("the record of the job cannot be removed: {0}")]
    Spool(#[source] std::io::Error),
    /// The database cannot be written: nothing was changed that outlives this process.
    #[error("the registry does not keep it: {why}")]
    NotKept {
        /// Why, and what to do about it.
        why: String,
    },
    /// The database does not even work in memory.
    #[error("the registry does not work: {0}")]
    Broken(String),
}

impl From<StoreError> for RegistryError {
    fn from(e: StoreError) -> Self {
        Self::Broken(e.to_string())
    }
}

/// A container of another shim that is to be a job.
#[derive(Debug, Clone)]
pub struct Adopted {
    /// Which.
    pub key: Key,
    /// What the user calls it.
    pub name: Option<String>,
    /// Its image.
    pub image: Option<String>,
    /// The runtime it was made with: `io.containerd.runc.v2`.
    pub runtime: String,
    /// Its init.
    pub init: Process,
    /// Its streams.
    pub stdio: Stdio,
    /// Its bundle.
    pub bundle: PathBuf,
}

/// What the engine of a container knows of it, and its shim does not.
#[derive(Debug, Clone, Default)]
pub struct Enrichment {
    /// Who starts it.
    pub engine_name: Option<EngineKind>,
    /// What the engine calls it.
    pub name: Option<String>,
    /// Its image.
    pub image: Option<String>,
}

/// A checkpoint that was found on disk, and what its manifest tells of the container.
#[derive(Debug, Clone)]
pub struct OnDisk {
    /// Of which container.
    pub key: Key,
    /// What that was called.
    pub name: Option<String>,
    /// Its image.
    pub image: Option<String>,
    /// Its bundle, if known.
    pub bundle: PathBuf,
    /// The checkpoint.
    pub checkpoint: Checkpoint,
}

/// A registry that was opened.
#[derive(Debug)]
pub struct Opened {
    /// It.
    pub registry: Registry,
    /// What the user should know.
    pub warnings: Vec<Warning>,
    /// What lies on disk has to be told to it, by [`Registry::rebuild_from`]: it was made since the last time that this was done,
    /// or is one in memory.
    pub is_new: bool,
}

/// All jobs of this machine.
#[derive(Debug)]
pub struct Registry {
    /// None only where not even one in memory can be had.
    store: Option<Store>,
    /// After the database, for it has to be given up after it.
    hold: Option<Flock<File>>,
    file: Option<PathBuf>,
    identity: Option<Identity>,
    spools: Option<Spools>,
    warnings: Vec<Warning>,
    /// Set where there is a database, and it cannot be used.
    in_memory_because: Option<String>,
}

impl Registry {
    /// Opens the registry at `path`, in whatever state it is.
    pub fn open(path: &Path) -> Opened {
        let mut registry = Self {
            store: None,
            hold: None,
            file: Some(path.to_owned()),
            identity: None,
            spools: Some(Spools::of(path)),
            warnings: Vec::new(),
            in_memory_because: None,
        };
        match opening::open(path, Spool::beside(path).directory()) {
            Ok(found) => registry.take_found(path, found),
            Err(e) => registry.fall_back(&e),
        }
        registry.opened()
    }

    /// A registry of nothing, where the settings say that there is none.
    pub fn none() -> Opened {
        let store = Store::in_memory().ok();
        let registry = Self {
            store,
            hold: None,
            file: None,
            identity: None,
            spools: None,
            warnings: Vec::new(),
            in_memory_because: None,
        };
        registry.opened()
    }

    /// What the user should know since the last time this was asked.
    pub fn take_warnings(&mut self) -> Vec<Warning> {
        std::mem::take(&mut self.warnings)
    }

    /// Takes in what shims have published since the last time. Costs a stat a container where nothing has changed.
    ///
    /// # Errors
    /// [`RegistryError::Broken`] only.
    pub fn refresh(&mut self) -> Result<(), RegistryError> {
        let Some(spools) = self.spools.clone() else {
            return Ok(());
        };
        let problems = self.attempt(|store| intake::take_in(store, &spools))?;
        self.warnings.extend(Warning::of_problems(problems));
        match self.file {
            Some(_) => self.attempt(|store| intake::tidy(store, &spools)),
            // One in memory does not know all that a tidying hand has to know.
            None => Ok(()),
        }
    }

    /// All jobs by name, also such as `cedana ps` does not show: see [`Job::is_listed`].
    ///
    /// # Errors
    /// [`RegistryError::Broken`] only.
    pub fn jobs(&mut self) -> Result<Vec<Job>, RegistryError> {
        let read = |db: &_| Ok((rows::jobs(db)?, rows::checkpoints(db)?));
        let ((mut rows, unreadable), mut kept) = self.attempt(|store| store.read(read))?;
        if !unreadable.is_empty() {
            // What was published is whole, as a rule.
            self.attempt(|store| store.write(|db| rows::forget_stamps(db, &unreadable)))?;
            self.refresh()?;
            ((rows, _), kept) = self.attempt(|store| store.read(read))?;
        }
        let mut existing = self.existing(kept);
        let mut jobs: Vec<Job> = rows
            .into_iter()
            .map(|row| assemble(existing.remove(&row.file).unwrap_or_default(), row))
            .collect();
        job::name_all(&mut jobs);
        jobs.sort_by(|a, b| (&a.name, &a.key).cmp(&(&b.name, &b.key)));
        Ok(jobs)
    }

    /// The job that a text means: its name, `NAMESPACE/NAME`, its id, or what one of them begins with if no other does.
    /// Only among those of one namespace, if one is given.
    ///
    /// # Errors
    /// [`FindError`]; a registry that does not work has no jobs.
    pub fn find(&mut self, text: &str, namespace: Option<&str>) -> Result<Job, FindError> {
        let jobs = self.jobs().map_err(|_| FindError::NotFound)?;
        find::find(&jobs, text, namespace).cloned()
    }

    /// The checkpoints of a job, the newest first.
    pub fn checkpoints(&self, job: &Job) -> Vec<Checkpoint> {
        job.record.checkpoints.iter().rev().cloned().collect()
    }

    /// Notes a checkpoint of a job that its shim knows nothing of: one that was packed, or another shim's.
    ///
    /// # Errors
    /// [`RegistryError::Name`], [`RegistryError::NotKept`], [`RegistryError::Broken`].
    pub fn add_checkpoint(&mut self, key: &Key, checkpoint: &Checkpoint) -> Result<(), RegistryError> {
        let file = spool::file_name(key)?;
        let kept = Kept {
            file: file.clone(),
            checkpoint: checkpoint.clone(),
            removed: false,
            missing: 0,
        };
        self.insist(|store| {
            store.write(|db| {
                if rows::job_of(db, &file)?.is_none() {
                    rows::put_job(db, &unpublished(&file, bare_record(key)))?;
                }
                rows::drop_removed(db, &kept.checkpoint.path)?;
                rows::put_checkpoint(db, &kept)
            })
        })
    }

    /// Forgets a checkpoint. Its files are the caller's.
    ///
    /// # Errors
    /// [`RegistryError::NoCheckpoint`], [`RegistryError::NotKept`], [`RegistryError::Broken`].
    pub fn remove_checkpoint(&mut self, id: &str) -> Result<(), RegistryError> {
        match self.insist(|store| store.write(|db| rows::remove_checkpoint(db, id)))? {
            true => Ok(()),
            false => Err(RegistryError::NoCheckpoint(id.to_owned())),
        }
    }

    /// The same for the one at a path, where one checkpoint is kept in two forms under its id. Nothing is noted of a path that
    /// nobody knows.
    ///
    /// # Errors
    /// [`RegistryError::NotKept`], [`RegistryError::Broken`].
    pub fn remove_checkpoint_at(&mut self, path: &Path) -> Result<(), RegistryError> {
        self.insist(|store| store.write(|db| rows::remove_checkpoint_at(db, path)))
    }

    /// Makes a container of another shim a job.
    ///
    /// # Errors
    /// [`RegistryError::Name`], [`RegistryError::NotKept`], [`RegistryError::Broken`].
    pub fn adopt(&mut self, adopted: &Adopted) -> Result<(), RegistryError> {
        let file = spool::file_name(&adopted.key)?;
        let now = time::now();
        let record = Record {
            name: adopted.name.clone(),
            bundle: adopted.bundle.clone(),
            shim: Shim {
                version: adopted.runtime.clone(),
                ..Shim::default()
            },
            init: adopted.init.clone(),
            stdio: adopted.stdio.clone(),
            status: Status::Running,
            created: now,
            changed: now,
            ..bare_record(&adopted.key)
        };
        let row = Row {
            managed: true,
            // Kept here too: it stays its name when our own shim has restored it, which knows none.
            name: adopted.name.clone(),
            image: adopted.image.clone(),
            ..unpublished(&file, record)
        };
        self.insist(|store| {
            store.write(|db| {
                let stamp = rows::job_of(db, &file)?.and_then(|row| row.stamp);
                rows::put_job(db, &Row { stamp, ..row.clone() })
            })
        })
    }

    /// Notes what the engine of a container knows of it; also that it knows nothing.
    ///
    /// # Errors
    /// [`RegistryError::Name`], [`RegistryError::Broken`].
    pub fn enrich(&mut self, key: &Key, enrichment: &Enrichment) -> Result<(), RegistryError> {
        let file = spool::file_name(key)?;
        self.patiently(|store| {
            store.write(|db| {
                let Some(row) = rows::job_of(db, &file)? else {
                    return Ok(());
                };
                let engine_name = enrichment.engine_name.map(|engine| engine.word().to_owned());
                let row = Row {
                    enriched: true,
                    engine_name: engine_name.or(row.engine_name),
                    name: enrichment.name.clone().or(row.name),
                    image: enrichment.image.clone().or(row.image),
                    ..row
                };
                rows::put_job(db, &row)
            })
        })
    }

    /// Jobs that have a task, and of which nobody has asked their engine yet.
    ///
    /// # Errors
    /// [`RegistryError::Broken`] only.
    pub fn unenriched(&mut self) -> Result<Vec<Key>, RegistryError> {
        let rows = self.attempt(|store| store.read(rows::unenriched))?;
        let wanted = rows
            .into_iter()
            .filter(|row| row.record.status != Status::Deleted);
        Ok(wanted.map(|row| row.record.key).collect())
    }

    /// Forgets a job and its checkpoints, whose files are the caller's. The shim of one that runs publishes it again.
    ///
    /// # Errors
    /// [`RegistryError::Spool`] if its record stays, [`RegistryError::NotKept`]; the others as elsewhere.
    pub fn delete(&mut self, key: &Key) -> Result<(), RegistryError> {
        let file = spool::file_name(key)?;
        // Whether this can be kept is to be known before a record is gone.
        self.insist(|store| store.write(|_| Ok(())))?;
        for spool in self.spools.iter().flat_map(Spools::each) {
            spool.remove(key).map_err(RegistryError::Spool)?;
        }
        self.insist(|store| store.write(|db| rows::drop_job(db, &file)))
    }

    /// Takes in checkpoints that were found on disk, and makes jobs of those whose job nobody knows. Tells how many were new.
    ///
    /// # Errors
    /// [`RegistryError::Broken`] only: a key that no container can have is passed over.
    pub fn rebuild_from(&mut self, found: &[OnDisk]) -> Result<usize, RegistryError> {
        self.patiently(|store| {
            store.write(|db| {
                rows::set_chore_done(db, REBUILD, time::now() / 1000)?;
                intake::take_found(db, found)
            })
        })
    }

    fn opened(mut self) -> Opened {
        let told = self.attempt(|store| store.read(|db| rows::chore_done(db, REBUILD)));
        // A registry that does not work has nothing to be told.
        let is_new = self.spools.is_some() && told.is_ok_and(|at| at == 0);
        let warnings = self.take_warnings();
        Opened {
            registry: self,
            warnings,
            is_new,
        }
    }

    /// The checkpoints that are there, by the file of their job. Notes those that are gone, or are there again.
    fn existing(&mut self, kept: Vec<Kept>) -> HashMap<String, Vec<Checkpoint>> {
        let now = time::now() / 1000;
        let mut changed: Vec<(String, u64)> = Vec::new();
        let mut existing: HashMap<String, Vec<Checkpoint>> = HashMap::new();
        for Kept {
            file,
            checkpoint,
            removed,
            missing,
        } in kept
        {
            if removed {
                continue;
            }
            let is_there = checkpoint.path.symlink_metadata().is_ok();
            if is_there == (missing > 0) {
                changed.push((
                    checkpoint.path.to_string_lossy().into_owned(),
                    if is_there { 0 } else { now },
                ));
            }
            if is_there {
                existing.entry(file).or_default().push(checkpoint);
            }
        }
        if !changed.is_empty()
            && let Some(store) = &mut self.store
        {
            // A note for later: the next call finds the same, should this fail.
            let _noted = store.write(|db| {
                changed
                    .iter()
                    .try_for_each(|(path, at)| rows::set_missing(db, path, *at))
            });
        }
        existing
    }
}

#[cfg(test)]
mod samples;
#[cfg(test)]
mod tests;
