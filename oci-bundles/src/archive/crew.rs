//! Work spread over threads whose results come back in the order in which it was given.

use std::collections::VecDeque;
use std::io;
use std::num::NonZeroUsize;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

/// Threads at most: past this the disk is slower than they are.
const THREADS_MAX: usize = 16;

/// Pieces of work a thread may be ahead, so that none waits while the disk does; with a piece's size, the memory bound.
const AHEAD: usize = 8;

/// What a thread does to each piece of work; it may keep state between them.
pub type Worker<I, O> = Box<dyn FnMut(I) -> O + Send>;

/// A queue that is worked off by as many threads as there are processors.
#[derive(Debug)]
pub struct Crew<I, O> {
    work: Option<SyncSender<(I, SyncSender<O>)>>,
    results: VecDeque<Receiver<O>>,
    threads: Vec<JoinHandle<()>>,
}

impl<I: Send + 'static, O: Send + 'static> Crew<I, O> {
    /// Starts the threads, each with a worker of its own.
    pub fn new(make_worker: impl Fn() -> io::Result<Worker<I, O>>) -> io::Result<Self> {
        let count = thread::available_parallelism().map_or(1, NonZeroUsize::get);
        let (work, queue) = sync_channel::<(I, SyncSender<O>)>(THREADS_MAX * AHEAD);
        let queue = Arc::new(Mutex::new(queue));
        let mut crew = Self {
            work: Some(work),
            results: VecDeque::new(),
            threads: Vec::new(),
        };
        for _ in 0..count.min(THREADS_MAX) {
            let (mut worker, queue) = (make_worker()?, Arc::clone(&queue));
            let thread = thread::Builder::new().name("archive".into()).spawn(move || {
                loop {
                    // The lock is held while waiting, by the one thread that is next; the others wait for it.
                    let next = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    let Ok((piece, result)) = next else { return };
                    // Nobody waits for it any more: the crew was dropped, and this thread ends with the queue.
                    drop(result.send(worker(piece)));
                }
            });
            crew.threads.push(thread?);
        }
        Ok(crew)
    }

    /// There is as much under way as there may be: take a result before giving more.
    pub fn is_full(&self) -> bool {
        self.results.len() >= self.threads.len() * AHEAD
    }

    /// Gives a piece of work. Does not wait unless the crew [is full](Self::is_full).
    pub fn give(&mut self, piece: I) -> io::Result<()> {
        let (sender, receiver) = sync_channel(1);
        let work = self.work.as_ref().ok_or_else(gone)?;
        work.send((piece, sender)).map_err(|_| gone())?;
        self.results.push_back(receiver);
        Ok(())
    }

    /// The result of the oldest piece, waited for; nothing when all were taken.
    pub fn take(&mut self) -> io::Result<Option<O>> {
        let Some(result) = self.results.pop_front() else {
            return Ok(None);
        };
        result.recv().map(Some).map_err(|_| gone())
    }
}

impl<I, O> Drop for Crew<I, O> {
    fn drop(&mut self) {
        self.work = None;
        for thread in self.threads.drain(..) {
            // A worker that panicked has said so itself; there is nothing to add.
            drop(thread.join());
        }
    }
}

fn gone() -> io::Error {
    io::Error::other("a thread of the archive ended early")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_come_in_the_order_of_the_work() {
        let mut crew = Crew::new(|| Ok(Box::new(|n: u64| (0..(50 - n) * 1000).fold(n, |a, _| a)))).unwrap();
        let (mut given, mut taken) = (0, Vec::new());
        while given < 50 {
            if crew.is_full() {
                taken.extend(crew.take().unwrap());
            }
            crew.give(given).unwrap();
            given += 1;
        }
        while let Some(result) = crew.take().unwrap() {
            taken.push(result);
        }
        assert_eq!(taken, (0..50).collect::<Vec<_>>());
    }

    #[test]
    fn a_dropped_crew_ends_its_threads() {
        let token = Arc::new(());
        let mut crew = Crew::<u64, u64>::new(|| {
            let token = Arc::clone(&token);
            Ok(Box::new(move |n: u64| n + Arc::strong_count(&token) as u64))
        })
        .unwrap();
        crew.give(1).unwrap();
        drop(crew);
        assert_eq!(Arc::strong_count(&token), 1);
    }
}
