//! What shims have published, and what is found on disk, into the database.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use rusqlite::Transaction;

use super::OnDisk;
use super::assembly::{bare_record, unpublished};
use super::rows::{self, Kept, Row};
use super::store::{Store, StoreError};
use crate::file::Stamp;
use crate::liveness;
use crate::record::{Record, Status};
use crate::spool::{self, DELETED_AGE_MAX, DELETED_KEPT, Scan, Spool, SpoolError};
use crate::time;

/// Tidying up reads every row and lists the spool once more: not more often than this, in seconds.
const TIDY_EVERY: u64 = 3600;

const TIDY: &str = "tidy";

/// How long a checkpoint may be missing before it is forgotten, in seconds: its file system may be mounted again.
const MISSING_MAX: u64 = 24 * 3600;

/// Where records are published.
#[derive(Debug, Clone)]
pub(super) struct Spools {
    /// By the shims, as things are.
    pub(super) live: Spool,
    /// Those that outlive a reboot; none where the other one does.
    pub(super) kept: Option<Spool>,
}

impl Spools {
    /// Those of a database.
    pub(super) fn of(path: &Path) -> Self {
        let (live, kept) = (Spool::live(path), Spool::beside(path));
        let is_other = kept.directory() != live.directory();
        Self {
            live,
            kept: is_other.then_some(kept),
        }
    }

    /// Both.
    pub(super) fn each(&self) -> impl Iterator<Item = &Spool> {
        std::iter::once(&self.live).chain(&self.kept)
    }
}

/// Takes in what has changed in the spools. What could not be read is returned, and stays.
pub(super) fn take_in(store: &mut Store, spools: &Spools) -> Result<Vec<(PathBuf, SpoolError)>, StoreError> {
    let scan = spools.live.changed_since(&store.read(rows::stamps)?);
    if !scan.records.is_empty() || !scan.gone.is_empty() {
        store.write(|db| take_scan(db, &scan))?;
    }
    let mut problems = scan.problems;
    if let Some(kept) = &spools.kept {
        let scan = kept.changed_since(&store.read(rows::kept_stamps)?);
        if !scan.records.is_empty() || !scan.gone.is_empty() {
            store.write(|db| take_kept_scan(db, &scan))?;
        }
        problems.extend(scan.problems);
    }
    Ok(problems)
}

/// Records that outlive a reboot tell of what is not published any more, and of checkpoints.
fn take_kept_scan(db: &Transaction<'_>, scan: &Scan) -> Result<(), StoreError> {
    for (record, stamp) in &scan.records {
        let Ok(file) = spool::file_name(&record.key) else {
            continue;
        };
        match rows::job_of(db, &file)? {
            Some(row) if row.record.changed >= record.changed => put_checkpoints(db, &file, record)?,
            Some(row) if row.managed || row.stamp.is_some() => put_checkpoints(db, &file, record)?,
            Some(Row { stamp, .. }) => take_record(db, &file, record, stamp)?,
            None => take_record(db, &file, record, None)?,
        }
        rows::put_kept_stamp(db, &file, *stamp)?;
    }
    scan.gone
        .iter()
        .try_for_each(|file| rows::drop_kept_stamp(db, file))
}

fn take_scan(db: &Transaction<'_>, scan: &Scan) -> Result<(), StoreError> {
    for (record, stamp) in &scan.records {
        // A name that cannot be is not in a scan.
        if let Ok(file) = spool::file_name(&record.key) {
            take_record(db, &file, record, Some(*stamp))?;
        }
    }
    scan.gone.iter().try_for_each(|file| take_gone(db, file))
}

fn take_record(
    db: &Transaction<'_>,
    file: &str,
    record: &Record,
    stamp: Option<Stamp>,
) -> Result<(), StoreError> {
    let row = match rows::job_of(db, file)? {
        // It was adopted since: the record is of a life before that.
        Some(row) if row.managed && record.changed < row.record.changed => Row { stamp, ..row },
        Some(row) => Row {
            stamp,
            managed: false,
            // Another container of the same id may have another image.
            enriched: row.enriched && row.record.created == record.created,
            record: record.clone(),
            ..row
        },
        None => Row {
            stamp,
            ..unpublished(file, record.clone())
        },
    };
    rows::put_job(db, &row)?;
    put_checkpoints(db, file, record)
}

fn put_checkpoints(db: &Transaction<'_>, file: &str, record: &Record) -> Result<(), StoreError> {
    record.checkpoints.iter().try_for_each(|checkpoint| {
        let kept = Kept {
            file: file.to_owned(),
            checkpoint: checkpoint.clone(),
            removed: false,
            missing: 0,
        };
        rows::put_checkpoint(db, &kept)
    })
}

/// Its record was swept or removed. What can still be saved or restored stays.
fn take_gone(db: &Transaction<'_>, file: &str) -> Result<(), StoreError> {
    let Some(row) = rows::job_of(db, file)? else {
        return Ok(());
    };
    if row.managed || liveness::is_alive(&row.record.init) || rows::has_checkpoints(db, file)? {
        return rows::put_job(db, &Row { stamp: None, ..row });
    }
    rows::drop_job(db, file)
}

/// Removes what nobody can do anything with any more, from time to time.
pub(super) fn tidy(store: &mut Store, spools: &Spools) -> Result<(), StoreError> {
    let now = time::now() / 1000;
    let tidied = store.read(|db| rows::chore_done(db, TIDY))?;
    // Not "less than": a clock that was set back shall not stop it.
    if now.abs_diff(tidied) <= TIDY_EVERY {
        return Ok(());
    }
    // Files that stay are tried again next time, and cost a stat until then.
    let _swept = spools.live.sweep(DELETED_KEPT);
    let done_with = store.write(|db| {
        rows::drop_checkpoints(db, now.saturating_sub(MISSING_MAX))?;
        let mut done_with = Vec::new();
        for row in rows::jobs(db)?.0 {
            if is_done_with(&row.record, row.stamp.is_some(), now) && !rows::has_checkpoints(db, &row.file)? {
                rows::drop_job(db, &row.file)?;
                done_with.push(row.file);
            }
        }
        rows::set_chore_done(db, TIDY, now)?;
        Ok(done_with)
    })?;
    // After the transaction, which may be tried more than once, and holds others up. A record that stays is taken in anew.
    for file in done_with {
        // Only what was judged: the shim of a new container may have written there since.
        for spool in spools.each() {
            let _removed = spool.remove_if(&file, |record| is_done_with(record, true, now));
        }
    }
    Ok(())
}

/// Whether its container is gone for good, and has been for long.
fn is_done_with(record: &Record, published: bool, now: u64) -> bool {
    let of_this_boot = liveness::boot().is_ok_and(|boot| boot == record.init.boot);
    let ended = record.status == Status::Deleted || !of_this_boot || !published;
    let age = now.saturating_sub(record.changed / 1000);
    ended && age > DELETED_AGE_MAX.as_secs() && !liveness::is_alive(&record.init)
}

/// Takes in checkpoints that were found on disk; how many were new.
pub(super) fn take_found(db: &Transaction<'_>, found: &[OnDisk]) -> Result<usize, StoreError> {
    let known: HashMap<PathBuf, u64> = rows::checkpoints(db)?
        .into_iter()
        .map(|kept| (kept.checkpoint.path, kept.checkpoint.at))
        .collect();
    let mut new = 0;
    for on_disk in found {
        let Ok(file) = spool::file_name(&on_disk.key) else {
            continue;
        };
        let checkpoint = &on_disk.checkpoint;
        if known.get(&checkpoint.path).is_some_and(|at| *at >= checkpoint.at) {
            continue;
        }
        if rows::job_of(db, &file)?.is_none() {
            let record = Record {
                bundle: on_disk.bundle.clone(),
                ..bare_record(&on_disk.key)
            };
            let (name, image) = (on_disk.name.clone(), on_disk.image.clone());
            rows::put_job(
                db,
                &Row {
                    name,
                    image,
                    ..unpublished(&file, record)
                },
            )?;
        }
        let kept = Kept {
            file,
            checkpoint: checkpoint.clone(),
            removed: false,
            missing: 0,
        };
        rows::put_checkpoint(db, &kept)?;
        new += 1;
    }
    Ok(new)
}

#[cfg(test)]
mod tests {
    use super::super::samples::{checkpoint, record};
    use super::*;

    fn ids(store: &mut Store) -> Vec<(String, u64, Status)> {
        let (rows, _) = store.read(rows::jobs).expect("rows");
        rows.into_iter()
            .map(|row| (row.record.key.id, row.record.changed, row.record.status))
            .collect()
    }

    #[test]
    fn what_was_saved_is_known_after_a_reboot_and_what_lives_wins() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let spools = Spools {
            live: Spool::beside(&directory.path().join("run.db")),
            kept: Some(Spool::beside(&directory.path().join("lib.db"))),
        };
        let kept = spools.kept.clone().expect("another one");
        let mut saved = record("saved", Status::Running);
        saved.changed = 10;
        saved.checkpoints = vec![checkpoint("one", directory.path(), 9)];
        kept.publish(&saved).expect("published");
        let mut store = Store::in_memory().expect("a database");
        let known = |store: &mut Store| {
            let problems = take_in(store, &spools).expect("taken in");
            assert!(problems.is_empty(), "{problems:?}");
            ids(store)
        };
        assert_eq!(
            known(&mut store),
            [("saved".to_owned(), 10, Status::Running)],
            "after a reboot"
        );

        let mut running = saved.clone();
        (running.changed, running.status) = (20, Status::Paused);
        spools.live.publish(&running).expect("published");
        assert_eq!(
            known(&mut store),
            [("saved".to_owned(), 20, Status::Paused)],
            "it runs again"
        );

        (saved.changed, saved.status) = (30, Status::Stopped);
        kept.publish(&saved).expect("published");
        assert_eq!(
            known(&mut store),
            [("saved".to_owned(), 20, Status::Paused)],
            "what lives wins"
        );

        spools.live.remove(&running.key).expect("removed");
        assert_eq!(known(&mut store).len(), 1, "and stays, for it has a checkpoint");
        let checkpoints = store.read(rows::checkpoints).expect("checkpoints");
        assert_eq!(checkpoints.len(), 1);
    }
}
