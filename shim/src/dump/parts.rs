//! The files of a dump, for its manifest: names, sizes and digests.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use oci_bundles::layout::{Layout, Shape};
use oci_bundles::manifest::{Digest, Part};

use super::names::is_image;
use crate::capture;
use crate::criu::file::open_regular;
use crate::criu::manifest;

/// Bytes read at once; more makes digests no faster.
const READ_BYTES: usize = 64 * 1024;

/// What is known of the files of a dump so far, by their names from its root.
#[derive(Debug, Default)]
pub(super) struct Parts(BTreeMap<PathBuf, Known>);

#[derive(Debug)]
struct Known {
    size: u64,
    digest: Digest,
    /// When the file was changed last, in nanoseconds; none if it comes from a worker, which has closed it.
    changed: Option<i64>,
}

impl Parts {
    /// Notes images that a worker has written, and digested while it had them in memory.
    pub(super) fn take_in(&mut self, files: Vec<capture::Part>, shape: Shape) {
        for file in files {
            // A digest that nobody can read is made again.
            if let Ok(digest) = format!("blake3:{}", file.digest).parse() {
                let known = Known {
                    size: file.size,
                    digest,
                    changed: None,
                };
                let _earlier = self.0.insert(shape.image(file.name), known);
            }
        }
    }

    /// Digests what is in the directory and not known yet. With `all`, all files in it are the dump's; else those with a name
    /// that CRIU gives.
    ///
    /// # Errors
    /// What the file system says.
    pub(super) fn complete(mut self, dump: &Layout, all: bool) -> io::Result<Self> {
        self.add(dump.root(), Shape::Flat, all)?;
        if dump.shape() == Shape::Nested {
            self.add(&dump.images(), Shape::Nested, true)?;
        }
        Ok(self)
    }

    /// The files of one directory, by their names from the root.
    fn add(&mut self, dir: &Path, shape: Shape, all: bool) -> io::Result<()> {
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            let (name, metadata) = (entry.file_name(), entry.metadata()?);
            if !metadata.is_file() || name == manifest::NAME || !all && !is_image(&name) {
                continue;
            }
            let name = shape.image(name);
            let changed = metadata.mtime().saturating_mul(1_000_000_000) + metadata.mtime_nsec();
            let is_known = self.0.get(&name).is_some_and(|known| {
                known.size == metadata.len() && known.changed.is_none_or(|then| then == changed)
            });
            if !is_known {
                let (size, digest) = digest(&entry.path())?;
                let known = Known {
                    size,
                    digest,
                    changed: Some(changed),
                };
                let _earlier = self.0.insert(name, known);
            }
        }
        Ok(())
    }

    /// All of them, by name.
    pub(super) fn list(&self) -> Vec<Part> {
        let parts = self.0.iter().map(|(name, known)| Part {
            path: name.clone(),
            size: known.size,
            digest: known.digest,
        });
        parts.collect()
    }
}

fn digest(path: &Path) -> io::Result<(u64, Digest)> {
    let mut file = open_regular(path)?;
    let (mut hasher, mut size, mut buffer) = (blake3::Hasher::new(), 0, vec![0; READ_BYTES]);
    loop {
        let count = match file.read(&mut buffer) {
            Ok(0) => return Ok((size, Digest::Blake3(*hasher.finalize().as_bytes()))),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        let _ = hasher.update(buffer.get(..count).unwrap_or_default());
        size += count as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(parts: &Parts) -> Vec<String> {
        let shown = |part: &Part| format!("{} {}", part.path.display(), part.size);
        parts.list().iter().map(shown).collect()
    }

    #[test]
    fn every_file_but_the_manifest_is_listed_and_what_a_worker_took_is_believed() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let write = |name: &str, bytes: &[u8]| fs::write(dir.path().join(name), bytes).expect("write");
        write("inventory.img", b"abc");
        write("pages-1.img", b"taken by a worker");
        write("notes.txt", b"a user's");
        write(manifest::NAME, b"{}");
        std::os::unix::fs::symlink("..", dir.path().join("parent")).expect("link");
        let mut parts = Parts::default();
        let told = blake3::hash(b"what the worker says");
        parts.take_in(
            vec![capture::Part {
                name: "pages-1.img".to_owned(),
                size: 17,
                digest: told.to_hex().to_string(),
            }],
            Shape::Flat,
        );
        let flat = Layout::new(dir.path(), Shape::Flat);
        let parts = parts.complete(&flat, false).expect("listed");
        assert_eq!(names(&parts), ["inventory.img 3", "pages-1.img 17"]);
        let digests: Vec<Digest> = parts.list().iter().map(|part| part.digest).collect();
        let wanted = [blake3::hash(b"abc"), told].map(|hash| Digest::Blake3(*hash.as_bytes()));
        assert_eq!(digests, wanted);

        // What has changed since is read again, and what is no file of the worker's any more.
        write("inventory.img", b"abcd");
        write("pages-1.img", b"cut");
        let parts = parts.complete(&flat, true).expect("listed");
        assert_eq!(names(&parts), ["inventory.img 4", "notes.txt 8", "pages-1.img 3"]);
        let pages = Digest::Blake3(*blake3::hash(b"cut").as_bytes());
        assert_eq!(parts.list()[2].digest, pages);
    }

    #[test]
    fn images_of_a_nested_dump_are_named_from_its_root() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let nested = Layout::new(dir.path(), Shape::Nested);
        fs::create_dir(nested.images()).expect("make");
        fs::write(nested.image("inventory.img"), "abc").expect("write");
        fs::write(nested.image("pages-1.img"), "pages").expect("write");
        fs::write(dir.path().join("config.dump"), "{}").expect("write");
        fs::write(dir.path().join(manifest::NAME), "{}").expect("write");
        let mut parts = Parts::default();
        let told = capture::Part {
            name: "pages-1.img".to_owned(),
            size: 5,
            digest: blake3::hash(b"pages").to_hex().to_string(),
        };
        parts.take_in(vec![told], Shape::Nested);
        let parts = parts.complete(&nested, true).expect("listed");
        let wanted = [
            "checkpoint/inventory.img 3",
            "checkpoint/pages-1.img 5",
            "config.dump 2",
        ];
        assert_eq!(names(&parts), wanted);
    }
}
