//! `cedana checkpoint ls [JOB]`.

use jobs::record::Checkpoint;
use serde::Serialize;

use super::left;
use super::target::{self, Target};
use crate::commands::job::checkpoints;
use crate::completer;
use crate::context::Context;
use crate::error::Error;
use crate::jobs::Jobs;
use crate::output::table::{Side, Table};
use crate::output::{self, size, time};

const COLUMNS: [(&str, Side); 5] = [
    ("ID", Side::Left),
    ("JOB", Side::Left),
    ("TIME", Side::Left),
    ("SIZE", Side::Right),
    ("PATH", Side::Left),
];

/// Its arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The job; all of them unless given
    #[arg(add = completer::jobs())]
    pub job: Option<String>,
}

#[derive(Debug, Serialize)]
struct Told<'a> {
    #[serde(flatten)]
    checkpoint: &'a Checkpoint,
    job: &'a str,
    namespace: &'a str,
    container: &'a str,
}

/// Lists the checkpoints, the newest of each job first.
///
/// # Errors
/// There is no such job, or no registry.
pub async fn run(args: Args, context: &Context) -> Result<(), Error> {
    if let Some(job) = args.job {
        return checkpoints::run(checkpoints::Args { job }, context).await;
    }
    left::sweep(context.checkpoint_dir());
    let all = target::all(&Jobs::open(context).await?);
    if context.json {
        return output::json(&told(&all));
    }
    if all.is_empty() {
        return output::line("No checkpoints found");
    }
    output::stdout(&table(&told(&all)).text(output::colours()))
}

fn told(all: &[Target]) -> Vec<Told<'_>> {
    let each = all.iter().filter_map(|target| target.known.as_ref());
    each.map(|(job, checkpoint)| Told {
        checkpoint,
        job: &job.name,
        namespace: &job.key.namespace,
        container: &job.key.id,
    })
    .collect()
}

fn table(all: &[Told<'_>]) -> Table {
    let mut table = Table::new(&COLUMNS);
    for one in all {
        table.row(vec![
            (&one.checkpoint.id).into(),
            one.job.into(),
            time::local(one.checkpoint.at).into(),
            size::whole(one.checkpoint.size).into(),
            one.checkpoint.path.display().to_string().into(),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::super::target::samples::checkpoint;
    use super::*;

    #[test]
    fn each_row_has_its_job() {
        let checkpoint = checkpoint("1f", 7);
        let told = Told {
            checkpoint: &checkpoint,
            job: "web",
            namespace: "default",
            container: "c1",
        };
        let text = table(&[told]).text(false);
        let lines: Vec<Vec<&str>> = text
            .lines()
            .map(|line| line.split_whitespace().collect())
            .collect();
        assert_eq!(lines[0], ["ID", "JOB", "TIME", "SIZE", "PATH"]);
        assert_eq!(
            (lines[1][0], lines[1][1], lines[1].last()),
            ("1f", "web", Some(&"/checkpoints/1f"))
        );
    }
}
