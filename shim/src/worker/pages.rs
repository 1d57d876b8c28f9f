//! The server of pages: a container runs on as soon as its processes exist, and its memory comes behind.
//!
//! ```text
//!  images -> what is missing, per process           (images, extents)
//!  CRIU  --lazy-pages.socket--> a userfaultfd each   (restorer)
//!  server: faults first, then rounds of the rest     (server, task, fillers, source, uffd)
//!  shim  <--standard input-- a copy of each          (channel)
//!  an archive --> what CRIU reads itself, as files   (left); the rest of it is a source of pages as files are
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
//! - files are opened before CRIU is started, and an archive is, for clients remove them when the restore has returned;
//! - the server outlives its shim, but not the memory that it serves.

mod channel;
mod extents;
mod fillers;
mod images;
mod left;
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
use oci_bundles::archive::{ArchiveError, Left};
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
    /// The archive that memory was left in.
    #[error(transparent)]
    Left(#[from] ArchiveError),
    /// On the way.
    #[error(transparent)]
    Serve(#[from] ServeError),
}

/// What is served.
#[derive(Debug)]
pub(super) struct Order {
    /// The images.
    pub(super) images: PathBuf,
    /// Where CRIU works, or will work.
    pub(super) work: PathBuf,
    /// How many bytes a second are given unasked; zero for all that goes.
    pub(super) rate: u64,
    /// The list of the memory that is in an archive.
    pub(super) left: Option<PathBuf>,
}

/// Serves the memory in these images to CRIU.
///
/// # Errors
/// [`PagesError`]; the shim has been told of it too.
pub(super) fn serve(order: &Order) -> Result<(), PagesError> {
    let socket = io::stdin().as_fd().try_clone_to_owned();
    let mut channel = Channel::new(socket.map_err(PagesError::Channel)?);
    let page_size = nix::unistd::sysconf(SysconfVar::PAGE_SIZE).ok().flatten();
    let page_size = page_size
        .and_then(|size| u64::try_from(size).ok())
        .unwrap_or(4096);
    let left = order
        .left
        .as_deref()
        .map(|list| Left::read(list)?.open())
        .transpose()?;
    let loaded = images::load(&order.images, page_size, left.as_ref());
    let unsuitable = match (Uffd::of_self(), loaded) {
        (Ok(_), Ok(memories)) => {
            if let Some(left) = &left {
                left::make_the_rest(left, &memories)?;
            }
            let restorer = listen(&order.work).map_err(|source| PagesError::Listen {
                work: order.work.clone(),
                source,
            })?;
            channel.say(&Word::Listening, None);
            let server = Server::new(channel, memories, restorer, page_size);
            return Ok(server.limited_to(order.rate).run()?);
        }
        (_, Err(images::Unsuitable::Short(file))) => {
            channel.say(&Word::Failed(images::Unsuitable::Short(file).to_string()), None);
            return Ok(());
        }
        (Err(error), _) => format!("the kernel has no userfaultfd for us: {error}"),
        (_, Err(reason)) => reason.to_string(),
    };
    channel.say(&Word::Unsuitable(unsuitable), None);
    Ok(())
}

/// Takes the memory in this list out of its archive.
///
/// # Errors
/// What failed, for people.
pub(super) fn make(list: PathBuf) -> Result<(), String> {
    let made = Left::read(&list).and_then(|left| left.open()?.make_all());
    made.map_err(|error| error.to_string())
}

fn listen(work: &Path) -> io::Result<Restorer> {
    env::set_current_dir(work)?;
    Restorer::listen()
}
