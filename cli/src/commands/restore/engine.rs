//! Restores through who owns the container, so that its books, its network and its logs are right afterwards.

use std::path::{Path, PathBuf};
use std::time::Duration;

use jobs::liveness;
use jobs::pending::Placed;
use jobs::record::{Record, Status, Stdio};
use jobs::wire::{self, RestoreAnswer, RestoreRequest};

use super::order::Order;
use super::streams::choose;
use crate::engines::containerd::{Container, Containerd, NewTask, Streams, Task};
use crate::engines::docker::Docker;
use crate::engines::{nerdctl, our_shim};
use crate::error::{Error, Kind};
use crate::interrupt::interrupted;
use crate::{output, shim};

/// The shim's own deadline is by the size of the checkpoint and ends earlier.
const RESTORE_LIMIT: Duration = Duration::from_secs(3600);

/// How long a killed init may take to be gone: it has the kernel's teardown of its memory to wait for.
const KILL_LIMIT: Duration = Duration::from_secs(30);

/// What containerd puts in front of a shim's own words.
const PASSED_ON: &str = "failed to create shim task: ";

/// What kill sends to what is not wanted any more.
const SIGKILL: u32 = 9;

/// By the shim that the container still has: it has ended, and nobody has cleared it away. Returns the pid.
///
/// # Errors
/// What the shim says.
pub async fn in_place(order: &Order<'_>, record: &Record) -> Result<i32, Error> {
    let request = RestoreRequest {
        id: order.key.id.clone(),
        path: order.checkpoint.to_owned(),
        unpacked_from: order.unpacked_from(),
        left: order.left.map(Path::to_owned),
        settings: order.settings.clone(),
    };
    let call = shim::call(&record.shim.socket, wire::RESTORE, &request, RESTORE_LIMIT);
    let answer: RestoreAnswer = awaited(order, || held(order, None), async {
        call.await.map_err(Error::from)
    })
    .await?;
    Ok(answer.pid)
}

/// Whether memory that was left in an archive finds somebody who reads it there. A shim of another version, which has been there since
/// before an upgrade, is not counted on.
pub fn can_leave_memory(record: &Record) -> bool {
    !can_be_in_place(record) || record.shim.version == env!("CARGO_PKG_VERSION")
}

/// Whether [`in_place`] is possible.
pub fn can_be_in_place(record: &Record) -> bool {
    record.status == Status::Stopped
        && !record.shim.socket.as_os_str().is_empty()
        && liveness::is_alive(&record.shim.process)
}

/// By Docker's start. Returns the pid.
///
/// # Errors
/// Docker's words, or it started afresh.
pub async fn by_docker(order: &Order<'_>) -> Result<i32, Error> {
    let docker = Docker::of_environment()?;
    let placed = order.place()?;
    awaited(order, || held(order, Some(&placed)), docker.start(&order.key.id)).await?;
    drop(placed);
    order.verify().map(|record| record.init.pid)
}

/// By nerdctl's start. Returns the pid.
///
/// # Errors
/// nerdctl's words, or it started afresh.
pub async fn by_nerdctl(order: &Order<'_>) -> Result<i32, Error> {
    let placed = order.place()?;
    let start = nerdctl::start(&order.key.engine, &order.key.namespace, &order.key.id);
    // Its own client goes with us, and containerd takes back what a client does not wait for.
    awaited(order, || Some("nerdctl has to see the end of it"), start).await?;
    drop(placed);
    order.verify().map(|record| record.init.pid)
}

/// Waits for what somebody else does and does not take back. A second Ctrl+C leaves it alone, unless it still needs something
/// of ours: `held` says what.
async fn awaited<T>(
    order: &Order<'_>,
    held: impl Fn() -> Option<&'static str>,
    act: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    let mut act = std::pin::pin!(act);
    tokio::select! {
        done = &mut act => return done.map_err(|error| told(order, error)),
        () = interrupted() => {
            output::note("a restore under way cannot be taken back: it is awaited. Ctrl+C again leaves it alone");
        }
    }
    loop {
        tokio::select! {
            done = &mut act => return done.map_err(|error| told(order, error)),
            () = interrupted() => match held() {
                Some(why) => output::note(&format!("the restore cannot be left alone yet: {why}")),
                None => break,
            }
        }
    }
    let message = format!("interrupted: the restore of {} goes on", order.name);
    Err(Error::new(Kind::Interrupted, message).hint("cedana ps shows what becomes of it"))
}

/// What a restore needs that is gone with this process. Without its order the container would start afresh.
fn held(order: &Order<'_>, placed: Option<&Placed>) -> Option<&'static str> {
    if placed.is_some_and(|placed| !placed.is_taken()) {
        return Some("the container's shim has not taken the order, and would start it afresh");
    }
    let unpacked = order.unpacked_from();
    unpacked.map(|_| "it reads the files that the archive was unpacked to, which go with this call")
}

/// What the shim says of a restore that failed, without what those say who passed it on. It is one failure whoever did.
fn told(order: &Order<'_>, mut error: Error) -> Error {
    let message = std::mem::take(&mut error.message);
    let said = message.rsplit_once(PASSED_ON).map(|(_, said)| said.trim());
    let said = said.unwrap_or(&message);
    error.message = said.strip_prefix("failed to ").unwrap_or(said).to_owned();
    error.while_trying_to(&format!("restore job {}", order.name))
}

/// By a new task of containerd's, on the container's own file system. Returns the pid.
///
/// # Errors
/// It runs; or the shim's words. Then it has no task, as it had none that ran before.
pub async fn by_containerd(
    order: &Order<'_>,
    engine: &Containerd,
    container: &Container,
    known: Option<&Stdio>,
    out: Option<&Path>,
) -> Result<i32, Error> {
    let id = &container.id;
    let old = engine.task(id).await?;
    if let Some(task) = old.as_ref().filter(|task| task.lives()) {
        return Err(running(order.name, task.pid));
    }
    let task = NewTask {
        streams: streams(container, old.as_ref(), known, out)?,
        shim: shim_for(container, order)?,
    };
    if old.is_some() {
        engine.delete_task(id).await?;
    }
    let placed = order.place()?;
    let undo = Undo { engine, id };
    let given_up = || {
        Error::new(
            Kind::Interrupted,
            format!("interrupted: {} is not restored", order.name),
        )
    };
    let created = tokio::select! {
        // Without a task of ours there is nothing to undo: one that is there is somebody else's.
        created = engine.create_task(container, &task) => created.map_err(|error| told(order, error))?,
        () = interrupted() => return Err(undo.after(given_up()).await),
    };
    drop(placed);
    let started = tokio::select! {
        started = start(order, engine, id) => started,
        () = interrupted() => Err(given_up()),
    };
    match started {
        Ok(()) => i32::try_from(created).map_err(|_| Error::tool(format!("containerd says pid {created}"))),
        Err(error) => Err(undo.after(error).await),
    }
}

/// Lets the processes go, once it is sure that they are the saved ones: nothing has run yet.
async fn start(order: &Order<'_>, engine: &Containerd, id: &str) -> Result<(), Error> {
    let _ = order.verify()?;
    engine.start_task(id).await.map(drop)
}

/// The streams of the task that is still there, or those that its shim has published, as far as they lead somewhere.
fn streams(
    container: &Container,
    old: Option<&Task>,
    known: Option<&Stdio>,
    out: Option<&Path>,
) -> Result<Streams, Error> {
    let of_task = old.map(|task| Stdio::from(task.streams.clone()));
    let before = of_task
        .as_ref()
        .or(known)
        .filter(|before| **before != Stdio::default());
    let mut streams = choose(before, out);
    if before.is_none() && has_terminal(container)? {
        streams.terminal = true;
        streams.stderr.clear();
    }
    Ok(streams)
}

fn has_terminal(container: &Container) -> Result<bool, Error> {
    let spec = container.spec()?;
    let terminal = spec
        .pointer("/process/terminal")
        .and_then(serde_json::Value::as_bool);
    Ok(terminal.unwrap_or(false))
}

/// The shim's binary, where the runtime's name leads to another one.
fn shim_for(container: &Container, order: &Order<'_>) -> Result<Option<PathBuf>, Error> {
    if is_ours(&container.runtime) {
        return Ok(None);
    }
    our_shim().map(Some).ok_or_else(|| {
        Error::unsupported(format!(
            "{} was created for {}, and our shim is not found to restore it",
            order.name, container.runtime
        ))
        .hint("install containerd-shim-cedana-v1 beside cedana, or in a directory of the PATH")
    })
}

/// A runtime's name that is our shim, or its path.
pub fn is_ours(runtime: &str) -> bool {
    let name = Path::new(runtime)
        .file_name()
        .unwrap_or_default()
        .to_string_lossy();
    name.starts_with("io.containerd.cedana.") || name.starts_with("containerd-shim-cedana-")
}

/// That a job runs, which is no time to restore it.
pub fn running(name: &str, pid: i32) -> Error {
    Error::wrong_state(format!("job {name} is running, with pid {pid}"))
        .hint(format!("end it first: cedana job kill {name}"))
}

/// Takes a task back that did not become what it should.
struct Undo<'a> {
    engine: &'a Containerd,
    id: &'a str,
}

impl Undo<'_> {
    /// Clears the task away if there is one, and returns the first cause with what went wrong besides.
    async fn after(&self, mut cause: Error) -> Error {
        let cleared = match self.engine.task(self.id).await {
            Ok(None) => Ok(()),
            Ok(Some(_)) => self.clear().await,
            Err(error) => Err(error),
        };
        if let Err(error) = cleared {
            cause.message = format!("{}; and then {}", cause.message, error.message);
        }
        cause
    }

    async fn clear(&self) -> Result<(), Error> {
        let gone = |error: &Error| matches!(error.kind, Kind::NotFound | Kind::WrongState);
        match self.engine.kill_task(self.id, SIGKILL).await {
            Err(error) if !gone(&error) => return Err(error),
            _ => {}
        }
        let ended = tokio::time::timeout(KILL_LIMIT, self.engine.wait_task(self.id)).await;
        match ended {
            Ok(Err(error)) if !gone(&error) => return Err(error),
            Ok(_) => {}
            Err(_) => return Err(Error::tool(format!("{} does not die", self.id))),
        }
        self.engine.delete_task(self.id).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_restore_is_told_in_the_shims_words_whoever_passed_them_on() {
        let key = jobs::record::Key {
            engine: PathBuf::new(),
            namespace: String::new(),
            id: "web".to_owned(),
        };
        let spool = jobs::spool::Spool::beside(Path::new("/nowhere/jobs.db"));
        let order = Order {
            key: &key,
            spool: &spool,
            name: "web",
            checkpoint: Path::new("/c"),
            kept: Path::new("/c"),
            left: None,
            settings: std::collections::BTreeMap::new(),
        };
        for message in [
            "read /c: damaged",
            "failed to create the task of web: failed to create shim task: read /c: damaged",
            "failed to read /c: damaged",
        ] {
            let error = told(&order, Error::tool(message));
            assert_eq!(
                error.message, "failed to restore job web: read /c: damaged",
                "{message}"
            );
        }
    }

    #[test]
    fn a_restore_is_not_left_that_needs_what_goes_with_us() {
        let dir = tempfile::tempdir().expect("a directory");
        let key = jobs::record::Key {
            engine: "/run/c.sock".into(),
            namespace: "default".to_owned(),
            id: "web".to_owned(),
        };
        let spool = jobs::spool::Spool::beside(&dir.path().join("jobs.db"));
        let order = |kept| Order {
            key: &key,
            spool: &spool,
            name: "web",
            kept: Path::new(kept),
            checkpoint: Path::new("/c"),
            left: None,
            settings: std::collections::BTreeMap::new(),
        };
        assert_eq!(held(&order("/c"), None), None);
        assert!(held(&order("/c.tar"), None).is_some(), "what was unpacked goes");
        let order = order("/c");
        let placed = order.place().expect("placed");
        assert!(held(&order, Some(&placed)).is_some(), "a fresh start");
        let taken = jobs::pending::take(&spool, &key).expect("taken");
        assert!(taken.is_some());
        assert_eq!(held(&order, Some(&placed)), None);
    }

    #[test]
    fn a_runtime_is_ours_by_its_name_or_path() {
        for (runtime, ours) in [
            ("io.containerd.cedana.v1", true),
            ("/usr/local/bin/containerd-shim-cedana-v1", true),
            ("io.containerd.runc.v2", false),
            ("/opt/cedana/containerd-shim-runc-v2", false),
            ("", false),
        ] {
            assert_eq!(is_ours(runtime), ours, "{runtime}");
        }
    }
}
