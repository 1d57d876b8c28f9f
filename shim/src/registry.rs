//! A container's entry in the registry of jobs, kept up to date by its owner.
//!
//! ```text
//!   owner --change--> Entry --write, rename--> /run/cedana/jobs.d/…       memory: cannot be full or stuck like a disk
//!                       |
//!                       +---a checkpoint-----> beside the database         survives a reboot, as the checkpoint does
//! ```
//!
//! Invariant: whatever goes wrong here is a warning, and only the first time: the registry is an index, and no container
//! waits for it or fails because of it.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use jobs::pending::{self, Pending, TakeError};
use jobs::record::{
    self, Act, CHECKPOINTS_MAX, Checkpoint, Exit, Key, NAME_ANNOTATION, Origin, Process, Record, SCHEMA,
    Stdio, is_name,
};
use jobs::spool::{DELETED_KEPT, Spool};
use jobs::time::now;
use jobs::{id, liveness};
use oci_bundles::spec::SpecView;

use crate::error::{Result, internal};
use crate::stdio::StdioRequest;

/// What Kubernetes' runtimes say of a container, and of a pod's pause container.
const CRI_KIND: &str = "io.kubernetes.cri.container-type";
const CRI_IMAGE: &str = "io.kubernetes.cri.image-name";

/// One shim in this many looks for entries nobody needs any more. They are small, and looking costs a millisecond.
const SWEEPERS: u32 = 16;

/// What the entries of one shim have in common. The default publishes nothing.
#[derive(Debug, Default)]
pub struct Registry {
    /// Where the first container was published.
    live: OnceLock<Spool>,
    publishes: bool,
    /// containerd's socket.
    engine: PathBuf,
    /// Our own.
    socket: PathBuf,
    shim: OnceLock<record::Shim>,
}

impl Registry {
    /// For a shim that serves this containerd on this socket.
    pub fn new(engine: PathBuf, socket: PathBuf) -> Self {
        Self {
            publishes: true,
            engine,
            socket,
            ..Self::default()
        }
    }

    /// Which job a container is.
    pub fn key(&self, namespace: &str, id: &str) -> Key {
        Key {
            engine: self.engine.clone(),
            namespace: namespace.to_owned(),
            id: id.to_owned(),
        }
    }

    /// The entry of a container that is being created.
    pub fn entry(&self, container: New) -> Entry {
        let places = container
            .database
            .filter(|_| self.publishes)
            .map(|database| Places {
                live: self.live.get_or_init(|| Spool::live(database)).clone(),
                kept: Spool::beside(database),
            });
        let before = places.as_ref().and_then(|places| places.find(&container.key));
        let is_known = before.is_some();
        let annotation = |name| container.spec.annotation(name).map(str::to_owned);
        let shim = self.shim.get_or_init(|| record::Shim {
            process: liveness::own().unwrap_or_default(),
            socket: self.socket.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        });
        let record = Record {
            schema: SCHEMA,
            name: name(annotation(NAME_ANNOTATION), &container.key.id),
            sandbox: annotation(CRI_KIND).is_some_and(|kind| kind == "sandbox"),
            image: annotation(CRI_IMAGE),
            bundle: container.bundle.to_owned(),
            shim: shim.clone(),
            init: Process::default(),
            status: record::Status::Created,
            exit: None,
            stdio: stdio(container.stdio),
            created: now(),
            changed: 0,
            checkpoints: before.map(|before| before.checkpoints).unwrap_or_default(),
            last: None,
            restored_from: container.restored_from.map(Path::to_owned),
            key: container.key,
        };
        Entry {
            places,
            record,
            is_known,
            has_warned: false,
        }
    }

    /// Takes the restore that `cedana restore` has prepared for a container, if it has.
    ///
    /// # Errors
    /// There is one that cannot be used: a fresh start is not what was asked for.
    pub fn pending(&self, database: Option<&Path>, key: &Key) -> Result<Option<Pending>> {
        let Some(database) = database.filter(|_| self.publishes) else {
            return Ok(None);
        };
        match pending::take(&Spool::live(database), key) {
            Err(error @ TakeError::CannotLook(_)) => {
                tracing::warn!(id = key.id, %error, "the container is started afresh");
                Ok(None)
            }
            taken => taken.map_err(internal("read the restore that is pending")),
        }
    }

    /// Publishes the end of a container whose shim has died, if there is an entry for it.
    pub fn abandoned(&self, database: &Path, key: &Key, status: u32) {
        let live = Spool::live(database);
        let Ok(Some(mut record)) = live.read(key) else {
            return;
        };
        record.status = record::Status::Deleted;
        record.exit = record.exit.or(Some(Exit { status, at: now() }));
        record.changed = now().max(record.changed + 1);
        if let Err(error) = live.publish(&record) {
            tracing::debug!(id = key.id, %error, "the end of a container is not in the registry");
        }
    }

    /// Removes entries that nobody needs any more, if it is this shim's turn.
    pub fn sweep(&self) {
        if !std::process::id().is_multiple_of(SWEEPERS) {
            return;
        }
        if let Some(Err(error)) = self.live.get().map(|live| live.sweep(DELETED_KEPT)) {
            tracing::debug!(%error, "the registry cannot be swept");
        }
    }
}

/// A container that gets an entry.
#[derive(Debug)]
pub struct New<'a> {
    /// Where the database is, if there is one.
    pub database: Option<&'a Path>,
    /// Which job it is.
    pub key: Key,
    /// Its bundle.
    pub bundle: &'a Path,
    /// What it is.
    pub spec: &'a SpecView,
    /// Its streams.
    pub stdio: &'a StdioRequest,
    /// The checkpoint it is restored from.
    pub restored_from: Option<&'a Path>,
}

/// Where an entry is published.
#[derive(Debug)]
struct Places {
    live: Spool,
    kept: Spool,
}

impl Places {
    fn find(&self, key: &Key) -> Option<Record> {
        [&self.live, &self.kept]
            .into_iter()
            .find_map(|spool| spool.read(key).ok().flatten())
    }
}

/// The entry of one container.
#[derive(Debug)]
pub struct Entry {
    /// None if the host has no registry.
    places: Option<Places>,
    record: Record,
    /// There was one before this container's.
    is_known: bool,
    has_warned: bool,
}

impl Entry {
    /// What is published.
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// The origin of a checkpoint that is made now.
    pub fn origin(&self) -> Origin {
        Origin {
            key: self.record.key.clone(),
            name: self.record.name.clone(),
            checkpoint: id::random().unwrap_or_default(),
            at: now(),
            left_running: false,
        }
    }

    /// Publishes how far the container is, if that is news.
    pub fn state(&mut self, status: record::Status, pid: i32, exit: Option<Exit>) {
        let record = &mut self.record;
        if (record.status, record.init.pid, record.exit) == (status, pid, exit) && record.changed != 0 {
            return;
        }
        if record.init.pid != pid {
            // One that has ended already has no start any more; nothing can be mistaken for it then.
            record.init = liveness::of(pid).unwrap_or_else(|_| Process {
                pid,
                ..Process::default()
            });
        }
        (record.status, record.exit) = (status, exit);
        self.publish();
    }

    /// Publishes that a dump or restore is over.
    pub fn acted(&mut self, verb: &str, phase: &str, error: Option<&str>) {
        self.record.last = Some(Act {
            verb: verb.to_owned(),
            phase: phase.to_owned(),
            error: error.unwrap_or_default().to_owned(),
            at: now(),
        });
        self.publish();
    }

    /// Publishes that there is no container after all. One that never was is not mentioned.
    pub fn not_created(mut self, phase: &str, error: &str) {
        if self.is_known && self.record.restored_from.take().is_some() {
            self.record.status = record::Status::Deleted;
            self.acted("restore", phase, Some(error));
        }
    }

    /// Publishes what it runs from now.
    pub fn restored(&mut self, from: &Path, phase: &str) {
        self.record.restored_from = Some(from.to_owned());
        self.acted("restore", phase, None);
    }

    /// Publishes a checkpoint. What is returned writes it beside the database, where it outlives the machine's next start; that
    /// may take as long as the disk does.
    pub fn saved(&mut self, checkpoint: Checkpoint, phase: &str) -> impl FnOnce() + Send + 'static {
        let checkpoints = &mut self.record.checkpoints;
        checkpoints.retain(|known| known.path != checkpoint.path);
        checkpoints.push(checkpoint);
        let excess = checkpoints.len().saturating_sub(CHECKPOINTS_MAX);
        drop(checkpoints.drain(..excess));
        self.acted("dump", phase, None);
        let kept = self.places.as_ref().map(|places| places.kept.clone());
        let record = self.record.clone();
        move || {
            if let Some(Err(error)) = kept.map(|kept| kept.publish(&record)) {
                tracing::warn!(id = record.key.id, %error, "the checkpoint is not in the registry, where it would outlive a reboot");
            }
        }
    }

    fn publish(&mut self) {
        self.record.changed = now().max(self.record.changed + 1);
        if let Some(Err(error)) = self
            .places
            .as_ref()
            .map(|places| places.live.publish(&self.record))
            && !std::mem::replace(&mut self.has_warned, true)
        {
            tracing::warn!(id = self.record.key.id, %error, "the container is not in the registry of jobs; it runs all the same");
        }
    }
}

/// What the annotation calls the container. What is no name would be none on a command line: the container has its id for one then.
fn name(said: Option<String>, id: &str) -> Option<String> {
    let name = said?;
    if is_name(&name) {
        return Some(name);
    }
    tracing::warn!(
        id,
        name,
        "the annotation {NAME_ANNOTATION} is not used: a name has letters, digits, dots, underscores and hyphens"
    );
    None
}

fn stdio(request: &StdioRequest) -> Stdio {
    // The environment of a logging binary may hold its credentials.
    let plain = |uri: &String| match uri.contains("?env.") || uri.contains("&env.") {
        true => String::new(),
        false => uri.clone(),
    };
    Stdio {
        stdin: plain(&request.stdin),
        stdout: plain(&request.stdout),
        stderr: plain(&request.stderr),
        terminal: request.terminal,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_credentials_of_a_logger_are_not_published() {
        let published = stdio(&StdioRequest {
            stdout: "binary:///logger?a=1&env.TOKEN=s3cret".to_owned(),
            stderr: "file:///log".to_owned(),
            ..StdioRequest::default()
        });
        assert_eq!(
            (published.stdout.as_str(), published.stderr.as_str()),
            ("", "file:///log")
        );
    }

    #[test]
    fn what_is_no_name_is_not_taken_for_one() {
        let called = |said: &str| name(Some(said.to_owned()), "id");
        assert_eq!(called("web-1"), Some("web-1".to_owned()));
        for bad in ["", "a b", "a\nb", "../x", "\u{1b}[2J"] {
            assert_eq!(called(bad), None, "{bad:?}");
        }
        assert_eq!(name(None, "id"), None);
    }

    #[test]
    fn without_a_database_nothing_is_published() {
        let registry = Registry::default();
        let new = New {
            database: None,
            key: registry.key("n", "i"),
            bundle: Path::new("/b"),
            spec: &SpecView::default(),
            stdio: &StdioRequest::default(),
            restored_from: None,
        };
        let mut entry = registry.entry(new);
        entry.state(record::Status::Running, 1, None);
        assert_eq!(entry.record().init.pid, 1);
        assert!(entry.places.is_none());
    }

    #[test]
    fn the_usual_database_has_its_live_records_in_memory() {
        let usual = config::Settings::default().db.path.unwrap_or_default();
        let live = Spool::live(&usual);
        assert_ne!(live.directory(), Spool::beside(&usual).directory());
        assert!(live.directory().starts_with("/run"));
    }
}
