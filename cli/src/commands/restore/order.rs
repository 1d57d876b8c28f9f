//! A restore that is wanted, and the look at what came of it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use jobs::liveness;
use jobs::pending::{self, Pending, Placed};
use jobs::record::{Key, Record};
use jobs::spool::Spool;

use crate::error::Error;

/// What is to be restored, and how.
#[derive(Debug)]
pub struct Order<'a> {
    /// Which container.
    pub key: &'a Key,
    /// Where shims publish, and take their orders.
    pub spool: &'a Spool,
    /// What its user calls it.
    pub name: &'a str,
    /// The checkpoint as it is kept.
    pub kept: &'a Path,
    /// The directory of its images: itself, or what it was unpacked to.
    pub checkpoint: &'a Path,
    /// The list of its memory that was left in what it was unpacked from.
    pub left: Option<&'a Path>,
    /// Settings that were said for this restore.
    pub settings: BTreeMap<String, String>,
}

impl Order<'_> {
    /// What the images were unpacked from, if they were.
    pub fn unpacked_from(&self) -> Option<PathBuf> {
        (self.kept != self.checkpoint).then(|| self.kept.to_owned())
    }

    /// Leaves word for the shim that will create the container. It counts as long as the answer is kept.
    ///
    /// # Errors
    /// Somebody else restores it at this moment, or the word cannot be left.
    pub fn place(&self) -> Result<Placed, Error> {
        let asker =
            liveness::own().map_err(|source| Error::failed(format!("failed to read /proc: {source}")))?;
        let pending = Pending {
            checkpoint: self.checkpoint.to_owned(),
            unpacked_from: self.unpacked_from(),
            left: self.left.map(Path::to_owned),
            asker,
            settings: self.settings.clone(),
        };
        pending::place(self.spool, self.key, &pending).map_err(|source| match source.kind() {
            std::io::ErrorKind::AlreadyExists => {
                Error::wrong_state(format!("failed to restore {}: {source}", self.name))
            }
            _ => Error::failed(format!(
                "failed to prepare the restore of {}: {source}",
                self.name
            )),
        })
    }

    /// What the shim says of the container now: it was restored, and from this checkpoint.
    ///
    /// # Errors
    /// It was not: it started afresh, or its shim is one that knows nothing of restores.
    pub fn verify(&self) -> Result<Record, Error> {
        let record = self
            .spool
            .read(self.key)
            .map_err(|error| Error::failed(format!("failed to {error}")))?;
        record
            .filter(|record| record.restored_from.as_deref() == Some(self.kept))
            .ok_or_else(|| {
                Error::failed(format!(
                    "{} was not restored: its runtime started it afresh",
                    self.name
                ))
                .hint("only containers whose runtime is io.containerd.cedana.v1 are restored by their engine")
            })
    }
}
