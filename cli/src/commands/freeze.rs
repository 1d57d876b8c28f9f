//! `cedana freeze` and `cedana unfreeze`: all processes of a container stop where they are, and go on.

use clap::Subcommand;
use jobs::registry::Job;
use jobs::wire::{self, Empty, Target};
use serde::Serialize;

use crate::completer;
use crate::context::Context;
use crate::engines::Address;
use crate::engines::containerd::{Containerd, TaskStatus};
use crate::error::Error;
use crate::jobs::Jobs;
use crate::{output, shim};

/// Their arguments: a job, or `job JOB`, or `containerd ID`.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct Args {
    /// The job
    #[arg(required = true, add = completer::jobs())]
    pub job: Option<String>,
    /// What it is.
    #[command(subcommand)]
    pub what: Option<What>,
}

/// What can be frozen.
#[derive(Debug, Subcommand)]
pub enum What {
    /// A job, by its name
    Job {
        /// The job
        #[arg(add = completer::jobs())]
        job: String,
    },
    /// A container of containerd, by its id
    Containerd {
        /// The container's id
        id: String,
        /// Which containerd.
        #[command(flatten)]
        address: Address,
    },
}

/// The two verbs.
#[derive(Debug, Clone, Copy)]
struct Verb {
    method: &'static str,
    act: &'static str,
    done: &'static str,
    freezes: bool,
}

const FREEZE: Verb = Verb {
    method: wire::FREEZE,
    act: "freeze",
    done: "Froze",
    freezes: true,
};

const UNFREEZE: Verb = Verb {
    method: wire::THAW,
    act: "unfreeze",
    done: "Unfroze",
    freezes: false,
};

/// What is told of it.
#[derive(Debug, Serialize)]
struct Told<'a> {
    job: &'a str,
    status: &'static str,
}

/// Stops all processes of a container.
///
/// # Errors
/// There is none, or it does not run.
pub async fn freeze(args: Args, context: &Context) -> Result<(), Error> {
    run(args, FREEZE, context).await
}

/// Lets them go on.
///
/// # Errors
/// There is none, or it is not frozen.
pub async fn unfreeze(args: Args, context: &Context) -> Result<(), Error> {
    run(args, UNFREEZE, context).await
}

async fn run(args: Args, verb: Verb, context: &Context) -> Result<(), Error> {
    let jobs = Jobs::open(context).await?;
    let job = match (args.what, args.job) {
        (Some(What::Containerd { id, address }), _) => {
            let namespace = address.namespace();
            match jobs.of(&address.key(&context.spool()?, &namespace, &id)) {
                Some(job) => job.clone(),
                None => {
                    let engine = Containerd::connect(&address.socket(), &namespace).await?;
                    by_engine(&engine, &id, &id, verb).await?;
                    return tell(&id, "container", verb, context);
                }
            }
        }
        (Some(What::Job { job }), _) | (None, Some(job)) => jobs.find(&job, None)?,
        (None, None) => return Err(Error::usage(format!("failed to {}: no job is named", verb.act))),
    };
    of_job(&job, verb).await?;
    tell(&job.name, "job", verb, context)
}

async fn of_job(job: &Job, verb: Verb) -> Result<(), Error> {
    if job.managed {
        let engine = Containerd::connect(&job.key.engine, &job.key.namespace).await?;
        return by_engine(&engine, &job.key.id, &job.name, verb).await;
    }
    check(
        &job.name,
        job.status,
        job.is_alive(),
        job.status == "frozen",
        verb,
    )?;
    let target = Target {
        id: job.key.id.clone(),
    };
    let done: Result<Empty, _> = shim::call(&job.record.shim.socket, verb.method, &target, shim::SHORT).await;
    done.map(|Empty {}| ())
        .map_err(|error| Error::from(error).while_trying_to(&format!("{} job {}", verb.act, job.name)))
}

/// A container of another shim, by containerd.
async fn by_engine(engine: &Containerd, id: &str, name: &str, verb: Verb) -> Result<(), Error> {
    let Some(task) = engine.task(id).await? else {
        return Err(Error::not_found(format!(
            "there is no running container {id} in {}",
            engine.namespace()
        )));
    };
    let frozen = task.status == TaskStatus::Paused;
    check(name, "stopped", task.lives(), frozen, verb)?;
    if verb.freezes {
        engine.pause_task(id).await
    } else {
        engine.resume_task(id).await
    }
}

fn check(name: &str, status: &str, alive: bool, frozen: bool, verb: Verb) -> Result<(), Error> {
    if !alive {
        return Err(Error::wrong_state(format!(
            "job {name} is not running (status: {status})"
        )));
    }
    match (frozen, verb.freezes) {
        (true, true) => Err(Error::wrong_state(format!("job {name} is frozen already"))),
        (false, false) => Err(Error::wrong_state(format!("job {name} is not frozen"))),
        _ => Ok(()),
    }
}

fn tell(name: &str, kind: &str, verb: Verb, context: &Context) -> Result<(), Error> {
    if context.json {
        let status = if verb.freezes { "frozen" } else { "running" };
        return output::json(&Told { job: name, status });
    }
    output::line(&format!("{} {kind} {}", verb.done, output::text::line(name)))
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
    fn a_job_is_named_with_and_without_the_word() {
        let job = |args: &[&str]| -> Option<String> {
            let args = Line::try_parse_from([&["freeze"], args].concat()).ok()?.args;
            match (args.what, args.job) {
                (Some(What::Job { job }), _) | (None, Some(job)) => Some(job),
                (Some(What::Containerd { id, .. }), _) => Some(format!("container {id}")),
                (None, None) => None,
            }
        };
        for (args, expected) in [
            (&["web"][..], Some("web")),
            (&["job", "web"], Some("web")),
            (&["job", "job"], Some("job")),
            (&["containerd", "web", "--namespace", "x"], Some("container web")),
            (&[], None),
            (&["job"], None),
            (&["web", "other"], None),
        ] {
            assert_eq!(job(args).as_deref(), expected, "{args:?}");
        }
    }

    #[test]
    fn only_what_runs_is_frozen_and_only_what_is_frozen_let_go() {
        for (alive, frozen, verb, said) in [
            (true, false, FREEZE, None),
            (true, true, UNFREEZE, None),
            (true, true, FREEZE, Some("job web is frozen already")),
            (true, false, UNFREEZE, Some("job web is not frozen")),
            (
                false,
                false,
                FREEZE,
                Some("job web is not running (status: halted)"),
            ),
            (
                false,
                true,
                UNFREEZE,
                Some("job web is not running (status: halted)"),
            ),
        ] {
            let checked = check("web", "halted", alive, frozen, verb);
            assert_eq!(checked.err().map(|error| error.message).as_deref(), said);
        }
    }
}
