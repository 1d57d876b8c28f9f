//! The phase of a restore that puts files back which CRIU knows nothing of.

use std::fs;
use std::path::PathBuf;

use oci_bundles::layout::Extra;

use super::layer::{is_of, lists, put_back};
use super::{RestoreCause, Restoring};
use crate::worker::files::{Into, PutBackOrder, shm};

/// What of the checkpoint's files is still to be put back.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    /// The writable layer, through the root file system as it is mounted.
    layer: bool,
    /// `/dev/shm`, where the client mounts it.
    shm: bool,
}

impl Restoring {
    /// Notes what the manifest lists. A layer that was replaced is there already; in the container that was dumped the client keeps it.
    pub(super) fn note_files(&mut self) {
        self.waiting = Waiting {
            layer: !self.layer_is_there
                && lists(&self.manifest, Extra::RootfsDiff)
                && !is_of(&self.manifest, &self.key),
            shm: lists(&self.manifest, Extra::DevShm),
        };
    }

    pub(super) async fn put_back_files(&mut self) -> Result<(), RestoreCause> {
        if std::mem::take(&mut self.waiting.layer) {
            let root = self.spec.root.as_ref().map(|root| self.bundle.join(&root.path));
            if let Some(root) = root {
                self.put_back(Extra::RootfsDiff, root, Into::Merged).await?;
            }
        }
        if std::mem::take(&mut self.waiting.shm) {
            match shm::of_container(&self.bundle, None) {
                Ok(Some(source)) => {
                    self.filled_shm = Some(source.clone());
                    self.put_back(Extra::DevShm, source, Into::Memory).await?;
                }
                Ok(None) => {}
                Err(why) => tracing::warn!(id = self.id, why, "what was in /dev/shm is not put back"),
            }
        }
        Ok(())
    }

    /// Empties what is memory again. A root file system that a client has mounted keeps what was put there: it is another container's
    /// than the one that was dumped, and the same request puts the same there.
    pub(super) fn take_back_files(&mut self) -> Result<(), RestoreCause> {
        let Some(source) = self.filled_shm.take() else {
            return Ok(());
        };
        let entries = fs::read_dir(&source).map_err(RestoreCause::files("list", &source))?;
        for path in entries.flatten().map(|entry| entry.path()) {
            let removed = match fs::symlink_metadata(&path).is_ok_and(|metadata| metadata.is_dir()) {
                true => fs::remove_dir_all(&path),
                false => fs::remove_file(&path),
            };
            removed.map_err(RestoreCause::files("remove", &path))?;
        }
        Ok(())
    }

    async fn put_back(&self, part: Extra, to: PathBuf, into: Into) -> Result<(), RestoreCause> {
        let order = PutBackOrder {
            tar: self.layout.extra(part),
            to,
            into,
            bundle: self.bundle.clone(),
        };
        put_back(&self.runc.reaper, &order, self.settings.timeout).await
    }
}
