//! The dump of a job of ours: its shim writes the checkpoint, we show how far it is and may take it back.

use std::convert::Infallible;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use jobs::liveness;
use jobs::record::{Checkpoint, Record};
use jobs::registry::Job;
use jobs::wire::{self, Archive, DumpAnswer, DumpRequest, Empty, Target};
use oci_bundles::archive::Form;
use serde::Serialize;

use super::flags::Flags;
use super::place::{self, Place};
use super::{advice, image, pack, possible, watch};
use crate::commands::checkpoint::incomplete;
use crate::commands::dump_containerd::foreign;
use crate::context::Context;
use crate::error::{Error, Kind};
use crate::interrupt::interrupted;
use crate::jobs::{Jobs, rebuild};
use crate::output;
use crate::output::progress::Progress;
use crate::shim::{self, ShimError};

/// The shim bounds a dump by its size and by `dump.timeout`. This only ends the wait for one that is not there any more.
const ANSWER_MAX: Duration = Duration::from_secs(24 * 3600);

/// The container has ended when the shim answers; its init is a zombie for the moment until it is reaped.
const END: Duration = Duration::from_secs(10);

/// Between two looks at that.
const LOOK: Duration = Duration::from_millis(20);

/// What is told of a dump.
#[derive(Debug, Serialize)]
struct Told<'a> {
    job: &'a str,
    namespace: &'a str,
    id: &'a str,
    path: &'a Path,
    size: u64,
    compression: &'static str,
    left_running: bool,
    timings: Vec<(String, f64)>,
}

/// Dumps a job of ours as the flags say, packs and registers it, and prints where it is.
///
/// # Errors
/// It does not run, or the dump failed; [`Kind::Interrupted`] when it was taken back.
pub async fn save(context: &Context, jobs: &mut Jobs, job: &Job, flags: &Flags) -> Result<(), Error> {
    if !job.is_alive() {
        return Err(Error::wrong_state(format!(
            "job {} is not running (status: {})",
            job.name, job.status
        )));
    }
    let wishes = flags.wishes(context)?;
    possible::refuse(job, wishes.leave_running)?;
    let place = place::choose(context, flags, &job.name)?;
    let request = DumpRequest {
        id: job.key.id.clone(),
        path: place.directory.clone(),
        archive: archive(&place),
        name: job.name.rsplit('/').next().map(str::to_owned),
        image: image::of(job).await,
        leave_running: wishes.leave_running,
        shell_job: wishes.shell_job,
        settings: wishes.settings,
    };
    let progress = Arc::new(Progress::start(&format!("dumping {}", job.name), context.json));
    let answer = if job.managed {
        foreign::ask(context, job, &request).await?
    } else {
        ask(&job.record, &request, &progress)
            .await
            .map_err(|error| advice::advised(told(&job.name, error)))?
    };
    if !request.leave_running {
        ended(job).await;
    }
    let made = if answer.archived {
        &place.path
    } else {
        &place.directory
    };
    let mut checkpoint = checkpoint(made, answer.size, request.leave_running);
    let packed = match place.form {
        Form::Directory => Ok(answer.size),
        _ if answer.archived => Ok(answer.size),
        _ => pack::pack(&place, Arc::clone(&progress)).await,
    };
    drop(progress);
    if let Ok(size) = packed {
        checkpoint.path.clone_from(&place.path);
        checkpoint.size = size;
    }
    // Bookkeeping does not make a dump fail that has succeeded.
    if let Err(problem) = jobs.add_checkpoint(&job.key, &checkpoint) {
        output::warning(&problem.to_string());
    }
    let size = packed?;
    if flags.profiling && !context.json {
        for (phase, ms) in &answer.timings {
            output::line(&format!("{phase}: {ms:.1} ms"))?;
        }
    }
    incomplete::warn(&place.path);
    tell(context, job, &place, size, &request, answer)
}

/// What the shim is asked to make at once, if it can.
fn archive(place: &Place) -> Option<Archive> {
    (place.form != Form::Directory).then(|| Archive {
        path: place.path.clone(),
        form: place.form.word().to_owned(),
    })
}

/// Asks the shim, shows how far it is, and passes a Ctrl+C on. Then too it is the shim's answer that counts: past its commit
/// a dump is not taken back.
async fn ask(record: &Record, request: &DumpRequest, progress: &Progress) -> Result<DumpAnswer, ShimError> {
    let socket = &record.shim.socket;
    let answer = shim::call(socket, wire::DUMP, request, ANSWER_MAX);
    let watch = watch::watch(socket, &request.id, progress);
    let cancel = async {
        interrupted().await;
        progress.say("taking it back");
        let target = Target {
            id: request.id.clone(),
        };
        // If it cannot be taken back any more, the dump's own answer says what became of it.
        let _too_late = shim::call::<_, Empty>(socket, wire::CANCEL, &target, shim::SHORT).await;
        std::future::pending::<Infallible>().await
    };
    tokio::select! {
        answer = answer => answer,
        never = watch => match never {},
        never = cancel => match never {},
    }
}

/// The shim's words, all of them, with the job's name: they say what became of it, and where what is left of it is.
fn told(job: &str, error: ShimError) -> Error {
    let mut error = split_log(Error::from(error));
    if error.kind == Kind::Interrupted {
        error.message = format!("dump of job {job} rolled back: {}", error.message);
        return error;
    }
    error.while_trying_to(&format!("dump job {job}"))
}

/// Where CRIU's log is, which the shim says among the rest, is a line of its own.
fn split_log(error: Error) -> Error {
    let Some((cause, rest)) = error.message.split_once("; the log is ") else {
        return error;
    };
    let (log, rest) = rest.split_once("; ").unwrap_or((rest, ""));
    let message = match rest {
        "" => cause.to_owned(),
        rest => format!("{cause}; {rest}"),
    };
    Error::new(error.kind, message).hint(format!("the log is {log}"))
}

/// Waits until the init is gone, so that who lists the jobs next does not see it. The dump is complete in any case.
async fn ended(job: &Job) {
    let end = tokio::time::Instant::now() + END;
    while liveness::is_alive(&job.record.init) && tokio::time::Instant::now() < end {
        tokio::time::sleep(LOOK).await;
    }
}

/// As its manifest has it, which goes into an archive with it.
fn checkpoint(directory: &Path, size: u64, left_running: bool) -> Checkpoint {
    let origin = rebuild::origin(directory);
    Checkpoint {
        id: origin.as_ref().map_or_else(
            || directory.display().to_string(),
            |origin| origin.checkpoint.clone(),
        ),
        path: directory.to_owned(),
        at: origin.map_or_else(jobs::time::now, |origin| origin.at),
        size,
        left_running,
    }
}

fn tell(
    context: &Context,
    job: &Job,
    place: &Place,
    size: u64,
    request: &DumpRequest,
    answer: DumpAnswer,
) -> Result<(), Error> {
    if context.json {
        return output::json(&Told {
            job: &job.name,
            namespace: &job.key.namespace,
            id: &job.key.id,
            path: &place.path,
            size,
            compression: place.form.word(),
            left_running: request.leave_running,
            timings: answer.timings,
        });
    }
    output::line(&format!("Dumped to {}", place.path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_the_log_is_stands_on_a_line_of_its_own() {
        for (said, message, hints) in [
            (
                "dump container g: no room; the log is /l; the container has ended; its images are kept in /i",
                "dump container g: no room; the container has ended; its images are kept in /i",
                &["the log is /l"][..],
            ),
            (
                "dump container g: no room; the log is /l",
                "dump container g: no room",
                &["the log is /l"],
            ),
            ("dump container g: no criu", "dump container g: no criu", &[]),
        ] {
            let error = split_log(Error::tool(said));
            assert_eq!((error.message.as_str(), error.kind), (message, Kind::Tool));
            assert_eq!(error.hints, hints);
        }
    }

    #[test]
    fn nothing_that_the_shim_says_is_kept_back() {
        let said = "dump container g (capture): given up, as asked; and to take back hold: thaw /g: busy; the container goes on";
        for (code, kind) in [
            (ttrpc::Code::CANCELLED, Kind::Interrupted),
            (ttrpc::Code::INTERNAL, Kind::Tool),
        ] {
            let message = said.to_owned();
            let error = told("web", ShimError::Refused { code, message });
            assert!(error.message.ends_with(said), "{error}");
            assert_eq!((error.kind, error.message.contains("job web")), (kind, true));
        }
    }
}
