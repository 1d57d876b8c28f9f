//! The server of pages: a container runs on as soon as its processes exist, and its memory comes behind.
//!
//! ```text
//!  images -> what is missing, per process           (images, extents)
//!  CRIU  --lazy-pages.socket--> a userfaultfd each   (restorer)
//!  server: faults first, then rounds of the rest     (server, task, fillers, source, uffd)
//!  shim  <--standard input-- a copy of each          (channel)
//! ```
//!
//! Only private anonymous memory comes late. Shared memory, files, stacks and locked memory are CRIU's own business, which has
//! read them when it says that the restore is complete.
//!
//! Invariants:
//! - a page is taken from the list of the missing when the kernel has it, or the process has given it up: what is not on the
//!   list is zero, or was written since;
//! - no page is given while the kernel says that the layout is changing: the message that says how comes first; and no message
//!   is read while a page is being given;
//! - files are opened before CRIU is started, for clients remove them when the restore has returned;
//! - the server outlives its shim, but not the memory that it serves.

mod channel;
mod extents;
mod fillers;
mod images;
mod message;
mod restorer;
mod server;
mod source;
mod task;
mod uffd;

#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;

use std::env;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use nix::unistd::SysconfVar;
use thiserror::Error;

use channel::Channel;
use restorer::Restorer;
use server::{ServeError, Server};
use uffd::Uffd;

pub(super) use channel::{Word, hear};

/// Why no pages were served.
#[derive(Debug, Error)]
pub(super) enum PagesError {
    /// The directory that CRIU works in.
    #[error("listen in {}: {source}", work.display())]
    Listen {
        /// The directory.
        work: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// Standard input.
    #[error("take the socket to the shim: {0}")]
    Channel(#[source] io::Error),
    /// On the way.
    #[error(transparent)]
    Serve(#[from] ServeError),
}

/// Serves the memory in these images to the CRIU that works, or will work, in `work`; unasked no more than `rate` bytes a second,
/// unless that is zero.
///
/// # Errors
/// [`PagesError`]; the shim has been told of it too.
pub(super) fn serve(images: &Path, work: &Path, rate: u64) -> Result<(), PagesError> {
    let socket = io::stdin().as_fd().try_clone_to_owned();
    let mut channel = Channel::new(socket.map_err(PagesError::Channel)?);
    let page_size = nix::unistd::sysconf(SysconfVar::PAGE_SIZE).ok().flatten();
    let page_size = page_size
        .and_then(|size| u64::try_from(size).ok())
        .unwrap_or(4096);
    let unsuitable = match (Uffd::of_self(), images::load(images, page_size)) {
        (Ok(_), Ok(memories)) => {
            let restorer = listen(work).map_err(|source| PagesError::Listen {
                work: work.to_owned(),
                source,
            })?;
            channel.say(&Word::Listening, None);
            let server = Server::new(channel, memories, restorer, page_size);
            return Ok(server.limited_to(rate).run()?);
        }
        (Err(error), _) => format!("the kernel has no userfaultfd for us: {error}"),
        (_, Err(reason)) => reason.to_string(),
    };
    channel.say(&Word::Unsuitable(unsuitable), None);
    Ok(())
}

fn listen(work: &Path) -> io::Result<Restorer> {
    env::set_current_dir(work)?;
    Restorer::listen()
}
