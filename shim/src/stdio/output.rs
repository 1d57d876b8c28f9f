//! Where a container's output goes: opened before the container exists, written to by the copier.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use super::fifo::OutputFifo;
use super::{StdioError, descriptor};

/// How long output waits for its first reader after the process was deleted. A client opens its end before it asks for
/// the task, so this is for a client that the scheduler held up, not for one that never wanted to read.
const FIRST_READER_LIMIT: Duration = Duration::from_secs(1);

/// Pause between two looks for that reader. The kernel tells a writer nothing when a reader opens a fifo.
const FIRST_READER_STEP: Duration = Duration::from_millis(5);

/// The longest such pause, for a process that nobody deletes.
const FIRST_READER_STEP_MAX: Duration = Duration::from_millis(200);

/// An opened destination.
#[derive(Debug)]
pub(super) enum OutputTarget {
    /// Read and forget.
    Nowhere,
    /// A client's fifo.
    Fifo(OutputFifo),
    /// A logging binary; our end, non-blocking.
    Pipe(OwnedFd),
    /// A file or device.
    File(File),
}

impl OutputTarget {
    /// Opens something that exists, by its kind.
    pub fn open(path: &Path) -> Result<Self, StdioError> {
        let open = || {
            if fs::metadata(path)?.file_type().is_fifo() {
                return OutputFifo::open(path).map(Self::Fifo);
            }
            let appending = OpenOptions::new()
                .append(true)
                .custom_flags(libc::O_NOCTTY | libc::O_NONBLOCK)
                .open(path);
            appending.map(Self::File)
        };
        open().map_err(|source| StdioError::Open {
            path: path.to_owned(),
            source,
        })
    }

    /// Opens a file to append to; makes it and the directories above it if they are missing.
    pub fn create(path: &Path) -> Result<Self, StdioError> {
        // Opening a fifo would wait for its reader, and with it everything else.
        if fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_fifo()) {
            return Self::open(path);
        }
        let create = || {
            if let Some(parent) = path.parent() {
                DirBuilder::new().recursive(true).mode(0o755).create(parent)?;
            }
            OpenOptions::new()
                .append(true)
                .create(true)
                .mode(0o644)
                .custom_flags(libc::O_NOCTTY | libc::O_NONBLOCK)
                .open(path)
        };
        let file = create().map_err(|source| StdioError::Open {
            path: path.to_owned(),
            source,
        })?;
        Ok(Self::File(file))
    }
}

/// A destination on the runtime.
#[derive(Debug)]
pub(super) struct Output {
    to: To,
    /// Turns true when nothing more is expected of the container, and nobody is to be waited for any more.
    finishing: watch::Receiver<bool>,
    /// A failure was reported; the rest is dropped in silence.
    broken: bool,
}

#[derive(Debug)]
enum To {
    Nowhere,
    Pipe {
        end: AsyncFd<OwnedFd>,
        keeper: Option<OwnedFd>,
        reader_seen: bool,
    },
    File(File),
}

impl Output {
    /// Registers the destination with the runtime.
    pub fn new(target: OutputTarget, finishing: watch::Receiver<bool>) -> io::Result<Self> {
        let to = match target {
            OutputTarget::Nowhere => To::Nowhere,
            OutputTarget::File(file) => To::File(file),
            OutputTarget::Pipe(fd) => To::Pipe {
                end: writable(fd)?,
                keeper: None,
                reader_seen: true,
            },
            OutputTarget::Fifo(OutputFifo {
                writer,
                keeper,
                reader_seen,
            }) => To::Pipe {
                end: writable(writer)?,
                keeper: Some(keeper),
                reader_seen,
            },
        };
        Ok(Self {
            to,
            finishing,
            broken: false,
        })
    }

    /// Writes all of it, waiting for a reader that is slow or away.
    ///
    /// Never fails: a full disk or a dead logger must not end the container, so what cannot be written is dropped, as
    /// if the container had no such stream, and later output is tried again.
    pub async fn write(&mut self, data: &[u8]) {
        let written = match &mut self.to {
            To::Nowhere => Ok(()),
            // Blocking, but for as long as the page cache takes; epoll does not know regular files.
            To::File(file) => file.write_all(data),
            To::Pipe { end, keeper, .. } => write_pipe(end, keeper, &mut self.finishing, data).await,
        };
        match written {
            Ok(()) => self.broken = false,
            // A reader that left before the end has no interest in the rest.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
            Err(error) if !self.broken => {
                self.broken = true;
                tracing::warn!(%error, "output of the container is lost");
            }
            Err(_) => {}
        }
    }

    /// Moves up to `length` bytes on without copying them; 0 if that is not possible now, or not here at all.
    pub fn splice(&self, source: BorrowedFd<'_>, length: usize) -> usize {
        match &self.to {
            // A failure is not lost: the next write meets it again.
            To::Pipe { end, .. } => descriptor::splice(source, end.as_fd(), length).unwrap_or(0),
            To::Nowhere | To::File(_) => 0,
        }
    }

    /// Ends the stream. If nobody has ever opened the fifo for reading, waits for that until the process is deleted: output
    /// would be lost with the last of our ends, and a client held up before its open would wait in it for ever.
    pub async fn finish(mut self) {
        let To::Pipe {
            end,
            keeper: Some(keeper),
            reader_seen: false,
        } = self.to
        else {
            return;
        };
        let has_output = has(keeper.as_fd(), PollFlags::POLLIN);
        drop(keeper);
        let mut until = None;
        let mut step = FIRST_READER_STEP;
        // A write end without any reader is in error.
        while has(end.as_fd(), PollFlags::POLLERR) {
            if *self.finishing.borrow() {
                let until = *until.get_or_insert_with(|| Instant::now() + FIRST_READER_LIMIT);
                if !has_output || Instant::now() >= until {
                    return;
                }
                tokio::time::sleep(FIRST_READER_STEP).await;
            } else if let Ok(Err(_)) = timeout(step, self.finishing.changed()).await {
                // Without a sender the streams are being closed.
                return;
            } else {
                step = (step * 2).min(FIRST_READER_STEP_MAX);
            }
        }
    }
}

async fn write_pipe(
    end: &AsyncFd<OwnedFd>,
    keeper: &mut Option<OwnedFd>,
    finishing: &mut watch::Receiver<bool>,
    mut data: &[u8],
) -> io::Result<()> {
    while !data.is_empty() {
        match end.try_io(Interest::WRITABLE, |fd| Ok(nix::unistd::write(fd, data)?)) {
            Ok(written) => data = data.get(written..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                wait_for_room(end, keeper, finishing).await?;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Waits until there is room. Once the container has ended, a full fifo is worth waiting for only if somebody reads it:
/// without our keeper the kernel tells us, and writing fails with EPIPE.
async fn wait_for_room(
    end: &AsyncFd<OwnedFd>,
    keeper: &mut Option<OwnedFd>,
    finishing: &mut watch::Receiver<bool>,
) -> io::Result<()> {
    if *finishing.borrow_and_update() {
        *keeper = None;
    }
    if keeper.is_none() {
        end.writable().await?.retain_ready();
        return Ok(());
    }
    tokio::select! {
        ready = end.writable() => ready?.retain_ready(),
        // Either way the caller tries again; a lost sender means that the streams are being closed.
        _ = finishing.wait_for(|finishing| *finishing) => *keeper = None,
    }
    Ok(())
}

fn writable(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    descriptor::poll(fd, Interest::WRITABLE)
}

fn has(fd: BorrowedFd<'_>, flags: PollFlags) -> bool {
    let mut fds = [PollFd::new(fd, flags)];
    let [polled] = match poll(&mut fds, PollTimeout::ZERO) {
        Ok(_) => fds,
        Err(_) => return false,
    };
    polled.revents().is_some_and(|events| events.intersects(flags))
}
