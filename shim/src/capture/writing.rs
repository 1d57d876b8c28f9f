//! Chunks on their way to the disk.
//!
//! ```text
//!   full chunks --> writers --> digester --> empty chunks
//!              |              | begins when the first process has given its pages, or no chunk is left
//!              | held, if they are to be packed from memory, until no chunk is left
//! ```
//!
//! Neither is to be in CRIU's way, nor in that of those that copy. Writers wait for the disk most of the time: to have them begin at once costs
//! CRIU some hundredths of its time, and saves a quarter of what is to be written afterwards. Digests take a processor.

use std::io;
use std::sync::mpsc::{Receiver, RecvError, SendError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, Scope};

use super::CaptureError;
use super::digest::{Digester, Digests};
use super::files::Files;
use super::intake::COPIERS;
use super::memory::Chunk;

/// Writers at once: while one waits for the last of what it wrote, the disk has the others'.
const WRITERS: usize = 4;

type Written<'m> = Result<Chunk<'m>, CaptureError>;

/// Why it came to an early end, for all who meet it.
type Failure = Arc<Mutex<Option<CaptureError>>>;

/// The threads that write, for whoever fills chunks.
#[derive(Debug)]
pub(super) struct Writing<'m> {
    state: Mutex<State<'m>>,
    /// Chunks that are empty again, for each copier its own. In common, one could have all while what the other has still to copy keeps
    /// the digests from going on, and neither would get another.
    emptied: Vec<Mutex<Receiver<Chunk<'m>>>>,
    digests: Mutex<Receiver<Digests>>,
    failure: Failure,
}

#[derive(Debug)]
struct State<'m> {
    empty: Vec<Chunk<'m>>,
    /// Full chunks, while they are held.
    held: Option<Vec<Chunk<'m>>>,
    /// To the writers.
    full: Sender<Chunk<'m>>,
    /// Dropped, it lets the digester begin.
    gate: Option<Sender<()>>,
}

impl<'m> Writing<'m> {
    /// Starts them for these files and chunks. With `holds` none is written as long as there are empty ones.
    pub(super) fn start<'s>(
        scope: &'s Scope<'s, 'm>,
        files: &'m Files,
        empty: Vec<Chunk<'m>>,
        holds: bool,
    ) -> io::Result<Self> {
        let (full, to_write) = channel();
        let (written, to_digest) = channel();
        let (given_back, emptied): (Vec<_>, Vec<_>) = (0..COPIERS).map(|_| channel()).unzip();
        let failure = Failure::default();
        let (digested, digests) = channel();
        let (gate, opened) = channel();
        let to_write = Arc::new(Mutex::new(to_write));
        for _ in 0..WRITERS {
            let (to_write, written) = (Arc::clone(&to_write), written.clone());
            let _joined = Builder::new().spawn_scoped(scope, move || write(files, &to_write, &written))?;
        }
        let _joined = Builder::new().spawn_scoped(scope, {
            let failure = Arc::clone(&failure);
            move || {
                // Nothing is ever sent.
                let _ = opened.recv();
                match digest(&to_digest, &given_back) {
                    // Nobody wants them of a capture that failed elsewhere.
                    Ok(digests) => drop(digested.send(digests)),
                    Err(error) => *locked(&failure) = Some(error),
                }
            }
        })?;
        let state = State {
            empty,
            held: holds.then(Vec::new),
            full,
            gate: Some(gate),
        };
        Ok(Self {
            state: Mutex::new(state),
            emptied: emptied.into_iter().map(Mutex::new).collect(),
            digests: Mutex::new(digests),
            failure,
        })
    }

    /// One to be filled by this copier; waits for one if all are full.
    pub(super) fn empty_chunk(&self, copier: usize) -> Result<Chunk<'m>, CaptureError> {
        let mut state = locked(&self.state);
        let mut chunk = match state.empty.pop() {
            Some(chunk) => chunk,
            None => {
                state.release().map_err(|SendError(_)| self.failed())?;
                state.gate = None;
                drop(state);
                let emptied = self.emptied.get(copier).ok_or_else(|| self.failed())?;
                locked(emptied).recv().map_err(|RecvError| self.failed())?
            }
        };
        chunk.owner = copier;
        Ok(chunk)
    }

    /// Has what was written digested, and what is held written.
    pub(super) fn begin(&self) -> Result<(), CaptureError> {
        let mut state = locked(&self.state);
        state.gate = None;
        state.release().map_err(|SendError(_)| self.failed())
    }

    /// Has one written, sooner or later.
    pub(super) fn write(&self, chunk: Chunk<'m>) -> Result<(), CaptureError> {
        let mut state = locked(&self.state);
        match &mut state.held {
            Some(held) => held.push(chunk),
            None => state.full.send(chunk).map_err(|SendError(_)| self.failed())?,
        }
        Ok(())
    }

    /// All chunks that were filled, if none has been written; the threads end then.
    pub(super) fn kept(&self) -> Option<Vec<Chunk<'m>>> {
        let mut state = locked(&self.state);
        let held = state.held.take();
        if held.is_some() {
            state.full = channel().0;
        }
        held
    }

    /// Waits until all are written.
    pub(super) fn finish(self) -> Result<Digests, CaptureError> {
        {
            let mut state = locked(&self.state);
            state.release().map_err(|SendError(_)| self.failed())?;
            state.gate = None;
            // The writers end when the last sender is gone.
            state.full = channel().0;
        }
        locked(&self.digests).recv().map_err(|RecvError| self.failed())
    }

    fn failed(&self) -> CaptureError {
        let known = locked(&self.failure).as_ref().map(CaptureError::again);
        known.unwrap_or_else(|| {
            CaptureError::new("write", "the pages")(io::Error::other("a thread ended early"))
        })
    }
}

impl<'m> State<'m> {
    /// From here on what is full is written at once.
    fn release(&mut self) -> Result<(), SendError<Chunk<'m>>> {
        let mut held = self.held.take().into_iter().flatten();
        held.try_for_each(|chunk| self.full.send(chunk))
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn write<'m>(files: &Files, full: &Mutex<Receiver<Chunk<'m>>>, written: &Sender<Written<'m>>) {
    loop {
        let next = locked(full).recv();
        let Ok(chunk) = next else { return };
        let mut runs = chunk.runs();
        let result = runs.try_for_each(|(file, at, bytes)| files.write(file, at, bytes));
        drop(runs);
        if written.send(result.map(|()| chunk)).is_err() {
            return;
        }
    }
}

/// Digests what was written, and gives the chunks back. Ends with the first that could not be.
fn digest<'m>(
    written: &Receiver<Written<'m>>,
    given_back: &[Sender<Chunk<'m>>],
) -> Result<Digests, CaptureError> {
    let mut digester = Digester::default();
    for result in written {
        digester.take(result?, |chunk| {
            // Nobody waits for a chunk once all is in memory.
            let _ = given_back.get(chunk.owner).map(|owner| owner.send(chunk));
        });
    }
    Ok(digester.finish())
}
