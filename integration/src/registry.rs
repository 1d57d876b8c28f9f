//! What can befall a registry, done to it.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use rusqlite::Connection;

/// A registry that somebody holds: nobody else reads or writes it until this is dropped.
#[derive(Debug)]
pub struct Locked {
    _connection: Connection,
}

/// Locks a database exclusively, as a program that hangs in the middle of a transaction does.
///
/// # Errors
/// It is no database, or somebody else has it for longer than a second.
pub fn lock(database: &Path) -> Result<Locked> {
    let connection = Connection::open(database).with_context(|| format!("open {}", database.display()))?;
    connection.busy_timeout(Duration::from_secs(1))?;
    connection.execute_batch("PRAGMA locking_mode = EXCLUSIVE; BEGIN EXCLUSIVE")?;
    Ok(Locked {
        _connection: connection,
    })
}

/// Says that a newer version has written it.
///
/// # Errors
/// It is no database.
pub fn from_the_future(database: &Path) -> Result<()> {
    let connection = Connection::open(database).with_context(|| format!("open {}", database.display()))?;
    connection.busy_timeout(Duration::from_secs(1))?;
    connection.pragma_update(None, "user_version", 99)?;
    connection.execute_batch("CREATE TABLE of_the_future (x); INSERT INTO of_the_future VALUES (1)")?;
    Ok(())
}

/// Whether what [`from_the_future`] put there is still there.
///
/// # Errors
/// It is no database any more.
pub fn future_is_untouched(database: &Path) -> Result<bool> {
    let connection = Connection::open(database).with_context(|| format!("open {}", database.display()))?;
    let version: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    let rows: i64 = connection.query_row("SELECT count(*) FROM of_the_future", [], |row| row.get(0))?;
    Ok(version == 99 && rows == 1)
}

/// Cuts it in two.
///
/// # Errors
/// It is not there.
pub fn truncate(database: &Path) -> Result<()> {
    let file = fs::File::options().write(true).open(database)?;
    Ok(file.set_len(file.metadata()?.len() / 2)?)
}

/// Fills it with bytes that mean nothing, and what is beside it too.
///
/// # Errors
/// It cannot be written.
pub fn fill_with_noise(database: &Path) -> Result<()> {
    // A generator of our own gives the same noise each time: a failure can be repeated.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let noise: Vec<u8> = (0..64 * 1024)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            state.to_be_bytes()[0]
        })
        .collect();
    for suffix in ["", "-wal", "-shm"] {
        let mut path = database.as_os_str().to_owned();
        path.push(suffix);
        fs::write(&path, &noise).with_context(|| format!("write {}", Path::new(&path).display()))?;
    }
    Ok(())
}

/// Deletes it, and what is beside it.
///
/// # Errors
/// Something of it stays.
pub fn delete(database: &Path) -> Result<()> {
    for suffix in ["", "-wal", "-shm"] {
        let mut path = database.as_os_str().to_owned();
        path.push(suffix);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
    }
    Ok(())
}
