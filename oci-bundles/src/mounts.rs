//! The mounts a container's root file system is made of: what containerd's own mount package does on Linux.
//!
//! ```text
//!  Mount --options--> flags, data      (pure: fstab words, overlay directories made short)
//!        --loopback-> a loop device    --idmap--> mounts with shifted ids    --helper--> mount.fuse
//!        --------------------------> mount(2), then propagation, read-only, ids
//!  unmount: plain first, deepest first; detached only when busy
//! ```

mod helper;
mod idmap;
mod kernel;
mod loopback;
mod options;
mod unmount;

use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::statvfs::{FsFlags, statvfs};

use options::Options;
pub use unmount::unmount_recursive;

/// The kernel takes one page of mount data, its end included.
const DATA_BYTES_MAX: usize = 4095;

/// One mount, as containerd asks for it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mount {
    /// File system type, `bind` for a bind mount, `fuse.NAME` or `fuse3.NAME` for one by a helper.
    pub kind: String,
    /// A directory, device, image file or whatever the file system understands.
    pub source: String,
    /// Where below the root file system it goes; empty for the root file system itself.
    pub target: String,
    /// Words of fstab, `loop`, `uidmap=` and `gidmap=` included; what is none of them is the file system's.
    pub options: Vec<String>,
}

/// Why a mount or unmount failed.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The kernel refused a step.
    #[error("{action} {}: {source}", path.display())]
    Io {
        /// "mount overlay on", "unmount", "open loop device", …
        action: String,
        /// The path the step was about.
        path: PathBuf,
        /// What the kernel answered.
        source: io::Error,
    },
    /// The request cannot be honoured by anybody.
    #[error("mount {kind}: {reason}")]
    Invalid {
        /// The file system type.
        kind: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A mount helper failed.
    #[error("run {command}: {status}: {output}")]
    Helper {
        /// The helper's name.
        command: String,
        /// Its exit status, or why it could not run.
        status: String,
        /// The end of what it wrote.
        output: String,
    },
}

impl MountError {
    fn io(action: impl Into<String>, path: &Path, source: impl Into<io::Error>) -> Self {
        Self::Io {
            action: action.into(),
            path: path.to_owned(),
            source: source.into(),
        }
    }
}

/// Mounts all of them at `rootfs`, in order. When one fails, those before it are taken back, and what could not be
/// is detached, so that nothing of a failed call remains. Blocks for as long as the file systems take.
pub fn mount_all(mounts: &[Mount], rootfs: &Path) -> Result<(), MountError> {
    let rootfs = std::path::absolute(rootfs).map_err(|error| MountError::io("resolve", rootfs, error))?;
    let mut done: Vec<PathBuf> = Vec::with_capacity(mounts.len());
    for mount in mounts {
        let mounted = resolve(&rootfs, &mount.target).and_then(|target| {
            mount_one(mount, &target)?;
            Ok(target)
        });
        match mounted {
            Ok(target) => done.push(target),
            Err(error) => {
                for target in done.iter().rev() {
                    detach(target);
                }
                return Err(error);
            }
        }
    }
    Ok(())
}

/// Takes back one mount whose use never began. There is nobody to tell of a failure: the caller has an error
/// already, and the next `unmount_recursive` meets the mount again.
fn detach(target: &Path) {
    let _unused = umount2(target, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW);
}

/// The directory `target` names below the root; links in it, which are an image's, are not followed out of it.
fn resolve(rootfs: &Path, target: &str) -> Result<PathBuf, MountError> {
    if target.is_empty() || target == "/" {
        return Ok(rootfs.to_owned());
    }
    let failed =
        |error: io::Error| MountError::io("resolve", &rootfs.join(target.trim_start_matches('/')), error);
    let root = fs::File::open(rootfs).map_err(failed)?;
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT);
    let found = openat2(&root, target, how).map_err(|error| failed(error.into()))?;
    fs::read_link(format!("/proc/self/fd/{}", found.as_raw_fd())).map_err(failed)
}

/// Mounts one, with nothing left of it when it fails.
fn mount_one(request: &Mount, target: &Path) -> Result<(), MountError> {
    if let Some(helper) = helper::of_kind(&request.kind) {
        return helper.mount(request, target);
    }
    let options = Options::parse(&request.options);
    let users = idmap::namespace(&options)?;
    match (&users, request.kind.as_str()) {
        // Overlay takes no shifted ids itself; its lower directories do. The upper one is the container's own.
        (Some(users), "overlay") => {
            let lower = idmap::LowerDirs::shifted(&options, users, target)?;
            mount_kernel(request, &lower.replace(&options), target)
        }
        (Some(users), _) => {
            mount_kernel(request, &options, target)?;
            idmap::shift(target, users, options.flags.contains(MsFlags::MS_REC))
                .inspect_err(|_| detach(target))
        }
        (None, _) => mount_kernel(request, &options, target),
    }
}

fn mount_kernel(request: &Mount, options: &Options, target: &Path) -> Result<(), MountError> {
    let is_remount_of_flags = options.flags.contains(MsFlags::MS_REMOUNT) && options.data.is_empty();
    if !is_remount_of_flags {
        first_mount(request, options, target)?;
    }
    change_propagation(options, target)
        .and_then(|()| make_bind_read_only(options, target))
        .inspect_err(|_| {
            if !options.flags.contains(MsFlags::MS_REMOUNT) {
                detach(target);
            }
        })
}

fn first_mount(request: &Mount, options: &Options, target: &Path) -> Result<(), MountError> {
    let kind = request.kind.as_str();
    let mut source = PathBuf::from(&request.source);
    // Held until the mount holds the device: the kernel frees it with the last user.
    let mut device = None;
    if options.is_loop {
        let attached = loopback::attach(&source, options)?;
        source = attached.path.clone();
        device = Some(attached);
    }
    let mut data = options.data_text();
    let mut directory = None;
    if kind == "overlay"
        && data.len() > DATA_BYTES_MAX
        && let Some((common, short)) = options.shorter_lower_dirs()
    {
        (directory, data) = (Some(common), short);
    }
    if data.len() > DATA_BYTES_MAX {
        let reason = format!("its options take {} bytes of {DATA_BYTES_MAX}", data.len());
        return Err(MountError::Invalid {
            kind: kind.to_owned(),
            reason,
        });
    }
    let mounted = match directory {
        None => call_mount(&source, target, kind, options.flags, &data),
        Some(directory) => mount_from(&directory, &source, target, kind, options.flags, &data),
    };
    drop(device);
    mounted.map_err(|error| MountError::io(format!("mount {kind} on"), target, error))
}

fn call_mount(source: &Path, target: &Path, kind: &str, flags: MsFlags, data: &str) -> io::Result<()> {
    let data = Some(data).filter(|text| !text.is_empty());
    Ok(mount(Some(source), target, Some(kind), flags, data)?)
}

/// Mounts with paths relative to a directory. A thread of its own, with a working directory of its own, because
/// the process' one is shared by all; it ends with the call.
fn mount_from(
    dir: &Path,
    source: &Path,
    target: &Path,
    kind: &str,
    flags: MsFlags,
    data: &str,
) -> io::Result<()> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().spawn_scoped(scope, || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_FS)?;
            nix::unistd::chdir(dir)?;
            call_mount(source, target, kind, flags, data)
        })?;
        thread
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the mounting thread ended early")))
    })
}

fn change_propagation(options: &Options, target: &Path) -> Result<(), MountError> {
    if options.propagation.is_empty() {
        return Ok(());
    }
    call_mount(Path::new(""), target, "", options.propagation, "")
        .map_err(|error| MountError::io("change propagation of", target, error))
}

/// A bind mount takes its flags from its source; read-only is said in a second call. In a user namespace that call
/// must repeat the flags that are locked, or it is refused.
fn make_bind_read_only(options: &Options, target: &Path) -> Result<(), MountError> {
    if !options.flags.contains(MsFlags::MS_BIND | MsFlags::MS_RDONLY) {
        return Ok(());
    }
    let flags = options.flags | MsFlags::MS_REMOUNT;
    let failed = |error: Errno| MountError::io("make read-only", target, error);
    let remount = |flags| mount(None::<&str>, target, None::<&str>, flags, None::<&str>);
    match remount(flags) {
        Err(Errno::EPERM) => {
            let locked = statvfs(target).map_err(failed)?.flags();
            remount(flags | mount_flags(locked)).map_err(failed)
        }
        result => result.map_err(failed),
    }
}

fn mount_flags(flags: FsFlags) -> MsFlags {
    let pairs = [
        (FsFlags::ST_NODEV, MsFlags::MS_NODEV),
        (FsFlags::ST_NOEXEC, MsFlags::MS_NOEXEC),
        (FsFlags::ST_NOSUID, MsFlags::MS_NOSUID),
        (FsFlags::ST_NOATIME, MsFlags::MS_NOATIME),
        (FsFlags::ST_NODIRATIME, MsFlags::MS_NODIRATIME),
        (FsFlags::ST_RELATIME, MsFlags::MS_RELATIME),
    ];
    pairs
        .iter()
        .filter(|(is, _)| flags.contains(*is))
        .map(|(_, set)| *set)
        .collect()
}

#[cfg(test)]
mod tests;
