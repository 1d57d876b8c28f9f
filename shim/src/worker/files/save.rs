//! Saves the files of a container that stands still.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use oci_bundles::archive::ArchiveError;
use oci_bundles::layout::{Extra, Layout, Shape};
use oci_bundles::rootfs::Tree;
use oci_bundles::rootfs::make::{Made, make_of};

use super::shm::{self, mountinfo};
use super::{SaveOrder, Saved, layer};

/// Bytes written of a tar at once.
const WRITE_BYTES: usize = 256 << 10;

/// Names told of files that a layer cannot say, and the bytes of all of them: as JSON each may take six.
const NAMES_MAX: usize = 100;
const NAMES_BYTES_MAX: usize = 16 << 10;

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
            Ok(made) => {
                saved.layer = true;
                saved.bytes += made.bytes;
                saved.unsayable = made.unsayable.len() as u64;
                saved.names = names(&made.unsayable);
            }
            Err(Why::Not(why)) => saved.no_layer = Some(why),
            Err(Why::Failed(error)) => return Err(error),
        }
    }
    if order.shm {
        match shm::of_container(&order.bundle, Some(order.init)) {
            Ok(None) => {}
            Ok(Some(source)) => match save_as(Tree::Own, source.path(), &to.extra(Extra::DevShm)) {
                Ok(made) => {
                    saved.shm = true;
                    saved.bytes += made.bytes;
                }
                Err(Why::Not(why)) => saved.no_shm = Some(why),
                Err(Why::Failed(error)) => return Err(error),
            },
            Err(why) => saved.no_shm = Some(why),
        }
    }
    Ok(saved)
}

/// Why files are not saved.
#[derive(Debug)]
enum Why {
    /// They are none that could be.
    Not(String),
    /// They should have been.
    Failed(String),
}

impl Why {
    fn failed(error: &dyn std::fmt::Display, path: &Path) -> Self {
        Self::Failed(format!("write {}: {error}", path.display()))
    }
}

fn save_layer(upper: &Path, to: &Layout) -> Result<Made, Why> {
    let made = save_as(Tree::Upper, upper, &to.extra(Extra::RootfsDiff))?;
    // podman's list, which it applies after the diff.
    if !made.deleted.is_empty() {
        let path = to.extra(Extra::DeletedFiles);
        let names: Vec<String> = made
            .deleted
            .iter()
            .map(|name| format!("/{}", name.display()))
            .collect();
        let text = serde_json::to_vec(&names).map_err(|error| Why::failed(&error, &path))?;
        std::fs::write(&path, text).map_err(|error| Why::failed(&error, &path))?;
    }
    Ok(made)
}

/// The first of these from the root on, as text, and not more than an answer takes.
fn names(paths: &[PathBuf]) -> Vec<String> {
    let mut bytes = 0;
    let names = paths
        .iter()
        .take(NAMES_MAX)
        .map(|path| format!("/{}", path.display()));
    names
        .take_while(|name| {
            bytes += name.len();
            bytes <= NAMES_BYTES_MAX
        })
        .collect()
}

/// Leaves nothing of what cannot be saved as such.
fn save_as(tree: Tree, from: &Path, to: &Path) -> Result<Made, Why> {
    match tar(tree, from, to) {
        Ok(made) => Ok(made),
        Err(ArchiveError::Unpackable { path, why }) => {
            std::fs::remove_file(to).map_err(|error| Why::failed(&error, to))?;
            Err(Why::Not(format!("{}: {why}", path.display())))
        }
        Err(error) => Err(Why::Failed(error.to_string())),
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_deep_is_not_saved_and_says_so() {
        let dir = tempfile::tempdir().expect("a directory");
        let (from, to) = (dir.path().join("shm"), dir.path().join("tar"));
        std::fs::create_dir_all(from.join("d/".repeat(200))).expect("directories");
        let saved = save_as(Tree::Own, &from, &to);
        assert!(
            matches!(&saved, Err(Why::Not(why)) if why.contains("too deep")),
            "{saved:?}"
        );
        assert!(!to.exists());
    }

    #[test]
    fn names_are_those_that_an_answer_takes() {
        let path = |length: usize| PathBuf::from("x".repeat(length));
        assert_eq!(names(&["d/.wh.a".into()]), ["/d/.wh.a"]);
        assert_eq!(names(&vec![path(10); 1000]).len(), NAMES_MAX);
        assert_eq!(names(&vec![path(4095); 1000]).len(), 4);
    }
}
