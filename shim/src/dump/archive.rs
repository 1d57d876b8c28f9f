//! A dump as one file, which the worker makes of the pages in its memory and of what CRIU and we have written.
//!
//! ```text
//!   .NAME.cedana-partial/{cedana.json, checkpoint/*.img} + pages --worker--> .NAME.cedana-partial/archive.unfinished
//!     --sync, rename--> .NAME.cedana-partial/archive --rename--> NAME.tar.zst
//! ```
//!
//! From the first rename on it may be all that is left of the container: whoever clears up after a shim that died brings it to its
//! place ([`oci_bundles::staged`]).
//!
//! Only of a dump whose pages all fit into memory, and are enough to be worth a worker: any other is a directory, and whoever asked
//! for a file is told so.

use std::fs::File;
use std::path::{Path, PathBuf};

use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use oci_bundles::staged::{ARCHIVE, Staged};

use super::beside::{beside, beside_within};
use super::capture::Capture;
use super::clear::remove_tree;
use super::{DumpCause, Dumping};
use crate::capture::Order;

impl Dumping<'_> {
    /// Completes the manifest, which goes into the archive, and has it packed.
    pub(super) async fn pack(&mut self, capture: &mut Capture) -> Result<(), DumpCause> {
        let Some(wanted) = &self.job.options.archive else {
            return Err(DumpCause::Capture("write the pages: they were kept".to_owned()));
        };
        let _changed = self.list_parts().await?;
        self.write_manifest_beside().await?;
        let order = Order::Pack {
            root: self.staging.root().to_owned(),
            into: self.staged_archive(),
            form: wanted.form.clone(),
        };
        self.packed = Some(capture.pack(&order, self.deadline).await?);
        Ok(())
    }

    fn staged_archive(&self) -> PathBuf {
        self.staging.root().join(ARCHIVE)
    }

    /// Gives the only copy of a container a name that the next dump does not clear away. Returns where it is.
    pub(super) async fn keep_archive(&self) -> PathBuf {
        let staged = Staged::of(&self.job.options.image_path, self.staging.shape());
        let keep = move || {
            let kept = staged.keep_archive();
            let kept = kept.map_err(DumpCause::files("keep", staged.layout().root()))?;
            // It has no pages.
            drop(remove_tree(staged.layout().root()));
            Ok(kept)
        };
        let kept = beside_within(self.deadline, self.staging.root(), keep).await;
        kept.unwrap_or_else(|error| {
            tracing::warn!(id = self.job.id, %error, "the archive stays where it was staged");
            self.staged_archive()
        })
    }

    /// Gives it its name, and removes what it was made of.
    pub(super) async fn commit_archive(&mut self) -> Result<(), DumpCause> {
        let Some(wanted) = &self.job.options.archive else {
            return Ok(());
        };
        let (from, to) = (self.staged_archive(), wanted.path.clone());
        let staging = self.staging.root().to_owned();
        beside(self.staging.root(), move || {
            take_name(&from, &to)?;
            if let Err(error) = remove_tree(&staging) {
                tracing::warn!(%error, "the dump is complete, but not all is put away");
            }
            Ok(())
        })
        .await
    }
}

/// Never replaces what has come there meanwhile.
fn take_name(from: &Path, to: &Path) -> Result<(), DumpCause> {
    let flags = RenameFlags::RENAME_NOREPLACE;
    match renameat2(AT_FDCWD, from, AT_FDCWD, to, flags) {
        Err(nix::Error::EEXIST) => return Err(DumpCause::Exists(to.to_owned())),
        // File systems without that flag: what is there is looked for instead.
        Err(nix::Error::EINVAL) if to.symlink_metadata().is_err() => {
            std::fs::rename(from, to).map_err(DumpCause::files("move into place", from))?;
        }
        other => other.map_err(|errno| DumpCause::files("move into place", from)(errno.into()))?,
    }
    let parent = to.parent().unwrap_or(Path::new("/"));
    if let Err(error) = File::open(parent).and_then(|parent| parent.sync_all()) {
        tracing::warn!(dump = %to.display(), %error, "the dump is complete, but may not be on the disk yet");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn an_archive_takes_the_place_of_nothing() {
        let home = tempfile::tempdir().expect("a temporary directory");
        let (from, to) = (home.path().join("archive"), home.path().join("saved.tar.zst"));
        fs::write(&from, "new").expect("written");
        fs::write(&to, "precious").expect("written");
        assert!(matches!(take_name(&from, &to), Err(DumpCause::Exists(_))));
        assert_eq!(fs::read(&to).expect("read"), b"precious");
        fs::remove_file(&to).expect("removed");
        take_name(&from, &to).expect("renamed");
        assert_eq!(fs::read(&to).expect("read"), b"new");
    }
}
