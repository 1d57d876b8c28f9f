//! The spool: where shims publish their records, one file a container.
//!
//! ```text
//!  jobs.d/                                    0700
//!    NAMESPACE@ID@HASH.json                   a record; HASH tells containerds apart that use the same names
//!    .NAMESPACE@ID@HASH.json.PID.N            one that is being written
//!    restore/NAMESPACE@ID@HASH.json           a restore that is pending
//! ```
//!
//! A shim writes its container's record without asking anybody, and nobody else replaces one: who rebuilds what was lost
//! only fills gaps. Files are mode 0600; those
//! that may be swept one day (the task is deleted, nothing was saved) are 0400, so that finding them costs a stat each.

use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;
use std::fs::{DirEntry, Metadata};
use std::io::{self, ErrorKind};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use sha2::{Digest, Sha256};

use crate::file::{self, ReadError, Stamp};
use crate::record::{Key, Record, SCHEMA, Status};

/// Where the database is unless the settings say otherwise: the default of `db.path`.
const USUAL_DATABASE: &str = "/var/lib/cedana/jobs.db";

/// Where the shims publish then: in memory, which cannot be full or stuck as a disk can, and gone with the shims after a reboot.
const LIVE: &str = "/run/cedana/jobs.d";

/// A record is some 2 KiB; one with all its checkpoints under long paths stays below.
pub const RECORD_BYTES_MAX: u64 = 64 << 10;

/// Files a scan looks at. Nobody runs as many containers on a machine; whoever fills the directory shall not fill our memory.
pub const ENTRIES_MAX: usize = 100_000;

/// Records of deleted containers that are kept for `cedana ps --all`.
pub const DELETED_KEPT: usize = 1000;

/// How long a record of a deleted container is kept.
pub const DELETED_AGE_MAX: Duration = Duration::from_secs(7 * 24 * 3600);

/// How long an error a record carries: a reason to look into the log, not the log.
const ERROR_BYTES_MAX: usize = 8 << 10;

/// Temporary files of this age belong to nobody: writing one takes less than a millisecond.
const TEMPORARY_AGE_MAX: Duration = Duration::from_secs(600);

/// A file name may have 255 bytes; a temporary one is longer than the record's.
const NAME_BYTES_MAX: usize = 200;

const MODE: u32 = 0o600;
const MODE_SWEEPABLE: u32 = 0o400;

/// Why a record was not read.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// A namespace or id that cannot be part of a file name.
    #[error("{0:?} cannot be the name of a container here")]
    Name(String),
    /// It is not a record.
    #[error("it is not a record: {0}")]
    Malformed(#[source] serde_json::Error),
    /// The record of one container under the name of another one.
    #[error("it is the record of another container")]
    Misplaced,
    /// There are more files than anybody looks at.
    #[error("there are more than {ENTRIES_MAX} files")]
    TooMany,
    /// It cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
}

impl From<io::Error> for SpoolError {
    fn from(e: io::Error) -> Self {
        Self::Read(e.into())
    }
}

/// What a look into the spool found.
#[derive(Debug, Default)]
pub struct Scan {
    /// The records that were read.
    pub records: Vec<(Record, Stamp)>,
    /// File names that were known, and are not there any more.
    pub gone: Vec<String>,
    /// What could not be read, and why. It is left as it is.
    pub problems: Vec<(PathBuf, SpoolError)>,
}

/// The files of the directory.
#[derive(Default)]
struct Listing {
    files: Vec<(String, Metadata)>,
    /// Why these are not all.
    stopped: Option<SpoolError>,
}

/// The directory of the records.
#[derive(Debug, Clone)]
pub struct Spool {
    directory: PathBuf,
}

impl Spool {
    /// The one where the shims keep their containers' records up to date, and find pending restores. A database that is not in
    /// the usual place has it beside itself, so that whoever wants a registry of his own gets all of it.
    pub fn live(db_path: &Path) -> Self {
        if db_path == Path::new(USUAL_DATABASE) {
            return Self {
                directory: PathBuf::from(LIVE),
            };
        }
        Self::beside(db_path)
    }

    /// The one for records that are to outlive a reboot: those of containers that were saved. It is beside the
    /// database: `/x/jobs.db` has `/x/jobs.d`.
    pub fn beside(db_path: &Path) -> Self {
        Self {
            directory: db_path.with_extension("d"),
        }
    }

    /// Where it is.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Writes a record, in place of the container's last one. If it is too long, it loses its oldest checkpoints.
    ///
    /// # Errors
    /// `InvalidInput` for a key that cannot be a file name, `Unsupported` where a newer version has written a record of
    /// this container: it is left as it is. Others are the system's.
    pub fn publish(&self, record: &Record) -> io::Result<()> {
        let name = file_name(&record.key).map_err(|e| io::Error::new(ErrorKind::InvalidInput, e))?;
        self.refuse_newer(&name)?;
        let _stamp = file::replace(&self.directory, &name, &fitting(record)?, mode(record))?;
        Ok(())
    }

    /// Writes a record where there is none, and leaves one that is there as it is. Tells whether it was written.
    ///
    /// # Errors
    /// As [`Spool::publish`].
    pub fn publish_if_absent(&self, record: &Record) -> io::Result<bool> {
        let name = file_name(&record.key).map_err(|e| io::Error::new(ErrorKind::InvalidInput, e))?;
        match file::create(&self.directory, &name, &fitting(record)?, mode(record)) {
            Ok(_stamp) => Ok(true),
            Err(e) if e.kind() == ErrorKind::AlreadyExists => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// The record of a container.
    ///
    /// # Errors
    /// It cannot be read, or is none.
    pub fn read(&self, key: &Key) -> Result<Option<Record>, SpoolError> {
        let found = self.read_name(&file_name(key)?)?;
        Ok(found.map(|(record, _)| record))
    }

    /// All records.
    pub fn read_all(&self) -> Scan {
        self.changed_since(&HashMap::new())
    }

    /// The records that are new, or others than at the last look. `known` has the stamps of that look by file name.
    pub fn changed_since(&self, known: &HashMap<String, Stamp>) -> Scan {
        let mut scan = Scan::default();
        let Listing { files, stopped } = self.list(false);
        let mut met = 0;
        for (name, metadata) in &files {
            if let Some(stamp) = known.get(name) {
                met += 1;
                if *stamp == Stamp::of(metadata) {
                    continue;
                }
            }
            match self.read_name(name) {
                Ok(Some(found)) => scan.records.push(found),
                // Removed since it was listed: the next look will tell.
                Ok(None) => {}
                Err(e) => scan.problems.push((self.directory.join(name), e)),
            }
        }
        if let Some(e) = stopped {
            // What was not listed need not be gone.
            scan.problems.push((self.directory.clone(), e));
        } else if met < known.len() {
            let there: HashSet<&str> = files.iter().map(|(name, _)| name.as_str()).collect();
            scan.gone = known
                .keys()
                .filter(|name| !there.contains(name.as_str()))
                .cloned()
                .collect();
        }
        scan
    }

    /// Removes the record of a container, if there is one.
    ///
    /// # Errors
    /// As [`Spool::publish`].
    pub fn remove(&self, key: &Key) -> io::Result<()> {
        let name = file_name(key).map_err(|e| io::Error::new(ErrorKind::InvalidInput, e))?;
        self.refuse_newer(&name)?;
        match std::fs::remove_file(self.directory.join(name)) {
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
            done => done,
        }
    }

    /// Removes records of deleted containers of which nothing was saved: those older than [`DELETED_AGE_MAX`], and the oldest
    /// when there are more than `keep`. Tells how many. When there are too many a tenth more goes, so that not every call has
    /// something to do.
    ///
    /// # Errors
    /// The directory cannot be read, or a file not be removed.
    pub fn sweep(&self, keep: usize) -> io::Result<usize> {
        let now = SystemTime::now();
        let mut sweepable = Vec::new();
        let Listing { files, stopped } = self.list(true);
        if let Some(SpoolError::Read(ReadError::Io(e))) = stopped {
            return Err(e);
        }
        self.sweep_restores(now)?;
        for (name, metadata) in files {
            let modified = metadata.modified()?;
            let age = now.duration_since(modified).unwrap_or_default();
            if file::is_temporary(&name) {
                if age > TEMPORARY_AGE_MAX {
                    remove_if_there(&self.directory.join(name))?;
                }
            } else if metadata.permissions().mode() & 0o777 == MODE_SWEEPABLE {
                sweepable.push((modified, age, name));
            }
        }
        sweepable.sort_unstable();
        let surplus = match sweepable.len().checked_sub(keep) {
            None | Some(0) => 0,
            Some(surplus) => surplus.saturating_add(keep / 10),
        };
        let mut removed = 0;
        for (at, (_, age, name)) in sweepable.iter().enumerate() {
            if at < surplus || *age > DELETED_AGE_MAX {
                removed += usize::from(self.remove_if_sweepable(name)?);
            }
        }
        Ok(removed)
    }

    /// Pending restores belong to their askers; what a killed shim or asker was taking or writing belongs to nobody.
    fn sweep_restores(&self, now: SystemTime) -> io::Result<()> {
        let restores = Self {
            directory: self.restores(),
        };
        for (name, metadata) in restores.list(true).files {
            let age = now.duration_since(metadata.modified()?).unwrap_or_default();
            if file::is_temporary(&name) && age > TEMPORARY_AGE_MAX {
                remove_if_there(&restores.directory.join(&name))?;
            }
        }
        Ok(())
    }

    /// Where pending restores are.
    pub(crate) fn restores(&self) -> PathBuf {
        self.directory.join("restore")
    }

    fn remove_if_sweepable(&self, name: &str) -> io::Result<bool> {
        self.remove_if(name, is_sweepable)
    }

    /// Removes a record of which `judge` says so. It is taken aside before it is looked at: a shim may put a new one there at
    /// any moment. One of a newer version stays.
    pub(crate) fn remove_if(&self, name: &str, judge: impl Fn(&Record) -> bool) -> io::Result<bool> {
        let aside = file::temporary(&self.directory, name);
        let there = self.directory.join(name);
        match std::fs::rename(&there, &aside) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(false),
            done => done?,
        }
        let done_with = match file::read(&aside, RECORD_BYTES_MAX) {
            Ok(Some((bytes, _))) => serde_json::from_slice::<Record>(&bytes)
                .is_ok_and(|record| record.schema <= SCHEMA && judge(&record)),
            _ => false,
        };
        if done_with {
            remove_if_there(&aside)?;
            return Ok(true);
        }
        match file::move_without_replacing(&aside, &there) {
            // The newer one is right.
            Err(e) if e.kind() == ErrorKind::AlreadyExists => remove_if_there(&aside)?,
            done => done?,
        }
        Ok(false)
    }

    fn read_name(&self, name: &str) -> Result<Option<(Record, Stamp)>, SpoolError> {
        let Some((bytes, stamp)) = file::read(&self.directory.join(name), RECORD_BYTES_MAX)? else {
            return Ok(None);
        };
        let record: Record = serde_json::from_slice(&bytes).map_err(SpoolError::Malformed)?;
        if file_name(&record.key)? != name {
            return Err(SpoolError::Misplaced);
        }
        Ok(Some((record, stamp)))
    }

    fn refuse_newer(&self, name: &str) -> io::Result<()> {
        #[derive(serde::Deserialize)]
        struct Schema {
            schema: u32,
        }
        let path = self.directory.join(name);
        // Whatever else is there is no record that anybody could want back.
        if let Ok(Some((bytes, _))) = file::read(&path, RECORD_BYTES_MAX)
            && let Ok(Schema { schema }) = serde_json::from_slice(&bytes)
            && schema > SCHEMA
        {
            let text = format!(
                "{} was written by a newer version (schema {schema})",
                path.display()
            );
            return Err(io::Error::new(ErrorKind::Unsupported, text));
        }
        Ok(())
    }

    fn list(&self, temporary: bool) -> Listing {
        let mut listing = Listing::default();
        let entries = match std::fs::read_dir(&self.directory) {
            Ok(entries) => entries,
            Err(e) if e.kind() == ErrorKind::NotFound => return listing,
            Err(e) => {
                return Listing {
                    stopped: Some(e.into()),
                    ..listing
                };
            }
        };
        for (count, entry) in entries.enumerate() {
            match entry {
                Ok(_) if count >= ENTRIES_MAX => {
                    return Listing {
                        stopped: Some(SpoolError::TooMany),
                        ..listing
                    };
                }
                Ok(entry) => listing.files.extend(listed(&entry, temporary)),
                Err(e) => {
                    return Listing {
                        stopped: Some(e.into()),
                        ..listing
                    };
                }
            }
        }
        listing
    }
}

/// An entry that is a record by its name; others (`restore/`, what people put there) are passed over.
fn listed(entry: &DirEntry, temporary: bool) -> Option<(String, Metadata)> {
    let name = entry.file_name().into_string().ok()?;
    let wanted = if file::is_temporary(&name) {
        temporary
    } else {
        name.ends_with(".json")
    };
    // It may be gone by now.
    let metadata = if wanted {
        entry.metadata().ok()?
    } else {
        return None;
    };
    Some((name, metadata))
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

fn mode(record: &Record) -> u32 {
    match is_sweepable(record) {
        true => MODE_SWEEPABLE,
        false => MODE,
    }
}

fn is_sweepable(record: &Record) -> bool {
    record.status == Status::Deleted && record.checkpoints.is_empty()
}

/// The name of a container's files. containerd's own names (letters, digits, `.`, `_`, `-`, at most 76 bytes) all fit.
///
/// # Errors
/// [`SpoolError::Name`].
pub fn file_name(key: &Key) -> Result<String, SpoolError> {
    for part in [&key.namespace, &key.id] {
        if part.is_empty()
            || part.starts_with('.')
            || part.contains(|c: char| c == '/' || c == '@' || c.is_control())
        {
            return Err(SpoolError::Name(part.clone()));
        }
    }
    let mut name = format!("{}@{}@", key.namespace, key.id);
    for byte in Sha256::digest(key.engine.as_os_str().as_bytes()).iter().take(4) {
        // Writing to a string does not fail.
        let _ = write!(name, "{byte:02x}");
    }
    name.push_str(".json");
    if name.len() > NAME_BYTES_MAX {
        return Err(SpoolError::Name(name));
    }
    Ok(name)
}

/// The bytes of a record, cut to what a reader takes: first its error, then its oldest checkpoints.
fn fitting(record: &Record) -> io::Result<Vec<u8>> {
    let max = usize::try_from(RECORD_BYTES_MAX).unwrap_or(usize::MAX);
    let bytes = serde_json::to_vec(record)?;
    if bytes.len() <= max {
        return Ok(bytes);
    }
    let mut record = record.clone();
    if let Some(last) = &mut record.last {
        let cut = (0..=ERROR_BYTES_MAX)
            .rev()
            .find(|at| last.error.is_char_boundary(*at))
            .unwrap_or_default();
        last.error.truncate(cut);
    }
    loop {
        let bytes = serde_json::to_vec(&record)?;
        if bytes.len() <= max {
            return Ok(bytes);
        }
        if record.checkpoints.is_empty() {
            return Err(io::Error::new(ErrorKind::InvalidInput, "the record is too long"));
        }
        drop(record.checkpoints.remove(0));
    }
}

#[cfg(test)]
mod tests;
