//! A file behind a loop device for as long as something is mounted from it.

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::mount::MsFlags;

use super::options::Options;
use super::{MountError, kernel};

/// Between asking for a free device and taking it, another process may take it; so many tries, with a growing
/// pause, outlast every crowd we know of (util-linux tries as often).
const TRIES_MAX: u32 = 50;
const PAUSE: Duration = Duration::from_millis(1);

/// A loop device. The kernel frees it when it is neither open nor mounted.
#[derive(Debug)]
pub(super) struct LoopDevice {
    pub(super) path: PathBuf,
    _open: File,
}

/// Puts a file behind a free loop device, read-only when the mount is.
pub(super) fn attach(file: &Path, options: &Options) -> Result<LoopDevice, MountError> {
    let is_read_only = options.flags.contains(MsFlags::MS_RDONLY);
    let mut flags = kernel::LO_FLAGS_AUTOCLEAR;
    if is_read_only {
        flags |= kernel::LO_FLAGS_READ_ONLY;
    }
    if options.is_direct {
        flags |= kernel::LO_FLAGS_DIRECT_IO;
    }
    let open = |path: &Path| OpenOptions::new().read(true).write(!is_read_only).open(path);
    let backing = open(file).map_err(|error| MountError::io("open", file, error))?;
    let control_path = Path::new("/dev/loop-control");
    let control = OpenOptions::new()
        .read(true)
        .write(true)
        .open(control_path)
        .map_err(|error| MountError::io("open", control_path, error))?;
    let mut tries = 0;
    loop {
        let number = kernel::free_loop_device(&control)
            .map_err(|error| MountError::io("find a free loop device with", control_path, error))?;
        let path = PathBuf::from(format!("/dev/loop{number}"));
        let device = open(&path).map_err(|error| MountError::io("open", &path, error))?;
        match kernel::configure_loop_device(&device, &backing, file, flags) {
            Ok(()) => return Ok(LoopDevice { path, _open: device }),
            Err(error) if error.raw_os_error() == Some(nix::libc::EBUSY) && tries < TRIES_MAX => {
                tries += 1;
                std::thread::sleep(PAUSE * tries);
            }
            Err(error) => return Err(MountError::io("configure", &path, error)),
        }
    }
}
