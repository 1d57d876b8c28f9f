//! The loop that serves pages: faults first, then a piece of what nobody has asked for yet.
//!
//! One thread decides, and it makes sound what would need locks else: what is missing in a process is what is missing in the
//! child it has just forked. Others help to fill, and are done before it goes on.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Instant;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use thiserror::Error;

use super::channel::{self, Channel, Word};
use super::fillers::Fillers;
use super::images::Memory;
use super::restorer::{Restorer, Said};
use super::task::{CHUNK, Given, Task, TaskError};
use super::uffd::Uffd;

/// How long is waited when nobody can be given anything just now, in milliseconds: a process that is changing its memory
/// needs microseconds, unless the scheduler keeps it from going on.
const PAUSE_MS: u8 = 1;

/// The same when nobody wants anything and the limit is reached.
const LIMITED_PAUSE_MS: u8 = 20;

/// Why pages were not served to the end.
#[derive(Debug, Error)]
pub(in crate::worker) enum ServeError {
    /// CRIU or the shim went away before the restore was complete.
    #[error("serve pages: the restore was given up")]
    GivenUp,
    /// CRIU's words.
    #[error("hear what criu sends: {0}")]
    Restorer(#[source] io::Error),
    /// A process whose memory is not among the images.
    #[error("serve pages of process {0}: the checkpoint has none")]
    Unknown(i32),
    /// Waiting.
    #[error("wait for faults: {0}")]
    Poll(#[source] Errno),
    /// One process.
    #[error("{}", crate::error::chain(.0))]
    Task(#[from] TaskError),
}

/// Who is served.
pub(super) struct Server {
    channel: Channel,
    /// Memory of processes that CRIU has not sent yet.
    memories: Vec<Memory>,
    restorer: Option<Restorer>,
    tasks: Vec<Task>,
    /// Whose turn it is to be filled.
    turn: usize,
    /// Descriptors that were given numbers.
    number: u64,
    buffer: Vec<u8>,
    fillers: Fillers,
    page_size: u64,
    /// Bytes given.
    given: u64,
    /// Bytes given unasked, and how many of them a second there may be; zero for no limit.
    filled: u64,
    rate: u64,
    began: Instant,
    unplaced: u64,
}

/// What woke the server.
struct Ready {
    restorer: bool,
    tasks: Vec<bool>,
}

impl Server {
    pub(super) fn new(channel: Channel, memories: Vec<Memory>, restorer: Restorer, page_size: u64) -> Self {
        Self {
            channel,
            memories,
            restorer: Some(restorer),
            tasks: Vec::new(),
            turn: 0,
            number: 0,
            buffer: vec![0; usize::try_from(CHUNK).unwrap_or_default()],
            fillers: Fillers::start(),
            page_size,
            given: 0,
            filled: 0,
            rate: 0,
            began: Instant::now(),
            unplaced: 0,
        }
    }

    /// Limits what is given unasked to so many bytes a second, unless that is zero.
    pub(super) fn limited_to(mut self, rate: u64) -> Self {
        self.rate = rate;
        self
    }

    /// How many bytes may be given unasked by now, in whole pages: one at a time if there are no more, so that the end of a
    /// process is seen soon.
    fn allowance(&self) -> u64 {
        if self.rate == 0 {
            return CHUNK;
        }
        let allowed = self.began.elapsed().as_millis() * u128::from(self.rate) / 1000;
        let allowed = u64::try_from(allowed).unwrap_or(u64::MAX);
        let left = allowed.saturating_sub(self.filled).min(CHUNK);
        left - left % self.page_size
    }

    /// Serves until every page of every process is where it belongs, or nobody is left who could want it.
    ///
    /// It waits without a deadline: for CRIU, whose end it sees, and for processes, which it never waits for with nothing to
    /// give them.
    ///
    /// # Errors
    /// [`ServeError`]; the shim has been told.
    pub(super) fn run(mut self) -> Result<(), ServeError> {
        let ended = self.serve();
        let word = match &ended {
            Ok(()) => Word::Filled(self.given),
            Err(error) => Word::Failed(error.to_string()),
        };
        self.channel.say(&word, None);
        ended
    }

    fn serve(&mut self) -> Result<(), ServeError> {
        let mut idle = true;
        loop {
            let ready = self.wait(idle)?;
            if ready.restorer {
                self.hear()?;
            }
            self.follow(&ready)?;
            let served = self.serve_faults()?;
            let filled = self.restorer.is_none() && self.fill()?;
            if self.restorer.is_none() && self.tasks.iter().all(Task::is_full) {
                return Ok(());
            }
            idle = !served && !filled;
        }
    }

    /// Looks who wants something; waits for it if there is nothing else to do.
    fn wait(&mut self, idle: bool) -> Result<Ready, ServeError> {
        let restored = self.restorer.is_none();
        let waiting = self.tasks.iter().any(|task| !task.is_full());
        let timeout = match idle {
            false => PollTimeout::ZERO,
            true if restored && self.allowance() == 0 => PollTimeout::from(LIMITED_PAUSE_MS),
            true if restored || (waiting && self.has_faults()) => PollTimeout::from(PAUSE_MS),
            true => PollTimeout::NONE,
        };
        let mut polled: Vec<PollFd<'_>> = Vec::with_capacity(self.tasks.len() + 2);
        let tasks = self.tasks.iter().map(Task::descriptor);
        polled.extend(tasks.map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
        let restorer = self.restorer.as_ref().map(Restorer::socket);
        polled.extend(restorer.map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
        // Its hang-up is told unasked, and what it says matters only where there is a limit.
        let channel = self.channel.socket();
        let heeded = match self.rate {
            0 => PollFlags::empty(),
            _ => PollFlags::POLLIN,
        };
        polled.extend(channel.map(|fd| PollFd::new(fd, heeded)));
        match poll(&mut polled, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(ServeError::Poll(errno)),
        }
        let said = channel.and(polled.last()).and_then(PollFd::revents);
        let said = said.unwrap_or(PollFlags::empty());
        let mut any = polled.iter().map(|fd| fd.any().unwrap_or(false));
        let ready = Ready {
            tasks: any.by_ref().take(self.tasks.len()).collect(),
            restorer: restorer.is_some() && any.next().unwrap_or(false),
        };
        if said.intersects(!PollFlags::POLLIN) {
            self.channel.close();
            if !restored {
                return Err(ServeError::GivenUp);
            }
        } else if said.contains(PollFlags::POLLIN) {
            self.heed();
        }
        Ok(ready)
    }

    /// The shim says one thing only. What is no word is none of ours, and not said again.
    fn heed(&mut self) {
        let heard = self.channel.socket().map(channel::hear);
        match heard {
            Some(Ok(Some((Word::Hurry, _)))) => self.rate = 0,
            Some(Ok(Some(_)) | Err(_)) | None => {}
            Some(Ok(None)) => self.channel.close(),
        }
    }

    fn has_faults(&self) -> bool {
        self.tasks.iter().any(Task::has_faults)
    }

    /// Takes all that CRIU has said.
    fn hear(&mut self) -> Result<(), ServeError> {
        while let Some(restorer) = &mut self.restorer {
            let connected = restorer.is_connected();
            match restorer.hear().map_err(ServeError::Restorer)? {
                Said::Nothing if connected => return Ok(()),
                Said::Nothing if !restorer.is_connected() => return Ok(()),
                Said::Nothing => {}
                Said::Process(pid, descriptor) => self.admit(pid, descriptor)?,
                Said::Finished => self.restorer = None,
                Said::Gone => return Err(ServeError::GivenUp),
            }
        }
        Ok(())
    }

    fn admit(&mut self, pid: i32, descriptor: OwnedFd) -> Result<(), ServeError> {
        let at = self.memories.iter().position(|memory| memory.pid == pid);
        let memory = self.memories.swap_remove(at.ok_or(ServeError::Unknown(pid))?);
        self.number += 1;
        let uffd = Uffd::from(descriptor);
        let task = Task::new(
            pid,
            self.number,
            uffd,
            memory.missing,
            memory.pages,
            self.page_size,
        );
        self.take_on(task);
        Ok(())
    }

    /// Serves one more. The shim has its copy of the descriptor before anything is given by it.
    fn take_on(&mut self, task: Task) {
        self.channel
            .say(&Word::Keep(task.number), Some(task.descriptor()));
        self.tasks.push(task);
    }

    fn follow(&mut self, ready: &Ready) -> Result<(), ServeError> {
        let mut children = Vec::new();
        for (task, _) in self
            .tasks
            .iter_mut()
            .zip(&ready.tasks)
            .filter(|(_, ready)| **ready)
        {
            children.extend(task.follow(&mut self.number)?);
        }
        children.into_iter().for_each(|child| self.take_on(child));
        Ok(())
    }

    /// Serves everyone who waits for a page. True if anything came of it.
    fn serve_faults(&mut self) -> Result<bool, ServeError> {
        let (mut at, mut served) = (0, false);
        while let Some(task) = self.tasks.get_mut(at) {
            match task.serve(&mut self.buffer)? {
                Given::Some(bytes) => {
                    self.given += bytes;
                    served = true;
                }
                Given::Gone => self.dismiss(at),
                Given::Later | Given::Nothing => at += 1,
            }
        }
        Ok(served)
    }

    /// Gives one process a piece of what nobody has asked for. True if anything came of it.
    fn fill(&mut self) -> Result<bool, ServeError> {
        let allowance = self.allowance();
        for _ in 0..self
            .tasks
            .len()
            .min(usize::try_from(allowance).unwrap_or_default())
        {
            self.turn = (self.turn + 1) % self.tasks.len().max(1);
            match self.give_in_turn(allowance)? {
                Given::Some(bytes) => {
                    self.given += bytes;
                    self.filled += bytes;
                    return Ok(true);
                }
                Given::Gone => {
                    self.dismiss(self.turn);
                    return Ok(true);
                }
                Given::Later | Given::Nothing => {}
            }
        }
        Ok(false)
    }

    /// Gives the process whose turn it is a piece, or as many as it can while nobody waits.
    fn give_in_turn(&mut self, allowance: u64) -> Result<Given, TaskError> {
        let Some(task) = self.tasks.get_mut(self.turn) else {
            return Ok(Given::Nothing);
        };
        let Some(round) = (self.rate == 0).then(|| task.plan()).flatten() else {
            return task.fill(allowance, &mut self.buffer);
        };
        let waiting = self.tasks.iter().map(Task::descriptor);
        let mut waiting: Vec<_> = waiting.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        let is_waited_for = || poll(&mut waiting, PollTimeout::ZERO) != Ok(0);
        let outcomes = self.fillers.run(round, &mut self.buffer, is_waited_for);
        match self.tasks.get_mut(self.turn) {
            Some(task) => task.settle_round(outcomes),
            None => Ok(Given::Nothing),
        }
    }

    /// A process that is gone needs nothing any more.
    fn dismiss(&mut self, at: usize) {
        let task = self.tasks.swap_remove(at);
        self.unplaced += task.unplaced;
        self.channel.say(&Word::Forget(task.number), None);
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write;
    use std::os::fd::AsFd;
    use std::os::unix::net::{UnixDatagram, UnixStream};
    use std::sync::Arc;
    use std::thread::{self, JoinHandle};
    use std::time::Duration;

    use super::super::extents::{Extent, Extents};
    use super::super::message;
    use super::super::source::PagesFile;
    use super::super::uffd::waiting::Mapping;
    use super::*;

    const PAGE: u64 = 4096;
    const MIB: u64 = 1 << 20;

    /// A process of one mapping, which is this one; a server for it; and the ends of CRIU and of the shim.
    struct Bed {
        memory: Mapping,
        criu: UnixStream,
        shim: UnixDatagram,
        server: JoinHandle<Result<(), ServeError>>,
    }

    /// Every page of the file is different from its neighbours.
    fn content(at: u64) -> u8 {
        (at / PAGE % 251) as u8 + 1
    }

    /// Copies of the descriptor that wait for the shim keep what was never given waiting: a test drops its end before it looks.
    ///
    /// A server for `len` bytes, of which those of `runs` lie in the file, at the same offsets. None, and said so, where the
    /// kernel does not let us.
    fn bed(len: u64, runs: &[(u64, u64)]) -> Option<Bed> {
        bed_limited(len, runs, 0)
    }

    /// The same that gives no more than `rate` bytes a second unasked.
    fn bed_limited(len: u64, runs: &[(u64, u64)], rate: u64) -> Option<Bed> {
        let uffd = match Uffd::of_self() {
            Ok(uffd) => uffd,
            Err(error) => {
                let _ = writeln!(io::stderr(), "SKIP: no userfaultfd here: {error}");
                return None;
            }
        };
        let memory = Mapping::new(len as usize).expect("a mapping");
        memory.register(&uffd).expect("register");
        let mut pages = tempfile::tempfile().expect("a file");
        let bytes: Vec<u8> = (0..len).map(content).collect();
        pages.write_all(&bytes).expect("write");
        let mut missing = Extents::default();
        for &(start, len) in runs {
            let extent = Extent {
                start: memory.start + start,
                len,
                offset: start,
            };
            assert!(missing.add(extent));
        }
        let memories = vec![Memory {
            pid: 7,
            file: std::path::PathBuf::new(),
            missing,
            pages: Arc::new(PagesFile::new(pages, len)),
        }];
        let (shim, theirs) = UnixDatagram::pair().expect("a pair");
        let (mut criu, stream) = UnixStream::pair().expect("a pair");
        let server = Server::new(
            Channel::new(theirs.into()),
            memories,
            Restorer::connected(stream).expect("connected"),
            PAGE,
        );
        let server = thread::spawn(move || server.limited_to(rate).run());
        criu.write_all(&7_i32.to_ne_bytes()).expect("write");
        message::send(criu.as_fd(), b"F", Some(uffd.as_fd())).expect("send");
        Some(Bed {
            memory,
            criu,
            shim,
            server,
        })
    }

    fn finish(criu: &mut UnixStream) {
        criu.write_all(&0x5253_5446_i32.to_ne_bytes()).expect("write");
    }

    /// All that the server says, without the descriptors.
    fn said(shim: &UnixDatagram) -> Vec<Word> {
        shim.set_nonblocking(true).expect("set");
        let hear = || super::super::hear(shim.as_fd()).ok().flatten();
        std::iter::from_fn(hear).map(|(word, _)| word).collect()
    }

    #[test]
    fn whoever_touches_a_page_gets_it_and_the_rest_comes_by_itself() {
        let Some(mut bed) = bed(8 * MIB, &[(0, MIB), (2 * MIB + PAGE, 5 * MIB)]) else {
            return;
        };
        let filled = |at: u64| (0..MIB).contains(&at) || (2 * MIB + PAGE..7 * MIB + PAGE).contains(&at);
        let expected = |at| if filled(at) { content(at) } else { 0 };
        for at in [
            5 * MIB,
            0,
            MIB,
            7 * MIB + PAGE,
            2 * MIB,
            2 * MIB + PAGE,
            8 * MIB - 1,
        ] {
            assert_eq!(bed.memory.byte(at as usize), expected(at), "{at:#x}, touched");
        }
        finish(&mut bed.criu);
        bed.server.join().expect("no panic").expect("served");
        let said = said(&bed.shim);
        drop(bed.shim);
        for at in (0..8 * MIB).step_by(PAGE as usize) {
            assert_eq!(bed.memory.byte(at as usize), expected(at), "{at:#x}, in the end");
        }
        assert_eq!(said.first(), Some(&Word::Keep(1)));
        assert!(
            matches!(said.last(), Some(Word::Filled(bytes)) if *bytes >= 6 * MIB),
            "{said:?}"
        );
    }

    #[test]
    fn a_limit_holds_until_somebody_waits() {
        // At this rate it would take 64 seconds.
        let Some(mut bed) = bed_limited(MIB, &[(0, MIB)], 4 * PAGE) else {
            return;
        };
        finish(&mut bed.criu);
        let begun = Instant::now();
        thread::sleep(Duration::from_millis(200));
        assert!(!bed.server.is_finished(), "the limit holds");
        for word in ["no word".to_owned(), Word::Hurry.to_string()] {
            let _bytes = bed.shim.send(word.as_bytes()).expect("said");
        }
        bed.server.join().expect("no panic").expect("served");
        assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
        drop(bed.shim);
        for at in (0..MIB).step_by(PAGE as usize) {
            assert_eq!(bed.memory.byte(at as usize), content(at), "{at:#x}");
        }
    }

    #[test]
    fn memory_that_was_given_up_stays_empty_although_it_was_still_to_come() {
        let Some(mut bed) = bed(4 * MIB, &[(0, 4 * MIB)]) else {
            return;
        };
        bed.memory.give_up(MIB as usize, MIB as usize);
        assert_eq!(bed.memory.byte(MIB as usize), 0);
        finish(&mut bed.criu);
        bed.server.join().expect("no panic").expect("served");
        drop(bed.shim);
        for at in (0..4 * MIB).step_by(PAGE as usize) {
            let want = if (MIB..2 * MIB).contains(&at) {
                0
            } else {
                content(at)
            };
            assert_eq!(bed.memory.byte(at as usize), want, "{at:#x}");
        }
    }

    #[test]
    fn memory_that_moves_is_served_where_it_is() {
        let Some(mut bed) = bed(2 * MIB, &[(0, 2 * MIB)]) else {
            return;
        };
        let memory = bed.memory.moved();
        assert_eq!(memory.byte(PAGE as usize), content(PAGE));
        finish(&mut bed.criu);
        bed.server.join().expect("no panic").expect("served");
        drop(bed.shim);
        for at in (0..2 * MIB).step_by(PAGE as usize) {
            assert_eq!(memory.byte(at as usize), content(at), "{at:#x}");
        }
    }

    #[test]
    fn a_restore_that_is_given_up_ends_its_server() {
        let Some(bed) = bed(MIB, &[(0, MIB)]) else {
            return;
        };
        drop(bed.criu);
        let ended = bed.server.join().expect("no panic");
        let said = said(&bed.shim);
        // The copies on their way to the shim are the last: with them memory would be held that nobody serves.
        drop(bed.shim);
        assert!(matches!(ended, Err(ServeError::GivenUp)), "{ended:?}");
        assert!(matches!(said.last(), Some(Word::Failed(_))), "{said:?}");
    }

    #[test]
    fn a_process_that_the_checkpoint_does_not_know_is_an_error() {
        let Some(mut bed) = bed(MIB, &[(0, MIB)]) else {
            return;
        };
        bed.criu.write_all(&8_i32.to_ne_bytes()).expect("write");
        let file = File::open("/dev/null").expect("open");
        message::send(bed.criu.as_fd(), b"F", Some(file.as_fd())).expect("send");
        let ended = bed.server.join().expect("no panic");
        drop(bed.shim);
        assert!(matches!(ended, Err(ServeError::Unknown(8))), "{ended:?}");
    }
}
