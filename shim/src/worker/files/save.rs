//! Saves the files of a container that stands still.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::ops::ControlFlow;
use std::path::Path;

use oci_bundles::archive::ArchiveError;
use oci_bundles::layout::{Extra, Layout, Shape};
use oci_bundles::rootfs::Tree;
use oci_bundles::rootfs::make::{Made, make_of};

use super::shm::{self, mountinfo};
use super::{SaveOrder, Saved, layer};

/// Bytes written of a tar at once.
const WRITE_BYTES: usize = 256 << 10;

/// Does the order. What cannot be saved as such is told in the answer; what fails on the way, a full disk, fails the dump.
///
/// # Errors
/// What failed, for people.
pub(in crate::worker) fn save(order: SaveOrder) -> Result<Saved, String> {
    let mut saved = Saved::default();
    // Everything but the images lies at the root in either shape.
    let to = Layout::new(&order.root, Shape::Flat);
    if order.layer {
        match layer::upper(&mountinfo(&order.init.to_string()))
            .map_err(Why::Not)
            .and_then(|upper| save_layer(&upper, &to))
        {
            Ok(()) => saved.layer = true,
            Err(Why::Not(why)) => saved.no_layer = Some(why),
            Err(Why::Failed(error)) => return Err(error),
        }
    }
    if order.shm {
        match shm::of_container(&order.bundle, Some(order.init)) {
            Ok(None) => {}
            Ok(Some(source)) => {
                let _made =
                    tar(Tree::Own, &source, &to.extra(Extra::DevShm)).map_err(|error| error.to_string())?;
                saved.shm = true;
            }
            Err(why) => saved.no_shm = Some(why),
        }
    }
    Ok(saved)
}

/// Why there is no layer.
enum Why {
    /// It is none that could be saved.
    Not(String),
    /// It should have been.
    Failed(String),
}

fn save_layer(upper: &Path, to: &Layout) -> Result<(), Why> {
    let diff = to.extra(Extra::RootfsDiff);
    let failed = |error: &dyn std::fmt::Display, path: &Path| {
        Why::Failed(format!("write {}: {error}", path.display()))
    };
    let made = match tar(Tree::Upper, upper, &diff) {
        Ok(made) => made,
        Err(ArchiveError::Unpackable { path, why }) => {
            std::fs::remove_file(&diff).map_err(|error| failed(&error, &diff))?;
            return Err(Why::Not(format!("{}: {why}", path.display())));
        }
        Err(error) => return Err(Why::Failed(error.to_string())),
    };
    // podman's list, which it applies after the diff.
    if !made.deleted.is_empty() {
        let path = to.extra(Extra::DeletedFiles);
        let names: Vec<String> = made
            .deleted
            .iter()
            .map(|name| format!("/{}", name.display()))
            .collect();
        let text = serde_json::to_vec(&names).map_err(|error| failed(&error, &path))?;
        std::fs::write(&path, text).map_err(|error| failed(&error, &path))?;
    }
    Ok(())
}

fn tar(tree: Tree, from: &Path, to: &Path) -> Result<Made, ArchiveError> {
    let failed = |source| ArchiveError::Storage {
        action: "write",
        path: to.to_owned(),
        source,
    };
    let file = File::create(to).map_err(failed)?;
    let out = BufWriter::with_capacity(WRITE_BYTES, file);
    let (made, mut out) = make_of(tree, from, out, &mut |_| ControlFlow::Continue(()))?;
    out.flush().map_err(failed)?;
    Ok(made)
}
