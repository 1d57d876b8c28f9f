//! One process whose pages come late.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use thiserror::Error;

use super::extents::{Extent, Extents};
use super::fillers::{Outcome, PIECE, PIECES_MAX, Round};
use super::source::Source;
use super::uffd::{Event, Offered, Uffd};

/// The most that is given at once. Measured (kernel 6.18): 2 GiB take 0.90 s so, 0.98 s by 128 KiB, 0.90 s by 4 MiB; and whoever
/// waits for a page waits no longer than for one such piece.
pub(super) const CHUNK: u64 = 1024 * 1024;

/// What is given to whoever waits for a page: that page and what follows, which is likely to be wanted next.
const FAULT_CHUNK: u64 = 64 * 1024;

/// How long a container without memory may be left waiting for some: the kernel has killed one of its processes by then.
const STARVED_MAX: Duration = Duration::from_secs(30);

/// Why a process cannot be served any more.
#[derive(Debug, Error)]
pub(in crate::worker) enum TaskError {
    /// The file of pages cannot be read.
    #[error("read pages of process {pid} at {offset}")]
    Pages {
        /// Its pid in the container.
        pid: i32,
        /// Where, in bytes.
        offset: u64,
        /// The reason.
        source: io::Error,
    },
    /// Its messages cannot be read.
    #[error("read what process {pid} does with its memory")]
    Events {
        /// Its pid in the container.
        pid: i32,
        /// The reason.
        source: io::Error,
    },
    /// There is no memory for its pages.
    #[error("fill the memory of process {pid}: none was to be had for {} s", STARVED_MAX.as_secs())]
    Starved {
        /// Its pid in the container.
        pid: i32,
    },
    /// The kernel refuses a page.
    #[error("fill the memory of process {pid} at {address:#x}: {errno}")]
    Refused {
        /// Its pid in the container.
        pid: i32,
        /// Where, in its memory.
        address: u64,
        /// The reason.
        errno: Errno,
    },
}

/// What came of an attempt to give pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Given {
    /// So many bytes were settled.
    Some(u64),
    /// Later: the process is just changing its memory, or there is none to be had.
    Later,
    /// There is nothing to give.
    Nothing,
    /// The process is gone.
    Gone,
}

/// A process that is served.
#[derive(Debug)]
pub(super) struct Task {
    /// Its pid in the container; that of the ancestor that was restored, if it was forked since.
    pid: i32,
    /// By which number the shim knows its descriptor.
    pub(super) number: u64,
    uffd: Arc<Uffd>,
    pages: Arc<dyn Source>,
    missing: Extents,
    page_size: u64,
    /// Pages that threads wait for, oldest first. Each waits for one, so there are no more than it has threads.
    faults: VecDeque<u64>,
    /// Where it is filled next.
    cursor: u64,
    /// How much is offered next: less where its mappings are small or it was quicker.
    step: u64,
    starved: Option<Instant>,
    /// Pages whose place was gone, in bytes.
    pub(super) unplaced: u64,
}

impl Task {
    pub(super) fn new(
        pid: i32,
        number: u64,
        uffd: Uffd,
        missing: Extents,
        pages: Arc<dyn Source>,
        page_size: u64,
    ) -> Self {
        Self {
            pid,
            number,
            uffd: Arc::new(uffd),
            pages,
            missing,
            page_size,
            faults: VecDeque::new(),
            cursor: 0,
            step: CHUNK,
            starved: None,
            unplaced: 0,
        }
    }

    /// What to wait at for its events.
    pub(super) fn descriptor(&self) -> BorrowedFd<'_> {
        self.uffd.as_fd()
    }

    /// Nothing is missing and nobody waits.
    pub(super) fn is_full(&self) -> bool {
        self.missing.is_empty() && self.faults.is_empty()
    }

    /// Somebody waits.
    pub(super) fn has_faults(&self) -> bool {
        !self.faults.is_empty()
    }

    /// Takes what has happened; children that were forked are served from now on as it is itself.
    ///
    /// # Errors
    /// [`TaskError::Events`].
    pub(super) fn follow(&mut self, number: &mut u64) -> Result<Vec<Self>, TaskError> {
        let pid = self.pid;
        let events = self
            .uffd
            .events()
            .map_err(|source| TaskError::Events { pid, source })?;
        let mut children = Vec::new();
        for event in events {
            match event {
                Event::Fault(address) => self.faults.push_back(address - address % self.page_size),
                Event::Remap { from, to, len } => self.missing.shift(from, to, len),
                Event::Remove { start, end } => drop(self.missing.remove(start, end)),
                // Copied while the parent's memory was held still: what it lacked, the child lacks.
                Event::Fork(uffd) => {
                    *number += 1;
                    let (missing, pages) = (self.missing.clone(), Arc::clone(&self.pages));
                    children.push(Self::new(pid, *number, uffd, missing, pages, self.page_size));
                }
            }
        }
        Ok(children)
    }

    /// Serves whoever has waited longest for a page.
    ///
    /// # Errors
    /// [`TaskError`].
    pub(super) fn serve(&mut self, buffer: &mut [u8]) -> Result<Given, TaskError> {
        let Some(&address) = self.faults.front() else {
            return Ok(Given::Nothing);
        };
        let given = match self.missing.at(address) {
            Some(extent) => self.give(extent, FAULT_CHUNK, buffer)?,
            None => self.zero(address)?,
        };
        if matches!(given, Given::Some(1..)) {
            let _ = self.faults.pop_front();
            self.cursor = address;
            // It may have been there before anybody waited, and then nobody else wakes them.
            self.uffd.wake(address, self.page_size);
        }
        Ok(given)
    }

    /// Gives a piece of what is missing, unasked: `size_max` bytes at most.
    ///
    /// # Errors
    /// [`TaskError`].
    pub(super) fn fill(&mut self, size_max: u64, buffer: &mut [u8]) -> Result<Given, TaskError> {
        let Some(extent) = self.missing.next(self.cursor) else {
            return Ok(Given::Nothing);
        };
        let given = self.give(extent, size_max, buffer)?;
        if let Given::Some(bytes) = given {
            self.cursor = extent.start + bytes;
        }
        Ok(given)
    }

    /// Many pieces of what is missing, for several threads; none where it is better to go step by step.
    pub(super) fn plan(&self) -> Option<Round> {
        if self.step < CHUNK {
            return None;
        }
        let (mut pieces, mut cursor) = (Vec::new(), self.cursor);
        while pieces.len() < PIECES_MAX
            && let Some(extent) = self.missing.next(cursor)
        {
            // Around to the beginning: the next round begins there.
            if extent.start < cursor && !pieces.is_empty() {
                break;
            }
            let len = extent.len.min(PIECE);
            pieces.push(Extent { len, ..extent });
            cursor = extent.start + len;
        }
        let (uffd, pages) = (Arc::clone(&self.uffd), Arc::clone(&self.pages));
        (pieces.len() > 1).then(|| Round::new(uffd, pages, pieces))
    }

    /// Draws the consequences of a round.
    ///
    /// # Errors
    /// [`TaskError`].
    pub(super) fn settle_round(&mut self, outcomes: Vec<Outcome>) -> Result<Given, TaskError> {
        let (mut sum, mut last) = (0, Given::Later);
        for (piece, outcome) in outcomes {
            let (pid, offset) = (self.pid, piece.offset);
            let offered = outcome.map_err(|source| TaskError::Pages { pid, offset, source })?;
            match self.settle(piece.start, piece.len, offered)? {
                Given::Some(bytes) => {
                    sum += bytes;
                    self.cursor = self.cursor.max(piece.start + bytes);
                }
                other => last = other,
            }
            if offered != Offered::Taken(piece.len) && offered != Offered::Changing {
                self.step = CHUNK / 2;
                self.cursor = piece.start;
            }
        }
        Ok(if sum > 0 && last != Given::Gone {
            Given::Some(sum)
        } else {
            last
        })
    }

    fn give(&mut self, extent: Extent, size_max: u64, buffer: &mut [u8]) -> Result<Given, TaskError> {
        let size = extent.len.min(size_max).min(self.step);
        let bytes = usize::try_from(size).ok().and_then(|size| buffer.get_mut(..size));
        let bytes = bytes.unwrap_or_default();
        let read = self.pages.read_at(bytes, extent.offset);
        let (pid, offset) = (self.pid, extent.offset);
        read.map_err(|source| TaskError::Pages { pid, offset, source })?;
        let offered = self.uffd.copy(extent.start, bytes);
        let given = self.settle(extent.start, size, offered)?;
        // A mapping ends within the piece, or a page in it is there already: smaller ones until that is passed.
        self.step = match offered {
            Offered::Taken(taken) if taken == size => CHUNK.min(self.step * 2),
            _ => (self.step / 2).max(self.page_size),
        };
        Ok(given)
    }

    fn zero(&mut self, address: u64) -> Result<Given, TaskError> {
        let offered = self.uffd.zero(address, self.page_size);
        self.settle(address, self.page_size, offered)
    }

    /// Draws the consequences of an offer of so many bytes.
    fn settle(&mut self, address: u64, size: u64, offered: Offered) -> Result<Given, TaskError> {
        let single = size == self.page_size;
        if offered != Offered::NoMemory {
            self.starved = None;
        }
        match offered {
            Offered::Taken(bytes) => {
                let _ = self.missing.remove(address, address + bytes);
                Ok(Given::Some(bytes))
            }
            Offered::Present => {
                let _ = self.missing.remove(address, address + self.page_size);
                Ok(Given::Some(self.page_size))
            }
            // Less may do.
            Offered::NotMapped | Offered::NoMemory if !single => Ok(Given::Some(0)),
            Offered::NotMapped => {
                let removed = self.missing.remove(address, address + self.page_size);
                self.unplaced += removed.iter().map(|extent| extent.len).sum::<u64>();
                Ok(Given::Some(self.page_size))
            }
            Offered::Changing => Ok(Given::Later),
            Offered::Gone => Ok(Given::Gone),
            Offered::NoMemory => {
                let since = *self.starved.get_or_insert_with(Instant::now);
                let pid = self.pid;
                match since.elapsed() > STARVED_MAX {
                    true => Err(TaskError::Starved { pid }),
                    false => Ok(Given::Later),
                }
            }
            Offered::Refused(errno) => Err(TaskError::Refused {
                pid: self.pid,
                address,
                errno,
            }),
        }
    }
}
