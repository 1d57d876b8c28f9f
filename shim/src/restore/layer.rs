//! The writable layer of a checkpoint in the place of the container's own.
//!
//! ```text
//!   <snapshot>/fs --rename--> <snapshot>/.fs.cedana-before      then: mount, restore
//!   rootfs-diff.tar --worker--> <snapshot>/fs (fresh)              it went well: the one before is renamed to .fs.cedana-gone,
//!                                                                                and removed when there is time
//!                                                                  it failed:    it is renamed back
//! ```
//!
//! Invariant: what is called `before` is a whole layer, and the container has not run on the other one. What is being removed has
//! another name, so that a removal that is cut short leaves nothing that [`mend`] would take for a layer.
//!
//! Only where we mount the root file system ourselves, as containerd's clients have it: an overlay must not be mounted while its upper
//! directory is changed. It is replaced as a whole, whatever was in it, so that what a container did to its files after the dump
//! is undone by the restore like what it did to its memory. Where the client has it mounted already (docker's own storage), the layer
//! is put through the mount, and only into another container than the one that was dumped: in that one docker keeps the files as they are.
//!
//! Another engine's diff does not have every directory that it changes something in. It is put through the mount, too, by the phase
//! [of the restore](super::files) for that; where we mount, over an upper directory that is fresh and empty.
//!
//! A shim that dies meanwhile leaves both; [`mend`] puts the one before back when the container is made again, and names what a
//! removal has left.

mod aside;

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jobs::record::{Key, Origin};
use oci_bundles::archive::Left;
use oci_bundles::layout::{Extra, Layout};
use oci_bundles::mounts::Mount;

use super::RestoreCause;
use crate::criu::manifest::{self, Manifest};
use crate::reap::Reaper;
use crate::worker::errand::{Errand, Limit};
use crate::worker::files::{Into, PUT_BACK, PutBack, PutBackOrder};

pub use aside::remove;

/// How long a worker that puts files back may stand still; how many there are is known only when they are.
const STILL_MAX: Duration = Duration::from_secs(60);

/// The word by which a manifest names a writable layer that is not saved.
pub(crate) const LAYER_NOT_SAVED: &str = "rootfs";

/// A layer that has taken the place of another.
#[derive(Debug)]
pub struct Replaced {
    upper: PathBuf,
    is_filled: bool,
}

/// The writable layer in a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Saved {
    /// A diff of ours, which makes a whole upper directory.
    Layer(PathBuf),
    /// Another engine's, which needs the image below it.
    Foreign,
}

/// The writable layer in a checkpoint; none in one without.
///
/// # Errors
/// The manifest is damaged.
pub fn of_checkpoint(checkpoint: &Path, left: Option<&Path>) -> Result<Option<Saved>, RestoreCause> {
    let Some(layout) = Layout::find(checkpoint) else {
        return Ok(None);
    };
    if layout.is_foreign() {
        return Ok(has_foreign(&layout).then_some(Saved::Foreign));
    }
    let left = left.map(Left::read).transpose()?;
    let manifest = manifest::read(layout.root(), left.as_ref())?;
    let diff = || Saved::Layer(layout.extra(Extra::RootfsDiff));
    Ok(lists(&manifest, Extra::RootfsDiff).then(diff))
}

/// Whether another engine has saved what its container changed in the root file system.
pub(super) fn has_foreign(layout: &Layout) -> bool {
    layout.is_foreign() && (layout.has(Extra::RootfsDiff) || layout.has(Extra::DeletedFiles))
}

/// Whether a part is in the checkpoint that this manifest is of. For podman every one has a diff; where the layer is not saved it has
/// only the root's permissions, and the manifest names the layer as not saved: in its place that would be an empty one.
pub(super) fn lists(manifest: &Manifest, extra: Extra) -> bool {
    if extra == Extra::RootfsDiff && manifest.not_saved.iter().any(|one| one.kind == LAYER_NOT_SAVED) {
        return false;
    }
    manifest
        .parts
        .iter()
        .any(|part| part.path == Path::new(extra.name()))
}

/// Whether the checkpoint is of this container.
pub(super) fn is_of(manifest: &Manifest, key: &Key) -> bool {
    let origin: Option<Origin> = manifest
        .origin
        .clone()
        .and_then(|origin| serde_json::from_value(origin).ok());
    origin.is_some_and(|origin| origin.key == *key)
}

/// The upper directory of a root file system that is one overlay, not mounted yet.
pub fn upper(rootfs: &[Mount]) -> Option<PathBuf> {
    let [mount] = rootfs else { return None };
    let upper = mount
        .options
        .iter()
        .find_map(|option| option.strip_prefix("upperdir="));
    upper.filter(|_| mount.kind == "overlay").map(PathBuf::from)
}

/// Puts the layer of an attempt that nobody brought to its end back. Names what is left of those that were replaced, for [`remove`].
///
/// # Errors
/// What the file system says.
pub fn mend(rootfs: &[Mount]) -> Result<Vec<PathBuf>, RestoreCause> {
    let Some(upper) = upper(rootfs) else {
        return Ok(Vec::new());
    };
    if aside::before(&upper).exists() {
        let replaced = Replaced {
            upper: upper.clone(),
            is_filled: false,
        };
        replaced.put_back()?;
    }
    Ok(aside::given_up(&upper))
}

impl Replaced {
    /// Puts a fresh directory in the place of `upper`, and has a worker put a diff of ours into that.
    ///
    /// # Errors
    /// It is hostile or damaged, or what the disk says. Everything is as it was then.
    pub async fn with(
        reaper: &Reaper,
        saved: Saved,
        upper: PathBuf,
        bundle: &Path,
        said: Duration,
    ) -> Result<Self, RestoreCause> {
        aside::renew(&upper).map_err(RestoreCause::files("make room for the saved layer in", &upper))?;
        let mut replaced = Self {
            upper,
            is_filled: false,
        };
        let Saved::Layer(diff) = saved else {
            return Ok(replaced);
        };
        let order = PutBackOrder {
            tar: Some(diff),
            deleted: None,
            to: replaced.upper.clone(),
            into: Into::Upper,
            bundle: bundle.to_owned(),
        };
        match put_back(reaper, &order, said).await {
            Ok(()) => {
                replaced.is_filled = true;
                Ok(replaced)
            }
            Err(cause) => {
                replaced.put_back()?;
                Err(cause)
            }
        }
    }

    /// Whether what was saved is there, and has not to be put through the mount.
    pub fn is_filled(&self) -> bool {
        self.is_filled
    }

    /// The restore went well: what was there before is no layer any more, and to be [removed](remove).
    pub fn keep(self) -> Option<PathBuf> {
        aside::give_up(&self.upper)
            .inspect_err(|error| {
                let layer = aside::before(&self.upper);
                tracing::error!(
                    layer = %layer.display(), %error,
                    "the layer that was replaced cannot be renamed: remove it, or the next create puts it back"
                );
            })
            .ok()
    }

    /// It did not: the layer that was there is there again. Nothing may have it mounted.
    ///
    /// # Errors
    /// What the file system says.
    pub fn put_back(self) -> Result<(), RestoreCause> {
        let removed = match fs::remove_dir_all(&self.upper) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
            _ => fs::rename(aside::before(&self.upper), &self.upper),
        };
        removed.map_err(RestoreCause::files("put back", &self.upper))
    }
}

/// Has a worker put files back, within the time that is said, or as long as it moves.
pub(super) async fn put_back(
    reaper: &Reaper,
    order: &PutBackOrder,
    said: Duration,
) -> Result<(), RestoreCause> {
    let limit = match said {
        Duration::ZERO => Limit::Still(STILL_MAX),
        said => Limit::Whole(said),
    };
    let done: PutBack = Errand::start(reaper, PUT_BACK, order)?.answer(limit).await?;
    if done.left_out > 0 {
        tracing::warn!(to = %order.to.display(), count = done.left_out, first = ?done.names, "devices of the checkpoint that the container may not have are left out");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn overlay(upper: &Path) -> Vec<Mount> {
        vec![Mount {
            kind: "overlay".to_owned(),
            options: vec!["lowerdir=/l".to_owned(), format!("upperdir={}", upper.display())],
            ..Mount::default()
        }]
    }

    fn replaced(upper: &Path) -> Replaced {
        Replaced {
            upper: upper.to_owned(),
            is_filled: true,
        }
    }

    #[test]
    fn what_another_engine_saved_is_told_by_the_layout() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = |name: &str| dir.path().join(name);
        fs::create_dir(path("checkpoint")).expect("a directory");
        fs::write(path("checkpoint/inventory.img"), "").expect("a file");
        let saved = || of_checkpoint(dir.path(), None).expect("read");
        assert_eq!(saved(), None);
        for name in ["deleted.files", "rootfs-diff.tar"] {
            fs::write(path(name), "").expect("a file");
            assert_eq!(saved(), Some(Saved::Foreign), "{name}");
        }
        // A diff that our manifest does not list is none.
        fs::write(path(manifest::NAME), r#"{"schema": 2}"#).expect("a file");
        assert_eq!(saved(), None);
        assert_eq!(
            of_checkpoint(&path("checkpoint"), None).expect("read"),
            None,
            "CRI's way"
        );
    }

    #[test]
    fn a_layer_is_put_aside_and_back() {
        let dir = tempfile::tempdir().expect("a directory");
        let upper = dir.path().join("fs");
        fs::create_dir(&upper).expect("a directory");
        fs::write(upper.join("was"), "").expect("a file");
        let rootfs = overlay(&upper);
        assert_eq!(super::upper(&rootfs), Some(upper.clone()));
        assert!(mend(&rootfs).expect("nothing to do").is_empty());
        for ends_well in [false, true] {
            aside::renew(&upper).expect("aside");
            fs::write(upper.join("is"), "").expect("a file");
            let replaced = replaced(&upper);
            match ends_well {
                true => remove(&replaced.keep().expect("renamed")),
                // As the next one does it who makes the container, after a shim that died.
                false => assert!(mend(&rootfs).expect("put back").is_empty()),
            }
            assert_eq!(upper.join("is").exists(), ends_well);
            assert_eq!(upper.join("was").exists(), !ends_well);
            assert_eq!(fs::read_dir(dir.path()).expect("listed").count(), 1);
        }
        assert_eq!(super::upper(&[]), None);
        let bind = Mount {
            kind: "bind".to_owned(),
            ..Mount::default()
        };
        assert_eq!(super::upper(&[bind]), None);
    }

    #[test]
    fn what_a_removal_has_left_is_never_put_back() {
        let dir = tempfile::tempdir().expect("a directory");
        let upper = dir.path().join("fs");
        fs::create_dir(&upper).expect("a directory");
        let rootfs = overlay(&upper);
        // One restore after the other, and no removal comes to its end.
        let mut left = Vec::new();
        for round in ["0", "1", "2"] {
            fs::write(upper.join(round), "").expect("a file");
            aside::renew(&upper).expect("aside");
            left.push(replaced(&upper).keep().expect("renamed"));
        }
        fs::write(upper.join("live"), "").expect("a file");
        let mut named = mend(&rootfs).expect("nothing is put back");
        named.sort();
        assert_eq!(named, left);
        let live: Vec<_> = fs::read_dir(&upper)
            .expect("listed")
            .flatten()
            .map(|entry| entry.file_name())
            .collect();
        assert_eq!(live, ["live"]);
        named.iter().for_each(|gone| remove(gone));
        assert_eq!(fs::read_dir(dir.path()).expect("listed").count(), 1);
        // As if another had been quicker.
        remove(&left[0]);
    }

    #[test]
    fn a_diff_of_a_layer_that_is_not_saved_is_none() {
        let part = oci_bundles::manifest::Part {
            path: Extra::RootfsDiff.name().into(),
            size: 0,
            digest: oci_bundles::manifest::Digest::Blake3([0; 32]),
        };
        let mut manifest = Manifest {
            parts: vec![part],
            ..manifest::empty()
        };
        assert!(lists(&manifest, Extra::RootfsDiff));
        assert!(!lists(&manifest, Extra::DevShm));
        manifest.not_saved.push(oci_bundles::manifest::NotSaved {
            kind: LAYER_NOT_SAVED.to_owned(),
            path: "/".into(),
            source: String::new(),
        });
        assert!(!lists(&manifest, Extra::RootfsDiff));
    }
}
