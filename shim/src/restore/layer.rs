//! The writable layer of a checkpoint in the place of the container's own.
//!
//! ```text
//!   <snapshot>/fs --rename--> <snapshot>/.fs.cedana-before      then: mount, restore
//!   rootfs-diff.tar --worker--> <snapshot>/fs (fresh)              it went well: the one before is removed
//!                                                                  it failed:    it is renamed back
//! ```
//!
//! Only where we mount the root file system ourselves, as containerd's clients have it: an overlay must not be mounted while its upper
//! directory is changed. It is replaced as a whole, whatever was in it, so that what a container did to its files after the dump
//! is undone by the restore like what it did to its memory. Where the client has it mounted already (docker's own storage), the layer
//! is put through the mount, and only into another container than the one that was dumped: in that one docker keeps the files as they are.
//!
//! A shim that dies meanwhile leaves both; [`mend`] puts the one before back when the container is made again.

use std::fs::{self, DirBuilder};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, chown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use jobs::record::{Key, Origin};
use oci_bundles::layout::{Extra, Layout};
use oci_bundles::mounts::Mount;

use super::RestoreCause;
use crate::criu::manifest::{self, Manifest};
use crate::reap::Reaper;
use crate::worker::errand::Errand;
use crate::worker::files::{Into, PUT_BACK, PutBack, PutBackOrder};

/// How long files may be put back; the rest of a restore has its own deadline.
const PUT_BACK_LIMIT: Duration = Duration::from_secs(60 * 60);

/// The word by which a manifest names a writable layer that is not saved.
pub(crate) const LAYER_NOT_SAVED: &str = "rootfs";

/// A layer that has taken the place of another.
#[derive(Debug)]
pub struct Replaced {
    upper: PathBuf,
}

/// The writable layer in a checkpoint of ours; none in one without, or in another tool's: they have ways of their own.
///
/// # Errors
/// The manifest is damaged.
pub fn of_checkpoint(checkpoint: &Path) -> Result<Option<PathBuf>, RestoreCause> {
    let Some(layout) = Layout::find(checkpoint) else {
        return Ok(None);
    };
    let manifest = manifest::read(layout.root())?;
    Ok(lists(&manifest, Extra::RootfsDiff).then(|| layout.extra(Extra::RootfsDiff)))
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

/// Puts the layer of an attempt that nobody brought to its end back.
///
/// # Errors
/// What the file system says.
pub fn mend(rootfs: &[Mount]) -> Result<(), RestoreCause> {
    match upper(rootfs) {
        Some(upper) if before(&upper).exists() => Replaced { upper }.put_back(),
        _ => Ok(()),
    }
}

impl Replaced {
    /// Has a worker put the diff into a fresh directory in the place of `upper`.
    ///
    /// # Errors
    /// It is hostile or damaged, or what the disk says. Everything is as it was then.
    pub async fn with(
        reaper: &Reaper,
        diff: PathBuf,
        upper: PathBuf,
        bundle: &Path,
    ) -> Result<Self, RestoreCause> {
        renew(&upper).map_err(RestoreCause::files("make room for the saved layer in", &upper))?;
        let replaced = Self { upper };
        let order = PutBackOrder {
            tar: diff,
            to: replaced.upper.clone(),
            into: Into::Upper,
            bundle: bundle.to_owned(),
        };
        match put_back(reaper, &order, PUT_BACK_LIMIT).await {
            Ok(()) => Ok(replaced),
            Err(cause) => {
                replaced.put_back()?;
                Err(cause)
            }
        }
    }

    /// The restore went well.
    pub fn keep(self) {
        let before = before(&self.upper);
        if let Err(error) = fs::remove_dir_all(&before) {
            tracing::warn!(layer = %before.display(), %error, "the layer that was replaced stays");
        }
    }

    /// It did not: the layer that was there is there again. Nothing may have it mounted.
    ///
    /// # Errors
    /// What the file system says.
    pub fn put_back(self) -> Result<(), RestoreCause> {
        let removed = match fs::remove_dir_all(&self.upper) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
            _ => fs::rename(before(&self.upper), &self.upper),
        };
        removed.map_err(RestoreCause::files("put back", &self.upper))
    }
}

/// Has a worker put files back.
pub(super) async fn put_back(
    reaper: &Reaper,
    order: &PutBackOrder,
    limit: Duration,
) -> Result<(), RestoreCause> {
    let done: PutBack = Errand::start(reaper, PUT_BACK, order)?.answer(limit).await?;
    if !done.left_out.is_empty() {
        tracing::warn!(to = %order.to.display(), devices = ?done.left_out, "devices of the checkpoint that the container may not have are left out");
    }
    Ok(())
}

/// Where the layer of before is: beside it, on the same file system, and gone with the snapshot.
fn before(upper: &Path) -> PathBuf {
    let mut name = std::ffi::OsString::from(".");
    name.push(upper.file_name().unwrap_or_default());
    name.push(".cedana-before");
    upper.with_file_name(name)
}

/// Puts the directory aside and makes an empty one like it.
fn renew(upper: &Path) -> io::Result<()> {
    let (was, before) = (fs::metadata(upper)?, before(upper));
    fs::rename(upper, &before)?;
    let made = DirBuilder::new().mode(was.mode() & 0o7777).create(upper);
    made.and_then(|()| chown(upper, Some(was.uid()), Some(was.gid())))
        .inspect_err(|_| {
            // Of the two errors the first one tells more.
            drop(fs::remove_dir(upper).and_then(|()| fs::rename(&before, upper)));
        })
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

    #[test]
    fn a_layer_is_put_aside_and_back() {
        let dir = tempfile::tempdir().expect("a directory");
        let upper = dir.path().join("fs");
        fs::create_dir(&upper).expect("a directory");
        fs::write(upper.join("was"), "").expect("a file");
        let rootfs = overlay(&upper);
        assert_eq!(super::upper(&rootfs), Some(upper.clone()));
        mend(&rootfs).expect("nothing to do");
        for ends_well in [false, true] {
            renew(&upper).expect("aside");
            fs::write(upper.join("is"), "").expect("a file");
            let replaced = Replaced { upper: upper.clone() };
            match ends_well {
                true => replaced.keep(),
                // As the next one does it who makes the container, after a shim that died.
                false => mend(&rootfs).expect("put back"),
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
