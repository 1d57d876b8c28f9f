//! `cedana job inspect JOB`: everything that is known of a job.

use jobs::record::{Act, Exit, Record};
use jobs::registry::Job;
use serde::Serialize;

use crate::completer;
use crate::context::Context;
use crate::error::Error;
use crate::jobs::Jobs;
use crate::output::{self, outline};

/// Its arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The job
    #[arg(add = completer::jobs())]
    pub job: String,
}

/// A job, told.
#[derive(Debug, Serialize)]
struct Told<'a> {
    job: &'a str,
    #[serde(rename = "type")]
    kind: &'static str,
    status: &'static str,
    pid: Option<i32>,
    engine: &'static str,
    image: Option<&'a str>,
    managed: bool,
    exit: Option<Exit>,
    last: Option<&'a Act>,
    record: &'a Record,
}

/// Prints it, as an outline or as JSON.
///
/// # Errors
/// There is no such job.
pub async fn run(args: Args, context: &Context) -> Result<(), Error> {
    let jobs = Jobs::open(context).await?;
    let job = jobs.find(&args.job, None)?;
    let told = told(&job);
    if context.json {
        return output::json(&told);
    }
    output::stdout(&outline::of(&told)?)
}

fn told(job: &Job) -> Told<'_> {
    Told {
        job: &job.name,
        kind: job.type_,
        status: job.status,
        pid: job.is_alive().then_some(job.record.init.pid),
        engine: job.engine.word(),
        image: job.image.as_deref(),
        managed: job.managed,
        exit: job.record.exit,
        last: job.record.last.as_ref(),
        record: &job.record,
    }
}
