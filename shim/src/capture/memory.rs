//! Where pages are held between CRIU and the disk: memory in chunks, each filled from its beginning.

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use memmap2::{Advice, MmapMut};
use nix::time::{ClockId, clock_gettime};

/// The least that is worth having: below this CRIU might as well write files.
const BYTES_MIN: u64 = 4 << 20;

/// A chunk: large enough that the disk is asked for much at a time. Of little memory a quarter, so that one can be filled while the others
/// are on their way to the disk.
const CHUNK_BYTES_MAX: usize = 16 << 20;
const CHUNKS_MIN: usize = 4;

/// Threads that touch memory.
const TOUCHERS: usize = 2;

/// What divides a chunk.
const CHUNK_UNIT: usize = 1 << 20;

/// Steps begin at multiples of this, where huge pages do.
const HUGE_PAGE: usize = 2 << 20;

/// Touched at once: a few huge pages.
const STEP_BYTES: usize = 8 << 20;

/// The processor's time that a step takes where huge pages have to be put together first, or more. Where they lie ready it is 1 ms, and 3 ms
/// with small ones (kernel 6.18).
const STALL: Duration = Duration::from_millis(6);

/// So many such steps show that there are no more.
const STALLS_MAX: usize = 2;

/// Takes this much, and touches it: a page that is first met while the application stands costs it time.
pub(super) fn take(bytes: u64) -> io::Result<MmapMut> {
    let bytes = usize::try_from(bytes.max(BYTES_MIN)).map_err(io::Error::other)?;
    let space = MmapMut::map_anon(bytes.next_multiple_of(CHUNK_UNIT))?;
    touch(&space);
    Ok(space)
}

/// By several at once: the kernel clears each page. Huge pages are touched in 0.1 s a GiB, small ones in 0.4 s, and huge ones that the kernel
/// has to put together in 1.4 s to 5 s: they are asked for as long as they are there. Not needed, so that nothing is said of a failure: the
/// pages are met later then.
fn touch(space: &MmapMut) {
    let (next, stalls) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let before = space.as_ptr().align_offset(HUGE_PAGE).min(space.len());
    let _best_effort = space.advise_range(Advice::PopulateWrite, 0, before);
    let touch_some = || {
        loop {
            let start = before.saturating_add(next.fetch_add(STEP_BYTES, Ordering::Relaxed));
            if start >= space.len() {
                return;
            }
            let length = STEP_BYTES.min(space.len() - start);
            let asks = stalls.load(Ordering::Relaxed) < STALLS_MAX;
            let began = own_time();
            if asks {
                let _best_effort = space.advise_range(Advice::HugePage, start, length);
            }
            let _best_effort = space.advise_range(Advice::PopulateWrite, start, length);
            if asks && own_time().saturating_sub(began) > STALL {
                let _before = stalls.fetch_add(1, Ordering::Relaxed);
            }
        }
    };
    thread::scope(|scope| {
        for _ in 0..TOUCHERS {
            let _joined = scope.spawn(touch_some);
        }
    });
}

/// What this thread has had of the processor: on a busy machine waiting for it is no sign of anything.
fn own_time() -> Duration {
    let time = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID);
    time.map(Duration::from).unwrap_or_default()
}

/// The chunks of it.
pub(super) fn chunks(space: &mut [u8]) -> Vec<Chunk<'_>> {
    let share = space.len() / CHUNKS_MIN / CHUNK_UNIT * CHUNK_UNIT;
    let size = share.clamp(CHUNK_UNIT, CHUNK_BYTES_MAX);
    let chunks = space.chunks_mut(size).map(|space| Chunk {
        space,
        ..Chunk::default()
    });
    chunks.collect()
}

/// Pages as they came: each run belongs to one file.
#[derive(Debug, Default)]
pub(super) struct Chunk<'m> {
    space: &'m mut [u8],
    filled: usize,
    runs: Vec<Run>,
    /// Who has filled it, and gets it back.
    pub(super) owner: usize,
}

/// Bytes that stand together in a chunk and in their file.
#[derive(Debug)]
struct Run {
    file: usize,
    at: u64,
    range: Range<usize>,
}

impl Chunk<'_> {
    /// What is still free of it.
    pub(super) fn room(&mut self) -> &mut [u8] {
        self.space.get_mut(self.filled..).unwrap_or_default()
    }

    pub(super) fn is_full(&self) -> bool {
        self.filled == self.space.len()
    }

    /// So many bytes were put into its room, which belong there in that file.
    pub(super) fn note(&mut self, file: usize, at: u64, length: usize) {
        let end = self.filled + length;
        match self.runs.last_mut() {
            Some(run) if run.file == file && run.at + run.range.len() as u64 == at => run.range.end = end,
            _ => self.runs.push(Run {
                file,
                at,
                range: self.filled..end,
            }),
        }
        self.filled = end;
    }

    /// Its runs, in the order in which they came: the file, where in it, and the bytes.
    pub(super) fn runs(&self) -> impl Iterator<Item = (usize, u64, &[u8])> {
        let bytes = |run: &Run| self.space.get(run.range.clone()).unwrap_or_default();
        self.runs.iter().map(move |run| (run.file, run.at, bytes(run)))
    }

    /// Nothing is in it any more.
    pub(super) fn clear(&mut self) {
        self.filled = 0;
        self.runs.clear();
    }
}

#[cfg(test)]
mod tests {
    use nix::sys::resource::{UsageWho, getrusage};

    use super::*;

    #[test]
    fn what_was_taken_is_written_without_a_fault() {
        const PAGE: usize = 4096;
        let faults = || {
            getrusage(UsageWho::RUSAGE_THREAD)
                .expect("usage")
                .minor_page_faults()
        };
        // Not a whole number of steps, nor of huge pages.
        let mut space = take((3 * STEP_BYTES + CHUNK_UNIT) as u64).expect("memory");
        let before = faults();
        space.iter_mut().step_by(PAGE).for_each(|byte| *byte = 1);
        assert!(faults() - before < 5, "{}", faults() - before);
    }

    #[test]
    fn chunks_are_a_quarter_of_little_and_bounded_of_much() {
        for (bytes, count) in [
            (1 << 20, 1),
            (4 << 20, 4),
            (10 << 20, 5),
            (64 << 20, 4),
            (100 << 20, 7),
        ] {
            assert_eq!(chunks(&mut vec![0; bytes]).len(), count, "{bytes}");
        }
    }

    #[test]
    fn runs_that_follow_one_another_are_joined() {
        let mut space = vec![0; 10];
        let mut all = chunks(&mut space);
        let chunk = all.first_mut().expect("a chunk");
        for (file, at, bytes) in [(0, 7, b"ab"), (0, 9, b"cd"), (1, 0, b"ef"), (0, 13, b"gh")] {
            chunk.room()[..2].copy_from_slice(bytes);
            chunk.note(file, at, 2);
        }
        let runs: Vec<_> = chunk.runs().collect();
        assert_eq!(runs, [(0, 7, &b"abcd"[..]), (1, 0, b"ef"), (0, 13, b"gh")]);
        assert!(!chunk.is_full());
        chunk.clear();
        assert_eq!((chunk.room().len(), chunk.runs().count()), (10, 0));
    }
}
