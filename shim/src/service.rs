//! The Task service: each request is translated, handed to the container's owner, and its answer translated back.

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use containerd_shim_protos::api;
use containerd_shim_protos::shim_async::{Task, create_task};
use ttrpc::r#async::{Service as Methods, TtrpcContext};

use crate::container::{Command, NewExec};
use crate::error::{Error, Result};
use crate::shim::Shim;
use crate::stdio::StdioRequest;
use crate::translate::{self, exec, status};

/// The service's name from containerd 2.0 on.
const TASK_V3: &str = "containerd.task.v3.Task";
/// Its name before; the messages are the same.
const TASK_V2: &str = "containerd.task.v2.Task";

type Answer<T> = ttrpc::Result<T>;
type Empty = api::Empty;

/// The Task service under both its names.
pub fn services(shim: Arc<Shim>) -> HashMap<String, Methods> {
    let mut services = create_task(Arc::new(TaskService {
        shim: Arc::clone(&shim),
    }));
    if let Some(v2) = create_task(Arc::new(TaskService { shim })).remove(TASK_V3) {
        drop(services.insert(TASK_V2.to_owned(), v2));
    }
    services
}

struct TaskService {
    shim: Arc<Shim>,
}

impl TaskService {
    async fn ask<T>(
        &self,
        id: &str,
        command: impl FnOnce(crate::container::Reply<T>) -> Command,
    ) -> Answer<T> {
        self.shim
            .container(id)
            .map_err(status)?
            .ask(command)
            .await
            .map_err(status)
    }

    async fn tell(
        &self,
        id: &str,
        command: impl FnOnce(crate::container::Reply<()>) -> Command,
    ) -> Answer<Empty> {
        self.ask(id, command).await?;
        Ok(Empty::default())
    }
}

/// Runs to its end even if the client hangs up: ttrpc drops a handler with its connection.
async fn detached<T: Send + 'static>(work: impl Future<Output = Result<T>> + Send + 'static) -> Answer<T> {
    let lost = |_| Err(Error::Internal("the request's task was lost".to_owned()));
    tokio::spawn(work).await.unwrap_or_else(lost).map_err(status)
}

#[async_trait]
impl Task for TaskService {
    async fn state(&self, _: &TtrpcContext, request: api::StateRequest) -> Answer<api::StateResponse> {
        let container = self.shim.container(&request.id).map_err(status)?;
        let bundle = container.facts.bundle.display().to_string();
        translate::state(request.id, exec(request.exec_id), bundle, &container.view()).map_err(status)
    }

    async fn create(
        &self,
        _: &TtrpcContext,
        request: api::CreateTaskRequest,
    ) -> Answer<api::CreateTaskResponse> {
        let shim = Arc::clone(&self.shim);
        let request = translate::create(request, shim.namespace()).map_err(status)?;
        let container = detached(async move { shim.create(request).await }).await?;
        let pid = container.view().init.pid.unsigned_abs();
        Ok(api::CreateTaskResponse {
            pid,
            ..Default::default()
        })
    }

    async fn start(&self, _: &TtrpcContext, request: api::StartRequest) -> Answer<api::StartResponse> {
        let exec = exec(request.exec_id);
        let pid = self
            .ask(&request.id, |reply| Command::Start { exec, reply })
            .await?;
        Ok(api::StartResponse {
            pid: pid.unsigned_abs(),
            ..Default::default()
        })
    }

    async fn delete(&self, _: &TtrpcContext, request: api::DeleteRequest) -> Answer<api::DeleteResponse> {
        let shim = Arc::clone(&self.shim);
        let deleted = detached(async move { shim.delete(&request.id, exec(request.exec_id)).await }).await?;
        Ok(api::DeleteResponse {
            pid: deleted.pid.unsigned_abs(),
            exit_status: deleted.exit.status,
            exited_at: Some(translate::timestamp(deleted.exit.at)).into(),
            ..Default::default()
        })
    }

    async fn pids(&self, _: &TtrpcContext, request: api::PidsRequest) -> Answer<api::PidsResponse> {
        self.ask(&request.id, |reply| Command::Pids { reply })
            .await
            .map(translate::pids)
    }

    async fn pause(&self, _: &TtrpcContext, request: api::PauseRequest) -> Answer<Empty> {
        self.tell(&request.id, |reply| Command::Pause { reply }).await
    }

    async fn resume(&self, _: &TtrpcContext, request: api::ResumeRequest) -> Answer<Empty> {
        self.tell(&request.id, |reply| Command::Resume { reply }).await
    }

    async fn checkpoint(&self, _: &TtrpcContext, request: api::CheckpointTaskRequest) -> Answer<Empty> {
        let id = request.id.clone();
        let options = Box::new(translate::checkpoint(request).map_err(status)?);
        let settings = None;
        let _dumped = self
            .ask(&id, |reply| Command::Checkpoint {
                options,
                settings,
                reply,
            })
            .await?;
        Ok(Empty::default())
    }

    async fn kill(&self, _: &TtrpcContext, request: api::KillRequest) -> Answer<Empty> {
        let signal = i32::try_from(request.signal).map_err(|_| {
            status(Error::InvalidArgument(format!(
                "{} is not a signal",
                request.signal
            )))
        })?;
        let (exec, all) = (exec(request.exec_id), request.all);
        self.tell(&request.id, |reply| Command::Kill {
            exec,
            signal,
            all,
            reply,
        })
        .await
    }

    async fn exec(&self, _: &TtrpcContext, request: api::ExecProcessRequest) -> Answer<Empty> {
        let stdio = StdioRequest {
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
            terminal: request.terminal,
        };
        let spec = request.spec.into_option().unwrap_or_default().value;
        let exec = NewExec {
            id: request.exec_id,
            spec,
            stdio,
        };
        self.tell(&request.id, |reply| Command::Exec { exec, reply })
            .await
    }

    async fn resize_pty(&self, _: &TtrpcContext, request: api::ResizePtyRequest) -> Answer<Empty> {
        let exec = exec(request.exec_id);
        // A terminal's size is 16 bits in the kernel; more means "as large as can be".
        let cells = |count: u32| u16::try_from(count).unwrap_or(u16::MAX);
        let (width, height) = (cells(request.width), cells(request.height));
        self.tell(&request.id, |reply| Command::Resize {
            exec,
            width,
            height,
            reply,
        })
        .await
    }

    async fn close_io(&self, _: &TtrpcContext, request: api::CloseIORequest) -> Answer<Empty> {
        if !request.stdin {
            return Ok(Empty::default());
        }
        let exec = exec(request.exec_id);
        self.tell(&request.id, |reply| Command::CloseIo { exec, reply })
            .await
    }

    async fn update(&self, _: &TtrpcContext, request: api::UpdateTaskRequest) -> Answer<Empty> {
        let resources = request.resources.into_option().unwrap_or_default().value;
        self.tell(&request.id, |reply| Command::Update { resources, reply })
            .await
    }

    async fn wait(&self, _: &TtrpcContext, request: api::WaitRequest) -> Answer<api::WaitResponse> {
        let view = self.shim.container(&request.id).map_err(status)?.view();
        let exec = exec(request.exec_id);
        let process = view.process(exec.as_deref()).map_err(status)?.clone();
        drop(view);
        let deleted = || {
            status(Error::NotFound(
                "the process was deleted before it ran".to_owned(),
            ))
        };
        let exit = process.wait().await.ok_or_else(deleted)?;
        Ok(api::WaitResponse {
            exit_status: exit.status,
            exited_at: Some(translate::timestamp(exit.at)).into(),
            ..Default::default()
        })
    }

    async fn stats(&self, _: &TtrpcContext, request: api::StatsRequest) -> Answer<api::StatsResponse> {
        self.ask(&request.id, |reply| Command::Stats { reply })
            .await
            .map(translate::stats)
    }

    async fn connect(&self, _: &TtrpcContext, request: api::ConnectRequest) -> Answer<api::ConnectResponse> {
        // Never an error: containerd asks this of a shim it has just found, whether or not it has the container.
        let pid = self
            .shim
            .container(&request.id)
            .map_or(0, |container| container.view().init.pid);
        Ok(api::ConnectResponse {
            shim_pid: std::process::id(),
            task_pid: pid.unsigned_abs(),
            ..Default::default()
        })
    }

    async fn shutdown(&self, _: &TtrpcContext, _: api::ShutdownRequest) -> Answer<Empty> {
        self.shim.shut_down();
        Ok(Empty::default())
    }
}
