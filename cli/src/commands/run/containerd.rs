//! `cedana run containerd`: `ctr run` with our runtime, and a name for the job.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use jobs::record::{NAME_ANNOTATION, is_name};
use serde::Serialize;

use super::names;
use crate::commands::restore::file_uri;
use crate::context::Context;
use crate::engines::containerd::Containerd;
use crate::engines::{Address, RUNTIME, absent, client};
use crate::error::{Error, Kind};
use crate::jobs::{Jobs, no_name};
use crate::output;

/// Where the output of a job goes that is given no file; users of Cedana look for it there.
const LOG_DIR: &str = "/var/log";

/// What programs are found by in a container without an image; as Docker's.
const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Mounting a large image takes its time.
const START_LIMIT: Duration = Duration::from_secs(600);

/// As containerd's.
const ID_BYTES_MAX: usize = 76;

/// Its arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The image, or the directory of a root file system
    #[arg(value_name = "IMAGE|ROOTFS")]
    image: String,
    /// The command in the container; the image's own unless given
    #[arg(value_name = "COMMAND", trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<OsString>,
    /// The job's name; drawn unless given
    #[arg(short, long, value_name = "NAME")]
    jid: Option<String>,
    /// The container's id; the job's name unless given
    #[arg(long, value_name = "ID")]
    id: Option<String>,
    /// Stay attached: the container's streams are this call's, and so is its exit code
    #[arg(short, long, conflicts_with = "out")]
    attach: bool,
    /// Append the output to this file
    #[arg(short, long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    out: Option<PathBuf>,
    /// Write the pid to this file
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    pid_file: Option<PathBuf>,
    /// A variable of the container's environment
    #[arg(long, value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// A GPU for the container, by its number
    #[arg(long, value_name = "NUMBER", value_delimiter = ',')]
    gpus: Vec<u32>,
    /// Who keeps the file system
    #[arg(long, value_name = "NAME")]
    snapshotter: Option<String>,
    /// No network but its own loopback; it has the host's otherwise
    #[arg(long)]
    no_network: bool,
    #[command(flatten)]
    address: Address,
}

/// What was started, as JSON.
#[derive(Debug, Serialize)]
struct Started {
    job: String,
    id: String,
    pid: i32,
    log: PathBuf,
}

/// Does it.
///
/// # Errors
/// A name that is none, or taken; ctr is not installed; or its words.
pub async fn run(args: Args, context: &Context) -> Result<(), Error> {
    let engine = Containerd::connect(&args.address.socket(), &args.address.namespace()).await?;
    let job = name(&args, context).await?;
    let id = args.id.clone().unwrap_or_else(|| job.clone());
    if id.is_empty() || id.len() > ID_BYTES_MAX {
        return Err(Error::usage(format!(
            "{id:?} is no id of a container: say another with --id"
        )));
    }
    if engine.container(&id).await?.is_some() {
        let namespace = engine.namespace();
        return Err(Error::wrong_state(format!("there is a container {id} already"))
            .hint("another id is given with --id, and another name with --jid")
            .hint(format!(
                "if it has ended and is not needed: ctr -n {namespace} containers rm {id}"
            )));
    }
    if args.attach {
        return attached(&args, &engine, &job, &id).await;
    }
    let log = match &args.out {
        Some(out) => std::path::absolute(out)
            .map_err(|source| Error::usage(format!("failed to use {}: {source}", out.display())))?,
        None => Path::new(LOG_DIR).join(format!("cedana-output-{job}.log")),
    };
    if args.out.is_none() {
        clear(&log)?;
    }
    let mut command = ctr(&args, &engine, &job);
    let _ = command.arg("--detach").arg("--log-uri").arg(file_uri(&log));
    what(&mut command, &args, &id);
    if let Err(error) = client(command, START_LIMIT).await {
        return Err(undone(&engine, &id, explained(error, &args, &engine)).await);
    }
    let task = engine.task(&id).await?;
    let task =
        task.ok_or_else(|| Error::tool(format!("container {id} has no task right after its start")))?;
    let started = Started {
        job,
        id,
        pid: task.pid,
        log,
    };
    if context.json {
        return output::json(&started);
    }
    output::line(&format!(
        "Job {}, output in {}",
        output::text::line(&started.job),
        started.log.display()
    ))?;
    output::line(&format!("Running managed containerd PID {}", started.pid))
}

/// Removes the log of an earlier job of that name: shims append.
fn clear(log: &Path) -> Result<(), Error> {
    match std::fs::remove_file(log) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => Err(Error::failed(format!(
            "failed to remove {}: {source}",
            log.display()
        ))),
        _ => Ok(()),
    }
}

/// The job's name: as said, if it is not another job's, or drawn.
async fn name(args: &Args, context: &Context) -> Result<String, Error> {
    let jobs = Jobs::open(context).await?;
    match &args.jid {
        Some(name) if !is_name(name) => Err(no_name(name)),
        Some(name) if jobs.is_taken(name) => Err(Error::wrong_state(format!(
            "there is a job {name} already"
        ))
        .hint(format!(
            "forget it if it is not needed any more: cedana job delete {name}"
        ))),
        Some(name) => Ok(name.clone()),
        None => Ok(names::draw(|name| jobs.is_taken(name))),
    }
}

/// Runs it with our own streams. Our exit code is its.
async fn attached(args: &Args, engine: &Containerd, job: &str, id: &str) -> Result<(), Error> {
    let mut command = ctr(args, engine, job);
    if std::io::IsTerminal::is_terminal(&std::io::stdin()) {
        let _ = command.arg("--tty");
    }
    if let Some(path) = &args.pid_file {
        let _ = command.arg("--pid-file").arg(path);
    }
    what(&mut command, args, id);
    let mut command = tokio::process::Command::from(command);
    let _ = command
        .stdin(Stdio::inherit())
        .stdout(Stdio::inherit())
        .stderr(Stdio::inherit());
    // ctr passes Ctrl+C on to the container; it must find us waiting for what becomes of that.
    let _interrupts = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt());
    let status = command.status().await.map_err(|source| absent("ctr", &source))?;
    match status.code() {
        Some(0) => Ok(()),
        Some(code) => Err(Error::exit(u8::try_from(code & 0xff).unwrap_or(1))),
        None => Err(Error::tool(format!("ctr ended by {status}"))),
    }
}

/// `ctr run`, up to its flags.
fn ctr(args: &Args, engine: &Containerd, job: &str) -> Command {
    let mut command = Command::new("ctr");
    let _ = command
        .arg("--address")
        .arg(engine.address())
        .args(["--namespace", engine.namespace(), "run", "--runtime", RUNTIME])
        .arg("--annotation")
        .arg(format!("{NAME_ANNOTATION}={job}"));
    if !args.no_network {
        let _ = command.arg("--net-host");
    }
    // A directory says nothing of its environment, and a command without a PATH is not found.
    if is_directory(&args.image) && !args.env.iter().any(|variable| variable.starts_with("PATH=")) {
        let _ = command.arg("--env").arg(DEFAULT_PATH);
    }
    for variable in &args.env {
        let _ = command.arg("--env").arg(variable);
    }
    for gpu in &args.gpus {
        let _ = command.arg("--gpus").arg(gpu.to_string());
    }
    if let Some(snapshotter) = &args.snapshotter {
        let _ = command.arg("--snapshotter").arg(snapshotter);
    }
    if let Some(path) = args.pid_file.as_ref().filter(|_| !args.attach) {
        let _ = command.arg("--pid-file").arg(path);
    }
    command
}

/// What runs: the image or directory, the id, the command.
fn what(command: &mut Command, args: &Args, id: &str) {
    let image = if is_directory(&args.image) {
        let _ = command.arg("--rootfs");
        std::path::absolute(&args.image)
            .unwrap_or_else(|_| PathBuf::from(&args.image))
            .into_os_string()
    } else {
        OsString::from(&args.image)
    };
    let _ = command.arg(image).arg(id).args(&args.command);
}

/// An image's name begins with neither; `dir/` could be both, and is a directory if there is one.
fn is_directory(image: &str) -> bool {
    image.starts_with(['/', '.']) || (image.ends_with('/') && Path::new(image).is_dir())
}

/// Removes what ctr leaves of a container that it could not start, and returns the cause with what went wrong besides.
async fn undone(engine: &Containerd, id: &str, mut cause: Error) -> Error {
    if is_another_s(&cause) {
        return cause;
    }
    let removed = async {
        let Some(container) = engine.container(id).await? else {
            return Ok(());
        };
        if engine.task(id).await?.is_some_and(|task| task.lives()) {
            return Ok(());
        }
        engine.delete_task(id).await?;
        engine.delete_container(id).await?;
        match container.snapshot.as_str() {
            "" => Ok(()),
            key => engine.remove_snapshot(&container.snapshotter, key).await,
        }
    };
    if let Err(error) = removed.await {
        cause.message = format!("{}; and then {}", cause.message, error.message);
    }
    cause
}

/// ctr met a container or a file system of that id that was not there a moment ago: somebody else's.
fn is_another_s(cause: &Error) -> bool {
    cause.message.contains("already exists")
}

fn explained(error: Error, args: &Args, engine: &Containerd) -> Error {
    let image = &args.image;
    if error.message.contains("not found") && error.message.contains(image.as_str()) && !is_directory(image) {
        let namespace = engine.namespace();
        return Error::new(
            Kind::NotFound,
            format!("there is no image {image} in containerd (namespace {namespace})"),
        )
        .hint(format!("pull it first: ctr -n {namespace} images pull {image}"));
    }
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_somebody_else_made_meanwhile_stays() {
        for (said, is_theirs) in [
            ("ctr failed: ctr: container \"web\": already exists", true),
            ("ctr failed: ctr: snapshot \"web\": already exists", true),
            ("ctr failed: ctr: failed to create shim task: no such file", false),
        ] {
            assert_eq!(is_another_s(&Error::tool(said)), is_theirs, "{said}");
        }
    }

    #[test]
    fn a_directory_is_told_from_an_image() {
        for (image, directory) in [
            ("docker.io/library/redis:7", false),
            ("localhost/saved:1", false),
            ("/srv/rootfs", true),
            ("./rootfs", true),
            ("../rootfs", true),
            ("redis", false),
        ] {
            assert_eq!(is_directory(image), directory, "{image}");
        }
    }
}
