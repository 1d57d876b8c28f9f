//! `cedana job checkpoint …`: one checkpoint.

use std::fs;
use std::path::Path;

use clap::Subcommand;
use jobs::record::{Checkpoint, Origin};
use oci_bundles::archive;
use serde::Serialize;

use super::checkpoints;
use crate::context::Context;
use crate::error::Error;
use crate::jobs::{Jobs, rebuild};
use crate::output::{self, size, time};

/// Files that are named; CRIU makes some ten for each process.
const FILES_MAX: usize = 100_000;

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
    /// List the checkpoints of a job
    #[command(visible_alias = "ls")]
    List(checkpoints::Args),
    /// Everything that is known of a checkpoint
    Inspect(Inspect),
}

/// The arguments of `inspect`.
#[derive(Debug, clap::Args)]
pub struct Inspect {
    /// Its id, or a unique beginning of it
    pub id: String,
}

/// A checkpoint, told.
#[derive(Debug, Serialize)]
struct Told<'a> {
    #[serde(flatten)]
    checkpoint: &'a Checkpoint,
    job: &'a str,
    namespace: &'a str,
    container: &'a str,
    compression: &'static str,
    origin: Option<Origin>,
    files: Vec<File>,
}

#[derive(Debug, Serialize)]
struct File {
    name: String,
    size: u64,
}

/// Does it.
///
/// # Errors
/// There is no such job or checkpoint.
pub async fn run(args: Args, context: &Context) -> Result<(), Error> {
    match args.verb {
        Verb::List(args) => checkpoints::run(args, context).await,
        Verb::Inspect(args) => inspect(&args.id, context).await,
    }
}

async fn inspect(id: &str, context: &Context) -> Result<(), Error> {
    let jobs = Jobs::open(context).await?;
    let of_jobs = jobs
        .all()
        .iter()
        .flat_map(|job| job.record.checkpoints.iter().map(move |one| (job, one)));
    let met: Vec<_> = of_jobs
        .filter(|(_, one)| !id.is_empty() && one.id.starts_with(id))
        .collect();
    let (job, checkpoint) = match met.as_slice() {
        [one] => *one,
        [] => {
            return Err(Error::not_found(format!("there is no checkpoint {id}"))
                .hint("cedana job checkpoints JOB lists those of a job"));
        }
        many => match many.iter().find(|(_, one)| one.id == id) {
            Some(exact) => *exact,
            None => {
                return Err(Error::usage(format!(
                    "{id} may be any of {} checkpoints",
                    many.len()
                )));
            }
        },
    };
    let told = Told {
        checkpoint,
        job: &job.name,
        namespace: &job.key.namespace,
        container: &job.key.id,
        compression: archive::detect(&checkpoint.path).map_or("unknown", archive::Form::word),
        origin: rebuild::origin(&checkpoint.path),
        files: files(&checkpoint.path),
    };
    if context.json {
        return output::json(&told);
    }
    output::stdout(&text(&told))
}

/// The files of a checkpoint that is a directory.
fn files(path: &Path) -> Vec<File> {
    let entries = fs::read_dir(path).into_iter().flatten().take(FILES_MAX).flatten();
    let mut files: Vec<File> = entries
        .filter_map(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            entry.metadata().ok().map(|facts| File {
                name,
                size: facts.len(),
            })
        })
        .collect();
    files.sort_by(|a, b| a.name.cmp(&b.name));
    files
}

fn text(told: &Told<'_>) -> String {
    let checkpoint = told.checkpoint;
    let pairs = [
        ("id", checkpoint.id.clone()),
        ("job", told.job.to_owned()),
        ("container", format!("{}/{}", told.namespace, told.container)),
        ("path", checkpoint.path.display().to_string()),
        ("time", time::local(checkpoint.at)),
        ("size", size::whole(checkpoint.size)),
        ("compression", told.compression.to_owned()),
        (
            "left running",
            if checkpoint.left_running { "yes" } else { "no" }.to_owned(),
        ),
    ];
    let mut text: String = pairs
        .iter()
        .map(|(name, value)| format!("{name}: {}\n", output::text::line(value)))
        .collect();
    if !told.files.is_empty() {
        text.push_str("files:\n");
        for file in &told.files {
            text.push_str(&format!(
                "  {}: {}\n",
                output::text::line(&file.name),
                size::whole(file.size)
            ));
        }
    }
    text
}
