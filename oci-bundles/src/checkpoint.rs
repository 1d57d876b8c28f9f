//! A checkpoint on disk, in whatever form: its manifest, whether it is as it was made, and from one form into another.
//!
//! ```text
//!  <path> --manifest--> what it says of itself      little is read
//!         --verify----> how it differs from that    all is read
//!         --convert---> <other>                     compared with the manifest before it gets its name
//! ```

mod convert;
mod verify;

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;

use crate::archive::{self, ArchiveError, Form, Limits};
use crate::layout::{Extra, INVENTORY, Layout, Shape};
use crate::manifest::{self, Difference, Manifest, ManifestError};

pub use convert::{Converted, convert};
pub use verify::{Verdict, parts, verify};

/// Where in an archive the manifest is looked for, in bytes: all files of less than 1 MiB stand before the memory.
const WITHIN: u64 = 256 << 20;

/// The most that is read of an inventory to see that there is one.
const INVENTORY_BYTES_MAX: u64 = 8 << 20;

/// Why a checkpoint cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// It cannot be read, packed or unpacked.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// Its manifest is not for us.
    #[error("use {}: {source}", path.display())]
    Manifest {
        /// The checkpoint.
        path: PathBuf,
        /// What is wrong with it.
        source: ManifestError,
    },
    /// There are no process images in it.
    #[error("use {}: it is no checkpoint: it has no {INVENTORY}", .0.display())]
    NoCheckpoint(PathBuf),
    /// It is not as it was made.
    #[error("use {}: it is damaged: {first}{}", path.display(), more(*.count))]
    Damaged {
        /// The checkpoint.
        path: PathBuf,
        /// How it differs from its manifest.
        first: Box<Difference>,
        /// In how many files.
        count: usize,
    },
}

fn more(count: usize) -> String {
    match count {
        0 | 1 => String::new(),
        many => format!(", and {} more", many - 1),
    }
}

/// The manifest of a checkpoint; none in one of another tool's.
///
/// # Errors
/// It cannot be read, is damaged, or from the future.
pub fn manifest(path: &Path) -> Result<Option<Manifest>, CheckpointError> {
    let text = match archive::detect(path)? {
        Form::Directory => {
            let file = path.join(manifest::NAME);
            match small(&file, manifest::BYTES_MAX) {
                Ok(text) => Some(text),
                Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                Err(error) => return Err(ArchiveError::storage("read", &file, error).into()),
            }
        }
        _ => archive::read_file(path, Path::new(manifest::NAME), manifest::BYTES_MAX, WITHIN)?,
    };
    parse(path, text.as_deref())
}

/// A small part that is no process image, whole; none in a checkpoint without it.
///
/// # Errors
/// It cannot be read, or is larger than it may be.
pub fn extra(path: &Path, extra: Extra, bytes_max: u64) -> Result<Option<Vec<u8>>, CheckpointError> {
    if archive::detect(path)? != Form::Directory {
        let name = Path::new(extra.name());
        // Others' archives have their small files behind the memory.
        return Ok(archive::read_file(
            path,
            name,
            bytes_max,
            Limits::default().bytes_max,
        )?);
    }
    let file = path.join(extra.name());
    match small(&file, bytes_max) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(ArchiveError::storage("read", &file, error).into()),
    }
}

/// Whether this looks like a whole checkpoint, as far as can be told without reading its memory: its inventory is there, and
/// in a directory every file has the size that the manifest says.
///
/// # Errors
/// What is missing, or what cannot be read.
pub fn look(path: &Path) -> Result<Option<Manifest>, CheckpointError> {
    let found = manifest(path)?;
    match archive::detect(path)? {
        Form::Directory => {
            let size_of = |name: &Path| size(&path.join(name));
            if Layout::find(path).is_none() {
                return Err(CheckpointError::NoCheckpoint(path.to_owned()));
            }
            if let Some(first) = found.as_ref().and_then(|manifest| manifest.misfit(size_of)) {
                let (path, first, count) = (path.to_owned(), Box::new(first), 1);
                return Err(CheckpointError::Damaged { path, first, count });
            }
        }
        // One with a manifest was packed from a directory that had all, and read back.
        _ if found.is_some() => {}
        _ => {
            if archive_shape(path)?.is_none() {
                return Err(CheckpointError::NoCheckpoint(path.to_owned()));
            }
        }
    }
    Ok(found)
}

/// The shape of an archive without a manifest. It is read until there is an inventory.
fn archive_shape(path: &Path) -> Result<Option<Shape>, ArchiveError> {
    for shape in Shape::ALL {
        let inventory = shape.image(INVENTORY);
        if archive::read_file(path, &inventory, INVENTORY_BYTES_MAX, WITHIN)?.is_some() {
            return Ok(Some(shape));
        }
    }
    Ok(None)
}

fn parse(path: &Path, text: Option<&[u8]>) -> Result<Option<Manifest>, CheckpointError> {
    let parsed = text.map(Manifest::parse).transpose();
    parsed.map_err(|source| CheckpointError::Manifest {
        path: path.to_owned(),
        source,
    })
}

/// The size of a regular file.
fn size(path: &Path) -> Option<u64> {
    let metadata = fs::symlink_metadata(path).ok()?;
    metadata.is_file().then_some(metadata.len())
}

/// Opens a regular file, and waits for nothing else.
fn open(path: &Path) -> io::Result<File> {
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
    let file = File::options().read(true).custom_flags(flags.bits()).open(path)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")),
    }
}

fn small(path: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    let _bytes = open(path)?.take(bytes_max).read_to_end(&mut text)?;
    Ok(text)
}

#[cfg(test)]
mod samples {
    use std::fs;
    use std::path::{Path, PathBuf};

    use crate::manifest::{Digest, Manifest, NAME, Part};

    /// The same checkpoint in the nested shape.
    pub fn nest(dir: &Path) {
        let text = fs::read(dir.join(NAME)).expect("a manifest");
        let mut manifest = Manifest::parse(&text).expect("a manifest");
        fs::create_dir(dir.join("checkpoint")).expect("a directory");
        for part in &mut manifest.parts {
            let nested = Path::new("checkpoint").join(&part.path);
            fs::rename(dir.join(&part.path), dir.join(&nested)).expect("moved");
            part.path = nested;
        }
        fs::write(dir.join(NAME), manifest.text().expect("text")).expect("a manifest");
    }

    /// A checkpoint of three files in a directory.
    pub fn directory(at: &Path) -> PathBuf {
        let dir = at.join("saved");
        fs::create_dir(&dir).expect("a directory");
        let files = [
            ("inventory.img", b"inventory".to_vec()),
            ("core-1.img", vec![1; 5000]),
            ("pages-1.img", vec![2; 3 << 20]),
        ];
        let part = |(name, bytes): &(&str, Vec<u8>)| {
            fs::write(dir.join(name), bytes).expect("a file");
            Part {
                path: name.into(),
                size: bytes.len() as u64,
                digest: Digest::Blake3(*blake3::hash(bytes).as_bytes()),
            }
        };
        let manifest = Manifest {
            parts: files.iter().map(part).collect(),
            ..Manifest::default()
        };
        fs::write(dir.join(NAME), manifest.text().expect("text")).expect("a manifest");
        dir
    }
}

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;

    use super::*;

    #[test]
    fn a_checkpoint_is_told_from_what_is_none_without_reading_it() {
        let temporary = tempfile::tempdir().expect("a directory");
        let dir = samples::directory(temporary.path());
        assert_eq!(look(&dir).expect("whole").expect("a manifest").parts.len(), 3);
        let packed = temporary.path().join("saved.tar.lz4");
        let _packed =
            archive::pack(&dir, &packed, Form::Lz4, &mut |_| ControlFlow::Continue(())).expect("packed");
        assert_eq!(look(&packed).expect("whole").expect("a manifest").parts.len(), 3);

        // A digest is not looked at, a size is.
        fs::write(dir.join("core-1.img"), [9; 5000]).expect("a file");
        assert!(look(&dir).is_ok());
        fs::write(dir.join("core-1.img"), [9; 4999]).expect("a file");
        let said = look(&dir).expect_err("damaged").to_string();
        assert!(
            said.ends_with("core-1.img has 4999 bytes instead of 5000"),
            "{said}"
        );
        fs::write(dir.join("core-1.img"), [1; 5000]).expect("a file");
        samples::nest(&dir);
        assert_eq!(look(&dir).expect("whole").expect("a manifest").parts.len(), 3);
        fs::write(dir.join("checkpoint/core-1.img"), [9; 4999]).expect("a file");
        assert!(matches!(look(&dir), Err(CheckpointError::Damaged { .. })));
        fs::remove_file(dir.join(manifest::NAME)).expect("removed");
        assert!(look(&dir).expect("of another tool").is_none());
        let bare = temporary.path().join("bare.tar");
        let _packed =
            archive::pack(&dir, &bare, Form::Tar, &mut |_| ControlFlow::Continue(())).expect("packed");
        assert!(look(&bare).expect("of another tool").is_none());
        fs::remove_file(dir.join("checkpoint").join(INVENTORY)).expect("removed");
        assert!(matches!(look(&dir), Err(CheckpointError::NoCheckpoint(_))));
        fs::write(dir.join(manifest::NAME), r#"{"schema": 9}"#).expect("a file");
        assert!(matches!(look(&dir), Err(CheckpointError::Manifest { .. })));
        fs::write(&packed, "nothing").expect("a file");
        assert!(matches!(look(&packed), Err(CheckpointError::Archive(_))));
    }
}
