//! Execs: reserved by `Exec`, run by `Start`, forgotten by `Delete`.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use serde_json::Value;

use super::queue::answer;
use super::{Deleted, Facts, NewExec, Owner, Reply, no_exec};
use crate::cgroup::moves;
use crate::error::{Error, Result, internal};
use crate::events::Event;
use crate::process::Process;
use crate::reap::{Exit, StrangerGuard};
use crate::runc::Call;
use crate::state::{Act, Status, check, check_exec};
use crate::stdio::{self, StdioRequest, Streams};

/// How long runc's terminal or a logging binary may take to answer after runc itself has come back.
pub(super) const ATTACH_DEADLINE: Duration = Duration::from_secs(10);
/// How long `Delete` waits for the output of an ended process to be copied (containerd's own shim: 10 s).
pub(super) const DRAIN_DEADLINE: Duration = Duration::from_secs(10);
/// The longest name a file may have, less the longest suffix given to it here.
const ID_BYTES_MAX: usize = 240;
/// A pid in decimal and a newline.
const PID_FILE_BYTES_MAX: u64 = 32;

/// An exec whose runc has come back.
struct Started {
    pid: i32,
    streams: Streams,
    /// Until the exit is watched.
    _strangers: StrangerGuard,
}

impl Owner {
    pub(super) fn add_exec(&mut self, exec: NewExec) -> Result<()> {
        check(self.init.status, Act::Exec)?;
        check_id(&exec.id)?;
        if self.execs.contains_key(&exec.id) || exec.id == self.facts.id {
            return Err(Error::AlreadyExists(format!("id {} is already in use", exec.id)));
        }
        let mut process = Process::created(0, exec.stdio, None);
        process.spec = exec.spec;
        // Its start is the client's next request.
        process.moves = moves::expect();
        drop(self.execs.insert(exec.id.clone(), process));
        let event = Event::ExecAdded {
            container_id: self.facts.id.clone(),
            exec_id: exec.id,
        };
        self.facts.events.publish(event);
        Ok(())
    }

    pub(super) fn start_exec(&mut self, id: String, reply: Reply<i32>) {
        let (spec, stdio) = match self.claim_start(&id) {
            Ok(claimed) => claimed,
            Err(error) => return answer(reply, Err(error)),
        };
        self.starting += 1;
        let (facts, name) = (Arc::clone(&self.facts), id.clone());
        let run = async move {
            run(&facts, &name, &spec, &stdio)
                .await
                .map_err(|error| (error, spec))
        };
        self.aside(run, move |owner, started| owner.exec_started(id, started, reply));
    }

    /// Marks an exec as being started, if it may be.
    fn claim_start(&mut self, id: &str) -> Result<(Vec<u8>, StdioRequest)> {
        let init = if self.held_exit.is_some() {
            Status::Stopped
        } else {
            self.init.status
        };
        let process = self.execs.get_mut(id).ok_or_else(|| no_exec(id))?;
        check_exec(process.status, Act::StartExec)?;
        check(init, Act::StartExec)?;
        if process.busy {
            return Err(Error::FailedPrecondition(format!(
                "exec {id} is already being started"
            )));
        }
        process.busy = true;
        if process.moves.is_none() {
            process.moves = moves::expect();
        }
        Ok((std::mem::take(&mut process.spec), process.stdio.clone()))
    }

    fn exec_started(
        &mut self,
        id: String,
        started: std::result::Result<Started, (Error, Vec<u8>)>,
        reply: Reply<i32>,
    ) {
        self.starting -= 1;
        let Some(process) = self.execs.get_mut(&id) else {
            return answer(reply, Err(no_exec(&id)));
        };
        process.busy = false;
        process.moves = None;
        let started = match started {
            Ok(started) => started,
            Err((error, spec)) => {
                process.spec = spec;
                return answer(reply, Err(error));
            }
        };
        process.pid = started.pid;
        process.status = Status::Running;
        process.streams = Some(started.streams);
        let container_id = self.facts.id.clone();
        let pid = started.pid.unsigned_abs();
        self.facts.events.publish(Event::ExecStarted {
            container_id,
            exec_id: id.clone(),
            pid,
        });
        self.watch_exec(id, started.pid);
        answer(reply, Ok(started.pid));
    }

    pub(super) fn delete_exec(&mut self, id: String, reply: Reply<Deleted>) {
        let claimed = self
            .execs
            .get_mut(&id)
            .ok_or_else(|| no_exec(&id))
            .and_then(|process| {
                check_exec(process.status, Act::Delete)?;
                if process.busy {
                    return Err(Error::FailedPrecondition(format!(
                        "exec {id} is being started or deleted"
                    )));
                }
                process.busy = true;
                Ok(process.streams.take())
            });
        let streams = match claimed {
            Ok(streams) => streams,
            Err(error) => return answer(reply, Err(error)),
        };
        self.aside(drain(streams), move |owner, ()| {
            let deleted = owner
                .execs
                .remove(&id)
                .ok_or_else(|| no_exec(&id))
                .map(|process| deleted(&process));
            answer(reply, deleted);
        });
    }
}

/// Waits, within bounds, until the output of ended processes has reached their clients, then closes their streams.
pub(super) async fn drain(streams: impl IntoIterator<Item = Streams>) {
    let end = Instant::now() + DRAIN_DEADLINE;
    for streams in streams {
        if !streams
            .drained(end.saturating_duration_since(Instant::now()))
            .await
        {
            tracing::warn!("output of an ended process was still not taken when it was deleted");
        }
        streams.close();
    }
}

/// What `Delete` says of a process.
pub(super) fn deleted(process: &Process) -> Deleted {
    let exit = process.exit().unwrap_or_else(|| Exit {
        status: 0,
        at: SystemTime::now(),
    });
    Deleted {
        pid: process.pid,
        exit,
    }
}

/// Exec ids become parts of file names here, so whatever could leave the bundle is refused.
fn check_id(id: &str) -> Result<()> {
    let legal = !id.is_empty() && id.len() <= ID_BYTES_MAX && id != "." && id != "..";
    if legal && !id.contains(['/', '\0']) {
        return Ok(());
    }
    Err(Error::InvalidArgument(format!(
        "{id:?} cannot be the id of an exec: it has to be a plain file name"
    )))
}

async fn run(facts: &Facts, id: &str, spec: &[u8], stdio: &StdioRequest) -> Result<Started> {
    let files = ExecFiles::write(&facts.bundle, id, spec, stdio.terminal)?;
    let mut prepared =
        stdio::prepare(stdio, &facts.stdio_context(id)).map_err(internal("set up the exec's stdio"))?;
    let mut args: Vec<&OsStr> = vec!["exec".as_ref(), "--process".as_ref(), files.process.as_ref()];
    args.extend::<[&OsStr; 3]>(["--detach".as_ref(), "--pid-file".as_ref(), files.pid.as_ref()]);
    let console = prepared.console_socket().map(Path::to_owned);
    if let Some(console) = &console {
        args.extend::<[&OsStr; 2]>(["--console-socket".as_ref(), console.as_ref()]);
    }
    args.push(facts.id.as_ref());
    let strangers = facts.reaper.expect_strangers();
    let call = Call {
        stdio: Some(prepared.child_stdio()),
        ..Call::default()
    };
    facts
        .runc
        .run(&args, call)
        .await
        .map_err(internal("OCI runtime exec failed"))?;
    let pid = read_pid(&files.pid)?;
    match prepared.attach(ATTACH_DEADLINE).await {
        Ok(streams) => Ok(Started {
            pid,
            streams,
            _strangers: strangers,
        }),
        Err(error) => {
            // It runs without streams; nobody could ever talk to it.
            let killed = crate::signals::send(pid, nix::libc::SIGKILL);
            Err(Error::Internal(format!(
                "attach the exec's stdio: {error} (process killed: {})",
                killed.is_ok()
            )))
        }
    }
}

/// Reads a pid file runc has just written.
pub(super) fn read_pid(path: &Path) -> Result<i32> {
    use std::io::Read;
    let mut text = String::new();
    let read = fs::File::open(path).and_then(|file| file.take(PID_FILE_BYTES_MAX).read_to_string(&mut text));
    let _ = read.map_err(internal("read runc's pid file"))?;
    let pid = text.trim().parse().map_err(internal("parse runc's pid file"))?;
    if pid > 0 {
        Ok(pid)
    } else {
        Err(Error::Internal(format!("runc's pid file says {pid}")))
    }
}

/// The files an exec needs while runc starts it; gone afterwards.
struct ExecFiles {
    process: std::path::PathBuf,
    pid: std::path::PathBuf,
}

impl ExecFiles {
    fn write(bundle: &Path, id: &str, spec: &[u8], terminal: bool) -> Result<Self> {
        let bad = |error| Error::InvalidArgument(format!("the exec's process is not valid: {error}"));
        let mut process: serde_json::Map<String, Value> = serde_json::from_slice(spec).map_err(bad)?;
        drop(process.insert("terminal".to_owned(), Value::Bool(terminal)));
        let files = Self {
            process: bundle.join(format!("{id}.process.json")),
            pid: bundle.join(format!("{id}.exec.pid")),
        };
        let text = serde_json::to_vec(&process).map_err(internal("encode the exec's process"))?;
        fs::write(&files.process, text).map_err(internal("write the exec's process"))?;
        Ok(files)
    }
}

impl Drop for ExecFiles {
    fn drop(&mut self) {
        for path in [&self.process, &self.pid] {
            match fs::remove_file(path) {
                Ok(()) => {}
                // A runc that failed early has written no pid file.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "cannot remove a file of an exec")
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exec_id_that_is_no_plain_file_name_is_refused() {
        let long = "x".repeat(ID_BYTES_MAX + 1);
        for id in ["", ".", "..", "a/b", "../x", "a\0b", long.as_str()] {
            assert!(matches!(check_id(id), Err(Error::InvalidArgument(_))), "{id:?}");
        }
        for id in ["e1", "a.b-c_d", "x..y"] {
            assert!(check_id(id).is_ok(), "{id}");
        }
    }

    #[test]
    fn the_terminal_of_the_request_wins_over_that_of_the_spec()
    -> std::result::Result<(), Box<dyn std::error::Error>> {
        let dir = tempfile::tempdir()?;
        let files = ExecFiles::write(dir.path(), "e", br#"{"terminal":true,"args":["x"]}"#, false)?;
        let written: Value = serde_json::from_slice(&fs::read(&files.process)?)?;
        assert_eq!(written["terminal"], Value::Bool(false));
        drop(files);
        assert_eq!(
            fs::read_dir(dir.path())?.count(),
            0,
            "the files are gone with the exec's start"
        );
        Ok(())
    }
}
