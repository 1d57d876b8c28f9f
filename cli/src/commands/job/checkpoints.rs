//! `cedana job checkpoints JOB`: what was saved of a job.

use jobs::record::Checkpoint;

use crate::completer;
use crate::context::Context;
use crate::error::Error;
use crate::jobs::Jobs;
use crate::output::table::{Side, Table};
use crate::output::{self, size, time};

const COLUMNS: [(&str, Side); 4] = [
    ("ID", Side::Left),
    ("TIME", Side::Left),
    ("SIZE", Side::Right),
    ("PATH", Side::Left),
];

/// Its arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The job
    #[arg(add = completer::jobs())]
    pub job: String,
}

/// Lists the checkpoints, the newest first.
///
/// # Errors
/// There is no such job.
pub async fn run(args: Args, context: &Context) -> Result<(), Error> {
    let jobs = Jobs::open(context).await?;
    let job = jobs.find(&args.job, None)?;
    let checkpoints = jobs.checkpoints(&job);
    if context.json {
        return output::json(&checkpoints);
    }
    if checkpoints.is_empty() {
        return output::line(&format!(
            "No checkpoints found for job {}",
            output::text::line(&job.name)
        ));
    }
    output::stdout(&table(&checkpoints).text(output::colours()))
}

fn table(checkpoints: &[Checkpoint]) -> Table {
    let mut table = Table::new(&COLUMNS);
    for checkpoint in checkpoints {
        table.row(vec![
            (&checkpoint.id).into(),
            time::local(checkpoint.at).into(),
            size::whole(checkpoint.size).into(),
            checkpoint.path.display().to_string().into(),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkpoint_is_a_row() {
        let checkpoint = Checkpoint {
            id: "5f0c9d9e-0000-4000-8000-000000000000".to_owned(),
            path: "/c/dump-containerd-web-1".into(),
            at: 1_767_366_245_000,
            size: 5 << 20,
            left_running: true,
        };
        let text = table(std::slice::from_ref(&checkpoint)).text(false);
        let mut lines = text.lines();
        let words: Vec<&str> = lines.next().unwrap_or_default().split_whitespace().collect();
        assert_eq!(words, ["ID", "TIME", "SIZE", "PATH"]);
        let expected = format!(
            "{}  {}  5 MiB  /c/dump-containerd-web-1",
            checkpoint.id,
            time::local(checkpoint.at)
        );
        assert_eq!(lines.next(), Some(expected.as_str()));
    }
}
