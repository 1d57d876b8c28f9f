//! The tar in an archive, read anywhere and by many at once.

use std::collections::VecDeque;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use nix::errno::Errno;
use zstd::bulk::Decompressor;

use super::ArchiveError;
use super::form::Form;
use super::frames::{self, Frame};
use super::left::Stamp;

/// Frames that are kept decompressed. Neighbouring pieces share one, and threads that work side by side are a few pieces apart.
const KEPT_MAX: usize = 32;

/// The most that they take, in bytes: a foreign archive may have larger frames than ours.
const KEPT_BYTES_MAX: usize = 32 << 20;

/// Why what is in an archive cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TapeError {
    /// The disk's word. Another try may succeed.
    #[error("{}", io::Error::from(*.0))]
    Disk(Errno),
    /// It is not what was written there.
    #[error("the archive is damaged: {0}")]
    Damaged(String),
    /// Somebody has written to it: there may be anything in it.
    #[error("the archive was changed while its memory was being read")]
    Changed,
}

impl TapeError {
    /// The same, about an archive.
    pub fn of(self, archive: &Path) -> ArchiveError {
        match self {
            Self::Disk(errno) => ArchiveError::storage("read", archive, errno),
            Self::Damaged(what) => ArchiveError::damaged(archive, format!("damaged: {what}")),
            Self::Changed => ArchiveError::damaged(archive, Self::Changed.to_string()),
        }
    }
}

impl From<io::Error> for TapeError {
    /// A number from the kernel is about the disk; all else is what decompressors say, or that it is shorter than it was.
    fn from(error: io::Error) -> Self {
        match error.raw_os_error() {
            Some(number) => Self::Disk(Errno::from_raw(number)),
            None => Self::Damaged(error.to_string()),
        }
    }
}

impl From<TapeError> for io::Error {
    fn from(error: TapeError) -> Self {
        match error {
            TapeError::Disk(errno) => errno.into(),
            error => Self::new(io::ErrorKind::InvalidData, error),
        }
    }
}

/// A tar that can be read anywhere.
#[derive(Debug)]
pub struct Tape {
    file: File,
    /// In which state everything in it was found.
    stamp: Stamp,
    len: u64,
    frames: Option<Frames>,
}

impl Tape {
    /// The tar in a file of a form; nothing if all before a place has to be read to come there.
    pub fn new(form: Form, file: File, stamp: Stamp) -> io::Result<Option<Self>> {
        let len = stamp.size();
        match form {
            Form::Tar => Ok(Some(Self {
                file,
                stamp,
                len,
                frames: None,
            })),
            Form::Zstd => Ok(frames::find_index(&file)?.map(|found| {
                let frames = Frames::new(&found);
                Self {
                    file,
                    stamp,
                    len: frames.end,
                    frames: Some(frames),
                }
            })),
            Form::Directory | Form::Gzip | Form::Lz4 | Form::Zlib => Ok(None),
        }
    }

    /// Fills `bytes` from there on.
    pub fn read_at(&self, bytes: &mut [u8], offset: u64) -> Result<(), TapeError> {
        let read = match &self.frames {
            None => self.file.read_exact_at(bytes, offset).map_err(TapeError::from),
            Some(frames) => frames.read_at(&self.file, bytes, offset),
        };
        // A tar has no checksums, and a frame of another archive has a good one. The kernel notes the time before it takes what is
        // written: whoever looks after reading has seen what was read.
        match Stamp::of(&self.file.metadata()?).has_same_content(&self.stamp) {
            true => read,
            false => Err(TapeError::Changed),
        }
    }

    /// A reader from there on.
    pub fn from(&self, offset: u64) -> Cursor<'_> {
        Cursor {
            tape: self,
            at: offset,
        }
    }
}

/// A place in a tape, from which it is read.
#[derive(Debug)]
pub struct Cursor<'a> {
    tape: &'a Tape,
    at: u64,
}

impl Cursor<'_> {
    /// Where it is.
    pub fn at(&self) -> u64 {
        self.at
    }
}

impl io::Read for Cursor<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let rest = usize::try_from(self.tape.len.saturating_sub(self.at)).unwrap_or(usize::MAX);
        let count = buffer.len().min(rest);
        let bytes = buffer.get_mut(..count).unwrap_or_default();
        self.tape.read_at(bytes, self.at)?;
        self.at += count as u64;
        Ok(count)
    }
}

/// Where a frame is.
#[derive(Debug, Clone, Copy)]
struct Place {
    /// In the file.
    at: u64,
    frame: Frame,
    /// Where what it gives begins, in the tar.
    begin: u64,
}

/// What a frame gives; made once, by whoever comes first.
type Opened = Arc<OnceLock<Result<Vec<u8>, TapeError>>>;

struct Frames {
    /// Those that give something.
    places: Vec<Place>,
    end: u64,
    kept: Mutex<VecDeque<(usize, Opened)>>,
    /// Decompressors that nobody uses at the moment, and their buffers.
    spare: Mutex<Vec<(Decompressor<'static>, Vec<u8>)>>,
}

impl fmt::Debug for Frames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Frames")
            .field("end", &self.end)
            .finish_non_exhaustive()
    }
}

impl Frames {
    fn new(frames: &[Frame]) -> Self {
        let (mut at, mut begin) = (0, 0);
        let mut places = Vec::new();
        for &frame in frames {
            if frame.raw() > 0 {
                places.push(Place { at, frame, begin });
            }
            at += frame.packed();
            begin += frame.raw();
        }
        Self {
            places,
            end: begin,
            kept: Mutex::default(),
            spare: Mutex::default(),
        }
    }

    fn read_at(&self, file: &File, bytes: &mut [u8], offset: u64) -> Result<(), TapeError> {
        let ended = || TapeError::Damaged("it ends before".to_owned());
        let (mut at, mut rest) = (offset, bytes);
        while !rest.is_empty() {
            let after = self.places.partition_point(|place| place.begin <= at);
            let number = after.checked_sub(1).ok_or_else(ended)?;
            let place = *self.places.get(number).ok_or_else(ended)?;
            let opened = self.opened(number);
            let made = opened.get_or_init(|| Ok(self.open(file, place)?));
            let raw = made.as_ref().map_err(TapeError::clone)?;
            // Nothing is left of the last one past the end.
            let from = usize::try_from(at - place.begin)
                .ok()
                .and_then(|from| raw.get(from..));
            let from = from.filter(|from| !from.is_empty()).ok_or_else(ended)?;
            let (now, later) = rest.split_at_mut(from.len().min(rest.len()));
            now.copy_from_slice(from.get(..now.len()).unwrap_or_default());
            at += now.len() as u64;
            rest = later;
        }
        Ok(())
    }

    /// The place for what a frame gives. Whoever asks for it while it is being made waits for that, and makes it not again.
    fn opened(&self, number: usize) -> Opened {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, opened)) = kept.iter().find(|(of, _)| *of == number) {
            return Arc::clone(opened);
        }
        let bytes = |opened: &Opened| {
            opened
                .get()
                .and_then(|made| made.as_ref().ok())
                .map_or(0, Vec::len)
        };
        let mut sum: usize = kept.iter().map(|(_, opened)| bytes(opened)).sum();
        while (kept.len() >= KEPT_MAX || sum > KEPT_BYTES_MAX)
            && let Some((_, oldest)) = kept.pop_front()
        {
            sum -= bytes(&oldest).min(sum);
        }
        let opened = Opened::default();
        kept.push_back((number, Arc::clone(&opened)));
        opened
    }

    fn open(&self, file: &File, place: Place) -> io::Result<Vec<u8>> {
        let spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let (mut decompressor, mut packed) = match spare {
            Some(spare) => spare,
            None => (Decompressor::new()?, Vec::new()),
        };
        let raw = frames::open(place.frame, place.at, file, &mut decompressor, &mut packed)?;
        let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        spare.push((decompressor, packed));
        Ok(raw)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_disk_says_is_no_damage() {
        // A directory can be opened, and not be read.
        let dir = tempfile::tempdir().expect("a directory");
        let file = File::open(dir.path()).expect("open");
        let frames = Frames::new(&[Frame::new(10, 10).expect("a frame")]);
        for _kept in 0..2 {
            let read = frames.read_at(&file, &mut [0; 10], 0);
            assert_eq!(read, Err(TapeError::Disk(Errno::EISDIR)));
        }
        let error = TapeError::Disk(Errno::EIO);
        assert_eq!(
            io::Error::from(error.clone()).raw_os_error(),
            Some(Errno::EIO as i32)
        );
        assert!(matches!(error.of(dir.path()), ArchiveError::Storage { .. }));
        let error = TapeError::from(io::Error::from(io::ErrorKind::UnexpectedEof));
        assert!(matches!(error.of(dir.path()), ArchiveError::Damaged { .. }));
    }
}
