//! The socket of a server: its name, and who owns it.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use sha2::{Digest, Sha256};

/// Where sockets are made if containerd does not say: short, because a socket's path has at most 107 bytes.
const SOCKET_DIR: &str = "/run/containerd/s";

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
#[error("{action} {}: {source}", path.display())]
pub struct SocketError {
    action: &'static str,
    path: PathBuf,
    source: io::Error,
}

/// Whose socket it is.
#[derive(Debug)]
pub enum Claim {
    /// Ours, and listening.
    Ours(UnixListener),
    /// A living server's, which has this group already.
    Taken,
}

/// Path of the socket for a group: a digest of what makes the group unique on this machine. It is the same for everyone who
/// computes it, which is how a pod's second container finds the first one's server.
pub(super) fn path(directory: Option<&Path>, containerd: &str, namespace: &str, group: &str) -> PathBuf {
    let digest = Sha256::digest(
        clean(&format!("{containerd}/{namespace}/{group}"))
            .as_os_str()
            .as_encoded_bytes(),
    );
    let name: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    directory.unwrap_or(Path::new(SOCKET_DIR)).join(name)
}

/// Makes the socket, unless a server listens there. A dead server's socket is replaced.
///
/// # Errors
/// What the kernel says about the directory or the socket.
pub(super) fn claim(path: &Path) -> Result<Claim, SocketError> {
    if let Some(directory) = path.parent() {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(directory);
        made.map_err(failed("make", directory))?;
    }
    match UnixListener::bind(path) {
        Ok(listener) => restrict(path, listener),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => take_over(path),
        Err(error) => Err(failed("bind", path)(error)),
    }
}

/// Removes the socket; that it is gone already is fine, and there is nobody to tell anything else.
pub(super) fn remove(path: &Path) {
    let _ = fs::remove_file(path);
}

fn take_over(path: &Path) -> Result<Claim, SocketError> {
    match knock(path) {
        // Its queue is full: somebody who is to answer has it.
        Ok(()) | Err(Errno::EAGAIN) => return Ok(Claim::Taken),
        Err(Errno::ECONNREFUSED | Errno::ENOENT) => remove(path),
        Err(errno) => return Err(failed("connect to", path)(errno.into())),
    }
    restrict(path, UnixListener::bind(path).map_err(failed("bind", path))?)
}

/// Connects without waiting and hangs up. `ECONNREFUSED` says that nobody listens, `EAGAIN` that others wait already.
fn knock(path: &Path) -> nix::Result<()> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    connect(socket.as_raw_fd(), &UnixAddr::new(path)?)
}

fn restrict(path: &Path, listener: UnixListener) -> Result<Claim, SocketError> {
    let restricted = fs::set_permissions(path, Permissions::from_mode(0o600));
    restricted
        .inspect_err(|_| remove(path))
        .map_err(failed("restrict", path))?;
    Ok(Claim::Ours(listener))
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SocketError {
    move |source| SocketError {
        action,
        path: path.to_owned(),
        source,
    }
}

/// The path without empty, `.` and `..` parts, as Go's `filepath.Join` leaves it: the digest must agree with containerd's.
fn clean(path: &str) -> PathBuf {
    let mut clean = PathBuf::new();
    for part in Path::new(path).components() {
        match part {
            Component::ParentDir => drop(clean.pop()),
            Component::CurDir => {}
            other => clean.push(other),
        }
    }
    clean
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::{UnixDatagram, UnixStream};

    use nix::sys::socket::{Backlog, bind, listen};

    use super::*;

    #[test]
    fn names_are_those_that_the_go_shims_compute() {
        // printf /run/containerd/containerd.sock/default/c1 | sha256sum
        let want = "/run/containerd/s/d25aa4ef11a84e954e74a5bcff06557d0b6ea8d0c00243896f29826694bbd888";
        let got = path(None, "/run/containerd/containerd.sock", "default", "c1");
        assert_eq!(
            got,
            path(None, "/run//containerd/./containerd.sock", "default", "c1")
        );
        assert_eq!(got.to_str().unwrap(), want);
        assert!(path(Some(Path::new("/s")), "a", "n", "c").starts_with("/s"));
    }

    #[test]
    fn a_socket_is_claimed_once_and_again_when_its_owner_is_dead() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("new/socket");
        let Ok(Claim::Ours(listener)) = claim(&path) else {
            panic!("not ours")
        };
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
        assert!(matches!(claim(&path), Ok(Claim::Taken)));
        drop(listener);
        assert!(matches!(claim(&path), Ok(Claim::Ours(_))));
    }

    #[test]
    fn a_server_that_does_not_answer_is_waited_for_by_nobody_and_keeps_its_socket() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let flags = SockFlag::SOCK_CLOEXEC;
        let server = socket(AddressFamily::Unix, SockType::Stream, flags, None).unwrap();
        bind(server.as_raw_fd(), &UnixAddr::new(&path).unwrap()).unwrap();
        listen(&server, Backlog::new(1).unwrap()).unwrap();
        // One is accepted into the queue more than it is long.
        let waiting: Vec<_> = (0..2).map(|_| UnixStream::connect(&path).unwrap()).collect();
        assert_eq!(knock(&path), Err(Errno::EAGAIN));
        assert!(matches!(claim(&path), Ok(Claim::Taken)));
        drop((waiting, server));
        assert!(matches!(claim(&path), Ok(Claim::Ours(_))));
    }

    #[test]
    fn what_is_no_dead_servers_socket_is_not_removed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let _other_kind = UnixDatagram::bind(&path).unwrap();
        let error = claim(&path).unwrap_err().to_string();
        assert!(error.starts_with("connect to"), "{error}");
        assert!(path.exists());
    }
}
