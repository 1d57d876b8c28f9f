//! A worker: this program again, executed for one operation and gone after it.
//!
//! The shim exists once per container, so its memory is a tax on each; and what moves gigabytes, or reads what may come from
//! anywhere, is better off in a process that can fail alone.
//!
//! ```text
//!  containerd-shim-cedana-v1 worker serve-pages -images DIR -work DIR      (a socket to the shim as standard input)
//! ```
//!
//! - `serve-pages` gives the memory of a restored container page by page ([`pages`]); [`page_server`] is the shim's side.

pub mod page_server;
mod pages;

use std::error::Error;
use std::ffi::OsString;
use std::path::PathBuf;

/// The word that makes this program a worker.
const WORKER: &str = "worker";

/// The only kind there is.
const SERVE_PAGES: &str = "serve-pages";

/// Is a worker if the command line says so.
///
/// # Errors
/// A command line that is none of ours, and whatever kept the worker from its end.
pub fn run_as_worker(arguments: impl IntoIterator<Item = OsString>) -> Option<Result<(), Box<dyn Error>>> {
    let mut arguments = arguments.into_iter();
    if arguments.next()? != WORKER {
        return None;
    }
    let words: Vec<OsString> = arguments.collect();
    let [kind, images_flag, images, work_flag, work] = words.as_slice() else {
        return Some(Err("read command line: not a worker's".into()));
    };
    if kind != SERVE_PAGES || images_flag != "-images" || work_flag != "-work" {
        return Some(Err("read command line: not a worker's".into()));
    }
    let (images, work) = (PathBuf::from(images), PathBuf::from(work));
    Some(pages::serve(&images, &work).map_err(Into::into))
}
