//! A dump of a container that another shim runs, by containerd's own call.

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::time::Instant;

use config::{Choice, Tcp};
use jobs::record::{Key, Origin};
use jobs::registry::Job;
use jobs::wire::{DumpAnswer, DumpRequest};
use jobs::{id, time};
use oci_bundles::manifest::Manifest;

use super::outcome;
use super::partial::Partial;
use crate::context::Context;
use crate::engines::containerd::{Containerd, ForeignDump};
use crate::error::{Error, Kind};
use crate::interrupt::interrupted;
use crate::output;

/// CRIU's log of a dump, in its work directory.
pub(super) const LOG: &str = "dump.log";

/// The manifest's schema that is written here: no parts are listed, which the first one says best.
const SCHEMA: u32 = 1;

/// The largest part of CRIU's log that is looked through for what it says of the failure, in bytes: its end.
const LOG_BYTES_MAX: u64 = 1 << 20;

/// How many of CRIU's own error lines are passed on: the first one is the cause.
const LINES_MAX: usize = 3;

/// The settings that containerd's own shim has an option for.
const KNOWN: [&str; 3] = ["dump.tcp", "dump.file-locks", "dump.external-unix-sockets"];

/// Dumps a job of another shim, as its own would.
///
/// # Errors
/// That shim cannot do what is asked, or what CRIU says.
pub async fn ask(context: &Context, job: &Job, request: &DumpRequest) -> Result<DumpAnswer, Error> {
    let unknown = request
        .settings
        .keys()
        .find(|name| !KNOWN.contains(&name.as_str()));
    if let Some(name) = unknown {
        return Err(cannot(job, name));
    }
    let settings = context.settings.with_flags(&request.settings)?;
    if settings.dump.tcp == Tcp::Close {
        return Err(cannot(job, "dump.tcp=close"));
    }
    let options = ForeignDump {
        exit: !request.leave_running,
        tcp: settings.dump.tcp == Tcp::Established,
        external_unix_sockets: settings.dump.external_unix_sockets == Choice::Yes,
        shell_job: request.shell_job || settings.dump.shell_job,
        file_locks: settings.dump.file_locks,
        ..ForeignDump::default()
    };
    let origin = Origin {
        key: job.key.clone(),
        name: job.record.name.clone(),
        checkpoint: identity()?,
        at: time::now(),
        left_running: request.leave_running,
    };
    let engine = Containerd::connect(&job.key.engine, &job.key.namespace).await?;
    let begun = Instant::now();
    let manifest = Manifest {
        schema: SCHEMA,
        shell_job: options.shell_job,
        external_unix_sockets: options.external_unix_sockets,
        origin: serde_json::to_value(&origin).ok(),
        ..Manifest::default()
    };
    let logs = &settings.dump.log_dir;
    let size = dump(&engine, job, &request.path, (options, manifest), logs).await?;
    Ok(DumpAnswer {
        archived: false,
        size,
        timings: vec![("dump".to_owned(), begun.elapsed().as_secs_f64() * 1000.0)],
    })
}

fn cannot(job: &Job, what: &str) -> Error {
    Error::unsupported(format!(
        "{} runs under containerd's own shim, which knows nothing of {what}",
        job.name
    ))
    .hint("start the container with --runtime io.containerd.cedana.v1 for all settings")
}

fn identity() -> Result<String, Error> {
    id::random().map_err(|source| failed("read", Path::new(id::SOURCE), &source))
}

/// Dumps a container into a directory that is not there yet. Returns the bytes.
async fn dump(
    engine: &Containerd,
    job: &Job,
    path: &Path,
    (dump, manifest): (ForeignDump, Manifest),
    logs: &Path,
) -> Result<u64, Error> {
    let partial = Partial::make(path)?;
    let dump = ForeignDump {
        images: partial.path().to_owned(),
        work: partial.path().to_owned(),
        ..dump
    };
    let (done, is_interrupted) = awaited(engine.checkpoint_task(&job.key.id, &dump)).await;
    if let Err(error) = done {
        let error = explained(error, &partial.path().join(LOG), &job.key, logs);
        // containerd may be gone, and CRIU have gone on without it: then these images are all that is left.
        if dump.exit && !outcome::goes_on(&job.record.init, partial.path()).await {
            return Err(kept(error, partial, &manifest, &job.name));
        }
        return Err(error);
    }
    if is_interrupted && !dump.exit {
        return Err(Error::new(
            Kind::Interrupted,
            "interrupted: the container goes on, and nothing is kept",
        ));
    }
    match partial.complete(&manifest, path) {
        Ok(size) => Ok(size),
        Err(source) if dump.exit => Err(kept(failed("keep", path, &source), partial, &manifest, &job.name)),
        Err(source) => Err(failed("keep", path, &source)),
    }
}

/// containerd's shim kills CRIU when its caller goes away, and with it what CRIU is in the middle of: an interrupt waits.
/// Returns whether there was one, too.
async fn awaited(call: impl Future<Output = Result<(), Error>>) -> (Result<(), Error>, bool) {
    let mut call = std::pin::pin!(call);
    let mut is_interrupted = false;
    loop {
        tokio::select! {
            done = &mut call => return (done, is_interrupted),
            () = interrupted() => {
                if !is_interrupted {
                    output::note("containerd's own shim cannot take a dump back: it is awaited");
                }
                is_interrupted = true;
            }
        }
    }
}

/// The failure of a dump whose images are all that is left of a container.
fn kept(error: Error, partial: Partial, manifest: &Manifest, job: &str) -> Error {
    let is_whole = outcome::has_inventory(partial.path());
    let described = partial.describe(manifest);
    let images = partial.keep();
    if !is_whole {
        return error.hint(format!(
            "the container does not go on; what CRIU wrote of it is in {}, and is not complete",
            images.display()
        ));
    }
    let error = error.hint(format!(
        "the container does not go on; its images are kept in {}",
        images.display()
    ));
    let restore = format!("cedana restore job {job} --path {}", images.display());
    match described {
        Ok(()) => error.hint(format!("restore it from there: {restore}")),
        Err(source) => error.hint(format!(
            "restore it from there, once there is room ({source}): {restore}"
        )),
    }
}

/// What CRIU says instead of what containerd's shim makes of it, and where its log is.
fn explained(error: Error, log: &Path, key: &Key, logs: &Path) -> Error {
    if error.kind != Kind::Tool {
        return error;
    }
    let said = end_of(log).map(|text| telling(&text)).unwrap_or_default();
    let message = if said.is_empty() {
        error.message
    } else {
        format!("failed to dump container {}: {said}", key.id)
    };
    let error = Error::new(Kind::Tool, message);
    // Where our own shim keeps those of its containers.
    let logs = logs.join(&key.namespace).join(&key.id);
    let kept = logs.join(LOG);
    match fs::create_dir_all(&logs).and_then(|()| fs::copy(log, &kept)) {
        Ok(_) => error.hint(format!("CRIU's log is {}", kept.display())),
        Err(_) => error,
    }
}

pub(super) fn end_of(log: &Path) -> io::Result<String> {
    use std::io::{Read, Seek, SeekFrom};
    let mut file = File::open(log)?;
    let length = file.metadata()?.len();
    let _ = file.seek(SeekFrom::Start(length.saturating_sub(LOG_BYTES_MAX)))?;
    let mut bytes = Vec::new();
    let _ = file.take(LOG_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The first errors of CRIU's log, which are the cause; the later ones are its giving up. That it cannot have more files open is
/// none: it goes on.
fn telling(log: &str) -> String {
    let errors = log
        .lines()
        .filter_map(|line| line.split_once("Error ").map(|(_, said)| said.trim()))
        .filter(|said| !said.contains("RLIMIT_NOFILE"));
    errors.take(LINES_MAX).collect::<Vec<_>>().join("; ")
}

pub(super) fn failed(action: &str, path: &Path, source: &io::Error) -> Error {
    Error::failed(format!("failed to {action} {}: {source}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_errors_of_a_log_are_told() {
        for (log, said) in [
            ("", ""),
            ("(00.01) all is well\n", ""),
            (
                "(00.01) x\n(00.02) Error (criu/a.c:7): cannot\n(00.02) Error (criu/util.c:1): RLIMIT_NOFILE\n(00.03) Error (criu/b.c:8): gave up\n",
                "(criu/a.c:7): cannot; (criu/b.c:8): gave up",
            ),
        ] {
            assert_eq!(telling(log), said);
        }
    }
}
