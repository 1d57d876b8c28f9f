//! Pages that stay in memory until they are packed into an archive.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use oci_bundles::archive::{Form, Held, pack_held};
use oci_bundles::staged::unfinished;

use super::memory::Chunk;
use super::{CaptureError, Part};

/// The files of a capture, in memory.
#[derive(Debug)]
pub(super) struct Kept<'c> {
    files: Vec<(String, Vec<&'c [u8]>)>,
}

impl<'c> Kept<'c> {
    /// What these chunks have of these files.
    pub(super) fn new(chunks: &'c [Chunk<'_>], names: Vec<(usize, String)>) -> Self {
        let mut runs: BTreeMap<usize, BTreeMap<u64, &[u8]>> = BTreeMap::new();
        for (file, at, bytes) in chunks.iter().flat_map(Chunk::runs) {
            let _none = runs.entry(file).or_default().insert(at, bytes);
        }
        let files = names.into_iter().map(|(index, name)| {
            let runs = runs.remove(&index).unwrap_or_default();
            (name, runs.into_values().collect())
        });
        Self {
            files: files.collect(),
        }
    }

    /// Each of them, digested by all processors: the client waits, and nothing else is to be done.
    pub(super) fn files(&self) -> Vec<Part> {
        let part = |(name, runs): &(String, Vec<&[u8]>)| {
            let mut digest = blake3::Hasher::new();
            for run in runs {
                let _ = digest.update_rayon(run);
            }
            Part {
                name: name.clone(),
                size: digest.count(),
                digest: digest.finalize().to_hex().to_string(),
            }
        };
        self.files.iter().map(part).collect()
    }

    /// Packs them behind all that is in a checkpoint's directory, as if they were in that of the images.
    pub(super) fn pack(
        self,
        images: &Path,
        (root, into, form): (&Path, &Path, &str),
    ) -> Result<u64, CaptureError> {
        let failed = || CaptureError::new("pack", root.display().to_string());
        let form = Form::parse(form).filter(|form| *form != Form::Directory);
        let form = form.ok_or_else(|| failed()(io::Error::other("no such form")))?;
        let below = images
            .strip_prefix(root)
            .map_err(io::Error::other)
            .map_err(failed())?;
        let held = |(name, runs): (String, Vec<&'c [u8]>)| Held {
            path: PathBuf::from(below).join(name),
            runs,
        };
        let held: Vec<Held<'_>> = self.files.into_iter().map(held).collect();
        let unfinished = unfinished(into);
        let packed = pack_held(root, &held, &unfinished, form);
        let bytes = packed.map_err(|error| failed()(io::Error::other(error.to_string())))?;
        name(&unfinished, into).map_err(failed())?;
        Ok(bytes)
    }
}

/// The name says that it is whole, so it is on the disk with it: it may be all that is left of the container from then on.
fn name(unfinished: &Path, into: &Path) -> io::Result<()> {
    fs::rename(unfinished, into)?;
    match into.parent() {
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}
