//! The running streams of a process: what the Task service does with them.

use std::fmt;
use std::future::pending;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;

use super::copy::{copy_input, copy_output};
use super::fifo::InputFifo;
use super::logger::Logger;
use super::output::{Output, OutputTarget};
use super::{StdioError, descriptor};

/// The streams of a process that exists. Clones are the same streams; the last one to go closes them.
#[derive(Debug, Clone)]
pub struct Streams(Arc<Inner>);

struct Inner {
    /// The write end that keeps stdin from ending.
    holder: Mutex<Option<OwnedFd>>,
    /// The terminal, as long as its task has it open.
    terminal: Weak<AsyncFd<OwnedFd>>,
    /// Tells the outputs that the process has ended. Every output still copying has a receiver, so this sender is
    /// "closed" exactly when all output is copied.
    finishing: watch::Sender<bool>,
    tasks: Mutex<Vec<AbortHandle>>,
    logger: Option<Logger>,
}

impl Streams {
    /// Puts everything on the runtime and starts copying. `stdin` comes with the pipe to copy to, `outputs` with the
    /// pipes to copy from; where these are missing it is the terminal.
    pub(super) fn start(
        stdin: Option<(InputFifo, Option<OwnedFd>)>,
        outputs: Vec<(OutputTarget, Option<OwnedFd>)>,
        master: Option<OwnedFd>,
        logger: Option<Logger>,
    ) -> Result<Self, StdioError> {
        let mut streams = Inner {
            holder: Mutex::new(None),
            terminal: Weak::new(),
            finishing: watch::channel(false).0,
            tasks: Mutex::new(Vec::new()),
            logger,
        };
        // From here on, what fails closes what was started, with `streams`.
        let (mut typed, mut shown) = (None, None);
        if let Some((fifo, pipe)) = stdin {
            streams.holder = Mutex::new(Some(fifo.holder));
            let reader = descriptor::poll(fifo.reader, Interest::READABLE)?;
            match pipe {
                Some(pipe) => streams.feed(reader, pipe)?,
                None => typed = Some(reader),
            }
        }
        for (target, pipe) in outputs {
            let output = Output::new(target, streams.finishing.subscribe())?;
            match pipe {
                Some(pipe) => streams.collect(pipe, output)?,
                None => shown = Some(output),
            }
        }
        if let (Some(master), Some(output)) = (master, shown) {
            super::set_nonblocking(&master)?;
            let master = Arc::new(descriptor::poll(master, Interest::READABLE | Interest::WRITABLE)?);
            streams.terminal = Arc::downgrade(&master);
            streams.spawn(copy_terminal(master, typed, output));
        }
        Ok(Self(Arc::new(streams)))
    }

    /// Lets stdin end: what clients have written still arrives, and once no client has the fifo open either, the process
    /// sees the end of its input. A terminal is hung up then, as Go's shim does. May be called again.
    pub fn close_stdin(&self) {
        drop(
            self.0
                .holder
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take(),
        );
    }

    /// Sets the terminal's size in characters. Without a terminal, or after its end, nothing happens.
    ///
    /// # Errors
    /// [`StdioError::Terminal`] if the kernel refuses.
    pub fn resize(&self, width: u16, height: u16) -> Result<(), StdioError> {
        match self.0.terminal.upgrade() {
            Some(master) => {
                descriptor::set_size(master.get_ref().as_fd(), width, height).map_err(StdioError::Terminal)
            }
            None => Ok(()),
        }
    }

    /// Waits, at most `limit`, until everything the process wrote has gone where it belongs and the logging binary has
    /// ended; false if that took longer. To be called when the process has ended: from now on a fifo that is full and
    /// that nobody reads is not waited for.
    pub async fn drained(&self, limit: Duration) -> bool {
        let _ = self.0.finishing.send_replace(true);
        let drained = async {
            self.0.finishing.closed().await;
            if let Some(logger) = &self.0.logger {
                logger.finished().await;
            }
        };
        tokio::time::timeout(limit, drained).await.is_ok()
    }

    /// Closes everything at once, copied or not, and ends the logging binary. May be called again.
    pub fn close(&self) {
        self.0.close();
    }
}

impl Inner {
    fn feed(&self, reader: AsyncFd<OwnedFd>, pipe: OwnedFd) -> Result<(), StdioError> {
        let pipe = descriptor::poll(pipe, Interest::WRITABLE)?;
        self.spawn(async move { copy_input(&reader, &pipe).await });
        Ok(())
    }

    fn collect(&self, pipe: OwnedFd, mut output: Output) -> Result<(), StdioError> {
        let pipe = descriptor::poll(pipe, Interest::READABLE)?;
        self.spawn(async move {
            copy_output(&pipe, &mut output, pending()).await;
            drop(pipe);
            output.finish().await;
        });
        Ok(())
    }

    fn spawn(&self, copy: impl Future<Output = ()> + Send + 'static) {
        let task = tokio::spawn(copy).abort_handle();
        self.tasks
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(task);
    }

    fn close(&self) {
        drop(self.holder.lock().unwrap_or_else(PoisonError::into_inner).take());
        for task in self
            .tasks
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .drain(..)
        {
            task.abort();
        }
        if let Some(logger) = &self.logger {
            logger.stop();
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.close();
    }
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Streams").finish_non_exhaustive()
    }
}

/// Copies a terminal both ways, at the same time: an interrupt typed by the user has to get through although nobody
/// takes the output. The end of the input hangs up, the end of the output ends both.
async fn copy_terminal(master: Arc<AsyncFd<OwnedFd>>, input: Option<AsyncFd<OwnedFd>>, mut output: Output) {
    let hangup = Notify::new();
    let type_in = async {
        if let Some(reader) = input {
            copy_input(&reader, &master).await;
            hangup.notify_one();
        }
        pending::<()>().await;
    };
    tokio::select! {
        () = copy_output(&master, &mut output, hangup.notified()) => {}
        () = type_in => {}
    }
    drop(master);
    output.finish().await;
}
