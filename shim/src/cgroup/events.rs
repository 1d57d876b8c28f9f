//! Waiting for a value in `cgroup.events` of cgroup v2, which the kernel announces: no polling.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::path::Path;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::{CgroupError, files};

/// Waits until `key` has the value. Ends with [`CgroupError::Gone`] when the cgroup is removed meanwhile. The
/// caller sets the deadline.
pub(super) async fn reached(dir: &Path, key: &str, value: u64) -> Result<(), CgroupError> {
    let path = dir.join("cgroup.events");
    let mut file = File::open(&path).map_err(|error| files::failed("read", &path, error))?;
    // Most changes are done by the time the write that caused them returns: then no descriptor is registered.
    if holds(&mut file, &path, key, value)? {
        return Ok(());
    }
    // The kernel marks the file as having exceptional data from a change until the next read.
    let failed = |error| files::failed("watch", &path, error);
    let watched = file
        .try_clone()
        .and_then(|file| register(file.into(), Interest::PRIORITY))
        .map_err(failed)?;
    loop {
        if holds(&mut file, &path, key, value)? {
            return Ok(());
        }
        let mut changed = watched.ready(Interest::PRIORITY).await.map_err(failed)?;
        changed.clear_ready();
    }
}

/// Registers a descriptor with the reactor.
#[expect(
    deprecated,
    reason = "an OwnedFd keeps its descriptor to itself, which is all that the unsafe successor asks"
)]
pub(super) fn register(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(fd, interest)
}

fn holds(file: &mut File, path: &Path, key: &str, value: u64) -> Result<bool, CgroupError> {
    let mut text = String::new();
    let _length = file
        .seek(SeekFrom::Start(0))
        .and_then(|_| {
            file.by_ref()
                .take(files::FILE_BYTES_MAX)
                .read_to_string(&mut text)
        })
        .map_err(|error| files::failed("read", path, error))?;
    Ok(files::keyed(&text, key) == Some(value))
}
