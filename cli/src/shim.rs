//! Asks a shim on its socket: its own service, [`jobs::wire`].

use std::path::Path;
use std::time::Duration;

use jobs::wire;
use serde::Serialize;
use serde::de::DeserializeOwned;
use ttrpc::r#async::Client;
use ttrpc::{Code, Request};

use crate::error::{Error, Kind};

/// A shim that lives answers at once; one that does not within this is stuck or gone.
const CONNECT: Duration = Duration::from_secs(5);

/// For questions and for acts that take a moment: status, freeze, thaw.
pub const SHORT: Duration = Duration::from_secs(60);

/// Our end waits a little longer than the shim's deadline, so that the shim's own words arrive.
const GRACE: Duration = Duration::from_secs(10);

/// Why a shim did not do it.
#[derive(Debug, thiserror::Error)]
pub enum ShimError {
    /// There is none: it has ended, or its socket is not ours to use.
    #[error("reach the shim at {socket}: {problem}")]
    Unreachable {
        /// Its socket.
        socket: String,
        /// What is wrong.
        problem: String,
    },
    /// It said no.
    #[error("{message}")]
    Refused {
        /// Its code.
        code: Code,
        /// Its words.
        message: String,
    },
    /// It did not answer in time, or with something else than what was asked.
    #[error("understand the shim at {socket}: {problem}")]
    Odd {
        /// Its socket.
        socket: String,
        /// What is wrong.
        problem: String,
    },
}

impl From<ShimError> for Error {
    fn from(error: ShimError) -> Self {
        match &error {
            ShimError::Unreachable { .. } | ShimError::Odd { .. } => Self::tool(format!("failed to {error}")),
            ShimError::Refused { code, message } => {
                let kind = match code {
                    Code::NOT_FOUND => Kind::NotFound,
                    Code::FAILED_PRECONDITION | Code::ALREADY_EXISTS => Kind::WrongState,
                    Code::UNIMPLEMENTED => Kind::Unsupported,
                    Code::CANCELLED => Kind::Interrupted,
                    // What was typed is checked before a shim is asked: the rest is a checkpoint that is none.
                    Code::INVALID_ARGUMENT | Code::PERMISSION_DENIED => Kind::Failed,
                    _ => Kind::Tool,
                };
                Self::new(kind, message.clone())
            }
        }
    }
}

/// Asks the shim at `socket`, and waits for its answer at most that long.
///
/// # Errors
/// It cannot be reached, refuses, or does not answer.
pub async fn call<Q: Serialize, A: DeserializeOwned>(
    socket: &Path,
    method: &str,
    question: &Q,
    timeout: Duration,
) -> Result<A, ShimError> {
    let client = connect(socket).await?;
    let odd = |problem: String| ShimError::Odd {
        socket: socket.display().to_string(),
        problem,
    };
    let request = Request {
        service: wire::SERVICE.to_owned(),
        method: method.to_owned(),
        payload: serde_json::to_vec(question).map_err(|source| odd(source.to_string()))?,
        timeout_nano: i64::try_from(timeout.as_nanos()).unwrap_or(i64::MAX),
        ..Request::default()
    };
    let answer = tokio::time::timeout(timeout.saturating_add(GRACE), client.request(request))
        .await
        .map_err(|_| odd(format!("no answer to {method} within {timeout:?}")))?;
    match answer {
        Ok(answer) if answer.payload.len() > wire::MESSAGE_BYTES_MAX => {
            Err(odd(format!("an answer of {} bytes", answer.payload.len())))
        }
        Ok(answer) => serde_json::from_slice(&answer.payload).map_err(|source| odd(source.to_string())),
        Err(ttrpc::Error::RpcStatus(status)) => Err(ShimError::Refused {
            code: status.code(),
            message: status.message().to_owned(),
        }),
        Err(source) => Err(odd(source.to_string())),
    }
}

async fn connect(socket: &Path) -> Result<Client, ShimError> {
    let unreachable = |problem: String| ShimError::Unreachable {
        socket: socket.display().to_string(),
        problem,
    };
    if socket.as_os_str().is_empty() {
        return Err(unreachable("the job's record names none".to_owned()));
    }
    let address = format!("unix://{}", socket.display());
    match tokio::time::timeout(CONNECT, Client::connect(&address)).await {
        Ok(Ok(client)) => Ok(client),
        Ok(Err(source)) => Err(unreachable(source.to_string())),
        Err(_) => Err(unreachable("no connection within 5 s".to_owned())),
    }
}
