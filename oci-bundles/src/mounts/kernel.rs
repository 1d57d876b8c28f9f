//! Kernel calls that no safe wrapper of ours has: the mount API of 5.2 and 5.12, and the loop device's. The one
//! place of this crate where unsafe code is allowed.
#![expect(unsafe_code, reason = "no crate in the graph wraps these calls")]

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::libc;

/// `include/uapi/linux/mount.h`; the same on every architecture.
const OPEN_TREE_CLONE: libc::c_uint = 1;
const OPEN_TREE_CLOEXEC: libc::c_uint = libc::O_CLOEXEC as libc::c_uint;
const AT_RECURSIVE: libc::c_uint = 0x8000;
const MOVE_MOUNT_F_EMPTY_PATH: libc::c_uint = 4;
const MOUNT_ATTR_IDMAP: u64 = 0x0010_0000;

/// `include/uapi/linux/loop.h`.
const LOOP_SET_FD: libc::Ioctl = 0x4c00;
const LOOP_CLR_FD: libc::Ioctl = 0x4c01;
const LOOP_SET_STATUS64: libc::Ioctl = 0x4c04;
const LOOP_SET_DIRECT_IO: libc::Ioctl = 0x4c08;
const LOOP_CONFIGURE: libc::Ioctl = 0x4c0a;
const LOOP_CTL_GET_FREE: libc::Ioctl = 0x4c82;
/// Flags of a loop device.
pub(super) const LO_FLAGS_READ_ONLY: u32 = 1;
pub(super) const LO_FLAGS_AUTOCLEAR: u32 = 4;
pub(super) const LO_FLAGS_DIRECT_IO: u32 = 16;

#[repr(C)]
struct MountAttr {
    attr_set: u64,
    attr_clr: u64,
    propagation: u64,
    userns_fd: u64,
}

/// `struct loop_info64`.
#[repr(C)]
#[derive(Clone, Copy)]
struct LoopInfo {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config`.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo,
    reserved: [u64; 8],
}

/// A detached copy of the mount at a path, with the mounts below it when recursive.
pub(super) fn clone_mount(path: &Path, is_recursive: bool) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | if is_recursive { AT_RECURSIVE } else { 0 };
    // SAFETY: the path is a string that ends in a zero byte and outlives the call; the kernel writes nothing.
    let fd = unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags) };
    owned(fd)
}

/// Lets a detached mount show ids through a user namespace.
pub(super) fn set_id_map(mount: &OwnedFd, users: BorrowedFd<'_>) -> io::Result<()> {
    let attr = MountAttr {
        attr_set: MOUNT_ATTR_IDMAP,
        attr_clr: 0,
        propagation: 0,
        userns_fd: u64::try_from(users.as_raw_fd()).map_err(io::Error::other)?,
    };
    // SAFETY: the empty path is static, and `attr` is a live struct of the layout and size that are given.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attr,
            size_of::<MountAttr>(),
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Attaches a detached mount at a path.
pub(super) fn attach_mount(mount: &OwnedFd, target: &Path) -> io::Result<()> {
    let target = CString::new(target.as_os_str().as_bytes())?;
    // SAFETY: both paths end in a zero byte and outlive the call; the kernel writes nothing.
    let result = unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_FDCWD,
            target.as_ptr(),
            MOVE_MOUNT_F_EMPTY_PATH,
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// A child in a new user namespace. It reads from `until` and exits at its end; it does not signal its exit, so a
/// reaper of ours never sees it, and [`wait_clone`] must be called.
pub(super) fn clone_into_user_namespace(until: &OwnedFd, held: &OwnedFd) -> io::Result<i32> {
    let flags = libc::CLONE_NEWUSER as libc::c_ulong;
    // SAFETY: without CLONE_VM and with no stack given, this is fork: the child has a copy of our memory. It makes
    // only calls that are safe after a fork of a process with threads (close, read, _exit), and never returns.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0usize, 0usize, 0usize, 0usize) };
    if pid == 0 {
        let mut byte = 0u8;
        // SAFETY: the descriptors are open in the copy, and one byte is room for one byte.
        unsafe {
            let _closed = libc::close(held.as_raw_fd());
            let _read = libc::read(until.as_raw_fd(), (&raw mut byte).cast(), 1);
            libc::_exit(0)
        }
    }
    if pid < 0 {
        return Err(io::Error::last_os_error());
    }
    i32::try_from(pid).map_err(io::Error::other)
}

/// Takes the exit of a child of [`clone_into_user_namespace`].
pub(super) fn wait_clone(pid: i32) {
    loop {
        // SAFETY: no status is asked for, so nothing is written.
        let result = unsafe { libc::waitpid(pid, std::ptr::null_mut(), libc::__WCLONE) };
        if result >= 0 || io::Error::last_os_error().raw_os_error() != Some(libc::EINTR) {
            return;
        }
    }
}

/// The number of a loop device that was free a moment ago.
pub(super) fn free_loop_device(control: &File) -> io::Result<u32> {
    // SAFETY: the request takes no argument.
    let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) };
    u32::try_from(number).map_err(|_| io::Error::last_os_error())
}

/// Puts a file behind a loop device; in one step where the kernel can (5.8), in three where it cannot.
pub(super) fn configure_loop_device(device: &File, file: &File, name: &Path, flags: u32) -> io::Result<()> {
    let mut file_name = [0; 64];
    // One byte stays zero; the name is only shown.
    for (to, from) in file_name.iter_mut().take(63).zip(name.as_os_str().as_bytes()) {
        *to = *from;
    }
    let info = LoopInfo {
        device: 0,
        inode: 0,
        rdevice: 0,
        offset: 0,
        size_limit: 0,
        number: 0,
        encrypt_type: 0,
        encrypt_key_size: 0,
        flags,
        file_name,
        crypt_name: [0; 64],
        encrypt_key: [0; 32],
        init: [0; 2],
    };
    let fd = u32::try_from(file.as_raw_fd()).map_err(io::Error::other)?;
    let config = LoopConfig {
        fd,
        block_size: 0,
        info,
        reserved: [0; 8],
    };
    // SAFETY: the request reads one `struct loop_config`, which is what the pointer points at.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, &raw const config) };
    if result == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EINVAL | libc::ENOTTY) => configure_in_steps(device, file, &info),
        _ => Err(error),
    }
}

fn configure_in_steps(device: &File, file: &File, info: &LoopInfo) -> io::Result<()> {
    let device = device.as_raw_fd();
    // SAFETY: the requests take an open descriptor, one `struct loop_info64` that is only read, and plain numbers.
    unsafe {
        if libc::ioctl(device, LOOP_SET_FD, file.as_raw_fd()) != 0 {
            return Err(io::Error::last_os_error());
        }
        let is_direct = info.flags & LO_FLAGS_DIRECT_IO != 0;
        if libc::ioctl(device, LOOP_SET_STATUS64, std::ptr::from_ref(info)) != 0
            || (is_direct && libc::ioctl(device, LOOP_SET_DIRECT_IO, 1) != 0)
        {
            let error = io::Error::last_os_error();
            let _cleared = libc::ioctl(device, LOOP_CLR_FD, 0);
            return Err(error);
        }
    }
    Ok(())
}

fn owned(fd: libc::c_long) -> io::Result<OwnedFd> {
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made this descriptor for us, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
