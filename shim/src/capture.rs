//! Capture: takes the pages of a dump from CRIU as fast as it delivers them, and writes them out afterwards.
//!
//! ```text
//!   shim --plan--> worker: takes memory, makes fifos          CRIU opens pages-N.img for writing, as ever, and meets a fifo
//!        <--ready--   |
//!        runc checkpoint ... CRIU --splice--> fifo --splice--> relays --read--> memory     the application stands still
//!        --finish-->  |
//!        <--drained-- |                                                                    from here on it may go on
//!                     memory --write, digest, sync--> pages-N.img        a sparse file: pages of zeros cost nothing; begun before
//!        <--written-- |
//!
//!   or, for an archive, if all pages fit into memory: digest --kept--> shim, which completes the manifest --pack--> compress, write, sync
//!   --packed-->
//! ```
//!
//! One thread reads fifos, two copy, four write and one digests, with queues between them: see the modules.
//!
//! This is the worker: a process of its own for one dump, so that its memory and its work are not the shim's. It is asked
//! on stdin and answers on stdout, a line of JSON each.
//!
//! Why fifos: CRIU's own way to stream images (`--stream`) crashes under runc; a fifo in the place of `pages-N.img` needs
//! nothing of either (CRIU 4.1 and 4.2). Why memory: 1 GiB takes 0.3 s through a fifo into memory, and as long as
//! the disk takes into a file, during all of which the application would stand.
//!
//! Invariants:
//! - all fifos have a reader before CRIU can open one: it would wait for it, and the application with it;
//! - a worker that ends, for whatever reason, closes its fifos; CRIU then fails and lets the application go on;
//! - memory is taken, and touched, before anything stands still, and never more than the plan says; past that, CRIU waits until
//!   the disk has some of it;
//! - what is answered as written is on the disk, wherever the fifos were.

mod digest;
mod fifos;
mod files;
mod intake;
mod kept;
mod memory;
mod relay;
mod writing;

use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;

use serde::{Deserialize, Serialize};

use fifos::{Fifos, Heard};
use files::Files;
use intake::Intake;
use kept::Kept;
use relay::Relay;
use writing::Writing;

/// A line of the shim's: a plan has a path in it.
const LINE_BYTES_MAX: u64 = 64 * 1024;

/// How many fifos a worker makes at most. Each takes a descriptor; CRIU writes a plain file where there is none.
pub const FIFOS_MAX: u32 = 800;

/// What is to be captured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// Where the files of pages go.
    pub images: PathBuf,
    /// CRIU's image directory, where the fifos lie: the same, or one in memory.
    pub fifos: PathBuf,
    /// Files of pages that are to be expected: one a process, and one a segment of shared memory.
    pub files: u32,
    /// Memory to hold pages in, in bytes.
    pub memory: u64,
    /// They are to be packed from there if all fit in, so that none is written before.
    #[serde(default)]
    pub keeps: bool,
}

/// What the shim says after its plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Order {
    /// CRIU has come to its end: no more pages are to come.
    Finish,
    /// All else of the checkpoint is there: it becomes an archive, with the pages that were kept.
    Pack {
        /// The checkpoint's directory.
        root: PathBuf,
        /// The archive, a new file.
        into: PathBuf,
        /// Its form, by the word for it.
        form: String,
    },
}

/// What the worker says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Answer {
    /// CRIU may begin.
    Ready,
    /// All pages are the worker's own: the application may go on.
    Drained {
        /// How many bytes they are.
        bytes: u64,
    },
    /// All files are on the disk. The worker ends.
    Written {
        /// Each of them.
        files: Vec<Part>,
    },
    /// All pages are in memory, and nothing of them is on the disk: the worker waits to be told to pack them.
    Kept {
        /// Each file as it is to be.
        files: Vec<Part>,
    },
    /// The archive is on the disk. The worker ends.
    Packed {
        /// Its bytes.
        bytes: u64,
    },
    /// It failed, and ends.
    Failed {
        /// Why.
        error: String,
    },
}

/// A file that was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// Its name in the image directory.
    pub name: String,
    /// Its length in bytes.
    pub size: u64,
    /// BLAKE3 of its content, hexadecimal.
    pub digest: String,
}

/// Why a capture failed.
#[derive(Debug, thiserror::Error)]
#[error("{action} {what}: {source}")]
pub struct CaptureError {
    action: &'static str,
    what: String,
    source: io::Error,
}

impl CaptureError {
    fn new(action: &'static str, what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self { action, what, source }
    }

    /// The same, for another who has to know.
    fn again(&self) -> Self {
        let source = match self.source.raw_os_error() {
            Some(code) => io::Error::from_raw_os_error(code),
            None => io::Error::new(self.source.kind(), self.source.to_string()),
        };
        Self::new(self.action, self.what.clone())(source)
    }
}

/// The life of a worker. Returns when all is written.
///
/// # Errors
/// What failed; the shim has been told. Also if the shim went away.
pub fn run(input: impl Read + std::os::fd::AsFd, mut output: impl Write) -> Result<(), CaptureError> {
    let result = capture(&input, &mut output);
    if let Err(error) = &result {
        // A shim that is gone needs no telling.
        let _ = say(
            &mut output,
            &Answer::Failed {
                error: error.to_string(),
            },
        );
    }
    result
}

fn capture(input: &(impl Read + std::os::fd::AsFd), output: &mut impl Write) -> Result<(), CaptureError> {
    let mut lines = Lines::of(input)?;
    let plan: Plan = lines.next("the plan")?;
    let files = Files::new(plan.images.clone());
    let mut space = memory::take(plan.memory).map_err(CaptureError::new("take", "memory for the pages"))?;
    let chunks = memory::chunks(&mut space);
    thread::scope(|scope| {
        let writing = Writing::start(scope, &files, chunks, plan.keeps).map_err(threads())?;
        let writing = Arc::new(writing);
        let relays = Relay::some(plan.memory).map_err(CaptureError::new("make", "pipes"))?;
        let mut intake = Intake::start(scope, relays, &writing).map_err(threads())?;
        let mut fifos = Fifos::make(&plan.fifos, plan.files.min(FIFOS_MAX), input)?;
        say(output, &Answer::Ready)?;
        while let Heard::Pages(file) = fifos.wait()? {
            if fifos.read(file, &mut intake)? && !plan.keeps {
                writing.begin()?;
            }
        }
        let Order::Finish = lines.next("an order")? else {
            return Err(unexpected());
        };
        fifos.drain(&mut intake)?;
        let bytes = intake.finish()?;
        say(output, &Answer::Drained { bytes })?;
        let writing = Arc::into_inner(writing).ok_or_else(|| io::Error::other("a thread goes on"));
        let writing = writing.map_err(threads())?;
        if plan.keeps
            && let Some(chunks) = writing.kept()
        {
            fifos.remove_all()?;
            let kept = Kept::new(&chunks, fifos.used());
            say(output, &Answer::Kept { files: kept.files() })?;
            let Order::Pack { root, into, form } = lines.next("an order")? else {
                return Err(unexpected());
            };
            let bytes = kept.pack(&plan.images, (&root, &into, &form))?;
            return say(output, &Answer::Packed { bytes });
        }
        let digests = writing.finish()?;
        match plan.fifos == plan.images {
            // The files take the places of the others.
            true => fifos.remove_unused()?,
            false => fifos.remove_all()?,
        }
        let files = files.finish(&fifos.used(), digests)?;
        say(output, &Answer::Written { files })
    })
}

fn unexpected() -> CaptureError {
    CaptureError::new("understand", "an order")(io::Error::other("it does not come now"))
}

fn threads() -> impl FnOnce(io::Error) -> CaptureError {
    CaptureError::new("start", "the threads that take pages")
}

fn say(output: &mut impl Write, answer: &Answer) -> Result<(), CaptureError> {
    let told = serde_json::to_writer(&mut *output, answer)
        .map_err(io::Error::from)
        .and_then(|()| output.write_all(b"\n"))
        .and_then(|()| output.flush());
    told.map_err(CaptureError::new("answer", "the shim"))
}

/// What the shim says, a line at a time, from a descriptor that is also waited for.
struct Lines(BufReader<std::fs::File>);

impl Lines {
    fn of(input: &impl std::os::fd::AsFd) -> Result<Self, CaptureError> {
        let own = input.as_fd().try_clone_to_owned();
        let own = own.map_err(CaptureError::new("listen to", "the shim"))?;
        Ok(Self(BufReader::new(own.into())))
    }

    fn next<T: for<'de> Deserialize<'de>>(&mut self, what: &str) -> Result<T, CaptureError> {
        let mut line = Vec::new();
        let mut limited = (&mut self.0).take(LINE_BYTES_MAX);
        let read = limited.read_until(b'\n', &mut line);
        let _ = read.map_err(CaptureError::new("read", what))?;
        serde_json::from_slice(&line).map_err(|error| CaptureError::new("understand", what)(error.into()))
    }
}

#[cfg(test)]
mod tests;
