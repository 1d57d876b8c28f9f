//! A container of a test, and its execs, as a client of the Task API sees them.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, bail};
use prost::Message;
use prost_types::Any;
use serde_json::Value;
use tonic::Code;

use crate::host::Inner;
use crate::messages as msg;
use crate::messages::Status;
use crate::stdio::{Fifos, StreamNames};
use crate::task_api::{Answer, TaskApi, json_any};
use crate::workload::{Workload, process};

const PROCESS_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/Process";

/// Type of the options that runc's shims take, as Go programs name it in an `Any`.
const RUNC_OPTIONS_TYPE: &str = "containerd.runc.v1.Options";

/// A container that containerd knows; whether it has a task is the test's business.
#[derive(Clone, Debug)]
pub struct Container {
    pub(crate) host: Arc<Inner>,
    pub(crate) id: String,
    pub(crate) workload: Workload,
}

impl Container {
    /// Its id, unique in the namespace.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Whether its stdio is a terminal.
    pub fn has_terminal(&self) -> bool {
        self.workload.has_terminal()
    }

    /// The API it is reached by, for calls that have no shorthand here.
    pub fn api(&self) -> &TaskApi {
        &self.host.api
    }

    /// Creates the task without stdio.
    pub fn create(&self) -> Answer<u32> {
        self.create_with(&StreamNames::default(), None)
    }

    /// Creates the task; returns the pid of its init process.
    pub fn create_with(&self, streams: &StreamNames, options: Option<&msg::RuncOptions>) -> Answer<u32> {
        self.create_request(streams, options, None)
    }

    /// Creates the task from a checkpoint in containerd's content store.
    pub fn create_from(&self, streams: &StreamNames, checkpoint: msg::Descriptor) -> Answer<u32> {
        self.create_request(streams, None, Some(checkpoint))
    }

    fn create_request(
        &self,
        streams: &StreamNames,
        options: Option<&msg::RuncOptions>,
        checkpoint: Option<msg::Descriptor>,
    ) -> Answer<u32> {
        let overlay = self
            .host
            .overlay(&self.id)
            .map_err(|error| tonic::Status::internal(format!("{error:#}")))?;
        let pid = self.host.api.create(msg::CreateTaskRequest {
            container_id: self.id.clone(),
            rootfs: vec![overlay],
            stdin: streams.stdin.clone(),
            stdout: streams.stdout.clone(),
            stderr: streams.stderr.clone(),
            terminal: self.workload.has_terminal(),
            checkpoint,
            options: options.map(runc_options),
        })?;
        self.host.note_socket(&self.bundle());
        Ok(pid)
    }

    /// Starts the created task.
    pub fn start(&self) -> Answer<u32> {
        self.host.api.start(&self.id, "")
    }

    /// Waits for the init process; returns its exit status.
    pub fn wait(&self) -> Answer<u32> {
        self.host.api.wait(&self.id, "").map(|answer| answer.exit_status)
    }

    /// Deletes the stopped task; returns its exit status.
    pub fn delete(&self) -> Answer<u32> {
        self.host
            .api
            .delete(&self.id, "")
            .map(|answer| answer.exit_status)
    }

    /// Kills the init process, waits for it and deletes the task; returns the exit status.
    pub fn kill_and_delete(&self) -> Answer<u32> {
        self.kill(9)?;
        let _status = self.wait()?;
        self.delete()
    }

    /// Signals the init process.
    pub fn kill(&self, signal: u32) -> Answer<()> {
        self.host.api.kill(&self.id, "", signal, false)
    }

    /// Signals every process of the container.
    pub fn kill_all(&self, signal: u32) -> Answer<()> {
        self.host.api.kill(&self.id, "", signal, true)
    }

    /// State of the init process.
    pub fn state(&self) -> Answer<msg::Process> {
        self.host.api.get(&self.id, "")
    }

    /// Just the status of the init process.
    pub fn status(&self) -> Answer<Status> {
        self.state().map(|process| process.status())
    }

    /// Adds an exec of a shell script without stdio; it is not started.
    pub fn add_exec(&self, exec: &str, script: &str) -> Answer<Exec> {
        self.add_exec_with(exec, &["sh", "-c", script], &StreamNames::default(), false)
    }

    /// Adds an exec; it is not started.
    pub fn add_exec_with(
        &self,
        exec: &str,
        args: &[&str],
        streams: &StreamNames,
        terminal: bool,
    ) -> Answer<Exec> {
        let args: Vec<String> = args.iter().map(|&arg| arg.to_owned()).collect();
        self.host.api.exec(msg::ExecRequest {
            container_id: self.id.clone(),
            stdin: streams.stdin.clone(),
            stdout: streams.stdout.clone(),
            stderr: streams.stderr.clone(),
            terminal,
            spec: Some(json_any(PROCESS_TYPE, &process(&args, terminal))),
            exec_id: exec.to_owned(),
        })?;
        Ok(Exec {
            api: self.host.api.clone(),
            container: self.id.clone(),
            id: exec.to_owned(),
        })
    }

    /// Runs a script in the container by an exec, to its end; returns what it wrote and its exit status.
    pub fn run_exec(&self, exec: &str, script: &str) -> Result<(String, u32)> {
        let fifos = self.fifos(&format!("exec-{exec}"))?;
        let (stdout, _stderr) = fifos.read();
        let mut names = fifos.names(false);
        names.stdin.clear();
        let added = self.add_exec_with(exec, &["sh", "-c", script], &names, false)?;
        let _pid = added.start()?;
        let status = added.wait()?;
        let text = String::from_utf8_lossy(&stdout.to_end()?).into_owned();
        let _status = added.delete()?;
        Ok((text, status))
    }

    /// Fifos for a process of this container, in a directory that goes with the test.
    pub fn fifos(&self, name: &str) -> Result<Fifos> {
        Fifos::make(&self.host.dir.path().join("fifos").join(&self.id).join(name))
    }

    /// A path on the host that goes with the test.
    pub fn scratch(&self, name: &str) -> PathBuf {
        self.host.dir.path().join(format!("{}-{name}", self.id))
    }

    /// A path in the container's root file system as the host sees it, whether or not the container runs.
    pub fn path_in_upper(&self, path: &str) -> PathBuf {
        self.host.upper(&self.id).join(path.trim_start_matches('/'))
    }

    /// Forgets the container, so that its id can be used again.
    pub fn remove(&self) -> Answer<()> {
        self.host.api.delete_container(&self.id)
    }

    /// The OCI bundle that containerd made for the task.
    pub fn bundle(&self) -> PathBuf {
        self.host.bundle(&self.id)
    }

    /// The socket of the shim that serves this container.
    pub fn shim_socket(&self) -> Option<PathBuf> {
        shim_socket(&self.bundle())
    }

    /// Pid of the shim that serves this container: the one that holds the socket that the bundle names.
    pub fn shim_pid(&self) -> Result<i32> {
        let shims = self.host.places.shims();
        let by_id = |pid: &&i32| {
            let line = crate::leftovers::command_line(**pid).unwrap_or_default();
            line.split(' ').any(|word| word == self.id)
        };
        match shims.as_slice() {
            [only] => Ok(*only),
            many => many
                .iter()
                .find(by_id)
                .copied()
                .ok_or_else(|| anyhow!("no shim for {} in {many:?}", self.id)),
        }
    }

    /// A file of the container's cgroup: of the v1 controller's hierarchy, or of the unified one where there is no v1.
    pub fn cgroup_file(&self, controller: &str, file: &str) -> Result<String> {
        let pid = self.state()?.pid;
        let dir = crate::leftovers::cgroup_of(pid, controller)
            .or_else(|| crate::leftovers::cgroup_of(pid, ""))
            .with_context(|| format!("find the {controller} cgroup of {pid}"))?;
        let path = dir.join(file);
        fs::read_to_string(&path)
            .map(|text| text.trim().to_owned())
            .with_context(|| format!("read {}", path.display()))
    }
}

/// An exec of a container.
#[derive(Clone, Debug)]
pub struct Exec {
    api: TaskApi,
    container: String,
    id: String,
}

impl Exec {
    /// Starts it; returns its pid.
    pub fn start(&self) -> Answer<u32> {
        self.api.start(&self.container, &self.id)
    }

    /// Waits for its exit status.
    pub fn wait(&self) -> Answer<u32> {
        self.api
            .wait(&self.container, &self.id)
            .map(|answer| answer.exit_status)
    }

    /// Deletes it; returns its exit status.
    pub fn delete(&self) -> Answer<u32> {
        self.api
            .delete(&self.container, &self.id)
            .map(|answer| answer.exit_status)
    }

    /// Signals it.
    pub fn kill(&self, signal: u32) -> Answer<()> {
        self.api.kill(&self.container, &self.id, signal, false)
    }

    /// Its state.
    pub fn state(&self) -> Answer<msg::Process> {
        self.api.get(&self.container, &self.id)
    }

    /// Closes its stdin.
    pub fn close_io(&self) -> Answer<()> {
        self.api.close_io(&self.container, &self.id)
    }

    /// Sets the size of its terminal.
    pub fn resize(&self, width: u32, height: u32) -> Answer<()> {
        self.api.resize(&self.container, &self.id, width, height)
    }
}

/// The code with which a call was refused; an error when it was not.
pub fn refused<T: std::fmt::Debug>(answer: Answer<T>) -> Result<Code> {
    match answer {
        Ok(value) => bail!("the call was accepted, with {value:?}"),
        Err(refusal) => Ok(refusal.code()),
    }
}

pub(crate) fn runc_options(options: &msg::RuncOptions) -> Any {
    Any {
        type_url: RUNC_OPTIONS_TYPE.to_owned(),
        value: options.encode_to_vec(),
    }
}

/// The shim's socket, from what containerd 2 (`bootstrap.json`) or the shim itself (`address`) wrote into the bundle.
pub(crate) fn shim_socket(bundle: &Path) -> Option<PathBuf> {
    let address = fs::read_to_string(bundle.join("bootstrap.json"))
        .ok()
        .and_then(|text| {
            serde_json::from_str::<Value>(&text)
                .ok()?
                .get("address")?
                .as_str()
                .map(str::to_owned)
        })
        .or_else(|| fs::read_to_string(bundle.join("address")).ok())?;
    Some(PathBuf::from(address.trim().trim_start_matches("unix://")))
}
