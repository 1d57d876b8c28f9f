//! The files of pages: sparse, and on the disk before anybody is told.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use nix::libc::O_DIRECT;

use super::digest::Digests;
use super::{CaptureError, Part};

/// The unit in which zeros are left out: a file system's block, and a page.
const BLOCK: usize = 4096;

/// Compared with a whole block at once, which is the fastest way to know.
static ZEROS: [u8; BLOCK] = [0; BLOCK];

/// From so many bytes on a run goes to the disk directly: it is there then, and takes no memory of the kernel's and no copy. Each such
/// write waits for the disk, so for small ones the page cache is quicker.
const DIRECT_BYTES_MIN: usize = 256 << 10;

/// A file is made longer by this much before it is written to, in bytes: past its end only one can write at a time.
const AHEAD_BYTES: u64 = 1 << 30;

/// What the files are called until they are complete; the fifos have their names.
const UNFINISHED: &str = "unfinished";

/// The files of one capture, by the index of their fifo.
#[derive(Debug)]
pub(super) struct Files {
    images: PathBuf,
    open: Mutex<BTreeMap<usize, Arc<Growing>>>,
}

#[derive(Debug)]
struct Growing {
    path: PathBuf,
    file: File,
    /// The same past the page cache, where the file system can.
    direct: Option<File>,
    size: Mutex<Size>,
}

#[derive(Debug, Default)]
struct Size {
    /// What belongs to it.
    used: u64,
    /// What it is given meanwhile.
    given: u64,
}

impl Files {
    /// In this directory.
    pub(super) fn new(images: PathBuf) -> Self {
        Self {
            images,
            open: Mutex::default(),
        }
    }

    /// Writes to a file there. What is behind may be written before.
    pub(super) fn write(&self, index: usize, at: u64, bytes: &[u8]) -> Result<(), CaptureError> {
        let growing = self.growing(index)?;
        let written = growing.write(at, bytes);
        written.map_err(CaptureError::new("write", growing.path.display().to_string()))
    }

    fn growing(&self, index: usize) -> Result<Arc<Growing>, CaptureError> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = open.get(&index) {
            return Ok(Arc::clone(known));
        }
        let path = self.images.join(format!("{UNFINISHED}-{index}"));
        let made =
            Growing::new(path.clone()).map_err(CaptureError::new("make", path.display().to_string()))?;
        let made = Arc::new(made);
        let _none = open.insert(index, Arc::clone(&made));
        Ok(made)
    }

    /// Completes the files of these fifos: on the disk, and under their names. A fifo that carried nothing makes an empty file.
    pub(super) fn finish(
        &self,
        names: &[(usize, String)],
        mut digests: Digests,
    ) -> Result<Vec<Part>, CaptureError> {
        let mut parts = Vec::new();
        for (index, name) in names {
            let growing = self.growing(*index)?;
            let shown = growing.path.display().to_string();
            let size = growing
                .finish()
                .map_err(CaptureError::new("write out", shown.clone()))?;
            let digest = digests.remove(index).unwrap_or_default().finalize();
            parts.push(Part {
                name: name.clone(),
                size,
                digest: digest.to_hex().to_string(),
            });
            fs::rename(&growing.path, self.images.join(name)).map_err(CaptureError::new("rename", shown))?;
        }
        sync_directory(&self.images)?;
        Ok(parts)
    }
}

impl Growing {
    fn new(path: PathBuf) -> io::Result<Self> {
        let file = File::create_new(&path)?;
        let direct = OpenOptions::new().write(true).custom_flags(O_DIRECT).open(&path);
        Ok(Self {
            path,
            file,
            direct: direct.ok(),
            size: Mutex::default(),
        })
    }

    /// Writes what is not zero, in runs of blocks.
    fn write(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.give(at + bytes.len() as u64)?;
        let mut blocks = bytes.chunks(BLOCK).enumerate().peekable();
        let mut through_cache = false;
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
            let at = at + (start * BLOCK) as u64;
            if !self.write_directly(at, run)? {
                self.file.write_all_at(run, at)?;
                through_cache = true;
            }
        }
        if through_cache {
            begin_flush(&self.file, at, bytes.len());
        }
        Ok(())
    }

    /// False if that cannot be: the kernel takes only whole blocks.
    fn write_directly(&self, at: u64, run: &[u8]) -> io::Result<bool> {
        let Some(direct) = &self.direct else {
            return Ok(false);
        };
        let is_whole = run.as_ptr().align_offset(BLOCK) == 0
            && run.len().is_multiple_of(BLOCK)
            && at.is_multiple_of(BLOCK as u64);
        if !is_whole || run.len() < DIRECT_BYTES_MIN {
            return Ok(false);
        }
        match direct.write_all_at(run, at) {
            Ok(()) => Ok(true),
            // Larger blocks than ours, for one.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Makes it long enough.
    fn give(&self, end: u64) -> io::Result<()> {
        let mut size = self.size.lock().unwrap_or_else(PoisonError::into_inner);
        size.used = size.used.max(end);
        if end > size.given {
            let given = end.next_multiple_of(AHEAD_BYTES);
            // A limit for files may stand against it, and not against what is needed.
            match self.file.set_len(given) {
                Ok(()) => size.given = given,
                Err(_) => size.given = end,
            }
        }
        Ok(())
    }

    fn finish(&self) -> io::Result<u64> {
        let used = self.size.lock().unwrap_or_else(PoisonError::into_inner).used;
        // The end may be a hole.
        self.file.set_len(used)?;
        self.file.sync_all()?;
        Ok(used)
    }
}

/// Has the kernel begin to bring a stretch to the disk: told that nobody needs what was just written, it writes it out, and keeps what is not
/// out yet. A sync would wait each time for the journal, with what others have in it. Best effort: the sync at the end counts.
fn begin_flush(file: &File, at: u64, length: usize) {
    if let (Ok(at), Ok(length)) = (at.try_into(), length.try_into()) {
        let _ = posix_fadvise(file, at, length, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
    }
}

fn sync_directory(path: &Path) -> Result<(), CaptureError> {
    let synced = File::open(path).and_then(|directory| directory.sync_all());
    synced.map_err(CaptureError::new("write out", path.display().to_string()))
}

fn is_zero(block: &[u8]) -> bool {
    ZEROS.get(..block.len()) == Some(block)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use memmap2::MmapMut;

    use super::*;

    #[test]
    fn zeros_take_no_room_and_are_read_back() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let mut bytes = vec![0; 64 * BLOCK + 10];
        bytes[5 * BLOCK + 7] = 1;
        *bytes.last_mut().expect("a byte") = 2;
        let files = Files::new(directory.path().to_owned());
        // In whatever order.
        files
            .write(0, bytes.len() as u64, &[0; 3 * BLOCK])
            .expect("written");
        files.write(0, 0, &bytes).expect("written");
        let names = [(0, "pages-1.img".to_owned()), (4, "pages-5.img".to_owned())];
        let parts = files.finish(&names, Digests::new()).expect("finished");
        bytes.extend([0; 3 * BLOCK]);
        let path = directory.path().join("pages-1.img");
        assert_eq!(fs::read(&path).expect("read"), bytes);
        assert!(fs::metadata(&path).expect("there").blocks() * 512 <= 4 * BLOCK as u64);
        let told: Vec<_> = parts.iter().map(|part| (part.name.as_str(), part.size)).collect();
        assert_eq!(told, [("pages-1.img", bytes.len() as u64), ("pages-5.img", 0)]);
        assert_eq!(
            fs::read_dir(directory.path()).expect("read").count(),
            2,
            "nothing unfinished is left"
        );
    }

    #[test]
    fn much_is_written_as_little_is() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        // From the beginning of a page, as the pages of a capture are.
        let mut space = MmapMut::map_anon(4 * DIRECT_BYTES_MIN).expect("memory");
        space
            .iter_mut()
            .zip((1..=u8::MAX).cycle())
            .for_each(|(byte, value)| *byte = value);
        space[DIRECT_BYTES_MIN..DIRECT_BYTES_MIN + BLOCK].fill(0);
        let files = Files::new(directory.path().to_owned());
        files.write(0, 0, &space).expect("written");
        files
            .write(0, space.len() as u64, &space[..BLOCK])
            .expect("written");
        files
            .write(0, (space.len() + BLOCK) as u64, b"after")
            .expect("written");
        let _parts = files
            .finish(&[(0, "pages-1.img".to_owned())], Digests::new())
            .expect("finished");
        let bytes = [&space[..], &space[..BLOCK], b"after"].concat();
        let written = fs::read(directory.path().join("pages-1.img")).expect("read");
        assert!(written == bytes, "other bytes, or not as many");
    }

    #[test]
    fn what_is_there_already_is_not_overwritten() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        fs::write(directory.path().join("unfinished-0"), "").expect("write");
        let files = Files::new(directory.path().to_owned());
        assert!(files.write(0, 0, b"x").is_err());
    }
}
