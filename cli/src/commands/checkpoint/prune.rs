//! `cedana checkpoint prune`: removes checkpoints by their number, age or size.

mod rules;

use std::path::Path;
use std::time::Duration;

use jobs::registry::Job;
use oci_bundles::checkpoint;
use serde::Serialize;

use super::left;
use super::remove::remove;
use super::target::{self, Target};
use crate::completer;
use crate::context::Context;
use crate::error::Error;
use crate::jobs::Jobs;
use crate::output::{self, size};
use rules::{One, Rules, Why};

/// Its arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only those of these jobs
    #[arg(add = completer::jobs())]
    pub jobs: Vec<String>,
    /// Keep the newest N good ones of each job, whatever else is said; alone, remove all others
    #[arg(long, value_name = "N")]
    pub keep: Option<usize>,
    /// Remove those that are older: 90s, 30m, 12h, 7d, 4w
    #[arg(long, value_name = "TIME", value_parser = rules::time)]
    pub older_than: Option<Duration>,
    /// Remove the oldest until all together take no more: 500M, 20G, 1T
    #[arg(long, value_name = "SIZE", value_parser = rules::bytes)]
    pub max_size: Option<u64>,
    /// Also the last good one of a job
    #[arg(short, long)]
    pub all: bool,
    /// Only tell what would be removed
    #[arg(long)]
    pub dry_run: bool,
    /// Do not ask
    #[arg(short, long)]
    pub yes: bool,
}

#[derive(Debug, Serialize)]
struct Told<'a> {
    dry_run: bool,
    removed: Vec<Gone<'a>>,
    kept: usize,
    /// Bytes that those take which are kept.
    bytes: u64,
}

#[derive(Debug, Serialize)]
struct Gone<'a> {
    id: &'a str,
    job: &'a str,
    path: &'a Path,
    size: u64,
    why: &'static str,
}

/// Removes them, the oldest first.
///
/// # Errors
/// Nothing says which, nobody can be asked, or the first that could not be removed; the others are removed all the same.
pub async fn run(args: Args, context: &Context) -> Result<(), Error> {
    let rules = Rules {
        keep: args.keep,
        older_than: args.older_than,
        max_bytes: args.max_size,
        all: args.all,
    };
    if args.keep.is_none() && args.older_than.is_none() && args.max_size.is_none() {
        return Err(
            Error::usage("failed to prune: nothing says which checkpoints are to go")
                .hint("say --keep N, --older-than TIME or --max-size SIZE; --dry-run shows what that means"),
        );
    }
    if !args.dry_run {
        left::sweep(context.checkpoint_dir());
    }
    let mut jobs = Jobs::open(context).await?;
    let targets = chosen(&jobs, &args.jobs)?;
    let ones: Vec<One<'_>> = targets.iter().filter_map(one).collect();
    let plan = rules::plan(&ones, &rules, jobs::time::now());
    let going: Vec<(&Target, Why)> = plan
        .iter()
        .filter_map(|(at, why)| Some((targets.get(*at)?, *why)))
        .collect();
    if !args.dry_run && !args.yes && !going.is_empty() {
        let bytes = going
            .iter()
            .filter_map(|(target, _)| one(target))
            .map(|one| one.size)
            .sum();
        let question = format!("Remove {} checkpoints ({})?", going.len(), size::whole(bytes));
        if !output::confirm(&question)? {
            return Err(Error::failed("nothing was removed"));
        }
    }
    let mut removed = Vec::new();
    let mut failed = None;
    for (target, why) in going {
        let done = if args.dry_run {
            Ok(())
        } else {
            take(&mut jobs, target)
        };
        match done {
            Ok(()) => removed.extend(gone(target, why)),
            Err(error) if failed.is_none() => failed = Some(error),
            Err(error) => output::note(&error.message),
        }
    }
    let bytes = ones.iter().map(|one| one.size).fold(0, u64::saturating_add);
    let told = Told {
        dry_run: args.dry_run,
        kept: ones.len().saturating_sub(removed.len()),
        bytes: bytes.saturating_sub(removed.iter().map(|gone| gone.size).fold(0, u64::saturating_add)),
        removed,
    };
    tell(&told, context)?;
    failed.map_or(Ok(()), Err)
}

fn chosen(jobs: &Jobs, names: &[String]) -> Result<Vec<Target>, Error> {
    let wanted: Vec<Job> = names
        .iter()
        .map(|name| jobs.find(name, None))
        .collect::<Result<_, _>>()?;
    let is_wanted = |target: &Target| {
        let of = |(job, _): &(Job, _)| wanted.iter().any(|wanted| wanted.key == job.key);
        names.is_empty() || target.known.as_ref().is_some_and(of)
    };
    Ok(target::all(jobs).into_iter().filter(is_wanted).collect())
}

fn one(target: &Target) -> Option<One<'_>> {
    let (job, checkpoint) = target.known.as_ref()?;
    Some(One {
        job: &job.key,
        at: checkpoint.at,
        size: checkpoint.size,
        is_good: checkpoint::look(&target.path).is_ok(),
    })
}

fn take(jobs: &mut Jobs, target: &Target) -> Result<(), Error> {
    remove(&target.path).map_err(|error| error.while_trying_to("remove a checkpoint"))?;
    jobs.remove_checkpoint_at(&target.path)
}

fn gone(target: &Target, why: Why) -> Option<Gone<'_>> {
    let (job, checkpoint) = target.known.as_ref()?;
    Some(Gone {
        id: &checkpoint.id,
        job: &job.name,
        path: &target.path,
        size: checkpoint.size,
        why: why.text(),
    })
}

fn tell(told: &Told<'_>, context: &Context) -> Result<(), Error> {
    if context.json {
        return output::json(told);
    }
    let verb = if told.dry_run { "Would remove" } else { "Removed" };
    for gone in &told.removed {
        let (path, job) = (gone.path.display().to_string(), output::text::line(gone.job));
        output::line(&format!(
            "{verb} {} of job {job} ({}): {}",
            output::text::line(&path),
            size::whole(gone.size),
            gone.why
        ))?;
    }
    output::line(&format!(
        "{verb} {} checkpoints; {} are kept, {}",
        told.removed.len(),
        told.kept,
        size::whole(told.bytes)
    ))
}
