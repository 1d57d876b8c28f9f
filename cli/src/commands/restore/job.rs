//! `cedana restore job`.

use std::path::{Path, PathBuf};

use jobs::registry::{EngineKind, Job};

use super::arguments::Flags;
use super::engine::{
    by_containerd, by_docker, by_nerdctl, can_be_in_place, can_leave_memory, in_place, running,
};
use super::images::{Images, Memory};
use super::order::Order;
use super::{Restored, image, report};
use crate::completer;
use crate::context::Context;
use crate::engines::containerd::Containerd;
use crate::engines::docker::Docker;
use crate::error::{Error, Kind};
use crate::jobs::Jobs;
use crate::output::progress::Progress;

/// Its arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The job: its name, id, a unique beginning of either, or NAMESPACE/NAME
    #[arg(value_name = "JOB", add = completer::jobs())]
    job: String,
    /// The checkpoint, a directory or an archive; the job's latest one unless given
    #[arg(short, long, value_name = "PATH", value_hint = clap::ValueHint::AnyPath)]
    path: Option<PathBuf>,
    /// containerd's namespace, where jobs of several have the name
    #[arg(short, long, value_name = "NAMESPACE")]
    namespace: Option<String>,
    #[command(flatten)]
    flags: Flags,
}

/// Does it.
///
/// # Errors
/// There is no such job, it runs, it has no checkpoint, or it could not be restored.
pub async fn run(args: Args, context: &Context) -> Result<(), Error> {
    let jobs = Jobs::open(context).await?;
    let job = jobs.find(&args.job, args.namespace.as_deref())?;
    if job.is_alive() {
        return Err(running(&job.name, job.record.init.pid));
    }
    let path = match args.path {
        Some(path) => path,
        None => latest(&job).await?,
    };
    // Before an archive is unpacked, which takes its time.
    refuse(&job, args.flags.out.as_deref())?;
    let memory = match can_leave_memory(&job.record) {
        true => args.flags.memory(),
        false => Memory::Unpacked,
    };
    let images = Images::open(&path, memory, context).await?;
    images.warn_unless_of(&job.key.id);
    bring_back(&job, &images, &path, &args.flags, context).await
}

/// Restores a job that has ended, and says so.
///
/// # Errors
/// It runs, its engine cannot, or the shim's words.
pub async fn bring_back(
    job: &Job,
    images: &Images,
    path: &Path,
    flags: &Flags,
    context: &Context,
) -> Result<(), Error> {
    if job.is_alive() {
        return Err(running(&job.name, job.record.init.pid));
    }
    let out = flags.out()?;
    refuse(job, out.as_deref())?;
    if images.left().is_some() && !can_leave_memory(&job.record) {
        let (name, version) = (&job.name, &job.record.shim.version);
        return Err(Error::unsupported(format!(
            "the shim of {name} is one of version {version}, which cannot take memory out of an archive"
        ))
        .hint("restore it with --eager"));
    }
    if !flags.skip_image_check {
        image::refuse_another(job, images).await?;
    }
    let spool = context.spool()?;
    let order = Order {
        key: &job.key,
        spool: &spool,
        name: &job.name,
        kept: images.kept(),
        checkpoint: images.directory(),
        left: images.left(),
        settings: flags.settings()?,
    };
    let progress = Progress::start("Restoring", context.json);
    let pid = restore(&order, job, out.as_deref()).await?;
    drop(progress);
    flags.write_pid(pid)?;
    let restored = Restored {
        job: job.name.clone(),
        pid,
        checkpoint: path.to_owned(),
    };
    report(&restored, context)
}

/// The newest checkpoint of the container as it is now: one of an earlier container of that id would meet another file system.
async fn latest(job: &Job) -> Result<PathBuf, Error> {
    let Some(latest) = &job.checkpoints.latest else {
        return Err(Error::not_found(format!("job {} has no checkpoint", job.name))
            .hint("one that the registry does not know is named by --path"));
    };
    if latest.at < created(job).await? {
        let (name, path) = (&job.name, latest.path.display());
        return Err(Error::wrong_state(format!(
            "the latest checkpoint of {name} is older than the container: it is of an earlier one of that id"
        ))
        .hint(format!(
            "if it fits this one all the same: cedana restore job {name} --path {path}"
        )));
    }
    Ok(latest.path.clone())
}

/// When its engine made the container, in milliseconds since 1970. Zero if it has none, or does not answer: what needs it says
/// so later.
async fn created(job: &Job) -> Result<u64, Error> {
    let (engine, namespace, id) = (&job.key.engine, &job.key.namespace, &job.key.id);
    let asked = async {
        if job.engine == EngineKind::Docker {
            let containers = Docker::of_environment()?.containers().await?;
            return Ok::<_, Error>(containers.get(id).map(|container| container.created));
        }
        let container = Containerd::connect(engine, namespace)
            .await?
            .container(id)
            .await?;
        Ok(container.map(|container| container.created))
    };
    match asked.await {
        Ok(created) => Ok(created.unwrap_or_default()),
        Err(error) if matches!(error.kind, Kind::Tool | Kind::Unsupported) => Ok(0),
        Err(error) => Err(error),
    }
}

/// Says no to what its engine could only start afresh, or not at all.
fn refuse(job: &Job, out: Option<&Path>) -> Result<(), Error> {
    if job.record.sandbox {
        return Err(sandbox(&job.name));
    }
    match job.engine {
        EngineKind::Cri => Err(pod(&job.name)),
        engine if starts_afresh(engine, job.managed) => Err(foreign(&job.name)),
        EngineKind::Docker | EngineKind::Nerdctl if out.is_some() => Err(Error::usage(format!(
            "--out cannot be used for {}: its output goes where its engine keeps logs",
            job.name
        ))),
        _ => Ok(()),
    }
}

async fn restore(order: &Order<'_>, job: &Job, out: Option<&Path>) -> Result<i32, Error> {
    match job.engine {
        EngineKind::Docker => return by_docker(order).await,
        EngineKind::Nerdctl => return by_nerdctl(order).await,
        EngineKind::Containerd | EngineKind::Cri => {}
    }
    if out.is_none() && !job.managed && can_be_in_place(&job.record) {
        return in_place(order, &job.record).await;
    }
    let engine = Containerd::connect(&job.key.engine, &job.key.namespace).await?;
    let container = engine.container(&job.key.id).await?.ok_or_else(|| {
        let (namespace, id) = (&job.key.namespace, &job.key.id);
        Error::not_found(format!("container {id} is not in containerd any more (namespace {namespace})")).hint(
            format!("make it again, unstarted, then restore it with --path: ctr -n {namespace} containers create --runtime io.containerd.cedana.v1 IMAGE {id}"),
        )
    })?;
    by_containerd(order, &engine, &container, Some(&job.record.stdio), out).await
}

/// Whether its engine starts it itself, and under a runtime that restores nothing.
pub fn starts_afresh(engine: EngineKind, managed: bool) -> bool {
    managed && engine != EngineKind::Containerd
}

/// That a container is all that a pod hangs on: its network and namespaces go with it.
pub fn sandbox(name: &str) -> Error {
    Error::unsupported(format!(
        "{name} is the pause container of a pod, which ends with it"
    ))
    .hint("name a container of the pod; the pod itself is stopped by crictl stopp, or by Kubernetes")
}

/// That a container is of a pod. A pod is more than its containers: its sandbox and its network are the kubelet's to make.
pub fn pod(name: &str) -> Error {
    Error::unsupported(format!(
        "{name} is a container of a pod, which only Kubernetes can start"
    ))
    .hint("containerd 2.1 and later starts a container whose image is an archive that crictl checkpoint --export made")
}

/// That a container is of another runtime, and of an engine that can only start it under that.
pub fn foreign(name: &str) -> Error {
    Error::unsupported(format!(
        "{name} was created for another runtime, under which its engine would start it afresh"
    ))
    .hint("create the container with --runtime io.containerd.cedana.v1; a container that has it is restored by its engine")
}
