//! The phase of a restore that puts files back which CRIU knows nothing of.

use std::fs;
use std::path::PathBuf;

use oci_bundles::layout::Extra;

use super::layer::{has_foreign, is_of, lists, put_back};
use super::{RestoreCause, Restoring};
use crate::worker::files::shm::Shm;
use crate::worker::files::{Into, PutBackOrder, shm};

/// What of the checkpoint's files is still to be put back.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    /// The writable layer, through the root file system as it is mounted, and whose it is.
    layer: Option<Into>,
    /// `/dev/shm`, where the client mounts it.
    shm: bool,
}

impl Restoring {
    /// Notes what the manifest lists, or another engine has left. A layer that was replaced is there already; in the container that was
    /// dumped the client keeps it.
    pub(super) fn note_files(&mut self) {
        let layer = match self.layer_is_there {
            true => None,
            false if has_foreign(&self.layout) => Some(Into::Foreign),
            false => {
                let is_wanted = lists(&self.manifest, Extra::RootfsDiff) && !is_of(&self.manifest, &self.key);
                is_wanted.then_some(Into::Merged)
            }
        };
        let shm = match self.layout.is_foreign() {
            true => self.layout.has(Extra::DevShm),
            false => lists(&self.manifest, Extra::DevShm),
        };
        self.waiting = Waiting { layer, shm };
    }

    pub(super) async fn put_back_files(&mut self) -> Result<(), RestoreCause> {
        let root = self.spec.root.as_ref().map(|root| self.bundle.join(&root.path));
        if let (Some(into), Some(root)) = (self.waiting.layer.take(), root) {
            let order = self.layer_order(root, into);
            put_back(&self.runc.reaper, &order, self.settings.timeout).await?;
        }
        if std::mem::take(&mut self.waiting.shm) {
            self.put_back_shm().await?;
        }
        Ok(())
    }

    fn layer_order(&self, root: PathBuf, into: Into) -> PutBackOrder {
        let there = |extra| self.layout.has(extra).then(|| self.layout.extra(extra));
        PutBackOrder {
            tar: there(Extra::RootfsDiff),
            // In a layer of ours that stands in the diff.
            deleted: there(Extra::DeletedFiles).filter(|_| into == Into::Foreign),
            to: root,
            into,
            bundle: self.bundle.clone(),
        }
    }

    async fn put_back_shm(&mut self) -> Result<(), RestoreCause> {
        let shm = match shm::of_container(&self.bundle, None) {
            Ok(Some(shm)) => shm,
            Ok(None) => return Ok(()),
            Err(why) => {
                tracing::warn!(id = self.id, why, "what was in /dev/shm is not put back");
                return Ok(());
            }
        };
        self.filled_shm = Some(shm.path().to_owned());
        let order = PutBackOrder {
            tar: Some(self.layout.extra(Extra::DevShm)),
            deleted: None,
            to: shm.path().to_owned(),
            into: match shm {
                Shm::Mounted(_) => Into::Memory,
                Shm::InBundle(_) => Into::Share,
            },
            bundle: self.bundle.clone(),
        };
        put_back(&self.runc.reaper, &order, self.settings.timeout).await
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
}
