//! The mounts a container's root file system is made of. (being written)
use std::path::Path;

/// One mount, as containerd asks for it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mount {
    /// File system type: `bind`, `overlay`, `ext4`, `fuse.…`.
    pub kind: String,
    /// What is mounted.
    pub source: String,
    /// Where below the root file system; usually empty.
    pub target: String,
    /// Options in the form of fstab.
    pub options: Vec<String>,
}

/// Why the root file system could not be put together.
#[derive(Debug, thiserror::Error)]
#[error("(being written)")]
pub struct MountError;

/// Mounts all, in order.
pub fn mount_all(_mounts: &[Mount], _rootfs: &Path) -> Result<(), MountError> {
    Err(MountError)
}

/// Unmounts all at and below a path.
pub fn unmount_recursive(_path: &Path) -> Result<(), Vec<MountError>> {
    Ok(())
}
