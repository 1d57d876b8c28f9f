//! `cedana restore`: a container goes on where a checkpoint has it.
//!
//! ```text
//!   job JOB            --+                          +--> its shim       it has ended and its task is still there
//!                        +--> checkpoint, arguments +--> containerd     a task is made, and its shim restores it
//!   containerd --path  --+                          +--> docker, nerdctl: a start by them, which becomes a restore
//! ```
//!
//! Never a silent fresh start: whoever was to be restored is looked at afterwards, and before its start where that is possible.

mod arguments;
mod containerd;
mod copy;
mod engine;
mod fresh;
mod image;
mod images;
mod job;
mod order;
mod streams;

use clap::Subcommand;
use serde::Serialize;

use crate::context::Context;
use crate::error::Error;
use crate::output;

pub use containerd::KUBERNETES_LABEL;
pub use job::{sandbox, starts_afresh};
pub use streams::file_uri;

/// Its arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What is brought back.
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Bring a job back, from its latest checkpoint unless another one is named
    Job(job::Args),
    /// Bring a container of containerd back from a checkpoint
    Containerd(containerd::Args),
}

/// What was done, as JSON.
#[derive(Debug, Serialize)]
struct Restored {
    job: String,
    pid: i32,
    checkpoint: std::path::PathBuf,
}

/// Does it.
///
/// # Errors
/// There is no such job or checkpoint, it runs, or it could not be restored: with the shim's words.
pub async fn run(args: Args, context: &Context) -> Result<(), Error> {
    match args.what {
        What::Job(args) => job::run(args, context).await,
        What::Containerd(args) => containerd::run(args, context).await,
    }
}

fn report(restored: &Restored, context: &Context) -> Result<(), Error> {
    if context.json {
        return output::json(restored);
    }
    output::line(&format!("Restored successfully, PID: {}", restored.pid))
}
