//! A worker: this program again, executed for one operation and gone after it.
//!
//! The shim exists once per container, so its memory is a tax on each; and what moves gigabytes, or reads what may come from
//! anywhere, is better off in a process that can fail alone.
//!
//! ```text
//!  containerd-shim-cedana-v1 worker serve-pages -images DIR -work DIR -rate BYTES [-left LIST]   (a socket to the shim as standard input)
//! ```
//!
//! - called `tar`, it is what CRIU takes for GNU tar ([`tar`]);
//! - `save-files` and `put-back-files` are about what CRIU leaves out ([`files`]), asked through [`errand`];
//! - `serve-pages` gives the memory of a restored container page by page ([`pages`]); [`page_server`] is the shim's side;
//! - `make-pages` takes memory out of an archive where nobody is to serve it.

pub(crate) mod errand;
pub(crate) mod files;
pub mod page_server;
mod pages;
pub mod tar;

#[cfg(any(test, fuzzing))]
pub(crate) use pages::fuzzing;

use std::error::Error;
use std::ffi::OsString;
use std::path::PathBuf;

/// The word that makes this program a worker.
const WORKER: &str = "worker";

/// The kind that serves pages, which has a command line; the others have an order on standard input.
const SERVE_PAGES: &str = "serve-pages";

/// The kind that takes memory out of an archive; its order is the list.
pub(crate) const MAKE_PAGES: &str = "make-pages";

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
    match words.as_slice() {
        [kind] if kind == files::SAVE => return Some(errand::run(files::save).map_err(Into::into)),
        [kind] if kind == files::PUT_BACK => return Some(errand::run(files::put_back).map_err(Into::into)),
        [kind] if kind == MAKE_PAGES => return Some(errand::run(pages::make).map_err(Into::into)),
        _ => {}
    }
    Some(match serve_pages(&words) {
        Some(order) => pages::serve(&order).map_err(Into::into),
        None => Err("read command line: not a worker's".into()),
    })
}

/// Its command line, which only [`page_server`] writes.
fn serve_pages(words: &[OsString]) -> Option<pages::Order> {
    let (words, left) = match words {
        [words @ .., flag, list] if flag == "-left" => (words, Some(PathBuf::from(list))),
        words => (words, None),
    };
    let [kind, images_flag, images, work_flag, work, rate_flag, rate] = words else {
        return None;
    };
    let is_ours =
        kind == SERVE_PAGES && images_flag == "-images" && work_flag == "-work" && rate_flag == "-rate";
    let rate = rate.to_str()?.parse().ok()?;
    is_ours.then(|| pages::Order {
        images: PathBuf::from(images),
        work: PathBuf::from(work),
        rate,
        left,
    })
}
