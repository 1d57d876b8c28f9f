//! What is done when the database fails: once more, with what can be had instead of it.

use std::path::{Path, PathBuf};

use super::opening::{self, Found};
use super::rows::{self, Row};
use super::store::{Fault, Salvaged, Store, StoreError};
use super::{Registry, RegistryError, Warning, intake};
use crate::spool::Spool;

/// Attempts to write what nobody else knows, of two seconds each: others write for milliseconds, but there may be many.
const ATTEMPTS: usize = 5;

impl Registry {
    /// Does something with the database; when that fails, once more with what can be had instead of it.
    pub(super) fn attempt<T>(
        &mut self,
        act: impl Fn(&mut Store) -> Result<T, StoreError>,
    ) -> Result<T, RegistryError> {
        self.follow();
        let Some(store) = &mut self.store else {
            return Err(RegistryError::Broken("no memory".to_owned()));
        };
        match act(store) {
            Err(e) if self.file.is_some() => {
                self.recover(&e);
                let store = self
                    .store
                    .as_mut()
                    .ok_or_else(|| RegistryError::Broken(e.to_string()))?;
                Ok(act(store)?)
            }
            done => Ok(done?),
        }
    }

    /// As [`Self::patiently`], and what was only done in memory is an error: it ends with this process.
    pub(super) fn insist<T>(
        &mut self,
        act: impl Fn(&mut Store) -> Result<T, StoreError>,
    ) -> Result<T, RegistryError> {
        let done = self.patiently(act)?;
        match &self.in_memory_because {
            Some(why) => Err(RegistryError::NotKept { why: why.clone() }),
            None => Ok(done),
        }
    }

    /// As [`Self::attempt`], but patient: what is to be written is known to nobody else.
    pub(super) fn patiently<T>(
        &mut self,
        act: impl Fn(&mut Store) -> Result<T, StoreError>,
    ) -> Result<T, RegistryError> {
        self.attempt(|store| {
            let mut done = act(store);
            for _ in 1..ATTEMPTS {
                match &done {
                    Err(e) if e.fault == Fault::Locked => done = act(store),
                    _ => break,
                }
            }
            done
        })
    }

    /// Goes on with the database that is there, if it is another one than was opened: somebody has removed or replaced it.
    fn follow(&mut self) {
        if let Some(path) = self.file.clone()
            && opening::identity(&path) != self.identity
        {
            self.reopen(&path, |directory| opening::open(&path, directory));
        }
    }

    fn recover(&mut self, e: &StoreError) {
        match self.file.clone() {
            Some(path) if e.fault == Fault::Damaged => {
                let damaged = self.identity;
                self.reopen(&path, |directory| opening::repair(&path, directory, damaged));
            }
            _ => self.fall_back(e),
        }
    }

    /// Opens the database again, with what can be read of the one that is open.
    fn reopen(&mut self, path: &Path, open: impl Fn(&Path) -> Result<Found, StoreError>) {
        let salvaged = self.store.as_mut().map(Store::salvage).unwrap_or_default();
        // Before that of another one is had: what SQLite does as it closes belongs to the old one.
        self.store = None;
        self.hold = None;
        match open(Spool::beside(path).directory()) {
            Ok(found) => self.take_found(path, found),
            Err(e) => self.fall_back(&e),
        }
        self.fill(&salvaged);
    }

    pub(super) fn take_found(&mut self, path: &Path, found: Found) {
        self.identity = found.identity;
        if let Some(moved_to) = found.moved_to {
            self.warnings.push(Warning::Damaged {
                path: path.to_owned(),
                moved_to,
            });
        }
        self.store = Some(found.store);
        self.hold = found.hold;
    }

    /// From here on in memory: with all that can be read of the database.
    pub(super) fn fall_back(&mut self, e: &StoreError) {
        if let Some(path) = self.file.take() {
            self.in_memory_because = Some(reason(&path, e));
            self.warnings.push(Warning::in_memory(path, e));
        }
        let salvaged = match e.fault {
            // What a newer version has written, another one should not interpret.
            Fault::Newer(_) => Salvaged::default(),
            _ => self.store.as_mut().map(Store::salvage).unwrap_or_default(),
        };
        self.store = Store::in_memory().ok();
        self.fill(&salvaged);
    }

    /// The spool has the rest, and the truth.
    fn fill(&mut self, (jobs, checkpoints): &Salvaged) {
        let Some(store) = &mut self.store else { return };
        let filled = store.write(|db| {
            // Without stamps: what is published is read anew, and wins.
            jobs.iter().try_for_each(|row| {
                rows::put_job(
                    db,
                    &Row {
                        stamp: None,
                        ..row.clone()
                    },
                )
            })?;
            checkpoints
                .iter()
                .try_for_each(|kept| rows::put_checkpoint(db, kept))
        });
        let spools = self.spools.clone();
        let taken =
            filled.and_then(|()| spools.map_or(Ok(Vec::new()), |spools| intake::take_in(store, &spools)));
        match taken {
            Ok(problems) => self.warnings.extend(Warning::of_problems(problems)),
            Err(e) => self
                .warnings
                .push(Warning::in_memory(PathBuf::from(":memory:"), &e)),
        }
    }
}

/// Why a database cannot be written, and what to do about it.
fn reason(path: &Path, e: &StoreError) -> String {
    let path = path.display();
    match e.fault {
        Fault::Locked => format!("another process has locked {path}; try again when it is done"),
        Fault::Full => format!("there is no room for {path}; make some, and try again"),
        Fault::Newer(schema) => format!("{path} belongs to a newer version (schema {schema}); use that one"),
        Fault::Foreign => {
            format!("{path} cannot be used ({e}); name another file (db.path), or move that one")
        }
        Fault::Missing | Fault::Damaged | Fault::Unusable => {
            format!("{path} cannot be used ({e}); mend or move it, and try again")
        }
    }
}
