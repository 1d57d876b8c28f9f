//! `cedana check`: whether this host can save containers, or whether one job can be saved now, and what is in the way.
//!
//! ```text
//!  check          --> own, engine, runtime, criu, kernel, gpu --> Checks: a table, a verdict
//!  check --full   --> the same, and trial: a container of its own is run, dumped and restored
//!  check JOB      --> job: the shim's own `preflight`, and what criu is there --> what is in the way
//! ```

mod checks;
mod criu;
mod engine;
mod gpu;
mod job;
mod kernel;
mod own;
mod runtime;
mod tool;
mod trial;

use serde::Serialize;

use crate::completer;
use crate::context::Context;
use crate::engines::Address;
use crate::error::Error;
use crate::output;
use checks::{Check, Checks};
use tool::Places;

/// Its arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A job: whether it can be saved now; without one, whether this host can save containers
    #[arg(value_name = "JOB", add = completer::jobs())]
    job: Option<String>,
    /// Really try it: run, dump and restore a container made for this
    #[arg(long, conflicts_with = "job")]
    full: bool,
    #[command(flatten)]
    address: Address,
}

/// What is printed of a host.
#[derive(Debug, Serialize)]
struct Document<'a> {
    can_dump: bool,
    errors: usize,
    warnings: usize,
    checks: &'a [Check],
}

/// Does it.
///
/// # Errors
/// This host cannot save containers, or the job cannot be saved now ([`crate::error::Kind::Unsupported`]); there is no such
/// job, or it does not run.
pub async fn run(args: Args, context: &Context) -> Result<(), Error> {
    match &args.job {
        Some(job) => job::run_for(job, args.address.said_namespace(), context).await,
        None => host(&args, context).await,
    }
}

async fn host(args: &Args, context: &Context) -> Result<(), Error> {
    let mut checks = Checks::default();
    let socket = args.address.socket();
    let places = Places::of_containerd(&socket).await;
    own::look(context, &mut checks);
    engine::look(&socket, &args.address.namespace(), &mut checks).await;
    runtime::look(&places, &mut checks).await;
    let release = kernel::look(&mut checks);
    criu::look(&places, release, &mut checks).await;
    gpu::look(&mut checks);
    if args.full {
        trial::look(&socket, context, &mut checks).await?;
    }
    let (errors, warnings) = (checks.errors(), checks.warnings());
    if context.json {
        output::json(&Document {
            can_dump: errors == 0,
            errors,
            warnings,
            checks: checks.all(),
        })?;
    } else {
        output::stdout(&checks.text(output::colours()))?;
    }
    match errors {
        0 => Ok(()),
        _ => Err(Error::unsupported(
            "containers of this host cannot be saved and restored as it is",
        )),
    }
}
