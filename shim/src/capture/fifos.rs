//! The fifos that CRIU takes for its files of pages.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::libc::O_NONBLOCK;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use rustix::pipe::fcntl_setpipe_size;

use super::CaptureError;
use super::intake::Intake;
use super::relay::CAPACITY;

/// Fifos that are enlarged before CRIU comes. The biggest process is often among the first; a later one is enlarged as it is met.
const ENLARGED: usize = 8;

/// How long a fifo may stay open once CRIU has ended, and how long one look takes.
const LATE: Duration = Duration::from_secs(2);
const MOMENT_MS: u8 = 10;

/// Which descriptor was heard: those of the fifos are counted from zero.
const SHIM: u64 = u64::MAX;

/// Descriptors that are looked at in one turn.
const EVENTS_MAX: usize = 16;

/// What has something to say.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// The fifo of this index.
    Pages(usize),
    /// The shim, or its end.
    Shim,
}

#[derive(Debug)]
struct Fifo {
    file: File,
    path: PathBuf,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// CRIU has not opened it.
    Unused,
    /// Pages have come.
    Open,
    /// CRIU has closed it.
    Ended,
}

/// All fifos of a capture, and the shim.
#[derive(Debug)]
pub(super) struct Fifos {
    epoll: Epoll,
    fifos: Vec<Fifo>,
    heard: Vec<EpollEvent>,
}

impl Fifos {
    /// Makes `pages-1.img` and so on, each with a reader.
    pub(super) fn make(images: &Path, count: u32, shim: &impl AsFd) -> Result<Self, CaptureError> {
        let failed = |what: &str| CaptureError::new("make", what.to_owned());
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(io::Error::from);
        let epoll = epoll.map_err(failed("an epoll"))?;
        listen_to(&epoll, shim, SHIM).map_err(failed("a watch on the shim"))?;
        let mut fifos = Vec::new();
        for index in 0..count {
            let path = images.join(format!("pages-{}.img", index + 1));
            let shown = path.display().to_string();
            let file = open(&path).map_err(failed(&shown))?;
            listen_to(&epoll, &file, u64::from(index)).map_err(failed(&shown))?;
            if fifos.len() < ENLARGED {
                enlarge(&file);
            }
            let state = State::Unused;
            fifos.push(Fifo { file, path, state });
        }
        Ok(Self {
            epoll,
            fifos,
            heard: Vec::new(),
        })
    }

    /// Waits until something has something to say. The shim comes last: all pages that are there are read before its word counts.
    ///
    /// Without a deadline: the shim has one, and its end is heard.
    pub(super) fn wait(&mut self) -> Result<Heard, CaptureError> {
        let event = match self.heard.pop() {
            Some(event) => event,
            None => self.listen()?,
        };
        let index = usize::try_from(event.data()).unwrap_or(usize::MAX);
        if event.data() == SHIM {
            return Ok(Heard::Shim);
        }
        if let Some(fifo) = self.fifos.get_mut(index)
            && fifo.state == State::Unused
        {
            fifo.state = State::Open;
            enlarge(&fifo.file);
        }
        Ok(Heard::Pages(index))
    }

    fn listen(&mut self) -> Result<EpollEvent, CaptureError> {
        let mut events = [EpollEvent::empty(); EVENTS_MAX];
        loop {
            match self.epoll.wait(&mut events, EpollTimeout::NONE) {
                Ok(count) => self.heard.extend(events.iter().take(count)),
                Err(nix::errno::Errno::EINTR) => continue,
                Err(errno) => return Err(CaptureError::new("wait for", "pages")(errno.into())),
            }
            // Taken from the end.
            self.heard.sort_by_key(|event| event.data() != SHIM);
            if let Some(event) = self.heard.pop() {
                return Ok(event);
            }
        }
    }

    /// Reads what a fifo has. True at its end.
    pub(super) fn read(&mut self, index: usize, intake: &mut Intake<'_>) -> Result<bool, CaptureError> {
        let Some(fifo) = self.fifos.get_mut(index) else {
            return Ok(false);
        };
        let ended = intake.take(index, &fifo.file)?;
        let ended = ended.map_err(CaptureError::new("read", fifo.path.display().to_string()))?;
        if !ended {
            return Ok(false);
        }
        fifo.state = State::Ended;
        // Its end would be heard for ever.
        let _ = self.epoll.delete(&fifo.file);
        Ok(true)
    }

    /// Reads whatever is left, now that nobody writes any more, or soon does not: a child of the writer's may be on its way to its program.
    pub(super) fn drain(&mut self, intake: &mut Intake<'_>) -> Result<(), CaptureError> {
        self.heard.clear();
        let until = Instant::now() + LATE;
        loop {
            let pages = self.pages_now()?;
            let is_any_open = self.fifos.iter().any(|fifo| fifo.state == State::Open);
            if pages.is_empty() && (!is_any_open || Instant::now() >= until) {
                break;
            }
            for index in pages {
                if let Some(fifo) = self.fifos.get_mut(index) {
                    fifo.state = State::Open;
                }
                let _at_its_end = self.read(index, intake)?;
            }
        }
        match self.fifos.iter().find(|fifo| fifo.state == State::Open) {
            None => Ok(()),
            Some(fifo) => {
                let open = io::Error::other("somebody still writes to it");
                Err(CaptureError::new("read", fifo.path.display().to_string())(open))
            }
        }
    }

    /// The fifos that have something to say, or have it within a moment.
    fn pages_now(&mut self) -> Result<Vec<usize>, CaptureError> {
        let mut events = [EpollEvent::empty(); EVENTS_MAX];
        let is_any_open = self.fifos.iter().any(|fifo| fifo.state == State::Open);
        let wait = if is_any_open {
            MOMENT_MS.into()
        } else {
            EpollTimeout::ZERO
        };
        let heard = match self.epoll.wait(&mut events, wait) {
            Err(nix::errno::Errno::EINTR) => 0,
            heard => heard.map_err(|errno| CaptureError::new("wait for", "pages")(errno.into()))?,
        };
        let heard = events.iter().take(heard).filter(|event| event.data() != SHIM);
        Ok(heard
            .filter_map(|event| usize::try_from(event.data()).ok())
            .collect())
    }

    /// Those that CRIU has used, by their index and name.
    pub(super) fn used(&self) -> Vec<(usize, String)> {
        let used = self
            .fifos
            .iter()
            .enumerate()
            .filter(|(_, fifo)| fifo.state != State::Unused);
        used.filter_map(|(index, fifo)| Some((index, fifo.path.file_name()?.to_str()?.to_owned())))
            .collect()
    }

    /// Removes the others.
    pub(super) fn remove_unused(&self) -> Result<(), CaptureError> {
        self.remove(|fifo| fifo.state == State::Unused)
    }

    /// Removes all: nothing takes their places.
    pub(super) fn remove_all(&self) -> Result<(), CaptureError> {
        self.remove(|_| true)
    }

    fn remove(&self, which: impl Fn(&&Fifo) -> bool) -> Result<(), CaptureError> {
        self.fifos.iter().filter(which).try_for_each(|fifo| {
            fs::remove_file(&fifo.path).map_err(CaptureError::new("remove", fifo.path.display().to_string()))
        })
    }
}

fn listen_to(epoll: &Epoll, fd: &impl AsFd, id: u64) -> io::Result<()> {
    let event = EpollEvent::new(EpollFlags::EPOLLIN, id);
    epoll.add(fd, event).map_err(io::Error::from)
}

fn open(path: &Path) -> io::Result<File> {
    mkfifo(path, Mode::S_IRUSR | Mode::S_IWUSR)?;
    // Without it the open would wait for CRIU, which comes later.
    OpenOptions::new().read(true).custom_flags(O_NONBLOCK).open(path)
}

/// Best effort: a smaller one makes CRIU wait more often.
fn enlarge(fifo: &File) {
    let _ = fcntl_setpipe_size(fifo, CAPACITY);
}
