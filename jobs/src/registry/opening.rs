//! How a registry is opened whatever state it is in: made when missing, put aside when damaged, and held in memory when it cannot
//! be used.
//!
//! Whoever makes, migrates or puts aside holds a lock on the directory of the spool, so that two that find the same damage do not
//! put each other's new database aside.

use std::fs::{DirBuilder, File};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use super::store::{Fault, Store, StoreError};

/// How long to wait for another process that repairs: it takes milliseconds.
const LOCK_WAIT_MAX: Duration = Duration::from_secs(2);

const LOCK_PAUSE: Duration = Duration::from_millis(10);

/// Damaged databases that are kept for whoever wants to look into it.
const DAMAGED_KEPT: usize = 3;

/// A database that was opened.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) store: Store,
    /// Where its damaged predecessor is.
    pub(super) moved_to: Option<PathBuf>,
}

/// Opens a database, or makes one.
pub(super) fn open(path: &Path, spool: &Path) -> Result<Found, StoreError> {
    match Store::open(path) {
        Ok(store) if !store.is_old()? => Ok(Found {
            store,
            moved_to: None,
        }),
        Err(e) if !matches!(e.fault, Fault::Missing | Fault::Damaged) => Err(e),
        _ => repair(path, spool, None),
    }
}

/// The inode of a database.
pub(super) fn inode(path: &Path) -> Option<u64> {
    std::fs::symlink_metadata(path)
        .ok()
        .map(|metadata| metadata.ino())
}

/// Opens a database again and makes of it what is missing. `damaged` is the inode of one that turned out to be damaged.
pub(super) fn repair(path: &Path, spool: &Path, damaged: Option<u64>) -> Result<Found, StoreError> {
    let _lock = lock(spool)?;
    let known = damaged.is_some() && inode(path) == damaged;
    let opened = if known { None } else { Some(Store::open(path)) };
    let mut moved_to = None;
    match opened {
        // Somebody else was here first.
        Some(Ok(store)) if !store.is_old()? => {
            return Ok(Found { store, moved_to });
        }
        Some(Ok(_)) => {
            return Ok(Found {
                store: Store::make(path)?,
                moved_to,
            });
        }
        Some(Err(e)) if e.fault == Fault::Missing => {
            // A log without its database would be played into the new one.
            for file in logs(path) {
                remove_if_there(&file)?;
            }
        }
        Some(Err(e)) if e.fault != Fault::Damaged => return Err(e),
        Some(Err(_)) | None => moved_to = Some(set_aside(path)?),
    }
    Ok(Found {
        store: Store::make(path)?,
        moved_to,
    })
}

fn lock(directory: &Path) -> Result<Flock<File>, StoreError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .map_err(unusable)?;
    let mut file = File::open(directory).map_err(unusable)?;
    let begun = Instant::now();
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((again, Errno::EWOULDBLOCK)) if begun.elapsed() < LOCK_WAIT_MAX => {
                file = again;
                std::thread::sleep(LOCK_PAUSE);
            }
            Err((_, Errno::EWOULDBLOCK)) => {
                return Err(StoreError::new(Fault::Locked, "another process repairs it"));
            }
            Err((_, e)) => return Err(StoreError::new(Fault::Unusable, e.to_string())),
        }
    }
}

/// The log first: whoever opens the database meanwhile shall not find one that is not its own.
fn set_aside(path: &Path) -> Result<PathBuf, StoreError> {
    let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default().as_secs();
    let aside = (0..).map(|more: u64| with_suffix(path, &format!(".damaged-{}", now.saturating_add(more))));
    let aside = aside
        .take(1000)
        .find(|aside| !aside.exists())
        .unwrap_or_else(|| with_suffix(path, ".damaged"));
    for (from, to) in logs(path).iter().zip(logs(&aside)) {
        match std::fs::rename(from, to) {
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(unusable(e)),
            _ => {}
        }
    }
    std::fs::rename(path, &aside).map_err(unusable)?;
    for old in damaged(path).iter().rev().skip(DAMAGED_KEPT) {
        for file in logs(old).iter().chain([old]) {
            remove_if_there(file)?;
        }
    }
    Ok(aside)
}

/// The damaged ones that were put aside, the oldest first.
fn damaged(path: &Path) -> Vec<PathBuf> {
    let (Some(directory), Some(name)) = (path.parent(), path.file_name().and_then(|name| name.to_str()))
    else {
        return Vec::new();
    };
    let prefix = format!("{name}.damaged-");
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let mut damaged: Vec<PathBuf> = entries
        .filter(|entry| {
            let name = entry.file_name();
            let seconds = name.to_str().and_then(|name| name.strip_prefix(&prefix));
            seconds.is_some_and(|seconds| !seconds.is_empty() && seconds.bytes().all(|b| b.is_ascii_digit()))
        })
        .map(|entry| entry.path())
        .collect();
    damaged.sort_unstable();
    damaged
}

fn logs(path: &Path) -> [PathBuf; 2] {
    [with_suffix(path, "-wal"), with_suffix(path, "-shm")]
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut whole = path.as_os_str().to_owned();
    whole.push(suffix);
    PathBuf::from(whole)
}

fn remove_if_there(path: &Path) -> Result<(), StoreError> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(unusable(e)),
        _ => Ok(()),
    }
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn unusable(e: std::io::Error) -> StoreError {
    let fault = if e.kind() == ErrorKind::StorageFull {
        Fault::Full
    } else {
        Fault::Unusable
    };
    StoreError::new(fault, e.to_string())
}
