//! `cedana checkpoint rm ID…`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use jobs::registry::Job;
use oci_bundles::checkpoint;
use serde::Serialize;

use super::remove::remove;
use super::target::{self, Target};
use crate::context::Context;
use crate::error::Error;
use crate::output;

/// Its arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The checkpoints: ids, unique beginnings of ids, or paths
    #[arg(value_name = "ID|PATH", required = true, value_hint = clap::ValueHint::AnyPath)]
    pub checkpoints: Vec<String>,
    /// Also the last good one of a job
    #[arg(short, long)]
    pub all: bool,
}

#[derive(Debug, Serialize)]
struct Told<'a> {
    id: Option<&'a str>,
    job: Option<&'a str>,
    path: &'a Path,
}

/// Removes them.
///
/// # Errors
/// There is no such checkpoint, one of them is the last good one of its job, or the file system's. Those before it are removed.
pub async fn run(args: Args, context: &Context) -> Result<(), Error> {
    let mut jobs = target::registry(context).await?;
    let each = args
        .checkpoints
        .iter()
        .map(|text| target::find(jobs.as_ref(), text));
    let mut targets: Vec<Target> = each.collect::<Result<_, _>>()?;
    let mut seen = BTreeSet::new();
    targets.retain(|target| seen.insert(target.path.clone()));
    if !args.all {
        targets
            .iter()
            .filter_map(|target| target.known.as_ref())
            .try_for_each(|(job, _)| protect(job, &seen))?;
    }
    for target in &targets {
        remove(&target.path).map_err(|error| error.while_trying_to("remove a checkpoint"))?;
        if let Some(jobs) = &mut jobs {
            jobs.remove_checkpoint_at(&target.path)?;
        }
        if !context.json {
            output::line(&format!("Removed {}", output::text::line(&target.shown())))?;
        }
    }
    if !context.json {
        return Ok(());
    }
    let told = targets.iter().map(|target| Told {
        id: target
            .known
            .as_ref()
            .map(|(_, checkpoint)| checkpoint.id.as_str()),
        job: target.known.as_ref().map(|(job, _)| job.name.as_str()),
        path: &target.path,
    });
    output::json(&told.collect::<Vec<_>>())
}

/// Refuses what would leave a job that has a good checkpoint without any.
fn protect(job: &Job, removed: &BTreeSet<PathBuf>) -> Result<(), Error> {
    let good = |path: &Path| checkpoint::look(path).is_ok();
    let all = job.record.checkpoints.iter().map(|one| one.path.as_path());
    let (going, staying): (Vec<&Path>, Vec<&Path>) = all.partition(|path| removed.contains(*path));
    if staying.into_iter().any(good) {
        return Ok(());
    }
    match going.into_iter().find(|path| good(path)) {
        None => Ok(()),
        Some(last) => Err(Error::wrong_state(format!(
            "{} is the last good checkpoint of job {}",
            last.display(),
            job.name
        ))
        .hint("--all removes it all the same")),
    }
}
