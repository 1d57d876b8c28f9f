//! Removes the files of a checkpoint. The registry is only an index, so what it points at must look like one.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;

use oci_bundles::archive::{self, Form};
use oci_bundles::checkpoint;
use oci_bundles::layout::{INVENTORY, Layout, Shape};
use oci_bundles::manifest::{NAME, Part};

use crate::error::Error;

/// Removes them. A directory may have files of somebody else's beside those that its manifest lists: they stay, and it with them.
///
/// # Errors
/// It is none, or the file system's.
pub fn remove(path: &Path) -> Result<(), Error> {
    let removed = match archive::detect(path) {
        Ok(Form::Directory) if is_checkpoint(path) => directory(path),
        Ok(Form::Directory) => {
            return Err(Error::failed(format!(
                "{} has no process images: it is left alone",
                path.display()
            )));
        }
        Ok(_) => fs::remove_file(path),
        Err(problem) => return Err(Error::failed(problem.to_string())),
    };
    removed.map_err(|source| Error::failed(format!("remove {}: {source}", path.display())))
}

fn is_checkpoint(directory: &Path) -> bool {
    // A link would have us empty what it points at.
    let real = fs::symlink_metadata(directory).is_ok_and(|facts| facts.is_dir());
    real && (Layout::find(directory).is_some() || matches!(checkpoint::manifest(directory), Ok(Some(_))))
}

fn directory(dir: &Path) -> io::Result<()> {
    let parts = match checkpoint::manifest(dir) {
        Ok(Some(manifest)) if !manifest.parts.is_empty() => manifest.parts,
        // It cannot say what belongs to it.
        _ => return fs::remove_dir_all(dir),
    };
    // The inventory first: nobody takes what is left for a checkpoint. The manifest last: it says what is left to be removed.
    let shape = Layout::find(dir).map_or(Shape::Flat, |layout| layout.shape());
    gone(fs::remove_file(dir.join(shape.image(INVENTORY))))?;
    for Part { path, .. } in &parts {
        gone(fs::remove_file(dir.join(path)))?;
    }
    // The directories that its parts were in.
    let inner = parts.iter().filter_map(|part| part.path.parent());
    let inner: BTreeSet<&Path> = inner.filter(|path| !path.as_os_str().is_empty()).collect();
    for path in inner.into_iter().rev() {
        gone(empty(fs::remove_dir(dir.join(path))))?;
    }
    gone(fs::remove_file(dir.join(NAME)))?;
    empty(fs::remove_dir(dir))
}

/// A directory that is not empty has files of somebody else's, and stays.
fn empty(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
        other => other,
    }
}

fn gone(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use oci_bundles::manifest::{Digest, Manifest};

    use super::*;

    #[test]
    fn only_what_looks_like_a_checkpoint_is_removed() {
        let dir = tempfile::tempdir().expect("a directory");
        let make = |name: &str, file: &str| {
            let path = dir.path().join(name);
            fs::create_dir(&path).expect("a directory");
            fs::write(path.join(file), "").expect("a file");
            path
        };
        let saved = make("saved", INVENTORY);
        let other = make("home", "letter");
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&saved, &link).expect("a link");
        let text = dir.path().join("text");
        fs::write(&text, "no archive").expect("a file");
        for path in [&other, &link, &text, &dir.path().join("nowhere")] {
            assert!(remove(path).is_err(), "{}", path.display());
        }
        assert!(other.join("letter").exists() && saved.exists() && text.exists());
        remove(&saved).expect("removed");
        assert!(!saved.exists());
    }

    #[test]
    fn what_is_not_listed_stays() {
        let dir = tempfile::tempdir().expect("a directory");
        let part = |name: &str| Part {
            path: name.into(),
            size: 0,
            digest: Digest::Blake3([0; 32]),
        };
        let manifest = Manifest {
            parts: vec![part(INVENTORY), part("core-1.img")],
            ..Manifest::default()
        };
        let make = |files: &[&str]| {
            let path = dir.path().join("saved");
            fs::create_dir_all(&path).expect("a directory");
            fs::write(path.join(NAME), manifest.text().expect("text")).expect("a file");
            for file in files {
                fs::write(path.join(file), "").expect("a file");
            }
            path
        };
        let saved = make(&[INVENTORY, "core-1.img", "letter"]);
        remove(&saved).expect("removed");
        let left: Vec<_> = fs::read_dir(&saved)
            .expect("list")
            .flatten()
            .map(|entry| entry.file_name())
            .collect();
        assert_eq!(left, ["letter"]);
        fs::remove_file(saved.join("letter")).expect("removed");
        // One in the nested shape.
        let nested = dir.path().join("nested");
        fs::create_dir_all(nested.join("checkpoint")).expect("a directory");
        let inventory = Shape::Nested.image(INVENTORY);
        let listed = Manifest {
            parts: vec![part("checkpoint/inventory.img"), part("config.dump")],
            ..Manifest::default()
        };
        fs::write(nested.join(NAME), listed.text().expect("text")).expect("a file");
        for file in [&inventory, Path::new("config.dump")] {
            fs::write(nested.join(file), "").expect("a file");
        }
        remove(&nested).expect("removed");
        assert!(!nested.exists());
        // As an interrupted removal leaves it.
        let saved = make(&["core-1.img"]);
        remove(&saved).expect("removed");
        assert!(!saved.exists());
    }
}
