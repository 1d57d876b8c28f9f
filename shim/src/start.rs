//! `start`: see that a server runs for the container, and say where.
//!
//! ```text
//!  containerd --exec--> start --exec, fd 3 = listener--> server
//!             <--address--+                                |
//!             ---------------connect, ttrpc--------------> |
//! ```
//! `start` makes the socket and leaves it to the server, so containerd can connect as soon as it has the address and nobody waits
//! for the server to be ready. Containers of one group (a pod) share the server that the first of them got.

mod placement;
mod socket;

use std::env;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use oci_bundles::spec::{SpecError, SpecView};

use crate::args::{Args, Environment, TTRPC_ADDRESS};
use crate::bootstrap::{self, Said};
use crate::serve::LISTENER_FD;
use crate::spawn;
pub(crate) use placement::hierarchies;
pub use socket::{Claim, SocketError};

/// File in a bundle with the address of its server; containerd 1.x connects to it again after a restart.
pub const ADDRESS_FILE: &str = "address";

/// Annotations that name a container's group, the first one found decides: containerd's own, then CRI's sandbox.
const GROUP_ANNOTATIONS: [&str; 2] = ["io.containerd.runc.v2.group", "io.kubernetes.cri.sandbox-id"];

/// Link in the bundle to the socket's directory, if containerd chose that: `delete` is not told it.
const SOCKET_DIR_LINK: &str = "s";

/// Why there is no server.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The bundle's `config.json` could not be read.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// The socket could not be made.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The server could not be started, or put where it belongs.
    #[error("{action}: {source}")]
    Io {
        /// What was tried.
        action: String,
        /// What the kernel answered.
        source: io::Error,
    },
    /// The reply could not be encoded.
    #[error("encode the reply: {0}")]
    Reply(#[from] protobuf::Error),
}

/// Starts a server for the container, or finds the one of its group. Returns what is to be printed.
///
/// `bundle` is the working directory and `stdin` what containerd wrote there.
///
/// # Errors
/// See [`StartError`]; then no process and no socket are left.
pub fn start(
    args: &Args,
    environment: &Environment,
    bundle: &Path,
    stdin: &[u8],
) -> Result<Vec<u8>, StartError> {
    let said = bootstrap::parse(stdin, &args.namespace, &args.id);
    let spec = SpecView::read(bundle)?;
    let path = socket::path(
        said.socket_dir.as_deref(),
        &args.address,
        &args.namespace,
        group(&spec, &args.id),
    );
    let address = format!("unix://{}", path.display());
    if let Some(directory) = &said.socket_dir {
        link_socket_dir(bundle, directory)?;
    }
    if let Claim::Ours(listener) = socket::claim(&path)? {
        let launched = launch(args, environment, &said, listener);
        launched.inspect_err(|_| socket::remove(&path))?;
    }
    replace(&bundle.join(ADDRESS_FILE), &address)?;
    Ok(bootstrap::reply(said.dialect, &address)?)
}

/// The id under which the container's server is shared.
fn group<'a>(spec: &'a SpecView, id: &'a str) -> &'a str {
    GROUP_ANNOTATIONS
        .iter()
        .find_map(|name| spec.annotations.get(*name))
        .map_or(id, String::as_str)
}

/// Starts the server on the socket and puts it into its cgroup.
fn launch(
    args: &Args,
    environment: &Environment,
    said: &Said,
    listener: UnixListener,
) -> Result<(), StartError> {
    if environment.sched_core {
        // Who asked for it wants no container without it, so a kernel that cannot do it ends the start.
        spawn::isolate_core().map_err(|source| failed("isolate the container on its cores", source))?;
    }
    let mut server = server(args, said).map_err(|source| failed("find our own program", source))?;
    spawn::pass_fds(&mut server, vec![(OwnedFd::from(listener), LISTENER_FD)]);
    spawn::seal_fds(&mut server, LISTENER_FD + 1);
    let mut server = server
        .spawn()
        .map_err(|source| failed("start the server", source))?;
    place(&server, said).inspect_err(|_| {
        // It has just been born and serves nobody; if it is gone already, so much the better.
        let _ = server.kill();
        let _ = server.wait();
    })
}

/// The server's command line. It inherits the bundle as working directory and the environment.
fn server(args: &Args, said: &Said) -> io::Result<Command> {
    let mut command = Command::new(own_program()?);
    let _ = command.args([
        "-namespace",
        &args.namespace,
        "-id",
        &args.id,
        "-address",
        &args.address,
    ]);
    if args.debug || said.debug {
        let _ = command.arg("-debug");
    }
    if !said.ttrpc_address.is_empty() {
        let _ = command.env(TTRPC_ADDRESS, &said.ttrpc_address);
    }
    // containerd reads our stdout and stderr to their end, so the server must not hold them.
    let _ = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    // A group of its own: a signal to containerd's group, or to that of `start`, is not for it.
    let _ = command.process_group(0);
    Ok(command)
}

fn place(server: &Child, said: &Said) -> Result<(), StartError> {
    let pid = server.id();
    if !said.options.shim_cgroup.is_empty() {
        let cgroup = &said.options.shim_cgroup;
        placement::join_cgroup(pid, cgroup)
            .map_err(|source| failed(format!("join cgroup {cgroup}"), source))?;
    }
    placement::offer_to_oom_killer(pid).map_err(|source| failed("adjust the server's OOM score", source))
}

/// Our own program, also if its file has been replaced since we were started.
fn own_program() -> io::Result<PathBuf> {
    let path = env::current_exe()?;
    Ok(if path.exists() {
        path
    } else {
        "/proc/self/exe".into()
    })
}

fn link_socket_dir(bundle: &Path, directory: &Path) -> Result<(), StartError> {
    match std::os::unix::fs::symlink(directory, bundle.join(SOCKET_DIR_LINK)) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(failed("link the socket directory", error))
        }
        _ => Ok(()),
    }
}

/// Writes a file in one step: containerd may be looking for it.
fn replace(path: &Path, text: &str) -> Result<(), StartError> {
    let temporary = path.with_extension("tmp");
    let written = fs::write(&temporary, text).and_then(|()| fs::rename(&temporary, path));
    written.map_err(|source| failed(format!("write {}", path.display()), source))
}

fn failed(action: impl Into<String>, source: io::Error) -> StartError {
    StartError::Io {
        action: action.into(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_named_by_the_first_annotation_that_is_there() {
        let (own, cri) = ("io.containerd.runc.v2.group", "io.kubernetes.cri.sandbox-id");
        let cases: &[(&[(&str, &str)], &str)] = &[
            (&[], "c"),
            (&[("other", "x")], "c"),
            (&[(cri, "pod")], "pod"),
            (&[(cri, "pod"), (own, "g")], "g"),
        ];
        for (annotations, want) in cases {
            let annotations = annotations
                .iter()
                .map(|(key, value)| ((*key).into(), (*value).into()))
                .collect();
            let spec = SpecView {
                annotations,
                ..SpecView::default()
            };
            assert_eq!(group(&spec, "c"), *want, "{:?}", spec.annotations);
        }
    }
}
