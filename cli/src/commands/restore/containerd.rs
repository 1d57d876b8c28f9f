//! `cedana restore containerd`.

use std::path::{Path, PathBuf};

use jobs::record::{Key, Origin};

use super::arguments::Flags;
use super::engine::{by_containerd, by_nerdctl, is_ours};
use super::fresh::Wanted;
use super::images::Images;
use super::job::{bring_back, foreign, pod};
use super::order::Order;
use super::{Restored, copy, fresh, report};
use crate::context::Context;
use crate::engines::containerd::{Container, Containerd};
use crate::engines::{Address, docker, nerdctl};
use crate::error::Error;
use crate::jobs::Jobs;
use crate::output::progress::Progress;

/// What containerd's CRI writes on containers of pods: `container` or `sandbox`.
pub const KUBERNETES_LABEL: &str = "io.cri-containerd.kind";

/// Its arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The checkpoint, a directory or an archive
    #[arg(short, long, value_name = "PATH", value_hint = clap::ValueHint::AnyPath)]
    path: PathBuf,
    /// The container; the one that the checkpoint is of unless given. One that is not there is made like that one
    #[arg(long, value_name = "ID")]
    id: Option<String>,
    /// The image of a container that is made for it; the one that the checkpoint names unless given
    #[arg(long, value_name = "NAME")]
    image: Option<String>,
    /// The network namespace of a container that is made for it, such as one of ip netns
    #[arg(long, value_name = "PATH", value_hint = clap::ValueHint::FilePath)]
    netns: Option<PathBuf>,
    #[command(flatten)]
    address: Address,
    #[command(flatten)]
    flags: Flags,
}

/// Does it.
///
/// # Errors
/// The checkpoint does not say whose it is and neither does the user, the container runs, or it could not be restored.
pub async fn run(args: Args, context: &Context) -> Result<(), Error> {
    let images = Images::open(&args.path, args.flags.memory(), context).await?;
    let origin = images.origin();
    let id = match (&args.id, &origin) {
        (Some(id), _) => id.clone(),
        (None, Some(origin)) => origin.key.id.clone(),
        (None, None) => {
            let path = args.path.display();
            return Err(
                Error::usage(format!("{path} does not say whose it is")).hint("name the container: --id ID")
            );
        }
    };
    let namespace = args
        .address
        .namespace_or(origin.as_ref().map(|origin| origin.key.namespace.as_str()));
    let engine = Containerd::connect(&args.address.socket(), &namespace).await?;
    let spool = context.spool()?;
    let key = args.address.key(&spool, &namespace, &id);
    let is_of_docker = namespace == docker::NAMESPACE;
    if (is_of_docker || engine.container(&id).await?.is_some())
        && let Some(job) = Jobs::open(context).await?.of(&key)
    {
        return bring_back(job, &images, &args.path, &args.flags, context).await;
    }
    if is_of_docker {
        return Err(
            Error::unsupported(format!("{id} is Docker's, which must start it")).hint(
                "containers of Docker are restored as the jobs they are: cedana restore job NAME --path PATH",
            ),
        );
    }
    let wanted = Wanted::read(images.directory(), args.image.as_deref(), args.netns.as_deref())?;
    let mut order = Order {
        key: &key,
        spool: &spool,
        name: &id,
        kept: images.kept(),
        checkpoint: images.directory(),
        left: images.left(),
        settings: args.flags.settings()?,
    };
    if origin.is_none() {
        // Podman gives the root of a file system other permissions than containerd does, and CRIU compares them.
        let check = order.settings.entry("restore.skip-file-check".to_owned());
        let _said = check.or_insert_with(|| "true".to_owned());
    }
    let progress = Progress::start("Restoring", context.json);
    let out = args.flags.out()?;
    let pid = restore(&order, &engine, (origin.as_ref(), &wanted), out.as_deref()).await?;
    drop(progress);
    args.flags.write_pid(pid)?;
    let restored = Restored {
        job: id.clone(),
        pid,
        checkpoint: args.path,
    };
    report(&restored, context)
}

async fn restore(
    order: &Order<'_>,
    engine: &Containerd,
    (origin, wanted): (Option<&Origin>, &Wanted),
    out: Option<&Path>,
) -> Result<i32, Error> {
    let id = &order.key.id;
    if let Some(container) = engine.container(id).await? {
        return into(order, engine, &container, out).await;
    }
    let container = match (like(order.key, engine, origin).await, &wanted.image) {
        (Ok(like), _) => copy::create(engine, &like, id).await?,
        (Err(_), Some(image)) => fresh::create(engine, id, image, wanted).await?,
        (Err(error), None) => return Err(error),
    };
    match into(order, engine, &container, out).await {
        Ok(pid) => Ok(pid),
        Err(error) => Err(copy::undo(engine, &container, error).await),
    }
}

/// Into a container that is there, and no job.
async fn into(
    order: &Order<'_>,
    engine: &Containerd,
    container: &Container,
    out: Option<&Path>,
) -> Result<i32, Error> {
    if container.labels.contains_key(KUBERNETES_LABEL) {
        return Err(pod(order.name));
    }
    if container.labels.contains_key(nerdctl::NAME_LABEL) {
        if !is_ours(&container.runtime) {
            return Err(foreign(order.name));
        }
        return by_nerdctl(order).await;
    }
    by_containerd(order, engine, container, None, out).await
}

/// The container that the checkpoint is of, as a pattern for a new one.
async fn like(key: &Key, engine: &Containerd, origin: Option<&Origin>) -> Result<Container, Error> {
    let (namespace, id) = (&key.namespace, &key.id);
    let absent = || {
        Error::not_found(format!(
            "there is no container {id} in containerd (namespace {namespace})"
        ))
    };
    let make = format!(
        "make it from the image it ran from, unstarted: ctr -n {namespace} containers create --runtime io.containerd.cedana.v1 IMAGE {id}"
    );
    let Some(origin) = origin.filter(|origin| origin.key.id != *id) else {
        return Err(absent().hint(make));
    };
    let there = engine
        .within(&origin.key.namespace)?
        .container(&origin.key.id)
        .await?;
    match there {
        Some(container) if origin.key.namespace == *namespace => Ok(container),
        _ => {
            let mut error = absent().hint(make);
            error.message.push_str(&format!(
                ", and none of {} there, of which the checkpoint is, to make it like",
                origin.key.id
            ));
            Err(error)
        }
    }
}
