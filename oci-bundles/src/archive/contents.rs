//! Files in an archive, read where they are, and taken out of it in part or as a whole.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use nix::sys::stat::Mode;

use super::ArchiveError;
use super::entry::{Entry, Kind, Span};
use super::place::Place;
use super::reader::{ReadError, Reader};
use super::solid::write_solid;
use super::tape::{Tape, TapeError};

/// Bytes that are read and written at once.
const PIECE_BYTES: u64 = 1 << 20;

/// More threads than that wait for the disk.
const THREADS_MAX: usize = 16;

/// On which side copying failed.
#[derive(Debug, thiserror::Error)]
enum CopyError {
    /// The archive's.
    #[error(transparent)]
    Read(#[from] TapeError),
    /// That of the file that is made.
    #[error(transparent)]
    Write(io::Error),
}

/// A file in an archive, read where it is.
#[derive(Debug)]
pub struct Content {
    tape: Arc<Tape>,
    size: u64,
    /// What of it is there, and where each begins in the tar.
    parts: Vec<(Span, u64)>,
}

impl Content {
    /// The file of that name and size whose entry begins there; what is wrong if it does not.
    pub(super) fn find(tape: &Arc<Tape>, path: &Path, size: u64, at: u64) -> Result<Self, ReadError> {
        let mut reader = Reader::new(tape.from(at));
        let entry = reader.next_entry()?;
        let is_it = |entry: &Entry| entry.kind == Kind::File && entry.path == path && entry.size == size;
        let entry = entry
            .filter(is_it)
            .ok_or_else(|| ReadError::Damaged(format!("{} is not where it was", path.display())))?;
        let mut at = reader.input().at();
        let whole = vec![Span {
            at: 0,
            len: entry.size,
        }];
        let spans = entry.parts.unwrap_or(whole);
        let parts = spans.into_iter().map(|span| {
            let begin = at;
            at = at.saturating_add(span.len);
            (span, begin)
        });
        Ok(Self {
            tape: Arc::clone(tape),
            size: entry.size,
            parts: parts.collect(),
        })
    }

    /// Its bytes, holes included.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Fills `bytes` from there on.
    ///
    /// # Errors
    /// [`TapeError`]; so is what is past its end.
    pub fn read_at(&self, bytes: &mut [u8], offset: u64) -> Result<(), TapeError> {
        let end = offset.checked_add(bytes.len() as u64);
        if end.is_none_or(|end| end > self.size) {
            return Err(TapeError::Damaged("the file ends before".to_owned()));
        }
        let (mut at, mut rest) = (offset, bytes);
        while !rest.is_empty() {
            let next = self.parts.partition_point(|(span, _)| span.at + span.len <= at);
            let (span, begin) = self.parts.get(next).copied().unwrap_or((
                Span {
                    at: self.size,
                    len: 0,
                },
                0,
            ));
            let is_hole = span.at > at;
            let len = if is_hole {
                span.at - at
            } else {
                span.at + span.len - at
            };
            let len = usize::try_from(len).unwrap_or(usize::MAX).min(rest.len());
            let (now, later) = rest.split_at_mut(len);
            match is_hole {
                true => now.fill(0),
                false => self.tape.read_at(now, begin + (at - span.at))?,
            }
            at += len as u64;
            rest = later;
        }
        Ok(())
    }

    /// Copies stretches of it to the same places of a file, on all processors; zeros become holes.
    fn copy(&self, to: &File, stretches: &[Span]) -> Result<(), CopyError> {
        let mut count = 0u64;
        // The number of each one's first piece.
        let firsts: Vec<u64> = stretches
            .iter()
            .map(|span| {
                let first = count;
                count += span.len.div_ceil(PIECE_BYTES);
                first
            })
            .collect();
        let next = AtomicU64::new(0);
        let work = || {
            let mut buffer = vec![0; usize::try_from(PIECE_BYTES).unwrap_or_default()];
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                let of = firsts.partition_point(|first| *first <= number).checked_sub(1);
                let of = of.filter(|_| number < count);
                let Some((span, first)) = of.and_then(|of| stretches.get(of).zip(firsts.get(of))) else {
                    return Ok(());
                };
                let from = (number - first) * PIECE_BYTES;
                let len = usize::try_from(PIECE_BYTES.min(span.len.saturating_sub(from))).unwrap_or_default();
                let bytes = buffer.get_mut(..len).unwrap_or_default();
                self.read_at(bytes, span.at + from)?;
                let _solid = write_solid(to, bytes, span.at + from).map_err(CopyError::Write)?;
            }
        };
        let threads = thread::available_parallelism()
            .map_or(1, NonZeroUsize::get)
            .min(THREADS_MAX);
        let others = usize::try_from(count)
            .unwrap_or(threads)
            .min(threads)
            .saturating_sub(1);
        thread::scope(|scope| {
            let others: Vec<_> = (0..others).map(|_| scope.spawn(work)).collect();
            let own = work();
            let panicked = |_| Err(CopyError::Write(io::Error::other("a thread ended early")));
            others
                .into_iter()
                .map(|other| other.join().unwrap_or_else(panicked))
                .fold(own, Result::and)
        })
    }
}

/// What was left in an archive, open: its name is not needed any more.
#[derive(Debug)]
pub struct Contents {
    archive: PathBuf,
    root: PathBuf,
    files: BTreeMap<PathBuf, Arc<Content>>,
}

impl Contents {
    /// These files of an archive, by their names; the rest of it was unpacked to a directory.
    pub(super) fn new(archive: &Path, root: &Path, files: BTreeMap<PathBuf, Arc<Content>>) -> Self {
        Self {
            archive: archive.to_owned(),
            root: root.to_owned(),
            files,
        }
    }

    /// All of it, by the place that it would have been unpacked to.
    pub fn iter(&self) -> impl Iterator<Item = (PathBuf, &Arc<Content>)> {
        self.files
            .iter()
            .map(|(path, content)| (self.root.join(path), content))
    }

    /// What would have been unpacked to that place.
    pub fn at(&self, place: &Path) -> Option<&Arc<Content>> {
        self.files.get(place.strip_prefix(&self.root).ok()?)
    }

    /// Makes the file at a place of one of them, with these stretches of it; all else is a hole. What is there goes.
    ///
    /// # Errors
    /// It is none of them; what the disk says; the archive is damaged, or was changed.
    pub fn make(&self, place: &Path, stretches: &[Span]) -> Result<(), ArchiveError> {
        let failed = |error: io::Error| ArchiveError::storage("write", place, error);
        let path = place.strip_prefix(&self.root).unwrap_or(place);
        let content = self
            .files
            .get(path)
            .ok_or_else(|| failed(io::ErrorKind::NotFound.into()))?;
        match fs::remove_file(place) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        let made = Place::open(&self.root)
            .and_then(|mut root| root.create_file(path, Mode::S_IRUSR | Mode::S_IWUSR));
        let file = made.map_err(|error| failed(error.into()))?;
        file.set_len(content.size).map_err(failed)?;
        content.copy(&file, stretches).map_err(|error| match error {
            CopyError::Read(error) => error.of(&self.archive),
            CopyError::Write(error) => failed(error),
        })
    }

    /// Makes all of them, whole.
    ///
    /// # Errors
    /// As [`Contents::make`].
    pub fn make_all(&self) -> Result<(), ArchiveError> {
        self.iter().try_for_each(|(place, content)| {
            let whole = Span {
                at: 0,
                len: content.size,
            };
            self.make(&place, &[whole])
        })
    }
}
