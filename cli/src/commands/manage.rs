//! `cedana manage`: a container that runs under another shim becomes a job.

mod containerd;
mod upcoming;

pub use containerd::{adopt, running};

use clap::Subcommand;

use crate::context::Context;
use crate::error::Error;

/// Its arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What becomes a job.
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// A container of containerd's
    Containerd(containerd::Args),
}

/// Does it.
///
/// # Errors
/// There is no such container, or it does not run.
pub async fn run(args: Args, context: &Context) -> Result<(), Error> {
    match args.what {
        What::Containerd(args) => containerd::run(args, context).await,
    }
}
