//! A directory into an archive, with files that are in memory only.
//!
//! It is for who has just taken them there: they would have to be written, and read again, to be packed as files. The archive is not read
//! back, as a directory is not after it was written: every piece of it has a checksum of what went in, and every file in it a digest
//! in the manifest.

use std::fs::File;
use std::ops::ControlFlow;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::form::Form;
use super::{ArchiveError, pack, tree};

/// A file that is in memory.
#[derive(Debug)]
pub struct Held<'a> {
    /// Its name in the archive.
    pub path: PathBuf,
    /// Its content, in order.
    pub runs: Vec<&'a [u8]>,
}

impl Held<'_> {
    /// Its bytes.
    pub fn size(&self) -> u64 {
        self.runs.iter().map(|run| run.len() as u64).sum()
    }
}

/// Packs what is in a directory, and behind that what is held, into a file that must not exist, and returns its bytes. When this returns
/// it is on the disk. It has no name of its own yet: that is for whoever commits it.
///
/// # Errors
/// What could not be read or written; what was written so far stays.
pub fn pack_held(dir: &Path, held: &[Held<'_>], into: &Path, form: Form) -> Result<u64, ArchiveError> {
    let found = tree::list(dir)?;
    let made = File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(into);
    let file = made.map_err(|error| ArchiveError::storage("create", into, error))?;
    let quiet = &mut |_| ControlFlow::Continue(());
    let (file, _parts) = pack::write(found, held, (into, form, file), quiet)?;
    let metadata = file.metadata();
    Ok(metadata
        .map_err(|error| ArchiveError::storage("write", into, error))?
        .len())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::{Limits, unpack, verify};
    use super::*;

    #[test]
    fn what_is_held_stands_behind_what_is_on_the_disk() {
        let home = tempfile::tempdir().expect("a temporary directory");
        let dir = home.path().join("dump");
        fs::create_dir_all(dir.join("checkpoint")).expect("made");
        fs::write(dir.join("cedana.json"), "{}").expect("written");
        fs::write(dir.join("checkpoint/core-1.img"), "core").expect("written");
        let pages = vec![7; 3 << 20];
        let (first, second) = pages.split_at(1_000_001);
        let held = [
            Held {
                path: "checkpoint/pages-1.img".into(),
                runs: vec![first, second],
            },
            Held {
                path: "checkpoint/pages-2.img".into(),
                runs: Vec::new(),
            },
        ];
        for form in Form::ALL.into_iter().filter(|form| *form != Form::Directory) {
            let archive = home.path().join(form.word());
            let bytes = pack_held(&dir, &held, &archive, form).expect("packed");
            assert_eq!(fs::metadata(&archive).expect("there").len(), bytes, "{form}");
            assert!(pack_held(&dir, &held, &archive, form).is_err(), "it is there");
            let quiet = &mut |_| ControlFlow::Continue(());
            let read = verify(&archive, &Limits::default(), quiet).expect("read");
            let names: Vec<String> = read
                .parts
                .iter()
                .map(|part| part.path.display().to_string())
                .collect();
            let wanted = [
                "cedana.json",
                "checkpoint/core-1.img",
                "checkpoint/pages-1.img",
                "checkpoint/pages-2.img",
            ];
            assert_eq!(
                (names.as_slice(), read.form),
                (wanted.map(String::from).as_slice(), form)
            );
            assert_eq!(read.parts[2].digest, *blake3::hash(&pages).as_bytes(), "{form}");
            let dest = home.path().join(format!("{form}-again"));
            let _unpacked = unpack(&archive, &dest, &Limits::default(), quiet).expect("unpacked");
            assert!(fs::read(dest.join("checkpoint/pages-1.img")).expect("read") == pages);
        }
    }
}
