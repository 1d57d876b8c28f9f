//! `cedana.json` among the image files: what a restore has to know of the dump, and what belongs to it.
//!
//! CRIU wants some options of the dump again at the restore, and a client that restores does not know them. The file is
//! flat, so it survives every way an image directory travels (containerd tars it, CRI copies it file by file).
//! A dump without it, made by containerd's own shim, is restored from what its images tell.
//!
//! The file may come from anywhere: it can switch nothing on that reaches outside the container.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::path::Path;

use oci_bundles::archive::Left;
use oci_bundles::manifest::{BYTES_MAX, SCHEMA};
pub use oci_bundles::manifest::{Manifest, NAME};

use super::file::read_regular;
use super::images::ImageError;

/// Its name until it is complete.
const UNFINISHED: &str = ".cedana.json";

/// Writes it into an image directory, in place of an earlier one.
///
/// # Errors
/// What the file system says; the earlier one is as it was then.
pub fn write(dir: &Path, manifest: &Manifest) -> io::Result<()> {
    let unfinished = dir.join(UNFINISHED);
    let written = manifest.text().map_err(io::Error::from).and_then(|text| {
        File::create(&unfinished)?.write_all(&text)?;
        fs::rename(&unfinished, dir.join(NAME))
    });
    if written.is_err() {
        // Of the two errors the first one tells more.
        drop(fs::remove_file(&unfinished));
    }
    written
}

/// Reads the one of an image directory, and looks whether all that it lists is there, without reading it; an empty one if there
/// is none.
///
/// What was left in an archive counts as there.
///
/// CRIU reads a truncated file of pages again and again until somebody ends it: it must not come to that.
///
/// # Errors
/// It cannot be read, is damaged or newer than this shim, or a file is missing or has another size than it had.
pub fn read(dir: &Path, left: Option<&Left>) -> Result<Manifest, ImageError> {
    let path = dir.join(NAME);
    let text = match read_regular(&path, BYTES_MAX) {
        Ok(text) => text,
        Err(source) if source.kind() == ErrorKind::NotFound => return Ok(empty()),
        Err(source) => return Err(ImageError::Read { path, source }),
    };
    let of = |problem: String| ImageError::Manifest {
        dir: dir.to_owned(),
        problem,
    };
    let manifest = Manifest::parse(&text).map_err(|error| of(error.to_string()))?;
    let size_of = |name: &Path| {
        if let Some(size) = left.and_then(|left| left.size(name)) {
            return Some(size);
        }
        let metadata = fs::symlink_metadata(dir.join(name)).ok()?;
        metadata.is_file().then_some(metadata.len())
    };
    match manifest.misfit(size_of) {
        Some(difference) => Err(of(difference.to_string())),
        None => Ok(manifest),
    }
}

/// One that tells nothing.
pub fn empty() -> Manifest {
    Manifest {
        schema: SCHEMA,
        ..Manifest::default()
    }
}

#[cfg(test)]
mod tests {
    use oci_bundles::manifest::{Digest, Part};

    use super::*;

    #[test]
    fn what_was_written_is_read_and_nothing_is_empty() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        assert_eq!(read(dir.path(), None).expect("none"), empty());
        let manifest = Manifest {
            shell_job: true,
            stopped: vec![7],
            ..empty()
        };
        write(dir.path(), &empty()).expect("write");
        write(dir.path(), &manifest).expect("write");
        assert_eq!(read(dir.path(), None).expect("read"), manifest);
        assert_eq!(fs::read_dir(dir.path()).expect("list").count(), 1);
    }

    #[test]
    fn an_older_one_is_read_and_a_newer_or_damaged_one_refused() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        for (text, ok) in [
            (r#"{"schema": 1, "stopped": [3]}"#, true),
            (r#"{"schema": 2, "invented": [1]}"#, true),
            (r#"{"schema": 3}"#, false),
            (r#"{"schema": 1, "stopped": "all"}"#, false),
            ("", false),
        ] {
            fs::write(dir.path().join(NAME), text).expect("write");
            assert_eq!(read(dir.path(), None).is_ok(), ok, "{text}");
        }
    }

    #[test]
    fn a_file_that_is_cut_or_gone_is_named() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let pages = dir.path().join("pages-1.img");
        let manifest = Manifest {
            parts: vec![Part {
                path: "pages-1.img".into(),
                size: 4096,
                digest: Digest::Blake3([0; 32]),
            }],
            ..empty()
        };
        write(dir.path(), &manifest).expect("write");
        let told = |wanted: &str| {
            let said = read(dir.path(), None).expect_err(wanted).to_string();
            assert!(said.contains(wanted), "{said}");
        };
        told("pages-1.img is missing");
        fs::write(&pages, [0; 4000]).expect("write");
        told("pages-1.img has 4000 bytes instead of 4096");
        fs::write(&pages, [1; 4096]).expect("write");
        assert!(read(dir.path(), None).is_ok(), "digests are not looked at");
    }
}
