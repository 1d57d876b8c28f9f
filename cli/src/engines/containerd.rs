//! containerd, by its own API: what `cedana` asks it for, and nothing else.
//!
//! The generated messages end here; the rest of the command line sees the structs of this module.

mod containers;
mod events;
mod images;
mod snapshots;
mod tasks;
mod version;

use std::fmt;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::time::Duration;

use containerd_client::Client;
use containerd_client::tonic::metadata::{Ascii, MetadataValue};
use containerd_client::tonic::{Code, Request, Response, Status};

use crate::error::{Error, Kind};

pub use containers::Container;
pub use tasks::{ForeignDump, NewTask, Streams, Task, TaskStatus};

/// Where containerd listens unless somebody says otherwise.
pub const DEFAULT_ADDRESS: &str = "/run/containerd/containerd.sock";

/// Its namespace where none is given, as for `ctr`.
pub const DEFAULT_NAMESPACE: &str = "default";

/// A connect to a Unix socket either works at once or the server's backlog is full.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// Reads and small writes; containerd gives a shim 2 s of it.
const CALL_LIMIT: Duration = Duration::from_secs(10);

/// A create or delete runs runc, and the first read of an image's layers.
const RUNTIME_LIMIT: Duration = Duration::from_secs(120);

/// A dump or restore. The shim's own deadlines are by size and end earlier; this is for a containerd that hangs.
const CHECKPOINT_LIMIT: Duration = Duration::from_secs(3600);

/// Where containerd keeps the bundles of tasks, unless it is told otherwise: a directory for each namespace, in it one for each
/// container that has a task.
pub const BUNDLES: &str = "/run/containerd/io.containerd.runtime.v2.task";

/// As containerd's own clients: a list of some ten thousand containers.
const MESSAGE_BYTES_MAX: usize = 16 << 20;

/// The header that carries the namespace of a call.
const NAMESPACE_HEADER: &str = "containerd-namespace";

/// A connection to containerd, and the namespace that is meant.
pub struct Containerd {
    address: PathBuf,
    namespace: String,
    header: MetadataValue<Ascii>,
    client: Client,
}

impl fmt::Debug for Containerd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "containerd at {}, namespace {}",
            self.address.display(),
            self.namespace
        )
    }
}

impl Containerd {
    /// Connects.
    ///
    /// # Errors
    /// Nobody answers there, or the namespace is no name.
    pub async fn connect(address: &Path, namespace: &str) -> Result<Self, Error> {
        let header = namespace
            .parse()
            .map_err(|_| Error::new(Kind::Usage, format!("{namespace:?} is no name of a namespace")))?;
        let connecting = tokio::time::timeout(CONNECT_LIMIT, Client::from_path(address)).await;
        let client = match connecting {
            Ok(Ok(client)) => client,
            Ok(Err(source)) => return Err(silent(address, &innermost(&source))),
            Err(_) => return Err(silent(address, "no answer in time")),
        };
        Ok(Self {
            address: address.to_owned(),
            namespace: namespace.to_owned(),
            header,
            client,
        })
    }

    /// The same connection for another namespace.
    ///
    /// # Errors
    /// The namespace is no name.
    pub fn within(&self, namespace: &str) -> Result<Self, Error> {
        let header = namespace
            .parse()
            .map_err(|_| Error::new(Kind::Usage, format!("{namespace:?} is no name of a namespace")))?;
        Ok(Self {
            address: self.address.clone(),
            namespace: namespace.to_owned(),
            header,
            client: Client::from(self.client.channel()),
        })
    }

    /// Its socket.
    pub fn address(&self) -> &Path {
        &self.address
    }

    /// The namespace of its calls.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    fn request<T>(&self, message: T, limit: Duration) -> Request<T> {
        let mut request = Request::new(message);
        request.set_timeout(limit);
        let _ = request
            .metadata_mut()
            .insert(NAMESPACE_HEADER, self.header.clone());
        request
    }

    /// Waits for an answer, `limit` at most. `act` is what fails, for people.
    async fn answer<T>(
        &self,
        act: &str,
        limit: Duration,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, Error> {
        match tokio::time::timeout(limit, call).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(self.refused(act, &status)),
            Err(_) => Err(silent(&self.address, "no answer in time")),
        }
    }

    fn refused(&self, act: &str, status: &Status) -> Error {
        let kind = match status.code() {
            Code::Unavailable => return silent(&self.address, status.message()),
            Code::NotFound => Kind::NotFound,
            Code::FailedPrecondition | Code::AlreadyExists => Kind::WrongState,
            Code::Unimplemented => Kind::Unsupported,
            Code::InvalidArgument => Kind::Failed,
            _ => Kind::Tool,
        };
        Error::new(kind, format!("failed to {act}: {}", status.message()))
    }
}

/// A containerd that cannot be talked to.
fn silent(address: &Path, why: &str) -> Error {
    Error::new(
        Kind::Tool,
        format!("failed to reach containerd at {}: {why}", address.display()),
    )
    .hint("is it running? another one is named by --address, or $CONTAINERD_ADDRESS")
}

/// The error at the bottom: transports say only "transport error" themselves.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut deepest = error;
    while let Some(source) = deepest.source() {
        deepest = source;
    }
    deepest.to_string()
}

/// What a call that may miss its object answered: none instead of the error that says so.
fn optional<T>(answer: Result<T, Error>) -> Result<Option<T>, Error> {
    match answer {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind == Kind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
