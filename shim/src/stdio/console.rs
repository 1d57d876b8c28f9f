//! The socket through which runc hands over a terminal: it connects, and sends the pty's master as SCM_RIGHTS.

use std::fs::{self, Permissions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::io::Interest;

use super::descriptor;

/// Makes socket names unique within this process. Ids of containers would not fit into the 107 bytes of a socket's path.
static NEXT: AtomicU64 = AtomicU64::new(0);

/// A bound console socket; its file goes with it.
#[derive(Debug)]
pub(super) struct ConsoleSocket {
    listener: UnixListener,
    path: PathBuf,
}

impl ConsoleSocket {
    /// Binds a new socket in `directory`, which must be ours alone.
    pub fn bind(directory: &Path) -> io::Result<Self> {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = directory.join(format!("pty-{}-{number}", std::process::id()));
        // Left by a process that had our pid before and was killed.
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let socket = Self {
            listener: UnixListener::bind(&path)?,
            path,
        };
        fs::set_permissions(&socket.path, Permissions::from_mode(0o600))?;
        socket.listener.set_nonblocking(true)?;
        Ok(socket)
    }

    /// What to give to `--console-socket`.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Waits for the terminal. The caller sets the deadline.
    pub async fn receive(&self) -> io::Result<OwnedFd> {
        let listener = tokio::net::UnixListener::from_std(self.listener.try_clone()?)?;
        let (stream, _) = listener.accept().await?;
        stream
            .async_io(Interest::READABLE, || descriptor::receive(stream.as_fd()))
            .await
    }
}

impl Drop for ConsoleSocket {
    fn drop(&mut self) {
        // Gone already if the directory is: then there is nothing to leave behind.
        let _ = fs::remove_file(&self.path);
    }
}
