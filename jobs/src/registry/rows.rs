//! What the database holds, as statements: rows in, rows out.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, OptionalExtension, Row as SqlRow, Transaction, params};

use super::store::{Fault, StoreError};
use crate::file::Stamp;
use crate::record::{Checkpoint, Record};

/// A row of `jobs`.
#[derive(Debug, Clone)]
pub(super) struct Row {
    pub(super) file: String,
    pub(super) record: Record,
    pub(super) stamp: Option<Stamp>,
    pub(super) managed: bool,
    pub(super) enriched: bool,
    pub(super) engine_name: Option<String>,
    pub(super) name: Option<String>,
    pub(super) image: Option<String>,
}

/// A row of `checkpoints`.
#[derive(Debug, Clone)]
pub(super) struct Kept {
    pub(super) file: String,
    pub(super) checkpoint: Checkpoint,
    pub(super) removed: bool,
    /// Seconds since 1970 since when it is not there; zero if it is.
    pub(super) missing: u64,
}

const JOB_COLUMNS: &str =
    "file, record, inode, changed_nano, size, managed, enriched, engine_name, name, image";
const CHECKPOINT_COLUMNS: &str = "path, id, file, at, size, left_running, removed, missing";

/// None for a row whose record cannot be read: a newer version's, or a damaged one.
fn job(row: &SqlRow<'_>) -> rusqlite::Result<Option<Row>> {
    let text: String = row.get(1)?;
    let Ok(record) = serde_json::from_str(&text) else {
        return Ok(None);
    };
    let stamp = match (row.get(2)?, row.get(3)?, row.get(4)?) {
        (Some(inode), Some(changed_nano), Some(size)) => Some(Stamp {
            inode: i64::cast_unsigned(inode),
            changed_nano,
            size: i64::cast_unsigned(size),
        }),
        _ => None,
    };
    Ok(Some(Row {
        file: row.get(0)?,
        record,
        stamp,
        managed: row.get(5)?,
        enriched: row.get(6)?,
        engine_name: row.get(7)?,
        name: row.get(8)?,
        image: row.get(9)?,
    }))
}

fn kept(row: &SqlRow<'_>) -> rusqlite::Result<Kept> {
    let path: String = row.get(0)?;
    let number = |at| row.get(at).map(i64::cast_unsigned);
    Ok(Kept {
        file: row.get(2)?,
        checkpoint: Checkpoint {
            id: row.get(1)?,
            path: PathBuf::from(path),
            at: number(3)?,
            size: number(4)?,
            left_running: row.get(5)?,
        },
        removed: row.get(6)?,
        missing: number(7)?,
    })
}

/// The stamps of the records that were taken in, by file.
pub(super) fn stamps(connection: &Connection) -> Result<HashMap<String, Stamp>, StoreError> {
    stamps_by(
        connection,
        "SELECT file, inode, changed_nano, size FROM jobs WHERE inode IS NOT NULL",
    )
}

/// The same of those that outlive a reboot.
pub(super) fn kept_stamps(connection: &Connection) -> Result<HashMap<String, Stamp>, StoreError> {
    stamps_by(connection, "SELECT file, inode, changed_nano, size FROM kept")
}

/// Remembers that a record that outlives a reboot was taken in.
pub(super) fn put_kept_stamp(connection: &Connection, file: &str, stamp: Stamp) -> Result<(), StoreError> {
    let text = "INSERT OR REPLACE INTO kept (file, inode, changed_nano, size) VALUES (?1, ?2, ?3, ?4)";
    let mut statement = connection.prepare_cached(text)?;
    let _one = statement.execute((
        file,
        stamp.inode.cast_signed(),
        stamp.changed_nano,
        stamp.size.cast_signed(),
    ))?;
    Ok(())
}

/// Forgets it: its file is gone.
pub(super) fn drop_kept_stamp(connection: &Connection, file: &str) -> Result<(), StoreError> {
    let mut statement = connection.prepare_cached("DELETE FROM kept WHERE file = ?1")?;
    let _some = statement.execute((file,))?;
    Ok(())
}

fn stamps_by(connection: &Connection, text: &str) -> Result<HashMap<String, Stamp>, StoreError> {
    let mut statement = connection.prepare_cached(text)?;
    let rows = statement.query_map((), |row| {
        let stamp = Stamp {
            inode: i64::cast_unsigned(row.get(1)?),
            changed_nano: row.get(2)?,
            size: i64::cast_unsigned(row.get(3)?),
        };
        Ok((row.get(0)?, stamp))
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// All jobs, and the files of those whose record cannot be read.
pub(super) fn jobs(connection: &Connection) -> Result<(Vec<Row>, Vec<String>), StoreError> {
    let mut statement =
        connection.prepare_cached(&format!("SELECT {JOB_COLUMNS} FROM jobs ORDER BY file"))?;
    let rows = statement.query_map((), |row| match job(row)? {
        Some(job) => Ok(Ok(job)),
        None => Ok(Err(row.get(0)?)),
    })?;
    let (mut readable, mut unreadable) = (Vec::new(), Vec::new());
    for row in rows {
        match row? {
            Ok(job) => readable.push(job),
            Err(file) => unreadable.push(file),
        }
    }
    Ok((readable, unreadable))
}

/// Has the records of these read again.
pub(super) fn forget_stamps(transaction: &Transaction<'_>, files: &[String]) -> Result<(), StoreError> {
    let mut statement = transaction.prepare_cached("UPDATE jobs SET inode = NULL WHERE file = ?1")?;
    for file in files {
        let _rows = statement.execute([file])?;
    }
    let mut statement = transaction.prepare_cached("DELETE FROM kept WHERE file = ?1")?;
    for file in files {
        let _rows = statement.execute([file])?;
    }
    Ok(())
}

/// The jobs of which no engine was asked yet.
pub(super) fn unenriched(connection: &Connection) -> Result<Vec<Row>, StoreError> {
    let mut statement =
        connection.prepare_cached(&format!("SELECT {JOB_COLUMNS} FROM jobs WHERE enriched = 0"))?;
    let rows = statement.query_map((), job)?;
    Ok(rows.filter_map(Result::transpose).collect::<Result<_, _>>()?)
}

/// One job.
pub(super) fn job_of(connection: &Connection, file: &str) -> Result<Option<Row>, StoreError> {
    let mut statement =
        connection.prepare_cached(&format!("SELECT {JOB_COLUMNS} FROM jobs WHERE file = ?1"))?;
    Ok(statement.query_row([file], job).optional()?.flatten())
}

/// All checkpoints, the oldest first.
pub(super) fn checkpoints(connection: &Connection) -> Result<Vec<Kept>, StoreError> {
    let text = format!("SELECT {CHECKPOINT_COLUMNS} FROM checkpoints ORDER BY at, path");
    let mut statement = connection.prepare_cached(&text)?;
    let rows = statement.query_map((), kept)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// What can be read of a database that is not to be used any more.
pub(super) fn salvage(connection: &Connection) -> (Vec<Row>, Vec<Kept>) {
    let (mut jobs, mut checkpoints) = (Vec::new(), Vec::new());
    // The first error of each ends it: what is behind it cannot be told from what never was.
    if let Ok(mut statement) = connection.prepare(&format!("SELECT {JOB_COLUMNS} FROM jobs"))
        && let Ok(rows) = statement.query_map((), job)
    {
        jobs.extend(rows.map_while(Result::ok).flatten());
    }
    if let Ok(mut statement) = connection.prepare(&format!("SELECT {CHECKPOINT_COLUMNS} FROM checkpoints"))
        && let Ok(rows) = statement.query_map((), kept)
    {
        checkpoints.extend(rows.map_while(Result::ok));
    }
    (jobs, checkpoints)
}

/// Writes a job as it is.
pub(super) fn put_job(transaction: &Transaction<'_>, row: &Row) -> Result<(), StoreError> {
    let record = serde_json::to_string(&row.record)
        .map_err(|e| StoreError::new(Fault::Unusable, format!("{} cannot be written: {e}", row.file)))?;
    let text = format!(
        "INSERT OR REPLACE INTO jobs ({JOB_COLUMNS}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)"
    );
    let mut statement = transaction.prepare_cached(&text)?;
    let _rows = statement.execute(params![
        row.file,
        record,
        row.stamp.map(|stamp| stamp.inode.cast_signed()),
        row.stamp.map(|stamp| stamp.changed_nano),
        row.stamp.map(|stamp| stamp.size.cast_signed()),
        row.managed,
        row.enriched,
        row.engine_name,
        row.name,
        row.image,
    ])?;
    Ok(())
}

/// Removes a job and what is known of its checkpoints.
pub(super) fn drop_job(transaction: &Transaction<'_>, file: &str) -> Result<(), StoreError> {
    let _rows = transaction
        .prepare_cached("DELETE FROM jobs WHERE file = ?1")?
        .execute([file])?;
    let _rows = transaction
        .prepare_cached("DELETE FROM checkpoints WHERE file = ?1")?
        .execute([file])?;
    Ok(())
}

/// Whether a job has a checkpoint that nobody wanted removed.
pub(super) fn has_checkpoints(connection: &Connection, file: &str) -> Result<bool, StoreError> {
    let text = "SELECT EXISTS (SELECT 1 FROM checkpoints WHERE file = ?1 AND removed = 0)";
    Ok(connection
        .prepare_cached(text)?
        .query_row([file], |row| row.get(0))?)
}

/// Writes a checkpoint, unless it is known, or a newer one is where it was.
pub(super) fn put_checkpoint(transaction: &Transaction<'_>, kept: &Kept) -> Result<(), StoreError> {
    // Paths that are not UTF-8 do not come here: a record of such cannot be written.
    let Some(path) = kept.checkpoint.path.to_str() else {
        return Ok(());
    };
    let text = format!(
        "INSERT INTO checkpoints ({CHECKPOINT_COLUMNS}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)
         ON CONFLICT (path) DO UPDATE SET id = excluded.id, file = excluded.file, at = excluded.at, size = excluded.size,
             left_running = excluded.left_running, removed = excluded.removed, missing = excluded.missing
         WHERE excluded.at > checkpoints.at"
    );
    let mut statement = transaction.prepare_cached(&text)?;
    let _rows = statement.execute(params![
        path,
        kept.checkpoint.id,
        kept.file,
        kept.checkpoint.at.cast_signed(),
        kept.checkpoint.size.cast_signed(),
        kept.checkpoint.left_running,
        kept.removed,
        kept.missing.cast_signed(),
    ])?;
    Ok(())
}

/// Notes that somebody removed a checkpoint: false if none has this id. Its record may name it for some time.
pub(super) fn remove_checkpoint(transaction: &Transaction<'_>, id: &str) -> Result<bool, StoreError> {
    let mut statement =
        transaction.prepare_cached("UPDATE checkpoints SET removed = 1 WHERE id = ?1 AND removed = 0")?;
    Ok(statement.execute([id])? > 0)
}

/// The same for the one at a path.
pub(super) fn remove_checkpoint_at(transaction: &Transaction<'_>, path: &Path) -> Result<(), StoreError> {
    let mut statement = transaction.prepare_cached("UPDATE checkpoints SET removed = 1 WHERE path = ?1")?;
    let _rows = statement.execute([path.to_string_lossy()])?;
    Ok(())
}

/// Forgets that the checkpoint at a path was removed, as somebody has put one there again.
pub(super) fn drop_removed(transaction: &Transaction<'_>, path: &Path) -> Result<(), StoreError> {
    let text = "DELETE FROM checkpoints WHERE path = ?1 AND removed = 1";
    let _rows = transaction
        .prepare_cached(text)?
        .execute([path.to_string_lossy()])?;
    Ok(())
}

/// Notes since when a checkpoint is not there; zero if it is again.
pub(super) fn set_missing(transaction: &Transaction<'_>, path: &str, since: u64) -> Result<(), StoreError> {
    let mut statement = transaction.prepare_cached("UPDATE checkpoints SET missing = ?2 WHERE path = ?1")?;
    let _rows = statement.execute(params![path, since.cast_signed()])?;
    Ok(())
}

/// Forgets checkpoints that have not been there since `before`, and notes of removals that no record needs any more.
pub(super) fn drop_checkpoints(transaction: &Transaction<'_>, before: u64) -> Result<(), StoreError> {
    let text = "DELETE FROM checkpoints WHERE missing > 0 AND missing < ?1";
    let _rows = transaction
        .prepare_cached(text)?
        .execute([before.cast_signed()])?;
    let text = "DELETE FROM checkpoints WHERE removed = 1 AND file NOT IN (SELECT file FROM jobs)";
    let _rows = transaction.prepare_cached(text)?.execute(())?;
    Ok(())
}

/// When a chore was last done, in seconds since 1970.
pub(super) fn chore_done(connection: &Connection, name: &str) -> Result<u64, StoreError> {
    let mut statement = connection.prepare_cached("SELECT at FROM chores WHERE name = ?1")?;
    Ok(statement
        .query_row([name], |row| row.get(0).map(i64::cast_unsigned))
        .optional()?
        .unwrap_or_default())
}

/// Notes that a chore is done.
pub(super) fn set_chore_done(transaction: &Transaction<'_>, name: &str, at: u64) -> Result<(), StoreError> {
    let mut statement =
        transaction.prepare_cached("INSERT OR REPLACE INTO chores (name, at) VALUES (?1, ?2)")?;
    let _rows = statement.execute(params![name, at.cast_signed()])?;
    Ok(())
}
