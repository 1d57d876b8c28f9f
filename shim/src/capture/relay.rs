//! What stands between CRIU's fifo and our memory: pipes of our own, into which pages are moved without being copied.
//!
//! ```text
//!   CRIU --splice--> fifo --splice--> relays --read--> memory
//! ```
//!
//! Moving takes a twentieth of the time of copying. So CRIU never waits for a copy, and copies go on while it does what comes after the
//! pages. Nor does it wait for a lock: whoever reads a pipe holds its lock while it copies.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};

/// What a pipe holds at most; the kernel gives no more than this by default.
pub(super) const CAPACITY: usize = 1 << 20;

/// Relays at most: half of a GiB may wait to be copied, which is what CRIU is ahead by then. Each takes two descriptors, and of the
/// kernel 10 KiB.
const COUNT_MAX: u64 = 512;
const COUNT_MIN: u64 = 2;

/// Descriptors that a worker has for all else, the fifos among them.
const OTHER_DESCRIPTORS: u64 = super::FIFOS_MAX as u64 + 64;

/// How long a fifo that has just given pages is looked at for more before we sleep: to be woken takes longer than CRIU mostly takes
/// between two writes.
const PATIENCE: Duration = Duration::from_millis(1);

/// Between two looks, so that the fifo's lock is CRIU's.
const PAUSE_SPINS: u32 = 64;

/// A pipe.
#[derive(Debug)]
pub(super) struct Relay {
    into: OwnedFd,
    out: File,
}

impl Relay {
    fn new() -> io::Result<Self> {
        let (out, into) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        // Best effort: a smaller one is filled more often.
        let _ = fcntl_setpipe_size(&into, CAPACITY);
        Ok(Self {
            into,
            out: out.into(),
        })
    }

    /// As many as are of use for so much memory, and can be had.
    pub(super) fn some(memory: u64) -> io::Result<Vec<Self>> {
        allow_descriptors();
        let wanted = (memory / CAPACITY as u64).clamp(COUNT_MIN, COUNT_MAX);
        let mut relays = Vec::new();
        for number in 0..wanted {
            match Self::new() {
                Ok(relay) => relays.push(relay),
                Err(error) if number < COUNT_MIN => return Err(error),
                Err(_) => break,
            }
        }
        Ok(relays)
    }

    /// Moves what a fifo has into the pipe, which is empty, and returns how many bytes they are; none at the fifo's end. With `eager` it
    /// waits a moment for them.
    pub(super) fn fetch(&self, fifo: &impl AsFd, eager: bool) -> io::Result<usize> {
        let mut until = None;
        loop {
            match splice(fifo, None, &self.into, None, CAPACITY, SpliceFlags::NONBLOCK) {
                Err(rustix::io::Errno::AGAIN) if eager => {
                    let now = Instant::now();
                    if now >= *until.get_or_insert(now + PATIENCE) {
                        return Err(io::ErrorKind::WouldBlock.into());
                    }
                    (0..PAUSE_SPINS).for_each(|_| std::hint::spin_loop());
                    thread::yield_now();
                }
                other => return Ok(other?),
            }
        }
    }

    /// Where they come out.
    pub(super) fn out(&mut self) -> &mut File {
        &mut self.out
    }
}

/// Best effort: with fewer descriptors there are fewer relays.
fn allow_descriptors() {
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let wanted = (2 * COUNT_MAX + OTHER_DESCRIPTORS).min(hard);
        if soft < wanted {
            let _ = setrlimit(Resource::RLIMIT_NOFILE, wanted, hard);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    #[test]
    fn what_was_written_comes_out_and_then_the_end() {
        let (reader, mut writer) = io::pipe().expect("a pipe");
        let mut relay = Relay::new().expect("a relay");
        writer.write_all(b"pages").expect("written");
        assert_eq!(relay.fetch(&reader, true).expect("fetched"), 5);
        let mut bytes = [0; 5];
        relay.out().read_exact(&mut bytes).expect("read");
        assert_eq!(&bytes, b"pages");
        drop(writer);
        assert_eq!(relay.fetch(&reader, true).expect("the end"), 0);
    }

    #[test]
    fn nothing_there_is_not_waited_for() {
        let (reader, _writer) = io::pipe().expect("a pipe");
        let relay = Relay::new().expect("a relay");
        for eager in [false, true] {
            let error = relay.fetch(&reader, eager).expect_err("nothing there");
            assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        }
    }

    #[test]
    fn relays_are_as_many_as_memory_asks_for() {
        for (memory, count) in [(0, 2), (16 << 20, 16)] {
            assert_eq!(Relay::some(memory).expect("relays").len(), count);
        }
    }
}
