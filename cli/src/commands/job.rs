//! `cedana job …`: the verbs about jobs and their checkpoints under one word.

pub mod checkpoints;
pub mod inspect;

use clap::Subcommand;

use super::{checkpoint, delete, kill, ps};
use crate::context::Context;
use crate::error::Error;

/// Its arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What of it.
    #[command(subcommand)]
    pub verb: Verb,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// List jobs
    #[command(visible_alias = "ls")]
    List(ps::Args),
    /// Everything that is known of a job
    Inspect(inspect::Args),
    /// List the checkpoints of a job
    Checkpoints(checkpoints::Args),
    /// Look at checkpoints, verify and remove them
    Checkpoint(checkpoint::Args),
    /// Kill jobs
    Kill(kill::Args),
    /// Forget jobs that have ended
    Delete(delete::Args),
}

/// Does it.
///
/// # Errors
/// What the verb could not do.
pub async fn run(args: Args, context: &Context) -> Result<(), Error> {
    match args.verb {
        Verb::List(args) => ps::run(args, context).await,
        Verb::Inspect(args) => inspect::run(args, context).await,
        Verb::Checkpoints(args) => checkpoints::run(args, context).await,
        Verb::Checkpoint(args) => checkpoint::run(args, context).await,
        Verb::Kill(args) => kill::run(args, context).await,
        Verb::Delete(args) => delete::run(args, context).await,
    }
}
