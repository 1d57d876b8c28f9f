//! The socket through which runc hands over a terminal: it connects, and sends the pty's master as SCM_RIGHTS.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::io::Interest;

use super::descriptor;

/// Makes socket names unique within this process.
static NEXT: AtomicU64 = AtomicU64::new(0);

/// The longest path of a socket: `sun_path` is 108 bytes with the final zero. The bundle of a Kubernetes container alone
/// has more.
const PATH_BYTES_MAX: usize = 107;

/// A bound console socket; its file goes with it.
#[derive(Debug)]
pub(super) struct ConsoleSocket {
    listener: UnixListener,
    /// Where the file is.
    file: PathBuf,
    /// Under which path others reach it: `file`, or a shorter way through `directory`.
    path: PathBuf,
    /// Keeps the shorter way open.
    _directory: Option<File>,
}

impl ConsoleSocket {
    /// Binds a new socket in `directory`, which must be ours alone.
    pub fn bind(directory: &Path) -> io::Result<Self> {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("pty-{}-{number}", std::process::id());
        let file = directory.join(&name);
        // Left by a process that had our pid before and was killed.
        match fs::remove_file(&file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let (path, directory) = if file.as_os_str().len() <= PATH_BYTES_MAX {
            (file.clone(), None)
        } else {
            let directory = File::open(directory)?;
            let short = format!("/proc/{}/fd/{}/{name}", std::process::id(), directory.as_raw_fd());
            (PathBuf::from(short), Some(directory))
        };
        let listener = UnixListener::bind(&path)?;
        let socket = Self {
            listener,
            file,
            path,
            _directory: directory,
        };
        fs::set_permissions(&socket.file, Permissions::from_mode(0o600))?;
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
        let _ = fs::remove_file(&self.file);
    }
}
