//! Reads all of a checkpoint, and compares it with its manifest.

use std::collections::BTreeSet;
use std::fs;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use super::{CheckpointError, manifest, open, size};
use crate::archive::tell;
use crate::archive::{self, ArchiveError, Form, Limits, OnProgress, Progress, Step};
use crate::layout::{Extra, INVENTORY, Layout, Shape};
use crate::manifest::{Difference, Digest, Manifest, NAME, Part};

/// Bytes read at once.
const READ_BYTES: usize = 256 << 10;

/// Names in a directory that are looked at for what does not belong there.
const NAMES_MAX: usize = 1 << 20;

/// What was found out about a checkpoint.
#[derive(Debug, Clone, PartialEq)]
pub struct Verdict {
    /// Its form.
    pub form: Form,
    /// What it says of itself, if anything.
    pub manifest: Option<Manifest>,
    /// Bytes that were read of its files.
    pub bytes: u64,
    /// What is wrong with it: nothing, if it is as it was made.
    pub problems: Vec<Difference>,
    /// Process images that its manifest does not know.
    pub extra: Vec<PathBuf>,
}

impl Verdict {
    /// It has digests: what is not among the problems is as it was made.
    pub fn is_vouched_for(&self) -> bool {
        self.manifest
            .as_ref()
            .is_some_and(|manifest| !manifest.parts.is_empty())
    }
}

/// Reads a checkpoint through. One without digests is only seen to be readable, and to have an inventory.
///
/// # Errors
/// It cannot be read, or its manifest is not for us. An archive that is damaged is an error too, which says where.
pub fn verify(
    path: &Path,
    limits: &Limits,
    on_progress: &mut OnProgress<'_>,
) -> Result<Verdict, CheckpointError> {
    let manifest = manifest(path)?;
    let form = archive::detect(path)?;
    let (found, bytes) = match form {
        Form::Directory => directory(path, manifest.as_ref(), on_progress)?,
        _ => {
            let read = archive::verify(path, limits, on_progress)?;
            (read.parts.into_iter().map(part).collect(), read.bytes)
        }
    };
    let has_inventory = Shape::of_names(found.iter().map(|part| part.path.as_path())).is_some();
    let mut verdict = Verdict {
        form,
        manifest,
        bytes,
        problems: Vec::new(),
        extra: Vec::new(),
    };
    for difference in verdict
        .manifest
        .iter()
        .flat_map(|manifest| manifest.compare(&found))
    {
        match difference {
            Difference::Extra(path) => verdict.extra.push(path),
            other => verdict.problems.push(other),
        }
    }
    if !verdict.is_vouched_for() && !has_inventory {
        verdict.problems.push(Difference::Missing(INVENTORY.into()));
    }
    Ok(verdict)
}

pub(super) fn part(part: archive::Part) -> Part {
    Part {
        path: part.path,
        size: part.size,
        digest: Digest::Blake3(part.digest),
    }
}

/// The parts of a directory as they are now, and the bytes read. What is not the checkpoint's is not read.
fn directory(
    dir: &Path,
    manifest: Option<&Manifest>,
    on_progress: &mut OnProgress<'_>,
) -> Result<(Vec<Part>, u64), CheckpointError> {
    let listed = manifest
        .map(|manifest| manifest.parts.as_slice())
        .unwrap_or_default();
    let sizes: Vec<(&Path, u64)> = listed
        .iter()
        .map(|part| (part.path.as_path(), part.size))
        .collect();
    let known: BTreeSet<&Path> = sizes.iter().map(|(path, _)| *path).collect();
    let others: Vec<PathBuf> = images(dir)?
        .into_iter()
        .filter(|name| !known.contains(name.as_path()))
        .collect();
    let mut reading = Reading {
        on_progress,
        progress: Progress {
            step: Step::Verify,
            done: 0,
            total: sizes.iter().map(|(_, size)| *size).fold(0, u64::saturating_add),
        },
        buffer: vec![0; READ_BYTES],
    };
    let mut found = Vec::new();
    for (name, wanted) in sizes {
        // Of another size: there is nothing to read for.
        match size(&dir.join(name)) {
            None => {}
            Some(size) if size != wanted => found.push(unread(name.to_owned(), size)),
            Some(_) => found.extend(reading.file(dir, name)?),
        }
    }
    for name in others {
        match listed.is_empty() {
            true => found.extend(reading.file(dir, &name)?),
            false => found.push(unread(name, 0)),
        }
    }
    Ok((found, reading.progress.done))
}

/// The files of a directory that has no manifest yet, for one, by name. Other directories in it than that of the images are passed
/// over: CRIU makes none.
///
/// # Errors
/// One of them cannot be read.
pub fn parts(dir: &Path) -> Result<Vec<Part>, CheckpointError> {
    let quiet = &mut |_| std::ops::ControlFlow::Continue(());
    let mut reading = Reading::new(quiet, 0);
    let mut parts = Vec::new();
    for name in files(dir)? {
        if name != Path::new(NAME) {
            parts.extend(reading.file(dir, &name)?);
        }
    }
    Ok(parts)
}

/// A file of which only the name or the size counts.
fn unread(path: PathBuf, size: u64) -> Part {
    let digest = Digest::Blake3([0; 32]);
    Part { path, size, digest }
}

/// The names in a directory that could be a dump's.
fn images(dir: &Path) -> Result<Vec<PathBuf>, ArchiveError> {
    let mut names = files(dir)?;
    let tars = [Extra::RootfsDiff, Extra::DevShm].map(|extra| Path::new(extra.name()));
    names.retain(|name| name.extension().is_some_and(|end| end == "img") || tars.contains(&name.as_path()));
    Ok(names)
}

/// The names of the files in the directory of a checkpoint, from there, sorted.
fn files(dir: &Path) -> Result<Vec<PathBuf>, ArchiveError> {
    let mut names = files_of(dir, Shape::Flat)?;
    if let Some(layout) = Layout::find(dir).filter(|layout| layout.shape() == Shape::Nested) {
        names.extend(files_of(&layout.images(), Shape::Nested)?);
    }
    names.sort();
    Ok(names)
}

/// Those in one directory of it.
fn files_of(dir: &Path, shape: Shape) -> Result<Vec<PathBuf>, ArchiveError> {
    let failed = |error| ArchiveError::storage("read", dir, error);
    let mut names = Vec::new();
    for entry in fs::read_dir(dir).map_err(failed)?.take(NAMES_MAX) {
        let entry = entry.map_err(failed)?;
        if entry.file_type().map_err(failed)?.is_file() {
            names.push(shape.image(entry.file_name()));
        }
    }
    Ok(names)
}

struct Reading<'a, 'b> {
    on_progress: &'a mut OnProgress<'b>,
    progress: Progress,
    buffer: Vec<u8>,
}

impl<'a, 'b> Reading<'a, 'b> {
    fn new(on_progress: &'a mut OnProgress<'b>, total: u64) -> Self {
        Self {
            on_progress,
            progress: Progress {
                step: Step::Verify,
                done: 0,
                total,
            },
            buffer: vec![0; READ_BYTES],
        }
    }

    /// A file as it is; none if it is gone meanwhile.
    fn file(&mut self, dir: &Path, name: &Path) -> Result<Option<Part>, ArchiveError> {
        let path = dir.join(name);
        let failed = |error| ArchiveError::storage("read", &path, error);
        let Ok(mut file) = open(&path) else {
            return Ok(None);
        };
        let (mut hasher, mut size) = (blake3::Hasher::new(), 0);
        loop {
            let count = match file.read(&mut self.buffer) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(failed(error)),
            };
            let _hasher = hasher.update(self.buffer.get(..count).unwrap_or_default());
            size += count as u64;
            self.progress.done += count as u64;
            tell(self.on_progress, self.progress)?;
        }
        Ok(Some(Part {
            path: name.to_owned(),
            size,
            digest: Digest::Blake3(*hasher.finalize().as_bytes()),
        }))
    }
}

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;

    use super::super::samples;
    use super::*;

    fn read(path: &Path) -> Result<Verdict, CheckpointError> {
        verify(path, &Limits::default(), &mut |_| ControlFlow::Continue(()))
    }

    fn told(verdict: &Verdict) -> Vec<String> {
        verdict.problems.iter().map(ToString::to_string).collect()
    }

    /// The checkpoint as a directory and as an archive, after something was done to the directory.
    fn both(damage: impl Fn(&Path)) -> [Verdict; 2] {
        let temporary = tempfile::tempdir().expect("a directory");
        let dir = samples::directory(temporary.path());
        damage(&dir);
        let packed = temporary.path().join("saved.tar.zst");
        let _packed =
            archive::pack(&dir, &packed, Form::Zstd, &mut |_| ControlFlow::Continue(())).expect("packed");
        [&dir, &packed].map(|path| read(path).expect("readable"))
    }

    #[test]
    fn what_is_as_it_was_made_is_good_in_both_forms() {
        for verdict in both(|_| {}).into_iter().chain(both(samples::nest)) {
            assert_eq!(told(&verdict), [""; 0], "{:?}", verdict.form);
            assert!(verdict.is_vouched_for() && verdict.extra.is_empty());
            assert!(verdict.bytes >= 3 << 20);
        }
    }

    #[test]
    fn a_nested_one_of_another_tool_is_seen_to_be_there() {
        for verdict in both(|dir| {
            samples::nest(dir);
            fs::remove_file(dir.join(NAME)).expect("removed");
        }) {
            assert_eq!(told(&verdict), [""; 0], "{:?}", verdict.form);
            assert!(verdict.manifest.is_none() && verdict.bytes >= 3 << 20);
        }
        let flip = |dir: &Path| {
            samples::nest(dir);
            fs::write(dir.join("checkpoint/core-1.img"), [9; 5000]).expect("a file");
        };
        for verdict in both(flip) {
            let told = told(&verdict);
            assert!(
                told[0].starts_with("checkpoint/core-1.img was changed"),
                "{told:?}"
            );
        }
    }

    #[test]
    fn a_byte_a_length_and_a_file_are_missed_in_both_forms() {
        let pages = "pages-1.img";
        let flip = |dir: &Path| {
            let mut bytes = vec![2; 3 << 20];
            bytes[1 << 20] ^= 1;
            fs::write(dir.join(pages), bytes).expect("a file");
        };
        let cut = |dir: &Path| fs::write(dir.join(pages), [2; 100]).expect("a file");
        let remove = |dir: &Path| fs::remove_file(dir.join(pages)).expect("removed");
        let check = |verdicts: [Verdict; 2], wanted: &str| {
            for verdict in verdicts {
                let told = told(&verdict);
                assert_eq!(told.len(), 1, "{told:?}");
                assert!(told[0].starts_with(wanted), "{told:?}");
            }
        };
        check(both(flip), "pages-1.img was changed");
        check(both(cut), "pages-1.img has 100 bytes instead of 3145728");
        check(both(remove), "pages-1.img is missing");
    }

    #[test]
    fn parts_are_what_a_manifest_needs() {
        let temporary = tempfile::tempdir().expect("a directory");
        let dir = samples::directory(temporary.path());
        let manifest = manifest(&dir).expect("readable").expect("a manifest");
        let mut listed = manifest.parts;
        listed.sort_by(|a, b| a.path.cmp(&b.path));
        assert_eq!(parts(&dir).expect("readable"), listed);
    }

    #[test]
    fn what_does_not_belong_is_told_and_harms_nothing() {
        for verdict in both(|dir| fs::write(dir.join("core-9.img"), "x").expect("a file")) {
            assert_eq!(told(&verdict), [""; 0]);
            assert_eq!(verdict.extra, [Path::new("core-9.img")]);
        }
    }

    #[test]
    fn without_digests_it_is_only_seen_to_be_there() {
        let old = |dir: &Path| fs::write(dir.join(NAME), r#"{"schema": 1}"#).expect("a file");
        for verdict in both(old) {
            assert!(!verdict.is_vouched_for());
            assert_eq!(told(&verdict), [""; 0]);
        }
        for verdict in both(|dir| {
            old(dir);
            fs::remove_file(dir.join(INVENTORY)).expect("removed");
        }) {
            assert_eq!(told(&verdict), ["inventory.img is missing"]);
        }
    }

    #[test]
    fn a_cut_archive_is_an_error_that_says_so() {
        let temporary = tempfile::tempdir().expect("a directory");
        let dir = samples::directory(temporary.path());
        let packed = temporary.path().join("saved.tar");
        let _packed =
            archive::pack(&dir, &packed, Form::Tar, &mut |_| ControlFlow::Continue(())).expect("packed");
        let file = fs::File::options().write(true).open(&packed).expect("open");
        file.set_len(2 << 20).expect("cut");
        let said = read(&packed).expect_err("cut").to_string();
        assert!(said.contains("cut"), "{said}");
    }
}
