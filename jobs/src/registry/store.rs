//! The database: the one place that knows it is SQLite. How it is opened, its schema, and what its errors mean.
//!
//! Every process opens it for itself, in WAL mode: readers wait for nobody, and writers for each other, for milliseconds.
//! The version of the schema is looked at within every transaction that writes: a newer `cedana` may have come along since
//! the database was opened.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags, Transaction, TransactionBehavior};

use super::rows::{self, Kept, Row};

/// How long a writer waits for others, who take milliseconds each.
const WAIT_MAX: Duration = Duration::from_secs(2);

/// Between two attempts where SQLite does not wait by itself.
const RETRY_PAUSE: Duration = Duration::from_millis(20);

/// `PRAGMA application_id`: tells a database of ours from anybody else's. "ceda".
const APPLICATION: i32 = 0x6365_6461;

/// What brings a database from one version to the next: the first entry makes version 1 of an empty one.
const MIGRATIONS: &[&str] = &["
    CREATE TABLE jobs (
        file         TEXT PRIMARY KEY,   -- the name of its record in the spool: one a key
        record       TEXT NOT NULL,      -- JSON
        inode        INTEGER,            -- of the file that was read; null when there is none
        changed_nano INTEGER,
        size         INTEGER,
        managed      INTEGER NOT NULL DEFAULT 0,
        enriched     INTEGER NOT NULL DEFAULT 0,
        engine_name  TEXT,
        name         TEXT,
        image        TEXT
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE checkpoints (
        path         TEXT PRIMARY KEY,   -- the newest of a path is the one that is there
        id           TEXT NOT NULL,
        file         TEXT NOT NULL,      -- of the job
        at           INTEGER NOT NULL,   -- milliseconds since 1970
        size         INTEGER NOT NULL,
        left_running INTEGER NOT NULL,
        removed      INTEGER NOT NULL DEFAULT 0,  -- somebody asked for that: its record may name it still
        missing      INTEGER NOT NULL DEFAULT 0   -- seconds since 1970: since when it is not there
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX checkpoints_of_job ON checkpoints (file, at);
    CREATE TABLE kept (                  -- what was taken in of the records that outlive a reboot
        file         TEXT PRIMARY KEY,
        inode        INTEGER NOT NULL,
        changed_nano INTEGER NOT NULL,
        size         INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE chores (name TEXT PRIMARY KEY, at INTEGER NOT NULL) STRICT, WITHOUT ROWID;
"];

/// What can be done about a failure of the database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// There is none.
    Missing,
    /// It is not a database, or was one.
    Damaged,
    /// Somebody holds it.
    Locked,
    /// No room to write.
    Full,
    /// No permission, a read-only file system, a directory in its place, a failing disk.
    Unusable,
    /// A newer version of us has made it what it is: this one.
    Newer(i32),
    /// Another program's.
    Foreign,
}

/// A failure of the database.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
pub(super) struct StoreError {
    pub(super) fault: Fault,
    text: String,
}

impl StoreError {
    pub(super) fn new(fault: Fault, text: impl Into<String>) -> Self {
        Self {
            fault,
            text: text.into(),
        }
    }
}

impl From<rusqlite::Error> for StoreError {
    fn from(e: rusqlite::Error) -> Self {
        let fault = match e.sqlite_error_code() {
            Some(
                ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked | ErrorCode::FileLockingProtocolFailed,
            ) => Fault::Locked,
            Some(ErrorCode::DiskFull) => Fault::Full,
            Some(
                ErrorCode::ReadOnly
                | ErrorCode::CannotOpen
                | ErrorCode::PermissionDenied
                | ErrorCode::AuthorizationForStatementDenied
                | ErrorCode::SystemIoFailure
                | ErrorCode::OutOfMemory
                | ErrorCode::NoLargeFileSupport,
            ) => Fault::Unusable,
            // Our statements are fixed: where one makes no sense, a column has another type or a rule of the schema
            // is broken, the database is not what its version says.
            _ => Fault::Damaged,
        };
        Self::new(fault, e.to_string())
    }
}

/// Jobs and checkpoints of a database that cannot be used any more.
pub(super) type Salvaged = (Vec<Row>, Vec<Kept>);

/// An open database.
#[derive(Debug)]
pub(super) struct Store {
    connection: Connection,
}

impl Store {
    /// One that nobody else sees, and that ends with this process.
    pub(super) fn in_memory() -> Result<Self, StoreError> {
        let mut store = Self {
            connection: Connection::open_in_memory()?,
        };
        store.migrate()?;
        Ok(store)
    }

    /// Opens one that is there.
    pub(super) fn open(path: &Path) -> Result<Self, StoreError> {
        match std::fs::metadata(path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return Err(StoreError::new(Fault::Missing, "there is no database"));
            }
            Err(e) => return Err(StoreError::new(Fault::Unusable, e.to_string())),
            Ok(metadata) if !metadata.is_file() => {
                return Err(StoreError::new(Fault::Unusable, "it is not a file"));
            }
            // What another process has made this moment, or a file that lost its content.
            Ok(metadata) if metadata.len() == 0 => {
                return Err(StoreError::new(Fault::Missing, "the database is empty"));
            }
            Ok(_) => {}
        }
        let store = Self::connect(path)?;
        match store.version()? {
            0 => Err(StoreError::new(Fault::Missing, "the database is empty")),
            _ => Ok(store),
        }
    }

    /// Makes one, or what is missing of one that an older version made. Only one process may do this at a time.
    pub(super) fn make(path: &Path) -> Result<Self, StoreError> {
        // Before SQLite does it: the files of its log take the mode of this one.
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(path);
        drop(file.map_err(|e| StoreError::new(Fault::Unusable, e.to_string()))?);
        let mut store = Self::connect(path)?;
        store.migrate()?;
        // It stays so for good.
        let _mode: String = retry(|| {
            let mode = store
                .connection
                .query_row("PRAGMA journal_mode = WAL", (), |row| row.get(0));
            mode.map_err(StoreError::from)
        })?;
        Ok(store)
    }

    fn connect(path: &Path) -> Result<Self, StoreError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
            | OpenFlags::SQLITE_OPEN_NO_MUTEX
            | OpenFlags::SQLITE_OPEN_NOFOLLOW;
        let connection = Connection::open_with_flags(path, flags)?;
        connection.busy_timeout(WAIT_MAX)?;
        let store = Self { connection };
        if let Err(e) = retry(|| store.refuse_unknown()) {
            // Whoever it belongs to shall find it, and its log, as they were.
            let _on = store
                .connection
                .set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true);
            return Err(e);
        }
        // In WAL mode only a power cut loses what was written last, and a power cut ends what it speaks of.
        store.connection.pragma_update(None, "synchronous", "NORMAL")?;
        Ok(store)
    }

    /// Whether an older version has made it, and not all is there.
    pub(super) fn is_old(&self) -> Result<bool, StoreError> {
        Ok(usize::try_from(self.version()?).unwrap_or_default() < MIGRATIONS.len())
    }

    /// A transaction that reads.
    pub(super) fn read<T>(
        &mut self,
        act: impl Fn(&Connection) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let transaction = self.connection.transaction()?;
        act(&transaction)
    }

    /// A transaction that writes. Others see all of it or nothing.
    pub(super) fn write<T>(
        &mut self,
        act: impl Fn(&Transaction<'_>) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        retry(|| {
            let transaction = self
                .connection
                .transaction_with_behavior(TransactionBehavior::Immediate)?;
            check(version(&transaction)?)?;
            let done = act(&transaction)?;
            transaction.commit()?;
            Ok(done)
        })
    }

    /// What can be read of it.
    pub(super) fn salvage(&mut self) -> Salvaged {
        rows::salvage(&self.connection)
    }

    fn version(&self) -> Result<i32, StoreError> {
        version(&self.connection)
    }

    fn refuse_unknown(&self) -> Result<(), StoreError> {
        let version = self.version()?;
        let application: i32 = self
            .connection
            .query_row("PRAGMA application_id", (), |row| row.get(0))?;
        let tables: i64 = self
            .connection
            .query_row("SELECT count(*) FROM sqlite_schema", (), |row| row.get(0))?;
        match (application, version, tables) {
            (APPLICATION, ..) => check(version),
            (0, 0, 0) => Ok(()),
            _ => Err(StoreError::new(
                Fault::Foreign,
                "it is another program's database",
            )),
        }
    }

    fn migrate(&mut self) -> Result<(), StoreError> {
        self.write(|transaction| {
            let done = usize::try_from(version(transaction)?).unwrap_or_default();
            if done == MIGRATIONS.len() {
                return Ok(());
            }
            for migration in MIGRATIONS.iter().skip(done) {
                transaction.execute_batch(migration)?;
            }
            transaction.pragma_update(None, "application_id", APPLICATION)?;
            Ok(transaction.pragma_update(None, "user_version", schema())?)
        })
    }
}

/// The version of the schema that this program writes.
pub(super) fn schema() -> i32 {
    i32::try_from(MIGRATIONS.len()).unwrap_or(i32::MAX)
}

fn version(connection: &Connection) -> Result<i32, StoreError> {
    Ok(connection.query_row("PRAGMA user_version", (), |row| row.get(0))?)
}

fn check(version: i32) -> Result<(), StoreError> {
    if version > schema() {
        let text = format!(
            "a newer version made it (schema {version}, this one knows {})",
            schema()
        );
        return Err(StoreError::new(Fault::Newer(version), text));
    }
    Ok(())
}

/// SQLite waits for locks by itself, but not for all: some would be deadlocks if each waited for the other.
fn retry<T>(mut act: impl FnMut() -> Result<T, StoreError>) -> Result<T, StoreError> {
    let begun = Instant::now();
    loop {
        match act() {
            Err(e) if e.fault == Fault::Locked && begun.elapsed() < WAIT_MAX => {
                std::thread::sleep(RETRY_PAUSE)
            }
            done => return done,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn columns(store: &Store) -> Vec<String> {
        let mut statement = store
            .connection
            .prepare("SELECT name || ' ' || sql FROM sqlite_schema ORDER BY name")
            .unwrap();
        let rows = statement.query_map((), |row| row.get(0)).unwrap();
        rows.map(Result::unwrap).collect()
    }

    #[test]
    fn every_older_version_becomes_this_one() {
        let directory = tempfile::tempdir().unwrap();
        let fresh = Store::in_memory().unwrap();
        assert_eq!(fresh.version().unwrap(), schema());
        for version in 0..=MIGRATIONS.len() {
            let path = directory.path().join(format!("{version}.db"));
            let old = Connection::open(&path).unwrap();
            for migration in &MIGRATIONS[..version] {
                old.execute_batch(migration).unwrap();
            }
            if version > 0 {
                old.pragma_update(None, "application_id", APPLICATION).unwrap();
                old.pragma_update(None, "user_version", i32::try_from(version).unwrap())
                    .unwrap();
            }
            drop(old);
            let store = Store::make(&path).unwrap();
            assert!(!store.is_old().unwrap());
            assert_eq!(columns(&store), columns(&fresh), "from version {version}");
        }
    }

    #[test]
    fn a_version_that_is_newer_is_refused_also_when_it_comes_later() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("jobs.db");
        let mut early = Store::make(&path).unwrap();
        let newer = Connection::open(&path).unwrap();
        newer.pragma_update(None, "user_version", schema() + 1).unwrap();
        let write = |transaction: &Transaction<'_>| {
            Ok(transaction.execute("INSERT INTO chores VALUES ('x', 1)", ())?)
        };
        assert_eq!(early.write(write).unwrap_err().fault, Fault::Newer(schema() + 1));
        assert_eq!(Store::open(&path).unwrap_err().fault, Fault::Newer(schema() + 1));
        assert_eq!(Store::make(&path).unwrap_err().fault, Fault::Newer(schema() + 1));
        let count: i64 = newer
            .query_row("SELECT count(*) FROM chores", (), |row| row.get(0))
            .unwrap();
        assert_eq!(count, 0);
    }

    #[test]
    fn what_is_not_ours_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let foreign = directory.path().join("foreign.db");
        Connection::open(&foreign)
            .unwrap()
            .execute_batch("CREATE TABLE jobs (mine TEXT)")
            .unwrap();
        let random = directory.path().join("random.db");
        std::fs::write(
            &random,
            (0..8192u32).map(|at| (at * 7919 % 251) as u8).collect::<Vec<_>>(),
        )
        .unwrap();
        let empty = directory.path().join("empty.db");
        std::fs::write(&empty, "").unwrap();
        for (path, fault) in [
            (foreign.as_path(), Fault::Foreign),
            (&random, Fault::Damaged),
            (&empty, Fault::Missing),
            (&directory.path().join("none.db"), Fault::Missing),
            (directory.path(), Fault::Unusable),
        ] {
            assert_eq!(Store::open(path).unwrap_err().fault, fault, "{}", path.display());
        }
    }
}
