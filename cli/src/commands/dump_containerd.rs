//! `cedana dump containerd`.

pub mod foreign;
mod outcome;
mod partial;

use super::dump::flags::Flags;
use super::dump::save;
use super::manage;
use crate::context::Context;
use crate::engines::Address;
use crate::engines::containerd::Containerd;
use crate::error::Error;
use crate::jobs::Jobs;

/// Its arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The container's id
    #[arg(value_name = "ID")]
    id: String,
    #[command(flatten)]
    address: Address,
    #[command(flatten)]
    flags: Flags,
}

/// Does it: a container that is no job yet becomes one, or its checkpoint would belong to nothing.
///
/// # Errors
/// There is no such container, it does not run, or it could not be saved.
pub async fn run(args: Args, context: &Context) -> Result<(), Error> {
    let mut jobs = Jobs::open(context).await?;
    let engine = Containerd::connect(&args.address.socket(), &args.address.namespace()).await?;
    let task = manage::running(&engine, &args.id).await?;
    let key = args.address.key(&context.spool()?, engine.namespace(), &args.id);
    let job = match jobs.of(&key).cloned() {
        Some(job) if !job.managed || job.record.init.pid == task.pid => job,
        known => {
            let name = known.and_then(|job| job.record.name);
            manage::adopt(&mut jobs, &engine, &key, &task, name.as_deref()).await?
        }
    };
    save::save(context, &mut jobs, &job, &args.flags).await
}
