//! Threads that give one process many pieces at once, in rounds.
//!
//! Nearly all of the time it takes to give a page is the kernel's, and the kernel gives pages of different pieces side by side.
//! One thread gives 2.8 GiB a second, two 5 (kernel 6.18; with nothing to read, from one hot buffer, it is 3.8 and 6.8).
//!
//! ```text
//!   server   plan a round -> work on it -> wait for the others -> settle what came of it -> read what happened
//!   others                   work on it ---^
//! ```
//!
//! Nothing is under way when the server reads what a process did with its memory: what is missing there is known as well as if
//! there were one thread. A round ends early when somebody waits for a page; nobody waits longer than one piece takes.

use std::io;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use super::extents::Extent;
use super::source::Source;
use super::uffd::{Offered, Uffd};

/// The most that a thread gives at once: 0.2 ms.
pub(super) const PIECE: u64 = 512 * 1024;

/// Pieces of a round: enough that waking the threads and waiting for the last costs little.
pub(super) const PIECES_MAX: usize = 64;

/// More threads than that find the kernel's locks, and the memory, busy.
const THREADS_MAX: usize = 8;

/// What is given between two looks at who waits, however small the pieces are.
const LOOK_EVERY: u64 = PIECE;

/// What came of a piece.
pub(super) type Outcome = (Extent, io::Result<Offered>);

/// Pieces for one process.
#[derive(Debug)]
pub(super) struct Round {
    uffd: Arc<Uffd>,
    source: Arc<dyn Source>,
    pieces: Vec<Extent>,
    next: AtomicUsize,
    stopped: AtomicBool,
    outcomes: Mutex<Vec<Outcome>>,
}

impl Round {
    pub(super) fn new(uffd: Arc<Uffd>, source: Arc<dyn Source>, pieces: Vec<Extent>) -> Self {
        Self {
            uffd,
            source,
            pieces,
            next: AtomicUsize::new(0),
            stopped: AtomicBool::new(false),
            outcomes: Mutex::default(),
        }
    }

    /// Gives pieces until there are none, somebody stops it, or one was not taken as it is: that one needs a closer look.
    fn work(&self, buffer: &mut [u8], mut is_to_stop: impl FnMut() -> bool) {
        let mut since = 0;
        while !self.stopped.load(Ordering::Relaxed) {
            let Some(piece) = self.pieces.get(self.next.fetch_add(1, Ordering::Relaxed)) else {
                return;
            };
            let outcome = self.source.give(&self.uffd, *piece, buffer);
            let is_whole = matches!(outcome, Ok(Offered::Taken(bytes)) if bytes == piece.len);
            let mut outcomes = self.outcomes.lock().unwrap_or_else(PoisonError::into_inner);
            outcomes.push((*piece, outcome));
            drop(outcomes);
            since += piece.len;
            if !is_whole || (since >= LOOK_EVERY && is_to_stop()) {
                self.stopped.store(true, Ordering::Relaxed);
            }
            since %= LOOK_EVERY;
        }
    }
}

/// The threads beside the server's own.
#[derive(Debug)]
pub(super) struct Fillers {
    threads: Vec<Sender<Arc<Round>>>,
    done: Receiver<()>,
}

impl Fillers {
    /// One a processor, less where the machine does not let us: the server gives pages itself.
    pub(super) fn start() -> Self {
        let count = thread::available_parallelism().map_or(1, NonZeroUsize::get);
        let (finished, done) = channel();
        let mut threads = Vec::new();
        for _ in 1..count.min(THREADS_MAX) {
            let (sender, rounds) = channel::<Arc<Round>>();
            let finished = finished.clone();
            let started = thread::Builder::new()
                .name("fill".to_owned())
                .spawn(move || fill(&rounds, &finished));
            if started.is_ok() {
                threads.push(sender);
            }
        }
        Self { threads, done }
    }

    /// Gives a round, and returns what came of the pieces that were tried. `is_to_stop` is asked every now and then.
    pub(super) fn run(
        &self,
        round: Round,
        buffer: &mut [u8],
        is_to_stop: impl FnMut() -> bool,
    ) -> Vec<Outcome> {
        let round = Arc::new(round);
        // One piece for each is the least that is worth waking them for.
        let wanted = round.pieces.len().saturating_sub(1);
        let sent = self.threads.iter().take(wanted);
        let under_way = sent
            .filter(|thread| thread.send(Arc::clone(&round)).is_ok())
            .count();
        round.work(buffer, is_to_stop);
        for _ in 0..under_way {
            // It comes with the end of a piece. A thread that panics takes the program along.
            let _ = self.done.recv();
        }
        let mut outcomes = round.outcomes.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut outcomes)
    }
}

fn fill(rounds: &Receiver<Arc<Round>>, finished: &Sender<()>) {
    let mut buffer = vec![0; usize::try_from(PIECE).unwrap_or_default()];
    while let Ok(round) = rounds.recv() {
        round.work(&mut buffer, || false);
        drop(round);
        if finished.send(()).is_err() {
            return;
        }
    }
}
