//! Tasks: containers that run, or have run and were not cleared away.

use std::path::{Path, PathBuf};

use containerd_client::services::v1::{
    CheckpointTaskRequest, CreateTaskRequest, DeleteTaskRequest, GetRequest, KillRequest, PauseTaskRequest,
    ResumeTaskRequest, StartRequest, WaitRequest,
};
use containerd_client::types::v1::{Process, Status};
use jobs::record::Stdio;
use prost::Message;
use prost_types::Any;

use super::{CALL_LIMIT, CHECKPOINT_LIMIT, Container, Containerd, RUNTIME_LIMIT, optional};
use crate::error::Error;

/// How far a task is, by its shim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TaskStatus {
    /// It waits for its start.
    Created,
    /// It runs.
    Running,
    /// It is frozen, or about to be.
    Paused,
    /// It has ended.
    Stopped,
    /// Its shim does not say.
    Unknown,
}

/// A task.
#[derive(Debug, Clone)]
pub struct Task {
    /// The init's pid; zero if it has none yet.
    pub pid: i32,
    /// How far it is.
    pub status: TaskStatus,
    /// Its streams.
    pub streams: Streams,
}

impl Task {
    /// It has processes.
    pub fn lives(&self) -> bool {
        self.status != TaskStatus::Stopped
    }
}

/// Where the streams of a task go: paths of fifos, or URIs. Empty is nowhere.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Streams {
    /// Standard input.
    pub stdin: String,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    /// They are a terminal.
    pub terminal: bool,
}

impl From<Streams> for Stdio {
    fn from(streams: Streams) -> Self {
        Self {
            stdin: streams.stdin,
            stdout: streams.stdout,
            stderr: streams.stderr,
            terminal: streams.terminal,
        }
    }
}

/// A task that is to be made.
#[derive(Debug, Default)]
pub struct NewTask {
    /// Its streams.
    pub streams: Streams,
    /// The shim's binary, where it is not the one that the container's runtime names.
    pub shim: Option<PathBuf>,
}

/// The options of containerd's own shim for a checkpoint, the fields that are used here: `containerd.runc.v1`'s.
#[derive(Clone, PartialEq, Eq, Message)]
struct CheckpointOptions {
    #[prost(bool, tag = "1")]
    exit: bool,
    #[prost(bool, tag = "2")]
    open_tcp: bool,
    #[prost(bool, tag = "3")]
    external_unix_sockets: bool,
    #[prost(bool, tag = "4")]
    terminal: bool,
    #[prost(bool, tag = "5")]
    file_locks: bool,
    #[prost(string, tag = "8")]
    image_path: String,
    #[prost(string, tag = "9")]
    work_path: String,
}

/// A dump by whatever shim a container has.
#[derive(Debug, Clone, Default)]
pub struct ForeignDump {
    /// The directory of the images; it exists, and is empty.
    pub images: PathBuf,
    /// The directory of CRIU's log; it exists.
    pub work: PathBuf,
    /// The container ends with the dump.
    pub exit: bool,
    /// Established TCP connections are saved.
    pub tcp: bool,
    /// Sockets that are connected to the host are left out.
    pub external_unix_sockets: bool,
    /// The terminal of a client is taken along.
    pub shell_job: bool,
    /// File locks are saved.
    pub file_locks: bool,
}

impl From<Process> for Task {
    fn from(raw: Process) -> Self {
        let status = match raw.status() {
            Status::Created => TaskStatus::Created,
            Status::Running => TaskStatus::Running,
            Status::Paused | Status::Pausing => TaskStatus::Paused,
            Status::Stopped => TaskStatus::Stopped,
            Status::Unknown => TaskStatus::Unknown,
        };
        Self {
            pid: i32::try_from(raw.pid).unwrap_or(0),
            status,
            streams: Streams {
                stdin: raw.stdin,
                stdout: raw.stdout,
                stderr: raw.stderr,
                terminal: raw.terminal,
            },
        }
    }
}

impl Containerd {
    /// The task of a container; none if it has none.
    ///
    /// # Errors
    /// containerd does not answer.
    pub async fn task(&self, id: &str) -> Result<Option<Task>, Error> {
        let message = GetRequest {
            container_id: id.to_owned(),
            ..GetRequest::default()
        };
        let request = self.request(message, CALL_LIMIT);
        let mut client = self.client.tasks();
        let act = format!("look for the task of {id}");
        let answer = optional(self.answer(&act, CALL_LIMIT, client.get(request)).await)?;
        Ok(answer.and_then(|answer| answer.process).map(Task::from))
    }

    /// Makes the task of a container on its file system. Its shim restores it if a restore is pending.
    ///
    /// # Errors
    /// It has one; or the shim cannot, and says why.
    pub async fn create_task(&self, container: &Container, task: &NewTask) -> Result<u32, Error> {
        let rootfs = if container.snapshot.is_empty() {
            Vec::new()
        } else {
            self.mounts(&container.snapshotter, &container.snapshot).await?
        };
        let streams = task.streams.clone();
        let message = CreateTaskRequest {
            container_id: container.id.clone(),
            rootfs,
            stdin: streams.stdin,
            stdout: streams.stdout,
            stderr: streams.stderr,
            terminal: streams.terminal,
            runtime_path: task
                .shim
                .as_ref()
                .map(|path| path.display().to_string())
                .unwrap_or_default(),
            ..CreateTaskRequest::default()
        };
        let request = self.request(message, CHECKPOINT_LIMIT);
        let mut client = self.client.tasks();
        let act = format!("create the task of {}", container.id);
        let answer = self
            .answer(&act, CHECKPOINT_LIMIT, client.create(request))
            .await?;
        Ok(answer.pid)
    }

    /// Starts a task.
    ///
    /// # Errors
    /// It is not a created one.
    pub async fn start_task(&self, id: &str) -> Result<u32, Error> {
        let message = StartRequest {
            container_id: id.to_owned(),
            ..StartRequest::default()
        };
        let request = self.request(message, CHECKPOINT_LIMIT);
        let mut client = self.client.tasks();
        let act = format!("start {id}");
        Ok(self
            .answer(&act, CHECKPOINT_LIMIT, client.start(request))
            .await?
            .pid)
    }

    /// Clears a task away that has ended, or was never started. None of it left is fine.
    ///
    /// # Errors
    /// It runs.
    pub async fn delete_task(&self, id: &str) -> Result<(), Error> {
        let message = DeleteTaskRequest {
            container_id: id.to_owned(),
        };
        let request = self.request(message, RUNTIME_LIMIT);
        let mut client = self.client.tasks();
        let act = format!("delete the task of {id}");
        let answer = self.answer(&act, RUNTIME_LIMIT, client.delete(request)).await;
        optional(answer).map(drop)
    }

    /// Sends a signal to the init of a task.
    ///
    /// # Errors
    /// There is no task, or it has ended.
    pub async fn kill_task(&self, id: &str, signal: u32) -> Result<(), Error> {
        let message = KillRequest {
            container_id: id.to_owned(),
            signal,
            ..KillRequest::default()
        };
        let request = self.request(message, RUNTIME_LIMIT);
        let mut client = self.client.tasks();
        let act = format!("kill {id}");
        self.answer(&act, RUNTIME_LIMIT, client.kill(request)).await
    }

    /// Waits for the end of a task and returns how it ended. No deadline of its own: its caller has one.
    ///
    /// # Errors
    /// There is no task.
    pub async fn wait_task(&self, id: &str) -> Result<u32, Error> {
        let message = WaitRequest {
            container_id: id.to_owned(),
            ..WaitRequest::default()
        };
        let request = self.request(message, CHECKPOINT_LIMIT);
        let mut client = self.client.tasks();
        let act = format!("wait for {id}");
        let answer = self.answer(&act, CHECKPOINT_LIMIT, client.wait(request)).await?;
        Ok(answer.exit_status)
    }

    /// Freezes all processes of a container.
    ///
    /// # Errors
    /// It does not run.
    pub async fn pause_task(&self, id: &str) -> Result<(), Error> {
        let message = PauseTaskRequest {
            container_id: id.to_owned(),
        };
        let request = self.request(message, RUNTIME_LIMIT);
        let mut client = self.client.tasks();
        let act = format!("freeze {id}");
        self.answer(&act, RUNTIME_LIMIT, client.pause(request)).await
    }

    /// Lets them go.
    ///
    /// # Errors
    /// It is not frozen.
    pub async fn resume_task(&self, id: &str) -> Result<(), Error> {
        let message = ResumeTaskRequest {
            container_id: id.to_owned(),
        };
        let request = self.request(message, RUNTIME_LIMIT);
        let mut client = self.client.tasks();
        let act = format!("unfreeze {id}");
        self.answer(&act, RUNTIME_LIMIT, client.resume(request)).await
    }

    /// Dumps a container of another shim.
    ///
    /// # Errors
    /// What the shim says, which is CRIU's one line; its log is in the work directory.
    pub async fn checkpoint_task(&self, id: &str, dump: &ForeignDump) -> Result<(), Error> {
        let options = CheckpointOptions {
            exit: dump.exit,
            open_tcp: dump.tcp,
            external_unix_sockets: dump.external_unix_sockets,
            terminal: dump.shell_job,
            file_locks: dump.file_locks,
            image_path: text(&dump.images),
            work_path: text(&dump.work),
        };
        let message = CheckpointTaskRequest {
            container_id: id.to_owned(),
            options: Some(Any {
                type_url: "containerd.runc.v1.CheckpointOptions".to_owned(),
                value: options.encode_to_vec(),
            }),
            ..CheckpointTaskRequest::default()
        };
        let request = self.request(message, CHECKPOINT_LIMIT);
        let mut client = self.client.tasks();
        let act = format!("dump {id}");
        let _ = self
            .answer(&act, CHECKPOINT_LIMIT, client.checkpoint(request))
            .await?;
        Ok(())
    }
}

fn text(path: &Path) -> String {
    path.display().to_string()
}
