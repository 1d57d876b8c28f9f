//! `cedana dump`: saves a container.
//!
//! ```text
//!   flags   what was typed, as settings of this dump
//!   place   where it goes: a name that nobody has, in a directory that is there
//!   save    the shim writes it there, and is asked how far it is; Ctrl+C takes it back
//!   pack    a directory becomes one file, where that is asked for
//! ```

pub mod advice;
pub mod criu_options;
pub mod flags;
pub mod image;
pub mod pack;
pub mod place;
mod possible;
pub mod save;
pub mod watch;

use clap::Subcommand;

use super::dump_containerd;
use crate::completer;
use crate::context::Context;
use crate::error::Error;
use crate::jobs::Jobs;

/// Its arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What is saved.
    #[command(subcommand)]
    pub what: What,
}

/// What can be saved.
#[derive(Debug, Subcommand)]
pub enum What {
    /// A job, by its name
    Job(JobArgs),
    /// A container of containerd, by its id
    Containerd(dump_containerd::Args),
}

/// The arguments of `dump job`.
#[derive(Debug, clap::Args)]
pub struct JobArgs {
    /// The job: its name, id, a unique beginning of either, or NAMESPACE/NAME
    #[arg(add = completer::jobs())]
    pub job: String,
    /// Only among the jobs of this namespace of containerd
    #[arg(short, long)]
    pub namespace: Option<String>,
    /// How.
    #[command(flatten)]
    pub flags: flags::Flags,
}

/// Does it.
///
/// # Errors
/// What could not be saved, and why.
pub async fn run(args: Args, context: &Context) -> Result<(), Error> {
    match args.what {
        What::Job(args) => {
            let mut jobs = Jobs::open(context).await?;
            let job = jobs.find(&args.job, args.namespace.as_deref())?;
            save::save(context, &mut jobs, &job, &args.flags).await
        }
        What::Containerd(args) => dump_containerd::run(args, context).await,
    }
}
