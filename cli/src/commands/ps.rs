//! `cedana ps`: the jobs of this machine.

mod row;
mod watch;

use crate::context::Context;
use crate::error::Error;
use crate::jobs::Jobs;
use crate::output;
use row::Row;

/// Its arguments.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Also jobs whose container was removed and of which nothing was saved, and pause containers
    #[arg(short, long)]
    pub all: bool,
    /// Show them again whenever something changes
    #[arg(short, long)]
    pub watch: bool,
}

/// Lists the jobs.
///
/// # Errors
/// There is no registry, or standard output cannot be written.
pub async fn run(args: Args, context: &Context) -> Result<(), Error> {
    if args.watch {
        return watch::run(&args, context).await;
    }
    let jobs = Jobs::open(context).await?;
    let rows = row::rows(jobs.all(), args.all);
    if context.json {
        return output::json(&rows);
    }
    output::stdout(&text(&rows, output::colours()))
}

fn text(rows: &[Row<'_>], colours: bool) -> String {
    if rows.is_empty() {
        return "No jobs found\n".to_owned();
    }
    let table = row::table(rows, jobs::time::now()).text(colours);
    // Who reads it in a pipe wants rows.
    if colours {
        format!("{table}\n{HINTS}")
    } else {
        table
    }
}

/// Under the table, on a terminal.
const HINTS: &str = "\
To see the checkpoints of a job:  cedana job checkpoints JOB
To save one, and bring it back:   cedana dump job JOB; cedana restore job JOB
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_jobs_are_said_to_be_none() {
        assert_eq!(text(&[], false), "No jobs found\n");
        assert_eq!(text(&[], true), "No jobs found\n");
    }
}
