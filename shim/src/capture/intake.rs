//! Pages on their way from a fifo into memory.
//!
//! ```text
//!   fifo --take--> full relays --> two copiers, each with a chunk --> full chunks: written
//!                  empty relays <----|                     empty chunks <---------|
//! ```

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{Builder, Scope, ScopedJoinHandle};

use super::CaptureError;
use super::memory::Chunk;
use super::relay::Relay;
use super::writing::Writing;

/// Copiers at once: one copies half as fast as CRIU gives.
pub(super) const COPIERS: usize = 2;

/// Relays that a copier takes at once, if so many are full: what they hold stands together in memory then, and is written at once.
const BATCH_MAX: usize = 16;

/// Of all relays a batch is no more than this part. A copier may wait for a chunk until what the other has copied is written, and the other
/// must go on being fed until its chunk is full.
const BATCH_SHARE: usize = 4;

/// A full relay: so many bytes, which belong there in that file.
#[derive(Debug)]
struct Fetched {
    relay: Relay,
    file: usize,
    at: u64,
    count: usize,
}

/// Takes pages in.
#[derive(Debug)]
pub(super) struct Intake<'s> {
    relays: Vec<Relay>,
    emptied: Receiver<Relay>,
    fetched: Sender<Fetched>,
    copiers: Vec<ScopedJoinHandle<'s, Result<(), CaptureError>>>,
    /// How much has come of each file.
    lengths: BTreeMap<usize, u64>,
}

impl<'s> Intake<'s> {
    /// With these relays, and the chunks of the writing.
    pub(super) fn start<'m: 's>(
        scope: &'s Scope<'s, 'm>,
        relays: Vec<Relay>,
        writing: &Arc<Writing<'m>>,
    ) -> io::Result<Self> {
        let (fetched, to_copy) = channel();
        let (empty, emptied) = channel();
        let to_copy = Arc::new(Mutex::new(to_copy));
        let batch = (relays.len() / BATCH_SHARE).clamp(1, BATCH_MAX);
        let mut copiers = Vec::new();
        for number in 0..COPIERS {
            let (to_copy, empty, writing) = (Arc::clone(&to_copy), empty.clone(), Arc::clone(writing));
            let copier = move || copy_all((number, batch), &to_copy, &empty, &writing);
            copiers.push(Builder::new().spawn_scoped(scope, copier)?);
        }
        Ok(Self {
            relays,
            emptied,
            fetched,
            copiers,
            lengths: BTreeMap::new(),
        })
    }

    /// Takes what a fifo has. True at the fifo's end.
    pub(super) fn take(&mut self, file: usize, fifo: &File) -> Result<io::Result<bool>, CaptureError> {
        let mut eager = false;
        loop {
            let relay = self.empty_relay()?;
            match relay.fetch(fifo, eager) {
                Ok(count @ 1..) => self.pass_on(relay, file, count)?,
                other => {
                    self.relays.push(relay);
                    match other {
                        Ok(_) => return Ok(Ok(true)),
                        Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(Ok(false)),
                        Err(error) if error.kind() == ErrorKind::Interrupted => {}
                        Err(error) => return Ok(Err(error)),
                    }
                }
            }
            eager = true;
        }
    }

    /// Waits for one if all are full: CRIU waits then too.
    fn empty_relay(&mut self) -> Result<Relay, CaptureError> {
        let next = self.relays.pop().or_else(|| self.emptied.try_recv().ok());
        next.map_or_else(|| self.emptied.recv().map_err(|_| lost()), Ok)
    }

    fn pass_on(&mut self, relay: Relay, file: usize, count: usize) -> Result<(), CaptureError> {
        let length = self.lengths.entry(file).or_default();
        let fetched = Fetched {
            relay,
            file,
            at: *length,
            count,
        };
        *length += count as u64;
        self.fetched.send(fetched).map_err(|_| lost())
    }

    /// No more is to come. When this returns all is in memory; tells how much it was.
    pub(super) fn finish(self) -> Result<u64, CaptureError> {
        drop(self.fetched);
        for copier in self.copiers {
            copier.join().map_err(|_| lost())??;
        }
        Ok(self.lengths.values().sum())
    }
}

fn lost() -> CaptureError {
    CaptureError::new("copy", "the pages")(io::Error::other("a thread ended early"))
}

fn copy_all(
    (copier, batch): (usize, usize),
    fetched: &Mutex<Receiver<Fetched>>,
    empty: &Sender<Relay>,
    writing: &Writing<'_>,
) -> Result<(), CaptureError> {
    let mut chunk = writing.empty_chunk(copier)?;
    loop {
        let full = next(fetched, batch);
        if full.is_empty() {
            return writing.write(chunk);
        }
        for mut relay in full {
            copy(&mut relay, &mut chunk, writing)?;
            // Nobody waits for it once all is fetched.
            let _ = empty.send(relay.relay);
        }
    }
}

/// What was fetched next; nothing if nothing is to come.
fn next(fetched: &Mutex<Receiver<Fetched>>, batch: usize) -> Vec<Fetched> {
    let fetched = fetched.lock().unwrap_or_else(PoisonError::into_inner);
    let first = fetched.recv().into_iter();
    first.chain(fetched.try_iter()).take(batch).collect()
}

fn copy<'m>(fetched: &mut Fetched, chunk: &mut Chunk<'m>, writing: &Writing<'m>) -> Result<(), CaptureError> {
    let (mut at, mut rest) = (fetched.at, fetched.count);
    while rest > 0 {
        if chunk.is_full() {
            let copier = chunk.owner;
            writing.write(std::mem::take(chunk))?;
            *chunk = writing.empty_chunk(copier)?;
        }
        let room = chunk.room();
        let length = room.len().min(rest);
        let room = room.get_mut(..length).unwrap_or_default();
        let read = match fetched.relay.out().read(room) {
            Ok(0) => Err(ErrorKind::UnexpectedEof.into()),
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            other => other,
        };
        let read = read.map_err(CaptureError::new("read", "the pages"))?;
        chunk.note(fetched.file, at, read);
        at += read as u64;
        rest -= read;
    }
    Ok(())
}
