//! The directory that a restore reads: the checkpoint itself, or what an archive holds, for as long as it takes.

use std::io::ErrorKind;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use jobs::liveness;
use jobs::record::{Origin, Process};
use oci_bundles::archive::{self, ArchiveError, Form, Limits};
use oci_bundles::checkpoint;
use oci_bundles::layout::{INVENTORY, Layout};
use oci_bundles::manifest::Image;

use crate::commands::checkpoint::incomplete;
use crate::context::Context;
use crate::error::{Error, Kind};
use crate::interrupt::interrupted;
use crate::jobs::rebuild;
use crate::output;
use crate::output::progress::Progress;

/// A checkpoint that can be restored from.
#[derive(Debug)]
pub struct Images {
    kept: PathBuf,
    directory: PathBuf,
    left: Option<PathBuf>,
    _unpacked: Option<Unpacked>,
}

/// What becomes of the memory in an archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Memory {
    /// It is unpacked with the rest.
    Unpacked,
    /// It stays where it is, if it can be read there: the shim gives it to the processes, or takes it out itself.
    Left,
}

/// What was unpacked; it goes with this.
#[derive(Debug)]
struct Unpacked(PathBuf);

impl Drop for Unpacked {
    fn drop(&mut self) {
        if let Err(source) = std::fs::remove_dir_all(&self.0)
            && source.kind() != ErrorKind::NotFound
        {
            output::warning(&format!("failed to remove {}: {source}", self.0.display()));
        }
    }
}

impl Images {
    /// Opens the checkpoint at a path, and unpacks it if it is an archive.
    ///
    /// # Errors
    /// There is nothing, or no checkpoint; or it cannot be unpacked.
    pub async fn open(path: &Path, memory: Memory, context: &Context) -> Result<Self, Error> {
        let path = path.canonicalize().map_err(|source| match source.kind() {
            ErrorKind::NotFound => Error::not_found(format!("there is no checkpoint at {}", path.display())),
            _ => Error::failed(format!("failed to open {}: {source}", path.display())),
        })?;
        let form = archive::detect(&path).map_err(|error| Error::usage(format!("failed to {error}")))?;
        let images = if form == Form::Directory {
            Self {
                kept: path.clone(),
                directory: path.clone(),
                left: None,
                _unpacked: None,
            }
        } else {
            unpack(&path, memory, context).await?
        };
        if Layout::find(&images.directory).is_none() {
            return Err(Error::usage(format!(
                "{} is no checkpoint: it has no {INVENTORY}",
                path.display()
            ))
            .hint("a dump that failed or was interrupted leaves no checkpoint"));
        }
        incomplete::warn(&images.directory);
        Ok(images)
    }

    /// The checkpoint as it is kept: the directory, or the archive that was unpacked to it.
    pub fn kept(&self) -> &Path {
        &self.kept
    }

    /// Its directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The list of its memory that was left in the archive.
    pub fn left(&self) -> Option<&Path> {
        self.left.as_deref()
    }

    /// Warns about a checkpoint that says it is of another container: it may be meant, and may be a slip.
    pub fn warn_unless_of(&self, id: &str) {
        if let Some(origin) = self.origin().filter(|origin| origin.key.id != id) {
            output::warning(&format!("the checkpoint is of container {}", origin.key.id));
        }
    }

    /// The image of its container, if it says so.
    pub fn image(&self) -> Option<Image> {
        checkpoint::manifest(&self.directory).ok()??.image
    }

    /// Whose it is, if it says so.
    pub fn origin(&self) -> Option<Origin> {
        rebuild::origin(&self.directory)
    }
}

async fn unpack(path: &Path, memory: Memory, context: &Context) -> Result<Images, Error> {
    let place = context.database()?.with_file_name("unpacked");
    make_private(&place)?;
    sweep(&place);
    let own = liveness::own().map_err(|source| Error::failed(format!("failed to read /proc: {source}")))?;
    let own = place.join(format!("{}.{}", own.pid, own.started));
    let unpacked = Unpacked(own.clone());
    make_private(&own)?;
    let (directory, list) = (own.join("files"), own.join("left"));
    let progress = Progress::start("Unpacking", context.json);
    let stop = Arc::new(AtomicBool::new(false));
    let work = tokio::task::spawn_blocking({
        let (from, to, list, stop) = (
            path.to_owned(),
            directory.clone(),
            list.clone(),
            Arc::clone(&stop),
        );
        move || {
            let mut on_progress = |at: archive::Progress| {
                progress.set("", at.done, at.total);
                if stop.load(Ordering::Relaxed) {
                    ControlFlow::Break(())
                } else {
                    ControlFlow::Continue(())
                }
            };
            if memory == Memory::Unpacked {
                return archive::unpack(&from, &to, &Limits::default(), &mut on_progress).map(|_| false);
            }
            let left = archive::unpack_without_memory(&from, &to, &Limits::default(), &mut on_progress)?;
            if left.is_empty() {
                return Ok(false);
            }
            left.write(&list).map(|()| true)
        }
    });
    tokio::pin!(work);
    let done = loop {
        tokio::select! {
            done = &mut work => break done,
            () = interrupted() => stop.store(true, Ordering::Relaxed),
        }
    };
    match done {
        Ok(Ok(is_left)) => Ok(Images {
            kept: path.to_owned(),
            directory,
            left: is_left.then_some(list),
            _unpacked: Some(unpacked),
        }),
        Ok(Err(ArchiveError::Cancelled)) => {
            Err(Error::new(Kind::Interrupted, "interrupted: nothing is restored"))
        }
        Ok(Err(error)) => Err(Error::failed(format!("failed to {error}"))),
        Err(source) => Err(Error::failed(format!(
            "failed to unpack {}: {source}",
            path.display()
        ))),
    }
}

/// Makes the directory for what is unpacked: memory of processes, which is nobody else's business.
fn make_private(place: &Path) -> Result<(), Error> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(place)
        .map_err(|source| Error::failed(format!("failed to make {}: {source}", place.display())))
}

/// Removes what restores left that were killed.
fn sweep(place: &Path) {
    let Ok(entries) = std::fs::read_dir(place) else {
        return;
    };
    let Ok(boot) = liveness::boot() else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let owner = name.to_str().and_then(owner).map(|(pid, started)| Process {
            pid,
            started,
            boot: boot.to_owned(),
        });
        if owner.is_some_and(|owner| !liveness::is_alive(&owner)) {
            drop(Unpacked(entry.path()));
        }
    }
}

/// The process that a directory is named after, also while it is unpacked into: `.PID.STARTED.partial-PID`.
fn owner(name: &str) -> Option<(i32, u64)> {
    let whole = name
        .strip_prefix('.')
        .and_then(|name| name.split_once(".partial"));
    let (pid, started) = whole.map_or(name, |(name, _)| name).split_once('.')?;
    Some((pid.parse().ok()?, started.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use oci_bundles::manifest::{Digest, Manifest, NAME, Part};
    use serde_json::json;

    use super::*;

    #[test]
    fn a_checkpoint_of_many_processes_says_whose_it_is() {
        let dir = tempfile::tempdir().expect("a directory");
        let origin = json!({"key": {"engine": "/run/c.sock", "namespace": "default", "id": "web"},
            "checkpoint": "1f", "at": 7});
        // A thousand processes: more than a MiB of text.
        let parts = (0..20_000).map(|number| Part {
            path: format!("core-{number}.img").into(),
            size: 1000,
            digest: Digest::Blake3([7; 32]),
        });
        let manifest = Manifest {
            schema: oci_bundles::manifest::SCHEMA,
            origin: Some(origin),
            parts: parts.collect(),
            ..Manifest::default()
        };
        let text = serde_json::to_vec(&manifest).expect("JSON");
        assert!(text.len() > 1 << 20);
        std::fs::write(dir.path().join(NAME), text).expect("a file");
        let images = Images {
            kept: dir.path().to_owned(),
            directory: dir.path().to_owned(),
            left: None,
            _unpacked: None,
        };
        assert_eq!(images.origin().expect("an origin").key.id, "web");
    }

    #[test]
    fn only_what_the_dead_left_is_swept() {
        let place = tempfile::tempdir().expect("a directory");
        let own = liveness::own().expect("a process");
        let ours = format!("{}.{}", own.pid, own.started);
        let dead = format!("{}.{}", own.pid, own.started + 1);
        for name in [ours.as_str(), dead.as_str(), "README"] {
            std::fs::create_dir(place.path().join(name)).expect("a directory");
        }
        sweep(place.path());
        let is_there = |name: &str| place.path().join(name).exists();
        assert_eq!(
            [is_there(&ours), is_there(&dead), is_there("README")],
            [true, false, true]
        );
    }
}
