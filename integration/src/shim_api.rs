//! The shim itself, without containerd: its socket, and its command line as containerd uses it.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use prost::Message;
use tonic::Status as Refusal;
use ttrpc::proto::Request;

use crate::task_api::{Answer, CALL_DEADLINE, block_on};

/// The Task service of containerd 1.6 to 2.x, and of 2.x only. The messages are the same.
pub const TASK_V2: &str = "containerd.task.v2.Task";
/// See [`TASK_V2`].
pub const TASK_V3: &str = "containerd.task.v3.Task";

/// Our shim, as the testbed installs it.
pub const OUR_SHIM: &str = "/usr/local/bin/containerd-shim-cedana-v1";

/// `ConnectResponse`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Connected {
    /// Pid of the shim.
    #[prost(uint32, tag = "1")]
    pub shim_pid: u32,
    /// Pid of the container's first process.
    #[prost(uint32, tag = "2")]
    pub task_pid: u32,
}

/// The shim's own `DeleteResponse`, what the `delete` action prints.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Deleted {
    /// Pid of the container's first process, if it was ever known.
    #[prost(uint32, tag = "1")]
    pub pid: u32,
    /// Its exit status.
    #[prost(uint32, tag = "2")]
    pub exit_status: u32,
}

/// `BootstrapParams`, the fields without which nothing starts: what containerd 2.3 and later write to `start`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct BootstrapParams {
    /// The container.
    #[prost(string, tag = "1")]
    pub instance_id: String,
    /// The containerd namespace.
    #[prost(string, tag = "2")]
    pub namespace: String,
    /// Where containerd takes events.
    #[prost(string, tag = "5")]
    pub ttrpc_address: String,
    /// Where containerd takes calls.
    #[prost(string, tag = "6")]
    pub grpc_address: String,
}

/// `BootstrapResult`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct BootstrapResult {
    /// Of the Task service: 2 or 3.
    #[prost(int32, tag = "1")]
    pub version: i32,
    /// `unix://` and a path.
    #[prost(string, tag = "2")]
    pub address: String,
    /// `ttrpc`.
    #[prost(string, tag = "3")]
    pub protocol: String,
}

/// `RuntimeInfo`, what `-info` prints.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RuntimeInfo {
    /// Of the runtime.
    #[prost(string, tag = "1")]
    pub name: String,
    /// JSON of `runc features`.
    #[prost(message, optional, tag = "4")]
    pub features: Option<prost_types::Any>,
}

/// Calls a method of the shim that serves `socket`, with a request of which only the container's id is set.
pub fn call<A: Message + Default>(
    socket: &Path,
    service: &str,
    method: &str,
    request: &impl Message,
) -> Answer<A> {
    let request = Request {
        service: service.to_owned(),
        method: method.to_owned(),
        timeout_nano: i64::try_from(CALL_DEADLINE.as_nanos()).unwrap_or(i64::MAX),
        payload: request.encode_to_vec(),
        ..Request::default()
    };
    let address = format!("unix://{}", socket.display());
    let exchange = async {
        let client = ttrpc::asynchronous::Client::connect(&address)
            .await
            .map_err(refusal)?;
        let response = client.request(request).await.map_err(refusal)?;
        A::decode(response.payload.as_slice()).map_err(|error| Refusal::internal(error.to_string()))
    };
    block_on(exchange, method)
}

/// Calls a method of the shim's own service, which speaks JSON.
pub fn call_job(socket: &Path, method: &str, request: &serde_json::Value) -> Answer<serde_json::Value> {
    let request = Request {
        service: "cedana.job.v1.Job".to_owned(),
        method: method.to_owned(),
        timeout_nano: i64::try_from(CALL_DEADLINE.as_nanos()).unwrap_or(i64::MAX),
        payload: request.to_string().into_bytes(),
        ..Request::default()
    };
    let address = format!("unix://{}", socket.display());
    let exchange = async {
        let client = ttrpc::asynchronous::Client::connect(&address)
            .await
            .map_err(refusal)?;
        let response = client.request(request).await.map_err(refusal)?;
        serde_json::from_slice(&response.payload).map_err(|error| Refusal::internal(error.to_string()))
    };
    block_on(exchange, method)
}

/// ttrpc has the numbers of gRPC's codes.
fn refusal(error: ttrpc::Error) -> Refusal {
    match error {
        ttrpc::Error::RpcStatus(status) => {
            Refusal::new(tonic::Code::from(status.code() as i32), status.message())
        }
        other => Refusal::unavailable(other.to_string()),
    }
}

/// The shim's command line for an action in `bundle`, as containerd builds it.
pub fn action(bundle: &Path, namespace: &str, id: &str, action: &str) -> Command {
    let mut command = Command::new(OUR_SHIM);
    let address = "/run/containerd/containerd.sock";
    let _command = command
        .args([
            "-namespace",
            namespace,
            "-address",
            address,
            "-publish-binary",
            "/usr/bin/containerd",
            "-id",
            id,
        ])
        .args(["-bundle", &bundle.display().to_string(), action])
        .env("TTRPC_ADDRESS", format!("{address}.ttrpc"))
        .current_dir(bundle);
    command
}

/// The path in a `unix://` address.
pub fn socket_path(address: &str) -> Result<PathBuf> {
    address
        .strip_prefix("unix://")
        .map(PathBuf::from)
        .with_context(|| format!("find a path in {address:?}"))
}
