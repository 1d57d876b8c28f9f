//! Opening the client's fifos so that the client may come and go.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use nix::libc;

use super::StdioError;

/// The fifo a client writes to.
#[derive(Debug)]
pub(super) struct InputFifo {
    /// What we read; non-blocking.
    pub reader: OwnedFd,
    /// A write end that is never written to. While it is open a client may leave and another come, and the container
    /// does not see the end of its input.
    pub holder: OwnedFd,
}

impl InputFifo {
    /// Opens both ends; does not wait for the client.
    pub fn open(path: &Path) -> Result<Self, StdioError> {
        let both = || -> io::Result<Self> {
            if !fs::metadata(path)?.file_type().is_fifo() {
                return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a fifo"));
            }
            // In this order: a non-blocking open for writing fails as long as nobody reads.
            let reader = open_end(path, OpenOptions::new().read(true))?.into();
            let holder = open_end(path, OpenOptions::new().write(true))?.into();
            Ok(Self { reader, holder })
        };
        both().map_err(|source| StdioError::Open {
            path: path.to_owned(),
            source,
        })
    }
}

/// The fifo a client reads from.
#[derive(Debug)]
pub(super) struct OutputFifo {
    /// What we write; non-blocking.
    pub writer: OwnedFd,
    /// A read end that is never read from. While it is open, writing without a client fills the fifo and then waits
    /// for one, instead of failing with EPIPE.
    pub keeper: OwnedFd,
    /// Whether a client was reading when we opened it. One that was not yet may come after the last byte is written.
    pub reader_seen: bool,
}

impl OutputFifo {
    /// Opens both ends; does not wait for the client (Go's shim does, for up to 30 s).
    pub fn open(path: &Path) -> io::Result<Self> {
        let early = open_end(path, OpenOptions::new().write(true));
        let keeper = open_end(path, OpenOptions::new().read(true))?.into();
        let (writer, reader_seen) = match early {
            Ok(writer) => (writer, true),
            Err(error) if error.raw_os_error() == Some(libc::ENXIO) => {
                (open_end(path, OpenOptions::new().write(true))?, false)
            }
            Err(error) => return Err(error),
        };
        Ok(Self {
            writer: writer.into(),
            keeper,
            reader_seen,
        })
    }
}

fn open_end(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    options.custom_flags(libc::O_NONBLOCK).open(path)
}
