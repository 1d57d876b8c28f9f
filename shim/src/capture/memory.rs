//! Where pages are held between CRIU and the disk: one piece of memory, filled from its beginning.

use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;

use memmap2::{Advice, MmapMut};

use super::CaptureError;
use super::files::Files;

/// The least that is worth having: below this CRIU might as well write files.
const BYTES_MIN: u64 = 4 << 20;

/// One `read` takes no more than a fifo can hold, 1 MiB as a rule.
const READ_BYTES_MAX: usize = 1 << 20;

/// Pages as they came: each run belongs to one file, and the runs of a file follow one another in it.
#[derive(Debug)]
pub(super) struct Memory {
    space: MmapMut,
    filled: usize,
    runs: Vec<(usize, Range<usize>)>,
    taken_in: u64,
}

impl Memory {
    /// Takes this much, and touches it: a page that is first met while the application stands costs it time.
    pub(super) fn take(bytes: u64) -> io::Result<Self> {
        let bytes = usize::try_from(bytes.max(BYTES_MIN)).map_err(io::Error::other)?;
        let space = MmapMut::map_anon(bytes)?;
        // Neither is needed: without the first it takes longer (4 KiB at a time), without the second it takes it later.
        let _ = space.advise(Advice::HugePage);
        let _ = space.advise(Advice::PopulateWrite);
        Ok(Self {
            space,
            filled: 0,
            runs: Vec::new(),
            taken_in: 0,
        })
    }

    /// Reads once from a fifo; if there is no room left, everything is written out first. Returns what `read` does.
    pub(super) fn read(
        &mut self,
        index: usize,
        fifo: &mut File,
        files: &mut Files,
    ) -> Result<io::Result<usize>, CaptureError> {
        if self.filled == self.space.len() {
            self.write_to(files)?;
        }
        let end = self.space.len().min(self.filled + READ_BYTES_MAX);
        let room = self.space.get_mut(self.filled..end).unwrap_or_default();
        let read = fifo.read(room);
        if let Ok(length @ 1..) = read {
            self.note(index, length);
        }
        Ok(read)
    }

    fn note(&mut self, index: usize, length: usize) {
        let end = self.filled + length;
        match self.runs.last_mut() {
            Some((last, run)) if *last == index => run.end = end,
            _ => self.runs.push((index, self.filled..end)),
        }
        self.filled = end;
        self.taken_in += length as u64;
    }

    /// Bytes that came, over all.
    pub(super) fn taken_in(&self) -> u64 {
        self.taken_in
    }

    /// Writes everything to its file, and is empty again.
    pub(super) fn write_to(&mut self, files: &mut Files) -> Result<(), CaptureError> {
        for (index, run) in self.runs.drain(..) {
            files.append(index, self.space.get(run).unwrap_or_default())?;
        }
        self.filled = 0;
        Ok(())
    }
}
