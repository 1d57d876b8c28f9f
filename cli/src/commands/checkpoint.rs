//! `cedana checkpoint …`: what was saved, whosever it is.
//!
//! ```text
//!   target   which one is meant: an id, or a path, which nobody needs to know of
//!   long     reading and writing gigabytes: with progress, and Ctrl+C
//!   remove   only what is a checkpoint, and only the files of that
//! ```

pub mod incomplete;
pub mod inspect;
pub mod left;
pub mod list;
pub mod long;
pub mod prune;
pub mod remove;
pub mod rm;
pub mod target;
pub mod verify;

use clap::Subcommand;

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
    /// List checkpoints, of a job or all
    #[command(visible_alias = "ls")]
    List(list::Args),
    /// Everything that is known of a checkpoint
    Inspect(inspect::Args),
    /// Whether checkpoints are as they were made
    Verify(verify::Args),
    /// Remove checkpoints
    #[command(visible_alias = "remove")]
    Rm(rm::Args),
    /// Remove checkpoints by their number, age or size
    Prune(prune::Args),
}

/// Does it.
///
/// # Errors
/// What the verb could not do.
pub async fn run(args: Args, context: &Context) -> Result<(), Error> {
    match args.verb {
        Verb::List(args) => list::run(args, context).await,
        Verb::Inspect(args) => inspect::run(args, context).await,
        Verb::Verify(args) => verify::run(args, context).await,
        Verb::Rm(args) => rm::run(args, context).await,
        Verb::Prune(args) => prune::run(args, context).await,
    }
}
