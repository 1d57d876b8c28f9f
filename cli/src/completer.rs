//! Names of jobs, for a shell that completes them.

use std::ffi::OsStr;

use clap_complete::engine::{ArgValueCompleter, CompletionCandidate};
use config::{Layers, resolve_layers};
use jobs::registry::Registry;

/// Names that a shell is given to choose from; nobody reads more.
const COMPLETED_MAX: usize = 200;

/// Offers a shell the names of jobs.
pub fn jobs() -> ArgValueCompleter {
    ArgValueCompleter::new(|typed: &OsStr| complete(&typed.to_string_lossy()).unwrap_or_default())
}

/// No engine is asked: a press of a key does not wait for one.
fn complete(typed: &str) -> Option<Vec<CompletionCandidate>> {
    let settings = resolve_layers(&Layers::of_this_process(None).ok()?).ok()?;
    let mut registry = Registry::open(settings.db.path.as_deref()?).registry;
    registry.refresh().ok()?;
    let jobs = registry.jobs().ok()?;
    let offered = jobs
        .into_iter()
        .filter(|job| job.is_listed(false) && job.name.starts_with(typed))
        .take(COMPLETED_MAX)
        .map(|job| CompletionCandidate::new(job.name).help(Some(job.status.into())));
    Some(offered.collect())
}
