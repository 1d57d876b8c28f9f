//! `cedana delete`: forgets jobs that have ended.

use std::path::PathBuf;

use jobs::record::Status;
use jobs::registry::{EngineKind, Job};
use serde::Serialize;

use super::checkpoint::remove::remove;
use crate::completer;
use crate::context::Context;
use crate::engines::containerd::Containerd;
use crate::error::Error;
use crate::jobs::Jobs;
use crate::output;

/// Its arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The jobs
    #[arg(required_unless_present = "all", conflicts_with = "all", add = completer::jobs())]
    pub jobs: Vec<String>,
    /// All jobs that do not run
    #[arg(short, long)]
    pub all: bool,
    /// Do not ask
    #[arg(short, long)]
    pub yes: bool,
    /// Remove the files of their checkpoints too
    #[arg(long)]
    pub checkpoints: bool,
}

/// What is told of one.
#[derive(Debug, Serialize)]
struct Told {
    job: String,
    /// Checkpoints whose files were removed.
    removed: Vec<PathBuf>,
    /// Checkpoints that are still on the disk, and are nobody's now.
    left: Vec<PathBuf>,
}

/// Forgets them; the files of their checkpoints stay unless they are asked for.
///
/// # Errors
/// The first that could not be deleted; the others are deleted all the same.
pub async fn run(args: Args, context: &Context) -> Result<(), Error> {
    let mut jobs = Jobs::open(context).await?;
    let meant: Vec<Job> = if args.all {
        jobs.all().iter().filter(|job| !job.is_alive()).cloned().collect()
    } else {
        args.jobs
            .iter()
            .map(|name| jobs.find(name, None))
            .collect::<Result<_, _>>()?
    };
    if args.all && !args.yes {
        output::can_ask()?;
        if !meant.is_empty() && !output::confirm(&question(&meant, args.checkpoints))? {
            return Err(Error::failed("nothing was deleted"));
        }
    }
    let mut told = Vec::new();
    let mut failed = None;
    for job in &meant {
        match delete(&mut jobs, job, args.checkpoints) {
            Ok(deleted) => {
                if !context.json {
                    say(job, &deleted, has_container(job).await)?;
                }
                told.push(deleted);
            }
            Err(error) if failed.is_none() => failed = Some(error),
            Err(error) => output::note(&error.message),
        }
    }
    match failed {
        Some(error) => Err(error),
        None if context.json => output::json(&told),
        None if told.is_empty() => output::line("No jobs to delete"),
        None => Ok(()),
    }
}

fn question(meant: &[Job], checkpoints: bool) -> String {
    let saved: usize = meant.iter().map(|job| job.checkpoints.count).sum();
    let jobs = output::counted(meant.len(), "job");
    match (checkpoints, saved) {
        (true, 1..) => format!(
            "Delete {jobs} and the files of {}?",
            output::counted(saved, "checkpoint")
        ),
        _ => format!("Delete {jobs}?"),
    }
}

fn delete(jobs: &mut Jobs, job: &Job, checkpoints: bool) -> Result<Told, Error> {
    if job.is_alive() {
        return Err(
            Error::wrong_state(format!("job {} is running, please kill it first", job.name))
                .hint(format!("cedana job kill {}", job.name)),
        );
    }
    let mut told = Told {
        job: job.name.clone(),
        removed: Vec::new(),
        left: Vec::new(),
    };
    for checkpoint in &job.record.checkpoints {
        if checkpoints {
            remove(&checkpoint.path)
                .map_err(|error| error.while_trying_to(&format!("delete job {}", job.name)))?;
            told.removed.push(checkpoint.path.clone());
        } else {
            told.left.push(checkpoint.path.clone());
        }
    }
    jobs.delete(&job.key)?;
    Ok(told)
}

fn say(job: &Job, told: &Told, container_left: bool) -> Result<(), Error> {
    let name = output::text::line(&job.name);
    let paths = told.removed.iter().map(|path| ("Removed", path));
    for (what, path) in paths.chain(told.left.iter().map(|path| ("Left on the disk", path))) {
        let path = path.display().to_string();
        output::line(&format!("{what}: {}", output::text::line(&path)))?;
    }
    if container_left {
        let left = format!("Left in {}: the container {}", job.engine, job.key.id);
        let remove = how_to_remove(job);
        output::line(&format!("{left} (remove it: {remove})"))?;
    }
    output::line(&format!("Deleted job {name}"))
}

/// Whether its engine still has the container. One that does not answer says nothing.
async fn has_container(job: &Job) -> bool {
    if job.record.status == Status::Stopped {
        return true;
    }
    if job.engine != EngineKind::Containerd {
        return false;
    }
    let Ok(engine) = Containerd::connect(&job.key.engine, &job.key.namespace).await else {
        return false;
    };
    engine
        .container(&job.key.id)
        .await
        .is_ok_and(|found| found.is_some())
}

/// How its engine is told that a container that has ended is not needed any more.
fn how_to_remove(job: &Job) -> String {
    let (namespace, id) = (&job.key.namespace, &job.key.id);
    let rm = match job.engine {
        EngineKind::Containerd => format!("ctr -n {namespace} containers rm {id}"),
        EngineKind::Docker => format!("docker rm {id}"),
        EngineKind::Nerdctl => format!("nerdctl -n {namespace} rm {id}"),
        EngineKind::Cri => format!("crictl rm {id}"),
    };
    if job.engine == EngineKind::Containerd && job.record.status == Status::Stopped {
        return format!("ctr -n {namespace} tasks rm {id}; {rm}");
    }
    rm
}
