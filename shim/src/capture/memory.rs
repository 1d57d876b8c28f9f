//! Where pages are held between CRIU and the disk: one piece of memory, filled from its beginning.

use std::io::{self, Read};
use std::num::NonZero;
use std::ops::Range;
use std::thread;

use memmap2::{Advice, MmapMut};

use super::CaptureError;
use super::files::Files;

/// The least that is worth having: below this CRIU might as well write files.
const BYTES_MIN: u64 = 4 << 20;

/// More processors than this do not make the kernel any faster at finding memory.
const THREADS_MAX: usize = 4;

/// A large page: two threads that touch the same one wait for each other.
const SHARE_ALIGNMENT: usize = 2 << 20;

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
        touch(&space);
        Ok(Self {
            space,
            filled: 0,
            runs: Vec::new(),
            taken_in: 0,
        })
    }

    /// Reads this much, which is there to be read, for the file of this index; whenever there is no room left, everything is
    /// written out first.
    pub(super) fn read(
        &mut self,
        index: usize,
        source: &mut impl Read,
        length: usize,
        files: &mut Files,
    ) -> Result<(), CaptureError> {
        let mut left = length;
        while left > 0 {
            if self.filled == self.space.len() {
                self.write_to(files)?;
            }
            let end = self.space.len().min(self.filled + left);
            let room = self.space.get_mut(self.filled..end).unwrap_or_default();
            let taken = room.len();
            let read = source.read_exact(room);
            read.map_err(CaptureError::new("read", "pages on their way"))?;
            self.note(index, taken);
            left -= taken;
        }
        Ok(())
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

/// All processors together: where the memory of a virtual machine comes from its host, one takes up to two seconds a GiB.
fn touch(space: &MmapMut) {
    let threads = thread::available_parallelism()
        .map_or(1, NonZero::get)
        .min(THREADS_MAX);
    let share = space.len().div_ceil(threads).next_multiple_of(SHARE_ALIGNMENT);
    thread::scope(|scope| {
        for start in (0..space.len()).step_by(share) {
            let length = share.min(space.len() - start);
            // A thread that cannot be had leaves its part to be met later.
            let _ = thread::Builder::new().spawn_scoped(scope, move || {
                space.advise_range(Advice::PopulateWrite, start, length)
            });
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_goes_to_its_file() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let mut files = Files::new(directory.path().to_owned());
        let mut memory = Memory::take(1).expect("memory");
        let piece: Vec<u8> = (0..BYTES_MIN - 5).map(|at| (at % 251) as u8).collect();
        for index in [0, 1, 0] {
            let read = memory.read(index, &mut piece.as_slice(), piece.len(), &mut files);
            read.expect("read");
        }
        assert_eq!(memory.taken_in(), 3 * piece.len() as u64);
        memory.write_to(&mut files).expect("written");
        let names = [(0, "first".to_owned()), (1, "second".to_owned())];
        let _parts = files.finish(&names).expect("finished");
        for (name, expected) in [("first", [piece.as_slice(), &piece].concat()), ("second", piece)] {
            let written = std::fs::read(directory.path().join(name)).expect("there");
            assert!(written == expected, "{name} has other bytes, or not as many");
        }
    }
}
