//! The client's side of a process's standard streams: named fifos, and threads that read them.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;

/// Longest wait for output, or for the other end of a fifo.
pub const OUTPUT_DEADLINE: Duration = Duration::from_secs(60);

const CHUNK: usize = 64 * 1024;

/// Where a process's streams go, as the create and exec requests say it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StreamNames {
    /// Path or URI; empty for none.
    pub stdin: String,
    /// Path or URI; empty for none.
    pub stdout: String,
    /// Path or URI; empty for none, and always empty with a terminal.
    pub stderr: String,
}

/// Three fifos. Nobody has opened them yet: `Streams::attach` does, as a client would.
#[derive(Debug)]
pub struct Fifos {
    dir: PathBuf,
}

impl Fifos {
    /// Makes the fifos in a new directory; whoever has those of an earlier life open keeps them.
    pub fn make(dir: &Path) -> Result<Self> {
        if dir.exists() {
            std::fs::remove_dir_all(dir).with_context(|| format!("remove {}", dir.display()))?;
        }
        std::fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
        for name in ["stdin", "stdout", "stderr"] {
            nix::unistd::mkfifo(&dir.join(name), Mode::from_bits_truncate(0o600))
                .with_context(|| format!("make the fifo {name} in {}", dir.display()))?;
        }
        Ok(Self { dir: dir.to_owned() })
    }

    /// As the request names them; a terminal has no stderr.
    pub fn names(&self, terminal: bool) -> StreamNames {
        let name = |name: &str| self.path(name).display().to_string();
        let stderr = if terminal { String::new() } else { name("stderr") };
        StreamNames {
            stdin: name("stdin"),
            stdout: name("stdout"),
            stderr,
        }
    }

    /// Path of `stdin`, `stdout` or `stderr`.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Begins to read both outputs.
    pub fn read(&self) -> (Output, Output) {
        (
            Output::of_fifo(self.path("stdout")),
            Output::of_fifo(self.path("stderr")),
        )
    }

    /// Opens stdin for writing, once the shim has opened it for reading.
    pub fn stdin(&self) -> Result<File> {
        let path = self.path("stdin");
        let opened = within(OUTPUT_DEADLINE, {
            let path = path.clone();
            move || OpenOptions::new().write(true).open(path)
        });
        opened
            .with_context(|| format!("find a reader for {}", path.display()))?
            .context("open stdin")
    }
}

/// What arrived on a stream so far, and whether it has ended.
#[derive(Clone, Debug, Default)]
pub struct Output {
    state: Arc<(Mutex<State>, Condvar)>,
}

#[derive(Debug, Default)]
struct State {
    bytes: Vec<u8>,
    ended: bool,
}

impl Output {
    /// Reads a fifo in the background, from the moment when somebody writes.
    pub fn of_fifo(path: PathBuf) -> Self {
        let output = Self::default();
        let shared = output.clone();
        let _reader = std::thread::spawn(move || {
            if let Ok(file) = File::open(path) {
                shared.fill(file);
            }
            shared.end();
        });
        output
    }

    /// Reads a terminal by its master in the background, until nobody has its other end.
    pub fn of_terminal(master: File) -> Self {
        let output = Self::default();
        let shared = output.clone();
        let _reader = std::thread::spawn(move || {
            // The end is the error EIO.
            shared.fill(master);
            shared.end();
        });
        output
    }

    /// Waits until `text` has arrived.
    pub fn wait_for(&self, text: &str) -> Result<()> {
        let arrived = |state: &State| contains(&state.bytes, text.as_bytes());
        if !self.wait(|state| arrived(state) || state.ended) || !arrived(&self.lock()) {
            bail!("no {text:?} in the output, which was {:?}", self.text());
        }
        Ok(())
    }

    /// Waits for the end of the stream, and returns all of it.
    pub fn to_end(&self) -> Result<Vec<u8>> {
        if !self.wait(|state| state.ended) {
            bail!(
                "the output did not end within {OUTPUT_DEADLINE:?}; it was {:?}",
                self.text()
            );
        }
        Ok(std::mem::take(&mut self.lock().bytes))
    }

    /// What has arrived so far, as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.lock().bytes).into_owned()
    }

    /// Whether the stream has ended.
    pub fn has_ended(&self) -> bool {
        self.lock().ended
    }

    fn fill(&self, mut source: impl Read) {
        let mut chunk = vec![0; CHUNK];
        while let Ok(count @ 1..) = source.read(&mut chunk) {
            self.lock()
                .bytes
                .extend_from_slice(chunk.get(..count).unwrap_or_default());
            self.state.1.notify_all();
        }
    }

    fn end(&self) {
        self.lock().ended = true;
        self.state.1.notify_all();
    }

    fn wait(&self, met: impl Fn(&State) -> bool) -> bool {
        let waited = self
            .state
            .1
            .wait_timeout_while(self.lock(), OUTPUT_DEADLINE, |state| !met(state));
        waited.is_ok_and(|(_, timeout)| !timeout.timed_out())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes all of `text` to a stream.
pub fn write(stream: &mut File, text: &str) -> Result<()> {
    stream
        .write_all(text.as_bytes())
        .with_context(|| format!("write {text:?}"))
}

/// Opens the reading end of a fifo without waiting for a writer, and reads nothing: a client that is too slow.
pub fn idle_reader(path: &Path) -> Result<File> {
    OpenOptions::new()
        .read(true)
        .custom_flags(OFlag::O_NONBLOCK.bits())
        .open(path)
        .with_context(|| format!("open {}", path.display()))
}

/// Runs `work` on a thread of its own; `None` if it is not done in time. The thread is then left behind.
pub fn within<T: Send + 'static>(limit: Duration, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (done, result): (_, Receiver<T>) = channel();
    let _worker = std::thread::spawn(move || done.send(work()));
    result.recv_timeout(limit).ok()
}

/// Looks every few milliseconds whether `met` holds; for what the kernel tells nobody. Says `what` when it never does.
pub fn eventually(what: &str, limit: Duration, mut met: impl FnMut() -> bool) -> Result<()> {
    let deadline = Instant::now() + limit;
    while !met() {
        if Instant::now() > deadline {
            bail!("waited {limit:?} in vain: {what}");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    needle.is_empty() || haystack.windows(needle.len()).any(|window| window == needle)
}
