//! `cedana kill`: ends jobs, by the engine that owns them, so that its books are right.

use std::time::Duration;

use jobs::liveness;
use jobs::registry::Job;
use jobs::wire::{self, Empty, Target};
use nix::sys::signal::Signal;
use serde::Serialize;
use tokio::time::{Instant, sleep};

use super::restore::sandbox;
use crate::completer;
use crate::context::Context;
use crate::engines::containerd::Containerd;
use crate::error::Error;
use crate::jobs::Jobs;
use crate::{output, shim};

/// How long a process may take to go after SIGKILL; one in an uninterruptible sleep takes longer.
const END: Duration = Duration::from_secs(10);

/// Between two looks at that.
const LOOK: Duration = Duration::from_millis(10);

/// Its arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The jobs
    #[arg(required_unless_present = "all", conflicts_with = "all", add = completer::jobs())]
    pub jobs: Vec<String>,
    /// All jobs that run
    #[arg(short, long)]
    pub all: bool,
    /// Do not ask
    #[arg(short, long)]
    pub yes: bool,
    /// The signal, by its name or number
    #[arg(short, long, default_value = "KILL", value_parser = signal)]
    pub signal: Signal,
}

/// What is told of one.
#[derive(Debug, Serialize)]
struct Told {
    job: String,
    signal: &'static str,
}

/// Sends the signal to the init of each, and after SIGKILL waits until it is gone.
///
/// # Errors
/// The first that could not be killed; the others are killed all the same.
pub async fn run(args: Args, context: &Context) -> Result<(), Error> {
    let jobs = Jobs::open(context).await?;
    let meant: Vec<Job> = if args.all {
        jobs.all()
            .iter()
            .filter(|job| job.is_alive() && !job.record.sandbox)
            .cloned()
            .collect()
    } else {
        args.jobs
            .iter()
            .map(|name| jobs.find(name, None))
            .collect::<Result<_, _>>()?
    };
    if args.all && !args.yes {
        output::can_ask()?;
        if !meant.is_empty() && !output::confirm(&format!("Kill {}?", output::counted(meant.len(), "job")))? {
            return Err(Error::failed("nothing was killed"));
        }
    }
    let mut told = Vec::new();
    let mut failed = None;
    for job in &meant {
        match kill(job, args.signal).await {
            Ok(()) => {
                if !context.json {
                    output::line(&said(job, args.signal))?;
                }
                told.push(Told {
                    job: job.name.clone(),
                    signal: args.signal.as_str(),
                });
            }
            Err(error) if failed.is_none() => failed = Some(error),
            Err(error) => output::note(&error.message),
        }
    }
    match failed {
        Some(error) => Err(error),
        None if context.json => output::json(&told),
        None if told.is_empty() => output::line("No jobs are running"),
        None => Ok(()),
    }
}

async fn kill(job: &Job, signal: Signal) -> Result<(), Error> {
    if !job.is_alive() {
        return Err(Error::wrong_state(format!(
            "job {} is not running (status: {})",
            job.name, job.status
        )));
    }
    if job.record.sandbox {
        return Err(sandbox(&job.name));
    }
    let act = format!("kill job {}", job.name);
    let number = u32::try_from(signal as i32).unwrap_or_default();
    let engine = Containerd::connect(&job.key.engine, &job.key.namespace).await?;
    engine
        .kill_task(&job.key.id, number)
        .await
        .map_err(|error| error.while_trying_to(&act))?;
    if signal != Signal::SIGKILL {
        return Ok(());
    }
    if job.status == "frozen" {
        thaw(job, &engine).await;
    }
    let end = Instant::now() + END;
    while liveness::is_alive(&job.record.init) {
        if Instant::now() > end {
            let pid = job.record.init.pid;
            return Err(Error::failed(format!(
                "failed to {act}: process {pid} is still there after 10 s"
            )));
        }
        sleep(LOOK).await;
    }
    Ok(())
}

/// A frozen process dies when it goes on.
async fn thaw(job: &Job, engine: &Containerd) {
    // It may be dead already; whether it is gone in the end is what counts.
    if job.managed {
        let _gone = engine.resume_task(&job.key.id).await;
        return;
    }
    let target = Target {
        id: job.key.id.clone(),
    };
    let _gone: Result<Empty, _> = shim::call(&job.record.shim.socket, wire::THAW, &target, shim::SHORT).await;
}

fn said(job: &Job, signal: Signal) -> String {
    let name = output::text::line(&job.name);
    match signal {
        Signal::SIGKILL => format!("Killed job {name}"),
        other => format!("Sent {} to job {name}", other.as_str()),
    }
}

/// `KILL`, `SIGKILL`, `kill` and `9` are one.
fn signal(word: &str) -> Result<Signal, String> {
    let unknown = || format!("{word:?} is no signal");
    if let Ok(number) = word.parse::<i32>() {
        return Signal::try_from(number).map_err(|_| unknown());
    }
    let name = word.to_ascii_uppercase();
    let name = if name.starts_with("SIG") {
        name
    } else {
        format!("SIG{name}")
    };
    name.parse().map_err(|_| unknown())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    #[test]
    fn signals_have_names_and_numbers() {
        for (word, expected) in [
            ("KILL", Some(Signal::SIGKILL)),
            ("sigterm", Some(Signal::SIGTERM)),
            ("9", Some(Signal::SIGKILL)),
            ("USR1", Some(Signal::SIGUSR1)),
            ("NONSENSE", None),
            ("0", None),
            ("-9", None),
            ("", None),
        ] {
            assert_eq!(signal(word).ok(), expected, "{word}");
        }
    }

    #[test]
    fn jobs_are_named_or_all_are_meant() {
        for (args, is_right) in [
            (&["web"][..], true),
            (&["web", "db", "--signal", "TERM"], true),
            (&["--all"], true),
            (&[], false),
            (&["-y"], false),
            (&["web", "--all"], false),
        ] {
            let parsed = Line::try_parse_from([&["kill"], args].concat());
            assert_eq!(parsed.is_ok(), is_right, "{args:?}");
        }
    }
}
