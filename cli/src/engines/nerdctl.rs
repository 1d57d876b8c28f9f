//! nerdctl, by its command: it has no server. Its containers are containerd's, with names and logs of its own.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use super::client;
use crate::error::{Error, Kind};

/// The label that holds a container's name.
pub const NAME_LABEL: &str = "nerdctl/name";

/// A start is a restore here, whose own deadlines end earlier.
const START_LIMIT: Duration = Duration::from_secs(3600);

/// Starts a container that has ended, as `nerdctl start`: with its network and logs.
///
/// # Errors
/// nerdctl is not installed, or says why not.
pub async fn start(address: &Path, namespace: &str, id: &str) -> Result<(), Error> {
    let mut command = Command::new("nerdctl");
    let _ = command
        .arg("--address")
        .arg(address)
        .args(["--namespace", namespace, "start", id]);
    let done = client(command, START_LIMIT).await;
    done.map(drop).map_err(|error| match error.kind {
        Kind::Tool => error
            .hint("containers of nerdctl are started by nerdctl, which has their names, networks and logs"),
        _ => error,
    })
}
