//! `cedana manage containerd`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use jobs::liveness;
use jobs::record::{Key, NAME_ANNOTATION, is_name};
use jobs::registry::{Adopted, Job};
use serde::Serialize;

use super::upcoming;
use crate::commands::restore::{KUBERNETES_LABEL, sandbox, starts_afresh};
use crate::context::Context;
use crate::engines::Address;
use crate::engines::containerd::{BUNDLES, Containerd, Task};
use crate::error::Error;
use crate::jobs::{Jobs, no_name};
use crate::output;

/// Its arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The container's id
    #[arg(value_name = "ID")]
    id: String,
    /// The job's name; the container's id unless given
    #[arg(short, long, value_name = "NAME")]
    jid: Option<String>,
    /// Wait until the container starts, if it does not run yet
    #[arg(long)]
    upcoming: bool,
    /// How long to wait (seconds, or with ms, s, m, h); as long as it takes unless given
    #[arg(long, value_name = "TIME", requires = "upcoming", value_parser = upcoming::duration)]
    timeout: Option<Duration>,
    /// Write the pid to this file
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    pid_file: Option<PathBuf>,
    #[command(flatten)]
    address: Address,
}

/// What is a job now, as JSON.
#[derive(Debug, Serialize)]
struct Managed {
    job: String,
    id: String,
    pid: i32,
}

/// Does it.
///
/// # Errors
/// There is no such container, it does not run, or another job has the name.
pub async fn run(args: Args, context: &Context) -> Result<(), Error> {
    if let Some(name) = args.jid.as_deref().filter(|name| !is_name(name)) {
        return Err(no_name(name));
    }
    // Before anything that takes time, so that Ctrl+C means the same from the beginning on.
    let mut interrupts = args.upcoming.then(upcoming::interrupts).transpose()?;
    let namespace = args.address.namespace();
    let engine = Containerd::connect(&args.address.socket(), &namespace).await?;
    let task = match &mut interrupts {
        Some(interrupts) => upcoming::wait(&engine, &args.id, args.timeout, interrupts).await?,
        None => running(&engine, &args.id).await?,
    };
    drop(interrupts);
    let key = args.address.key(&context.spool()?, &namespace, &args.id);
    let mut jobs = Jobs::open(context).await?;
    let job = adopt(&mut jobs, &engine, &key, &task, args.jid.as_deref()).await?;
    if let Some(path) = &args.pid_file {
        std::fs::write(path, task.pid.to_string())
            .map_err(|source| Error::failed(format!("failed to write {}: {source}", path.display())))?;
    }
    if starts_afresh(job.engine, job.managed) {
        output::warning(&format!(
            "{} can be saved with --leave-running only: {} could not restore it, as it was created for another runtime",
            job.name, job.engine
        ));
    }
    let managed = Managed {
        job: job.name,
        id: args.id,
        pid: task.pid,
    };
    if context.json {
        return output::json(&managed);
    }
    output::line(&format!("Managing containerd PID {}", managed.pid))
}

/// The task of a container that runs.
///
/// # Errors
/// There is no such container, or it does not run.
pub async fn running(engine: &Containerd, id: &str) -> Result<Task, Error> {
    let namespace = engine.namespace();
    if let Some(task) = engine.task(id).await? {
        if task.pid > 0 && task.lives() {
            return Ok(task);
        }
    } else if engine.container(id).await?.is_none() {
        return Err(Error::not_found(format!(
            "there is no container {id} in containerd (namespace {namespace})"
        ))
        .hint("another namespace is named by --namespace"));
    }
    Err(Error::wrong_state(format!("container {id} is not running")))
}

/// Takes a container into the registry, under a name or under its id. Returns the job.
///
/// # Errors
/// Our own shim has done so already, another job has the name, or the container is gone meanwhile.
pub async fn adopt(
    jobs: &mut Jobs,
    engine: &Containerd,
    key: &Key,
    task: &Task,
    name: Option<&str>,
) -> Result<Job, Error> {
    if let Some(job) = jobs.of(key).filter(|job| !job.managed && job.is_alive()) {
        return Err(Error::wrong_state(format!(
            "container {} is a job already: {}, under our own shim",
            key.id, job.name
        ))
        .hint(format!(
            "its name is its annotation {NAME_ANNOTATION}, or the container's own"
        )));
    }
    if let Some(name) = name
        && let Some(other) = jobs.named(name).filter(|job| job.key != *key)
    {
        return Err(Error::wrong_state(format!(
            "there is a job {} already",
            other.name
        )));
    }
    let gone = || Error::not_found(format!("container {} is gone meanwhile", key.id));
    let container = engine.container(&key.id).await?.ok_or_else(gone)?;
    if container
        .labels
        .get(KUBERNETES_LABEL)
        .is_some_and(|kind| kind == "sandbox")
    {
        return Err(sandbox(&key.id));
    }
    let adopted = Adopted {
        key: key.clone(),
        name: name.map(str::to_owned),
        image: Some(container.image).filter(|image| !image.is_empty()),
        runtime: container.runtime,
        init: liveness::of(task.pid).map_err(|_| gone())?,
        stdio: task.streams.clone().into(),
        bundle: Path::new(BUNDLES).join(&key.namespace).join(&key.id),
    };
    jobs.adopt(&adopted)?;
    jobs.refresh().await?;
    let job = jobs.of(key).cloned();
    job.ok_or_else(|| Error::failed(format!("container {} cannot be made a job", key.id)))
}
