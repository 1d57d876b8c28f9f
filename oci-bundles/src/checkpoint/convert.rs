//! A checkpoint from one form into another.

use std::fs::{self, File};
use std::path::Path;

use super::verify::part;
use super::{CheckpointError, look};
use crate::archive::partial::Partial;
use crate::archive::{self, ArchiveError, Form, Limits, OnProgress};
use crate::manifest::{Manifest, Part};

/// What was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Converted {
    /// The form it was in.
    pub from: Form,
    /// Bytes it takes now.
    pub bytes: u64,
    /// Its files were compared with the digests of a manifest.
    pub is_vouched_for: bool,
}

/// Makes the same checkpoint in another form, at a path where nothing is. It is on the disk, and is what the manifest says, when
/// this returns; the first one is as it was.
///
/// # Errors
/// The first one is damaged, is of that form already, or cannot be read; there is no room. Nothing is left then.
pub fn convert(
    path: &Path,
    dest: &Path,
    form: Form,
    limits: &Limits,
    on_progress: &mut OnProgress<'_>,
) -> Result<Converted, CheckpointError> {
    let from = archive::detect(path)?;
    let manifest = look(path)?;
    let bytes = match (from, form) {
        (one, other) if one == other => {
            let what = format!("it is {one} already");
            let path = path.to_owned();
            return Err(ArchiveError::Unsupported { path, what }.into());
        }
        (Form::Directory, _) => {
            let packed = archive::pack(path, dest, form, on_progress)?;
            let checked = compare(path, manifest.as_ref(), packed.parts);
            if checked.is_err() {
                remove(dest)?;
            }
            checked?;
            packed.bytes
        }
        (_, Form::Directory) => {
            let partial = Partial::beside(dest)?;
            let bytes = unpack(path, partial.path(), manifest.as_ref(), limits, on_progress)?;
            sync(partial.path())?;
            partial.commit(true)?;
            bytes
        }
        _ => {
            // Removed when it is dropped, as it gets no name.
            let partial = Partial::beside(dest)?;
            let _bytes = unpack(path, partial.path(), manifest.as_ref(), limits, on_progress)?;
            archive::pack(partial.path(), dest, form, on_progress)?.bytes
        }
    };
    let is_vouched_for = manifest.is_some_and(|manifest| !manifest.parts.is_empty());
    Ok(Converted {
        from,
        bytes,
        is_vouched_for,
    })
}

fn unpack(
    path: &Path,
    dest: &Path,
    manifest: Option<&Manifest>,
    limits: &Limits,
    on_progress: &mut OnProgress<'_>,
) -> Result<u64, CheckpointError> {
    let unpacked = archive::unpack(path, dest, limits, on_progress)?;
    compare(path, manifest, unpacked.parts)?;
    Ok(unpacked.bytes)
}

/// Whether these are the files that a manifest lists.
fn compare(
    path: &Path,
    manifest: Option<&Manifest>,
    found: Vec<archive::Part>,
) -> Result<(), CheckpointError> {
    let found: Vec<Part> = found.into_iter().map(part).collect();
    let differences = manifest
        .map(|manifest| manifest.compare(&found))
        .unwrap_or_default();
    let mut damage = differences
        .into_iter()
        .filter(|difference| !difference.is_extra());
    match damage.next() {
        None => Ok(()),
        Some(first) => Err(CheckpointError::Damaged {
            path: path.to_owned(),
            first: Box::new(first),
            count: 1 + damage.count(),
        }),
    }
}

fn remove(file: &Path) -> Result<(), ArchiveError> {
    fs::remove_file(file).map_err(|error| ArchiveError::storage("remove", file, error))
}

/// Has all that was unpacked on the disk.
fn sync(dir: &Path) -> Result<(), ArchiveError> {
    for found in archive::tree::list(dir)? {
        if matches!(
            found.entry.kind,
            archive::entry::Kind::File | archive::entry::Kind::Directory
        ) {
            sync_one(&found.path)?;
        }
    }
    sync_one(dir)
}

fn sync_one(path: &Path) -> Result<(), ArchiveError> {
    let synced = File::open(path).and_then(|file| file.sync_all());
    synced.map_err(|error| ArchiveError::storage("write", path, error))
}

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;

    use super::super::{samples, verify};
    use super::*;

    fn turn(path: &Path, dest: &Path, form: Form) -> Result<Converted, CheckpointError> {
        convert(path, dest, form, &Limits::default(), &mut |_| {
            ControlFlow::Continue(())
        })
    }

    fn names(dir: &Path) -> Vec<String> {
        let entries = fs::read_dir(dir).expect("list");
        let mut names: Vec<String> = entries
            .map(|entry| {
                entry
                    .expect("an entry")
                    .file_name()
                    .to_string_lossy()
                    .into_owned()
            })
            .collect();
        names.sort();
        names
    }

    #[test]
    fn through_all_forms_and_back_it_is_the_same() {
        let temporary = tempfile::tempdir().expect("a directory");
        let mut last = samples::directory(temporary.path());
        let first = names(&last);
        let forms = [
            Form::Tar,
            Form::Zstd,
            Form::Gzip,
            Form::Lz4,
            Form::Zlib,
            Form::Directory,
        ];
        for (count, form) in forms.into_iter().enumerate() {
            let next = temporary.path().join(format!("next-{count}"));
            let converted = turn(&last, &next, form).expect("converted");
            assert!(converted.is_vouched_for && converted.bytes > 0);
            assert_eq!(archive::detect(&next).expect("a form"), form);
            last = next;
        }
        assert_eq!(names(&last), first);
        let verdict = verify(&last, &Limits::default(), &mut |_| ControlFlow::Continue(()));
        assert!(verdict.expect("readable").problems.is_empty());
        assert_eq!(names(temporary.path()).len(), 7, "nothing else is left");
    }

    #[test]
    fn a_damaged_one_is_not_made_to_look_good() {
        let temporary = tempfile::tempdir().expect("a directory");
        let dir = samples::directory(temporary.path());
        let good = temporary.path().join("good.tar");
        let _good = turn(&dir, &good, Form::Tar).expect("converted");
        fs::write(dir.join("core-1.img"), [7; 5000]).expect("a file");
        let bad = temporary.path().join("bad.tar");
        let _packed =
            archive::pack(&dir, &bad, Form::Tar, &mut |_| ControlFlow::Continue(())).expect("packed");
        let before = names(temporary.path());
        let dest = temporary.path().join("dest");
        for (path, form) in [(&dir, Form::Zstd), (&bad, Form::Zstd), (&bad, Form::Directory)] {
            let said = turn(path, &dest, form).expect_err("damaged").to_string();
            assert!(said.contains("core-1.img was changed"), "{said}");
            assert_eq!(names(temporary.path()), before);
        }
        assert!(turn(&good, &dest, Form::Tar).is_err(), "it is one already");
        assert!(turn(&good, &bad, Form::Zstd).is_err(), "something is there");
    }
}
