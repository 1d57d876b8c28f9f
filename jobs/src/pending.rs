//! A restore that is pending: somebody asks the engine of a container to start it, and means a restore.
//!
//! `cedana` places it and then asks the engine; the shim takes it as the container is created. It counts only while the asker
//! lives, so that an asker that died never turns a later, ordinary start into a restore.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::file::{self, ReadError, Stamp};
use crate::liveness;
use crate::record::{Key, Process, SCHEMA};
use crate::spool::{self, Spool};

/// A path and a few settings.
const PENDING_BYTES_MAX: u64 = 64 << 10;

const MODE: u32 = 0o600;

/// Attempts to put one in the place of a dead asker's: somebody else may do the same.
const ATTEMPTS: usize = 3;

/// What is to be done instead of a fresh start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pending {
    /// The checkpoint, a directory.
    pub checkpoint: PathBuf,
    /// What it was unpacked from, if it was: what the registry names.
    #[serde(default)]
    pub unpacked_from: Option<PathBuf>,
    /// The list of the memory that was left in that, if some was. A shim that does not know of it misses the files.
    #[serde(default)]
    pub left: Option<PathBuf>,
    /// Who waits for it.
    pub asker: Process,
    /// Settings for this restore by their dotted names (`restore.tcp`); they win over all others.
    #[serde(default)]
    pub settings: BTreeMap<String, String>,
}

#[derive(Serialize, Deserialize)]
struct File {
    schema: u32,
    #[serde(flatten)]
    pending: Pending,
}

/// A pending restore that was placed. It is taken back when this is dropped, if no shim has taken it.
#[derive(Debug)]
#[must_use = "it is taken back as this is dropped"]
pub struct Placed {
    path: PathBuf,
    stamp: Stamp,
}

impl Placed {
    /// Whether a shim has taken it.
    pub fn is_taken(&self) -> bool {
        !matches!(std::fs::symlink_metadata(&self.path), Ok(metadata) if Stamp::of(&metadata) == self.stamp)
    }
}

impl Drop for Placed {
    fn drop(&mut self) {
        if !self.is_taken() {
            // A shim may take it at this very moment. What stays counts for nobody as soon as this process ends.
            drop(std::fs::remove_file(&self.path));
        }
    }
}

/// Makes the next creation of a container a restore.
///
/// # Errors
/// `AlreadyExists` if another one is pending, `InvalidInput` for a key that cannot be a file name; others are the system's.
pub fn place(spool: &Spool, key: &Key, pending: &Pending) -> io::Result<Placed> {
    let (directory, name) = location(spool, key)?;
    let bytes = serde_json::to_vec(&File {
        schema: SCHEMA,
        pending: pending.clone(),
    })?;
    let path = directory.join(&name);
    for _ in 0..ATTEMPTS {
        match file::create(&directory, &name, &bytes, MODE) {
            Ok(stamp) => return Ok(Placed { path, stamp }),
            Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
            Err(e) => return Err(e),
        }
        match file::read(&path, PENDING_BYTES_MAX) {
            Ok(Some((bytes, stamp))) => {
                refuse_other(&bytes)?;
                remove_dead(&directory, &name, stamp)?;
            }
            Ok(None) => {}
            Err(e) => {
                return Err(io::Error::other(format!(
                    "{} cannot be read: {e}",
                    path.display()
                )));
            }
        }
    }
    Err(io::Error::new(
        ErrorKind::AlreadyExists,
        "others keep asking for a restore of it",
    ))
}

/// Why a pending restore was not taken.
#[derive(Debug, thiserror::Error)]
pub enum TakeError {
    /// The place for it cannot be looked into. No asker can have counted on it: who places one looks there, too.
    #[error("it cannot be told whether a restore is pending: {0}")]
    CannotLook(#[source] io::Error),
    /// One was there, and cannot be used. A fresh start is not what was asked for.
    #[error("the restore that was asked for is lost: {0}")]
    Lost(#[source] io::Error),
}

/// The restore that is pending for a container. Whoever gets it is the only one, and has to do it or fail.
///
/// # Errors
/// [`TakeError`]. What is lost is not pending any more, unless a newer version has placed it: that stays for one that
/// understands it.
pub fn take(spool: &Spool, key: &Key) -> Result<Option<Pending>, TakeError> {
    let (directory, name) = location(spool, key).map_err(TakeError::CannotLook)?;
    let path = directory.join(&name);
    let is_there = match file::read(&path, PENDING_BYTES_MAX) {
        Ok(Some((bytes, _))) => {
            if let Err(e) = parse(&bytes)
                && e.kind() == ErrorKind::Unsupported
            {
                return refuse_newer(&bytes, &path, &e);
            }
            true
        }
        Ok(None) => return Ok(None),
        Err(ReadError::Io(_)) => false,
        Err(_) => true,
    };
    let aside = file::temporary(&directory, &name);
    match std::fs::rename(&path, &aside) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        Err(e) if is_there => return Err(TakeError::Lost(e)),
        done => done.map_err(TakeError::CannotLook)?,
    }
    let read = file::read(&aside, PENDING_BYTES_MAX);
    // What stays is pending for nobody.
    drop(std::fs::remove_file(&aside));
    let pending = match read {
        Ok(Some((bytes, _))) => parse(&bytes),
        Ok(None) => Err(malformed("it is gone")),
        Err(ReadError::Io(e)) => Err(e),
        Err(e) => Err(malformed(e)),
    };
    let pending = pending.map_err(TakeError::Lost)?;
    Ok(liveness::is_alive(&pending.asker).then_some(pending))
}

/// A newer version's order is nothing to start afresh in place of, unless it can be seen that its asker is dead.
fn refuse_newer(bytes: &[u8], path: &Path, e: &io::Error) -> Result<Option<Pending>, TakeError> {
    #[derive(Deserialize)]
    struct Asked {
        asker: Process,
    }
    if let Ok(Asked { asker }) = serde_json::from_slice(bytes)
        && !liveness::is_alive(&asker)
    {
        return Ok(None);
    }
    let text = format!("{e}; if none waits for it any more, remove {}", path.display());
    Err(TakeError::Lost(io::Error::new(e.kind(), text)))
}

fn location(spool: &Spool, key: &Key) -> io::Result<(PathBuf, String)> {
    let name = spool::file_name(key).map_err(|e| io::Error::new(ErrorKind::InvalidInput, e))?;
    Ok((spool.restores(), name))
}

/// Removes what was read, and not what another asker has put there since.
fn remove_dead(directory: &Path, name: &str, stamp: Stamp) -> io::Result<()> {
    let (path, aside) = (directory.join(name), file::temporary(directory, name));
    match std::fs::rename(&path, &aside) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        done => done?,
    }
    if Stamp::of(&std::fs::symlink_metadata(&aside)?) == stamp {
        return std::fs::remove_file(&aside);
    }
    file::move_without_replacing(&aside, &path)
}

fn refuse_other(bytes: &[u8]) -> io::Result<()> {
    match parse(bytes) {
        Ok(other) if liveness::is_alive(&other.asker) => Err(io::Error::new(
            ErrorKind::AlreadyExists,
            format!("process {} asks for a restore of it already", other.asker.pid),
        )),
        Err(e) if e.kind() == ErrorKind::Unsupported => Err(e),
        _ => Ok(()),
    }
}

fn parse(bytes: &[u8]) -> io::Result<Pending> {
    #[derive(Deserialize)]
    struct Schema {
        schema: u32,
    }
    let Schema { schema } = serde_json::from_slice(bytes).map_err(malformed)?;
    if schema > SCHEMA {
        let text = format!("a newer version asks for a restore (schema {schema})");
        return Err(io::Error::new(ErrorKind::Unsupported, text));
    }
    let file: File = serde_json::from_slice(bytes).map_err(malformed)?;
    Ok(file.pending)
}

fn malformed(e: impl std::fmt::Display) -> io::Error {
    io::Error::new(
        ErrorKind::InvalidData,
        format!("the pending restore makes no sense: {e}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(id: &str) -> Key {
        Key {
            engine: "/run/containerd/containerd.sock".into(),
            namespace: "default".to_owned(),
            id: id.to_owned(),
        }
    }

    fn pending(asker: Process) -> Pending {
        let settings = [("restore.tcp".to_owned(), "close".to_owned())].into();
        Pending {
            checkpoint: "/checkpoints/one".into(),
            unpacked_from: None,
            left: None,
            asker,
            settings,
        }
    }

    fn spool() -> (tempfile::TempDir, Spool) {
        let directory = tempfile::tempdir().unwrap();
        let spool = Spool::beside(&directory.path().join("jobs.db"));
        (directory, spool)
    }

    #[test]
    fn it_is_taken_once_and_only_for_its_container() {
        let (_directory, spool) = spool();
        let wanted = pending(liveness::own().unwrap());
        let placed = place(&spool, &key("a"), &wanted).unwrap();
        assert_eq!(take(&spool, &key("b")).unwrap(), None);
        assert!(!placed.is_taken());
        assert_eq!(take(&spool, &key("a")).unwrap(), Some(wanted));
        assert!(placed.is_taken());
        assert_eq!(take(&spool, &key("a")).unwrap(), None);
    }

    #[test]
    fn it_is_taken_back_but_not_another_ones() {
        let (_directory, spool) = spool();
        let wanted = pending(liveness::own().unwrap());
        drop(place(&spool, &key("a"), &wanted).unwrap());
        assert_eq!(take(&spool, &key("a")).unwrap(), None);

        let first = place(&spool, &key("a"), &wanted).unwrap();
        let _ = take(&spool, &key("a")).unwrap();
        let _second = place(&spool, &key("a"), &wanted).unwrap();
        drop(first);
        assert_eq!(take(&spool, &key("a")).unwrap(), Some(wanted));
    }

    #[test]
    fn a_second_asker_is_refused_while_the_first_one_lives() {
        let (_directory, spool) = spool();
        let own = liveness::own().unwrap();
        let placed = place(&spool, &key("a"), &pending(own.clone())).unwrap();
        let refused = place(&spool, &key("a"), &pending(own.clone())).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::AlreadyExists);
        drop(placed);

        let dead = Process {
            started: own.started + 1,
            ..own.clone()
        };
        std::mem::forget(place(&spool, &key("a"), &pending(dead)).unwrap());
        let _placed = place(&spool, &key("a"), &pending(own)).unwrap();
    }

    #[test]
    fn a_dead_asker_counts_for_nothing() {
        let (_directory, spool) = spool();
        let own = liveness::own().unwrap();
        let dead = Process {
            started: own.started + 1,
            ..own
        };
        let _placed = place(&spool, &key("a"), &pending(dead)).unwrap();
        assert_eq!(take(&spool, &key("a")).unwrap(), None);
    }

    #[test]
    fn what_cannot_be_understood_is_never_a_fresh_start() {
        for (what, bytes, kind) in [
            ("nothing", "", ErrorKind::InvalidData),
            (
                "half of it",
                "{\"schema\":1,\"checkpoint\":\"/c",
                ErrorKind::InvalidData,
            ),
            ("another kind", "[]", ErrorKind::InvalidData),
            (
                "no asker",
                "{\"schema\":1,\"checkpoint\":\"/c\"}",
                ErrorKind::InvalidData,
            ),
            ("a newer one", "{\"schema\":2}", ErrorKind::Unsupported),
        ] {
            let (_directory, spool) = spool();
            let (directory, name) = location(&spool, &key("a")).unwrap();
            let _ = file::create(&directory, &name, bytes.as_bytes(), MODE).unwrap();
            let lost = take(&spool, &key("a"));
            assert!(
                matches!(&lost, Err(TakeError::Lost(e)) if e.kind() == kind),
                "{what}: {lost:?}"
            );
            let is_left = kind == ErrorKind::Unsupported;
            assert_eq!(directory.join(&name).exists(), is_left, "{what}");
            if !is_left {
                assert_eq!(take(&spool, &key("a")).unwrap(), None, "{what}: only once");
            }
            assert_eq!(
                std::fs::read_dir(&directory).unwrap().count(),
                usize::from(is_left)
            );
        }
    }

    #[test]
    fn what_is_no_file_is_lost_too() {
        let (_directory, spool) = spool();
        let (directory, name) = location(&spool, &key("a")).unwrap();
        std::fs::create_dir_all(&directory).unwrap();
        std::os::unix::fs::symlink("/dev/null", directory.join(name)).unwrap();
        assert!(matches!(take(&spool, &key("a")), Err(TakeError::Lost(_))));
    }

    #[test]
    fn a_newer_ones_dead_asker_counts_for_nothing_either() {
        let (_directory, spool) = spool();
        let (directory, name) = location(&spool, &key("a")).unwrap();
        let own = liveness::own().unwrap();
        for (started, waits) in [(own.started, true), (own.started + 1, false)] {
            let asker = Process {
                started,
                ..own.clone()
            };
            let bytes = serde_json::json!({"schema": SCHEMA + 1, "asker": asker}).to_string();
            let _stamp = file::replace(&directory, &name, bytes.as_bytes(), MODE).unwrap();
            assert_eq!(take(&spool, &key("a")).is_err(), waits);
        }
    }

    #[test]
    fn where_none_can_be_placed_none_is_missed() {
        let (place, spool) = spool();
        assert_eq!(take(&spool, &key("a")).unwrap(), None, "no directory");
        std::fs::write(place.path().join("jobs.d"), "a file").unwrap();
        assert!(matches!(take(&spool, &key("a")), Err(TakeError::CannotLook(_))));
    }
}
