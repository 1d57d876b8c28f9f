//! How a registry is opened whatever state it is in: made when missing, put aside when damaged, and held in memory when it cannot
//! be used.
//!
//! Whoever uses the database shares a lock on the directory beside it; whoever makes it or puts it aside has that lock alone.
//! SQLite finds the log of a database by its name, and removes it so as well: a process that had the old one open would
//! play its log into the new one, or delete the new one's.
//!
//! `db.path` may name a file of somebody else's by a slip. Put aside is only what has been a database, by its first bytes, or stands where
//! one of ours has been: that directory is beside it.

use std::fs::{DirBuilder, File};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag};

use super::store::{Fault, Store, StoreError};

/// How long to wait for another process: most take milliseconds, and the others are not worth waiting for.
const LOCK_WAIT_MAX: Duration = Duration::from_secs(2);

/// What begins every database of SQLite's (its file format, 1.3).
const MAGIC: &[u8; 16] = b"SQLite format 3\0";

const LOCK_PAUSE: Duration = Duration::from_millis(10);

/// So much of a file is looked at to tell what it is.
const HEAD_BYTES: u64 = 64 << 10;

/// Damaged databases that are kept for whoever wants to look into it.
const DAMAGED_KEPT: usize = 3;

/// A database that was opened.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) store: Store,
    /// Tells when it is not the one any more that is there.
    pub(super) identity: Option<Identity>,
    /// To be kept as long as the database is open. None where nobody could repair anything either.
    pub(super) hold: Option<Flock<File>>,
    /// Where its damaged predecessor is.
    pub(super) moved_to: Option<PathBuf>,
}

/// Opens a database, or makes one. `directory` has the lock.
pub(super) fn open(path: &Path, directory: &Path) -> Result<Found, StoreError> {
    refuse_foreign(path, directory)?;
    match open_held(path, directory) {
        Err(e) if matches!(e.fault, Fault::Missing | Fault::Damaged) => repair(path, directory, None),
        done => done,
    }
}

/// Leaves alone what was never a database, where there was none of ours. The directory is made with the first look at one, so this comes
/// before that.
fn refuse_foreign(path: &Path, directory: &Path) -> Result<(), StoreError> {
    if directory.is_dir() || head(path).is_none_or(|head| may_be_database(&head)) {
        return Ok(());
    }
    Err(StoreError::new(
        Fault::Foreign,
        "it is a file of something else, and no database; nothing is changed",
    ))
}

/// The first bytes of a regular file. What they cannot be had of is told by whoever opens it.
fn head(path: &Path) -> Option<Vec<u8>> {
    // A fifo would keep us for ever.
    let flags = OFlag::O_NONBLOCK.bits();
    let file = File::options().read(true).custom_flags(flags).open(path).ok()?;
    if !file.metadata().ok()?.is_file() {
        return None;
    }
    let mut head = Vec::new();
    let _bytes = file.take(HEAD_BYTES).read_to_end(&mut head).ok()?;
    Some(head)
}

/// A database begins so, whole or cut. A crash of the host may leave zeros in its place, or nothing; an image of a disk has a few, and then
/// something.
fn may_be_database(head: &[u8]) -> bool {
    MAGIC.starts_with(head.get(..MAGIC.len()).unwrap_or(head)) || head.iter().all(|byte| *byte == 0)
}

/// Opens a database again after making of it what is missing. `damaged` is one that turned out to be damaged, and
/// that the caller does not have open any more.
pub(super) fn repair(path: &Path, directory: &Path, damaged: Option<Identity>) -> Result<Found, StoreError> {
    let begun = Instant::now();
    let mut moved_to = None;
    loop {
        let is_repaired = match try_lock(directory, FlockArg::LockExclusiveNonblock)? {
            Some(_alone) => {
                moved_to = repair_alone(path, damaged)?.or(moved_to);
                true
            }
            None => false,
        };
        // Whoever has it may have repaired it, and use it for long.
        match open_held(path, directory) {
            Ok(found) if is_repaired || damaged.is_none() || found.identity != damaged => {
                return Ok(Found { moved_to, ..found });
            }
            Err(e) if !matches!(e.fault, Fault::Missing | Fault::Damaged) => return Err(e),
            // Nothing is held while others are waited for.
            still => drop(still),
        }
        if begun.elapsed() > LOCK_WAIT_MAX {
            return Err(StoreError::new(Fault::Locked, "it is damaged, and others use it"));
        }
        std::thread::sleep(LOCK_PAUSE);
    }
}

/// Makes a database that can be opened, while nobody has it open. Tells where a damaged one is.
fn repair_alone(path: &Path, damaged: Option<Identity>) -> Result<Option<PathBuf>, StoreError> {
    let is_damaged = match Store::open(path) {
        // It can be opened, and is damaged further within.
        Ok(_) if damaged.is_some() && identity(path) == damaged => true,
        // Somebody else was here first.
        Ok(_) => return Ok(None),
        Err(e) if matches!(e.fault, Fault::Missing | Fault::Damaged) => e.fault == Fault::Damaged,
        Err(e) => return Err(e),
    };
    let mut moved_to = None;
    if is_damaged {
        moved_to = Some(set_aside(path)?);
    }
    // A log without its database would be played into the new one. An empty one is removed, too: the new one is to be
    // another one for whoever had it open.
    for file in logs(path).iter().map(PathBuf::as_path).chain([path]) {
        remove_if_there(file)?;
    }
    drop(Store::make(path)?);
    Ok(moved_to)
}

/// What tells a database from another one at the same path. Inode numbers are used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Identity {
    inode: u64,
    made: Option<SystemTime>,
}

/// That of the database at a path, if there is one.
pub(super) fn identity(path: &Path) -> Option<Identity> {
    let metadata = std::fs::symlink_metadata(path).ok()?;
    Some(Identity {
        inode: metadata.ino(),
        made: metadata.created().ok(),
    })
}

fn open_held(path: &Path, directory: &Path) -> Result<Found, StoreError> {
    let hold = match lock(directory, FlockArg::LockSharedNonblock) {
        Ok(hold) => Some(hold),
        Err(e) if e.fault == Fault::Locked => return Err(e),
        Err(_) => None,
    };
    let mut store = Store::open(path)?;
    if store.is_old()? {
        store = Store::make(path)?;
    }
    Ok(Found {
        store,
        identity: identity(path),
        hold,
        moved_to: None,
    })
}

fn lock(directory: &Path, how: FlockArg) -> Result<Flock<File>, StoreError> {
    let begun = Instant::now();
    loop {
        match try_lock(directory, how)? {
            Some(lock) => return Ok(lock),
            None if begun.elapsed() < LOCK_WAIT_MAX => std::thread::sleep(LOCK_PAUSE),
            None => return Err(StoreError::new(Fault::Locked, "another process repairs it")),
        }
    }
}

/// None if others have it.
fn try_lock(directory: &Path, how: FlockArg) -> Result<Option<Flock<File>>, StoreError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .map_err(unusable)?;
    let file = File::open(directory).map_err(unusable)?;
    match Flock::lock(file, how) {
        Ok(lock) => Ok(Some(lock)),
        Err((_, Errno::EWOULDBLOCK)) => Ok(None),
        Err((_, e)) => Err(StoreError::new(Fault::Unusable, e.to_string())),
    }
}

/// The log first: should this end half-way, the next one finds a damaged database still, and no log that is not its own.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_a_database_is_told_by_its_first_bytes() {
        for (head, wanted) in [
            (&b"SQLite format 3\0"[..], true),
            (b"SQLite f", true),
            (b"", true),
            (b"SQLite format 3\0\x10\0", true),
            (&[0; 4096], true),
            (&[&[0; 1024][..], b"x"].concat(), false),
            (b"root:x:0:0:root:", false),
            (b"sqlite format 3\0", false),
            (b"\x7fELF", false),
        ] {
            assert_eq!(may_be_database(head), wanted, "{head:?}");
        }
    }
}
