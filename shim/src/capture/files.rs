//! The files of pages: sparse, digested, and on the disk before anybody is told.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::sync_channel;
use std::thread;

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

use super::{CaptureError, Part};

/// The unit in which zeros are left out: a file system's block, and a page.
const BLOCK: usize = 4096;

/// Compared with a whole block at once, which is the fastest way to know.
static ZEROS: [u8; BLOCK] = [0; BLOCK];

/// Written between two flushes: large enough that the disk is asked for much at a time.
const PIECE: usize = 32 << 20;

/// Pieces that wait for their flush; past that the writing waits, which it does for the disk anyway.
const PIECES_WAITING_MAX: usize = 4;

/// What the files are called until they are complete; the fifos have their names.
const UNFINISHED: &str = "unfinished";

/// The files of one capture, by the index of their fifo.
#[derive(Debug)]
pub(super) struct Files {
    images: PathBuf,
    open: BTreeMap<usize, Growing>,
}

#[derive(Debug)]
struct Growing {
    file: File,
    path: PathBuf,
    length: u64,
    digest: blake3::Hasher,
}

impl Files {
    /// In this directory.
    pub(super) fn new(images: PathBuf) -> Self {
        Self {
            images,
            open: BTreeMap::new(),
        }
    }

    /// Adds to the end of a file. Of much, the digest is made and the disk is kept busy while it is written.
    pub(super) fn append(&mut self, index: usize, bytes: &[u8]) -> Result<(), CaptureError> {
        let growing = self.growing(index)?;
        let written = match bytes.len() {
            ..=PIECE => growing.append(bytes),
            _ => growing.append_in_pieces(bytes),
        };
        written.map_err(CaptureError::new("write", growing.path.display().to_string()))
    }

    fn growing(&mut self, index: usize) -> Result<&mut Growing, CaptureError> {
        match self.open.entry(index) {
            std::collections::btree_map::Entry::Occupied(known) => Ok(known.into_mut()),
            std::collections::btree_map::Entry::Vacant(new) => {
                let path = self.images.join(format!("{UNFINISHED}-{index}"));
                let made = File::create_new(&path);
                let file = made.map_err(CaptureError::new("make", path.display().to_string()))?;
                Ok(new.insert(Growing {
                    file,
                    path,
                    length: 0,
                    digest: blake3::Hasher::new(),
                }))
            }
        }
    }

    /// Completes the files of these fifos: on the disk, and under their names. A fifo that carried nothing makes an empty file.
    pub(super) fn finish(mut self, names: &[(usize, String)]) -> Result<Vec<Part>, CaptureError> {
        let mut parts = Vec::new();
        for (index, name) in names {
            let growing = self.growing(*index)?;
            let shown = growing.path.display().to_string();
            // The end may be a hole.
            let synced = growing
                .file
                .set_len(growing.length)
                .and_then(|()| growing.file.sync_all());
            synced.map_err(CaptureError::new("write out", shown.clone()))?;
            parts.push(Part {
                name: name.clone(),
                size: growing.length,
                digest: growing.digest.finalize().to_hex().to_string(),
            });
            let path = growing.path.clone();
            fs::rename(path, self.images.join(name)).map_err(CaptureError::new("rename", shown))?;
        }
        sync_directory(&self.images)?;
        Ok(parts)
    }
}

impl Growing {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        write_sparse(&self.file, self.length, bytes)?;
        self.length += bytes.len() as u64;
        let _ = self.digest.update(bytes);
        Ok(())
    }

    fn append_in_pieces(&mut self, bytes: &[u8]) -> io::Result<()> {
        let Self {
            file, length, digest, ..
        } = self;
        let file = &*file;
        thread::scope(|scope| {
            let digesting = thread::Builder::new().spawn_scoped(scope, move || {
                let _ = digest.update(bytes);
            })?;
            let (written, to_flush) = sync_channel(PIECES_WAITING_MAX);
            let flushing = thread::Builder::new().spawn_scoped(scope, move || {
                to_flush.iter().for_each(|start| begin_flush(file, start))
            })?;
            for piece in bytes.chunks(PIECE) {
                write_sparse(file, *length, piece)?;
                let _ = written.send(*length);
                *length += piece.len() as u64;
            }
            drop(written);
            let gone = |_| io::Error::other("a thread panicked");
            digesting.join().map_err(gone)?;
            flushing.join().map_err(gone)
        })
    }
}

/// Has the kernel begin to bring a piece to the disk: told that nobody needs what was just written, it writes it out, and keeps what is not
/// out yet. A sync would wait each time for the journal, with what others have in it. Best effort: the sync at the end counts.
fn begin_flush(file: &File, start: u64) {
    if let (Ok(start), Ok(length)) = (start.try_into(), PIECE.try_into()) {
        let _ = posix_fadvise(file, start, length, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
    }
}

fn sync_directory(path: &Path) -> Result<(), CaptureError> {
    let synced = File::open(path).and_then(|directory| directory.sync_all());
    synced.map_err(CaptureError::new("write out", path.display().to_string()))
}

/// Writes what is not zero, in runs of blocks.
fn write_sparse(file: &File, offset: u64, bytes: &[u8]) -> io::Result<()> {
    let mut blocks = bytes.chunks(BLOCK).enumerate().peekable();
    while let Some((start, block)) = blocks.next() {
        if is_zero(block) {
            continue;
        }
        let mut end = start + 1;
        while blocks.next_if(|(_, block)| !is_zero(block)).is_some() {
            end += 1;
        }
        let run = bytes
            .get(start * BLOCK..bytes.len().min(end * BLOCK))
            .unwrap_or_default();
        file.write_all_at(run, offset + (start * BLOCK) as u64)?;
    }
    Ok(())
}

fn is_zero(block: &[u8]) -> bool {
    ZEROS.get(..block.len()) == Some(block)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn zeros_take_no_room_and_are_read_back() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let mut bytes = vec![0; 64 * BLOCK + 10];
        bytes[5 * BLOCK + 7] = 1;
        *bytes.last_mut().expect("a byte") = 2;
        let mut files = Files::new(directory.path().to_owned());
        files.append(0, &bytes).expect("written");
        files.append(0, &[0; 3 * BLOCK]).expect("written");
        let names = [(0, "pages-1.img".to_owned()), (4, "pages-5.img".to_owned())];
        let parts = files.finish(&names).expect("finished");
        bytes.extend([0; 3 * BLOCK]);
        let path = directory.path().join("pages-1.img");
        assert_eq!(fs::read(&path).expect("read"), bytes);
        assert!(fs::metadata(&path).expect("there").blocks() * 512 <= 4 * BLOCK as u64);
        let told: Vec<_> = parts.iter().map(|part| (part.name.as_str(), part.size)).collect();
        assert_eq!(told, [("pages-1.img", bytes.len() as u64), ("pages-5.img", 0)]);
        assert_eq!(parts[0].digest, blake3::hash(&bytes).to_hex().to_string());
        assert_eq!(
            fs::read_dir(directory.path()).expect("read").count(),
            2,
            "nothing unfinished is left"
        );
    }

    #[test]
    fn much_is_written_as_little_is() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let mut bytes = vec![0; 2 * PIECE + 10];
        for at in [0, PIECE - 1, PIECE, 2 * PIECE + 9] {
            bytes[at] = 1;
        }
        let mut files = Files::new(directory.path().to_owned());
        files.append(0, b"before").expect("written");
        files.append(0, &bytes).expect("written");
        files.append(0, b"after").expect("written");
        let parts = files.finish(&[(0, "pages-1.img".to_owned())]).expect("finished");
        let bytes = [b"before", bytes.as_slice(), b"after"].concat();
        let written = fs::read(directory.path().join("pages-1.img")).expect("read");
        assert!(written == bytes, "other bytes, or not as many");
        assert_eq!(parts[0].digest, blake3::hash(&bytes).to_hex().to_string());
    }

    #[test]
    fn what_is_there_already_is_not_overwritten() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        fs::write(directory.path().join("unfinished-0"), "").expect("write");
        let mut files = Files::new(directory.path().to_owned());
        assert!(files.append(0, b"x").is_err());
    }
}
