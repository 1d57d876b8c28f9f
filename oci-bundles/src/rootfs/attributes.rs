//! Extended attributes of a thing that is only known by a descriptor for naming it.
//!
//! Such descriptors take no attribute calls. Through `/proc` they do, and that is the thing itself, a symlink too.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use rustix::fs::XattrFlags;
use rustix::io::Errno;

use super::overlay::Xattr;

/// The most that a list of names, or a value, may be, in bytes: the kernel's own limit of both.
const XATTR_BYTES_MAX: usize = 64 << 10;

/// A path to what a descriptor names.
pub fn path_of(fd: &impl AsRawFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

/// All attributes, sorted by name; none where the file system has none.
pub fn read(fd: &OwnedFd) -> io::Result<Vec<Xattr>> {
    let path = path_of(fd);
    let mut names = vec![0; XATTR_BYTES_MAX];
    let count = match rustix::fs::listxattr(&path, names.as_mut_slice()) {
        Ok(count) => count,
        // Symlinks and devices have none of users', and some file systems none at all.
        Err(Errno::OPNOTSUPP) => 0,
        Err(error) => return Err(error.into()),
    };
    let names = names.get(..count).unwrap_or_default();
    let mut xattrs = Vec::new();
    for name in names.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let mut value = vec![0; XATTR_BYTES_MAX];
        match rustix::fs::getxattr(&path, name, value.as_mut_slice()) {
            Ok(count) => {
                value.truncate(count);
                xattrs.push((OsString::from(OsStr::from_bytes(name)), value));
            }
            // Gone between the two calls.
            Err(Errno::NODATA) => {}
            Err(error) => return Err(error.into()),
        }
    }
    xattrs.sort();
    Ok(xattrs)
}

/// Sets an attribute.
pub fn set(fd: &impl AsRawFd, name: &OsStr, value: &[u8]) -> io::Result<()> {
    rustix::fs::setxattr(path_of(fd), name.as_bytes(), value, XattrFlags::empty())?;
    Ok(())
}
