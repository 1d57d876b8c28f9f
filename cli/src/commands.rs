//! The verbs, one file each.

pub mod check;
pub mod checkpoint;
pub mod completion;
pub mod config;
pub mod convert;
pub mod delete;
pub mod dump;
pub mod dump_containerd;
pub mod features;
pub mod freeze;
pub mod job;
pub mod kill;
pub mod manage;
pub mod ps;
pub mod restore;
pub mod run;
pub mod version;

use crate::args::{Cedana, Verb};
use crate::context::Context;
use crate::error::Error;

/// Does what the command line says.
///
/// # Errors
/// What the verb could not do.
pub async fn run(cedana: Cedana) -> Result<(), Error> {
    let mut context = Context::read(&cedana.global);
    // A configuration that nobody can read must not decide where a checkpoint goes.
    if !matches!(
        cedana.verb,
        Verb::Check(_) | Verb::Completion(_) | Verb::Version(_)
    ) && let Some(problem) = context.problem.take()
    {
        return Err(problem.into());
    }
    let context = &context;
    match cedana.verb {
        Verb::Ps(args) => ps::run(args, context).await,
        Verb::Job(args) => job::run(args, context).await,
        Verb::Checkpoints(args) => job::checkpoints::run(args, context).await,
        Verb::Checkpoint(args) => checkpoint::run(args, context).await,
        Verb::Convert(args) => convert::run(args, context).await,
        Verb::Kill(args) => kill::run(args, context).await,
        Verb::Delete(args) => delete::run(args, context).await,
        Verb::Dump(args) => dump::run(args, context).await,
        Verb::Restore(args) => restore::run(args, context).await,
        Verb::Run(args) => run::run(args, context).await,
        Verb::Manage(args) => manage::run(args, context).await,
        Verb::Freeze(args) => freeze::freeze(args, context).await,
        Verb::Unfreeze(args) => freeze::unfreeze(args, context).await,
        Verb::Check(args) => check::run(args, context).await,
        Verb::Features(args) => features::run(args, context).await,
        Verb::Config(args) => config::run(args, context).await,
        Verb::Completion(args) => completion::run(args, context).await,
        Verb::Version(args) => version::run(args, context).await,
    }
}
