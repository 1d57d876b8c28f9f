//! containerd's Containers, Tasks and Events services, called as a client calls them.
//!
//! The tests are plain threads: every call here blocks, and none blocks for ever. One background thread runs the
//! reactor for all of them.

use std::future::Future;
use std::path::Path;
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context, Result};
use prost::Message;
use tokio::runtime::{Builder, Handle};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status as Refusal};
use tonic_prost::ProstCodec;

use crate::messages as msg;

/// What a call to containerd came to: the answer, or the code and text with which it was refused.
pub type Answer<T> = Result<T, Refusal>;

/// Longest a call may take before the test fails. Under emulation (suite `vm`) a create on a busy machine takes some
/// ten seconds.
pub const CALL_DEADLINE: Duration = Duration::from_secs(60);

const CONTAINERS: &str = "containerd.services.containers.v1.Containers";
const TASKS: &str = "containerd.services.tasks.v1.Tasks";
const EVENTS: &str = "containerd.services.events.v1.Events";

/// A connection to one containerd, speaking for one containerd namespace. Cloning shares the connection.
#[derive(Clone, Debug)]
pub struct TaskApi {
    channel: Channel,
    namespace: String,
}

impl TaskApi {
    /// Prepares a connection to the socket at `address`; it is dialled at the first call, and again after a loss.
    pub fn new(address: &Path, namespace: &str) -> Result<Self> {
        let _reactor = reactor()?.enter();
        let channel = Endpoint::from_shared(format!("unix://{}", address.display()))
            .with_context(|| format!("use {} as an address", address.display()))?
            .connect_lazy();
        Ok(Self {
            channel,
            namespace: namespace.to_owned(),
        })
    }

    /// Registers a container.
    pub fn create_container(&self, container: msg::ContainerRecord) -> Answer<()> {
        let request = msg::CreateContainerRequest {
            container: Some(container),
        };
        self.call(CONTAINERS, "Create", request).map(|_: msg::Empty| ())
    }

    /// Forgets a container.
    pub fn delete_container(&self, id: &str) -> Answer<()> {
        self.call(
            CONTAINERS,
            "Delete",
            msg::IdRequest {
                container_id: id.to_owned(),
            },
        )
        .map(|_: msg::Empty| ())
    }

    /// The ids of all containers of the namespace.
    pub fn containers(&self) -> Answer<Vec<String>> {
        let answer: msg::ListContainersResponse = self.call(CONTAINERS, "List", msg::Empty {})?;
        Ok(answer
            .containers
            .into_iter()
            .map(|container| container.id)
            .collect())
    }

    /// Creates a task; returns its pid.
    pub fn create(&self, request: msg::CreateTaskRequest) -> Answer<u32> {
        self.call(TASKS, "Create", request)
            .map(|answer: msg::CreateTaskResponse| answer.pid)
    }

    /// Starts a process; returns its pid.
    pub fn start(&self, id: &str, exec: &str) -> Answer<u32> {
        self.call(TASKS, "Start", process(id, exec))
            .map(|answer: msg::StartResponse| answer.pid)
    }

    /// Deletes the task, or the exec.
    pub fn delete(&self, id: &str, exec: &str) -> Answer<msg::DeleteResponse> {
        match exec {
            "" => self.call(
                TASKS,
                "Delete",
                msg::IdRequest {
                    container_id: id.to_owned(),
                },
            ),
            exec => self.call(TASKS, "DeleteProcess", process(id, exec)),
        }
    }

    /// State of a process.
    pub fn get(&self, id: &str, exec: &str) -> Answer<msg::Process> {
        let answer: msg::GetResponse = self.call(TASKS, "Get", process(id, exec))?;
        answer
            .process
            .ok_or_else(|| Refusal::internal("an answer without a process"))
    }

    /// All tasks of the namespace.
    pub fn list(&self) -> Answer<Vec<msg::Process>> {
        self.call(TASKS, "List", msg::Empty {})
            .map(|answer: msg::ListTasksResponse| answer.tasks)
    }

    /// Signals a process, or every process of the container.
    pub fn kill(&self, id: &str, exec: &str, signal: u32, all: bool) -> Answer<()> {
        let (container_id, exec_id) = (id.to_owned(), exec.to_owned());
        let request = msg::KillRequest {
            container_id,
            exec_id,
            signal,
            all,
        };
        self.call(TASKS, "Kill", request).map(|_: msg::Empty| ())
    }

    /// Adds an exec.
    pub fn exec(&self, request: msg::ExecRequest) -> Answer<()> {
        self.call(TASKS, "Exec", request).map(|_: msg::Empty| ())
    }

    /// Sets the size of a terminal, in characters.
    pub fn resize(&self, id: &str, exec: &str, width: u32, height: u32) -> Answer<()> {
        let (container_id, exec_id) = (id.to_owned(), exec.to_owned());
        let request = msg::ResizePtyRequest {
            container_id,
            exec_id,
            width,
            height,
        };
        self.call(TASKS, "ResizePty", request).map(|_: msg::Empty| ())
    }

    /// Closes a process's standard input.
    pub fn close_io(&self, id: &str, exec: &str) -> Answer<()> {
        let (container_id, exec_id) = (id.to_owned(), exec.to_owned());
        let request = msg::CloseIoRequest {
            container_id,
            exec_id,
            stdin: true,
        };
        self.call(TASKS, "CloseIO", request).map(|_: msg::Empty| ())
    }

    /// Pauses the task.
    pub fn pause(&self, id: &str) -> Answer<()> {
        self.call(
            TASKS,
            "Pause",
            msg::IdRequest {
                container_id: id.to_owned(),
            },
        )
        .map(|_: msg::Empty| ())
    }

    /// Resumes the task.
    pub fn resume(&self, id: &str) -> Answer<()> {
        self.call(
            TASKS,
            "Resume",
            msg::IdRequest {
                container_id: id.to_owned(),
            },
        )
        .map(|_: msg::Empty| ())
    }

    /// Dumps the task, with runc's options or with none; returns what is in the content store now, which is nothing
    /// when the dump went to a path.
    pub fn checkpoint(
        &self,
        id: &str,
        options: Option<&msg::CheckpointOptions>,
    ) -> Answer<Vec<msg::Descriptor>> {
        let options = options.map(|options| prost_types::Any {
            type_url: "containerd.runc.v1.CheckpointOptions".to_owned(),
            value: options.encode_to_vec(),
        });
        let request = msg::CheckpointTaskRequest {
            container_id: id.to_owned(),
            options,
        };
        self.call(TASKS, "Checkpoint", request)
            .map(|answer: msg::CheckpointTaskResponse| answer.descriptors)
    }

    /// Every process of the task, execs marked.
    pub fn pids(&self, id: &str) -> Answer<Vec<msg::ProcessInfo>> {
        let request = msg::IdRequest {
            container_id: id.to_owned(),
        };
        self.call(TASKS, "ListPids", request)
            .map(|answer: msg::ListPidsResponse| answer.processes)
    }

    /// Changes the task's resources.
    pub fn update(&self, id: &str, resources: &serde_json::Value) -> Answer<()> {
        let resources = Some(json_any(
            "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources",
            resources,
        ));
        let request = msg::UpdateTaskRequest {
            container_id: id.to_owned(),
            resources,
            annotations: Default::default(),
        };
        self.call(TASKS, "Update", request).map(|_: msg::Empty| ())
    }

    /// The task's cgroup statistics.
    pub fn metrics(&self, id: &str) -> Answer<msg::Metric> {
        let request = msg::MetricsRequest {
            filters: vec![format!("id=={id}")],
        };
        let answer: msg::MetricsResponse = self.call(TASKS, "Metrics", request)?;
        answer
            .metrics
            .into_iter()
            .next()
            .ok_or_else(|| Refusal::not_found("no metrics for the task"))
    }

    /// Waits for a process to exit.
    pub fn wait(&self, id: &str, exec: &str) -> Answer<msg::WaitResponse> {
        self.call(TASKS, "Wait", process(id, exec))
    }

    /// Publishes an event of our own.
    pub fn publish(&self, topic: &str) -> Answer<()> {
        let request = msg::PublishRequest {
            topic: topic.to_owned(),
            event: Some(Default::default()),
        };
        self.call(EVENTS, "Publish", request).map(|_: msg::Empty| ())
    }

    /// Hands every event of the namespace to `take` until the connection ends. Does not block.
    pub fn subscribe(&self, take: impl Fn(msg::Envelope) + Send + 'static) -> Result<()> {
        let (channel, namespace) = (self.channel.clone(), self.namespace.clone());
        let task = reactor()?.spawn(async move {
            let filters = vec![format!("namespace=={namespace}")];
            let request = scoped(msg::SubscribeRequest { filters }, &namespace);
            let mut grpc = tonic::client::Grpc::new(channel);
            if grpc.ready().await.is_err() {
                return;
            }
            let codec = ProstCodec::<msg::SubscribeRequest, msg::Envelope>::default();
            let path = PathAndQuery::from_static("/containerd.services.events.v1.Events/Subscribe");
            if let Ok(mut stream) = grpc
                .server_streaming(request, path, codec)
                .await
                .map(|r| r.into_inner())
            {
                while let Ok(Some(envelope)) = stream.message().await {
                    take(envelope);
                }
            }
        });
        drop(task);
        Ok(())
    }

    fn call<Q, A>(&self, service: &str, method: &str, request: Q) -> Answer<A>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        let path = PathAndQuery::try_from(format!("/{service}/{method}"))
            .map_err(|error| Refusal::internal(error.to_string()))?;
        let exchange = async {
            let mut grpc = tonic::client::Grpc::new(self.channel.clone());
            grpc.ready()
                .await
                .map_err(|error| Refusal::unavailable(error.to_string()))?;
            grpc.unary(scoped(request, &self.namespace), path, ProstCodec::default())
                .await
        };
        block_on(exchange, method).map(tonic::Response::into_inner)
    }
}

/// An `Any` holding JSON under containerd's name for a Go type.
pub fn json_any(type_url: &str, value: &serde_json::Value) -> prost_types::Any {
    prost_types::Any {
        type_url: type_url.to_owned(),
        value: value.to_string().into_bytes(),
    }
}

fn process(id: &str, exec: &str) -> msg::ProcessRequest {
    msg::ProcessRequest {
        container_id: id.to_owned(),
        exec_id: exec.to_owned(),
    }
}

fn scoped<Q>(message: Q, namespace: &str) -> Request<Q> {
    let mut request = Request::new(message);
    if let Ok(namespace) = namespace.parse() {
        let _ = request.metadata_mut().insert("containerd-namespace", namespace);
    }
    request
}

/// Drives a call to its end, or to the deadline.
pub(crate) fn block_on<T>(future: impl Future<Output = Answer<T>>, method: &str) -> Answer<T> {
    let reactor = reactor().map_err(|error| Refusal::internal(format!("{error:#}")))?;
    let bounded = async { tokio::time::timeout(CALL_DEADLINE, future).await };
    reactor.block_on(bounded).unwrap_or_else(|_| {
        Err(Refusal::deadline_exceeded(format!(
            "{method} gave no answer within {CALL_DEADLINE:?}"
        )))
    })
}

/// The handle of the one reactor thread. A current-thread runtime, so that the shim, which is built in the same
/// workspace, does not inherit tokio's thread pool by feature unification.
fn reactor() -> Result<&'static Handle> {
    static REACTOR: OnceLock<Handle> = OnceLock::new();
    if let Some(handle) = REACTOR.get() {
        return Ok(handle);
    }
    let runtime = Builder::new_current_thread()
        .enable_all()
        .build()
        .context("build the reactor")?;
    let handle = runtime.handle().clone();
    let winner = REACTOR.get_or_init(|| handle.clone());
    let _driver = std::thread::spawn(move || runtime.block_on(std::future::pending::<()>()));
    Ok(winner)
}
