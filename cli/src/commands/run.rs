//! `cedana run`: starts a container under our shim, by containerd's own client.

mod containerd;
mod names;

use clap::Subcommand;

use crate::context::Context;
use crate::error::Error;

/// Its arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What is started.
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Start a container of containerd's
    Containerd(containerd::Args),
}

/// Does it.
///
/// # Errors
/// It could not be started: with its client's words. An attached container's own exit code is the call's.
pub async fn run(args: Args, context: &Context) -> Result<(), Error> {
    match args.what {
        What::Containerd(args) => containerd::run(args, context).await,
    }
}
