//! What has no safe interface about descriptors: polling one, moving bytes between two, owning a received one, setting a
//! terminal's size.
#![expect(
    unsafe_code,
    reason = "tokio wants a promise, nix returns received descriptors as numbers, and neither has splice or ioctl"
)]

use std::io::{self, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::libc;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Room for the text that comes along: runc and crun send the pty's name, which is of no use to us.
const TEXT_BYTES: usize = 4096;

/// Puts a non-blocking descriptor on the runtime.
///
/// # Errors
/// `PermissionDenied` for what cannot be polled, such as a regular file.
pub(super) fn poll(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` owns its descriptor, and names the same open one for as long as it lives.
    Ok(unsafe { AsyncFd::register_with_interest(fd, interest) }?)
}

/// Moves up to `length` bytes from one non-blocking pipe to another without copying them.
///
/// # Errors
/// `WouldBlock` if there is nothing to move or no room for it; `InvalidInput` if neither is a pipe.
pub(super) fn splice(from: BorrowedFd<'_>, to: BorrowedFd<'_>, length: usize) -> io::Result<usize> {
    let no_offset = std::ptr::null_mut();
    let (from, to) = (from.as_raw_fd(), to.as_raw_fd());
    // SAFETY: both descriptors are open for as long as they are borrowed, and no memory is passed.
    let moved = unsafe { libc::splice(from, no_offset, to, no_offset, length, libc::SPLICE_F_NONBLOCK) };
    usize::try_from(moved).map_err(|_| io::Error::last_os_error())
}

/// Receives one descriptor, close-on-exec; further ones in the same message are closed.
///
/// # Errors
/// `WouldBlock` if nothing was sent yet; `InvalidData` if what was sent is no descriptor.
pub(super) fn receive(socket: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let mut text = [0; TEXT_BYTES];
    let mut parts = [IoSliceMut::new(&mut text)];
    let mut control = nix::cmsg_space!([libc::c_int; 1]);
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut control), flags)?;
    let mut received = None;
    for control in message.cmsgs()? {
        let ControlMessageOwned::ScmRights(descriptors) = control else {
            continue;
        };
        for descriptor in descriptors {
            // SAFETY: the kernel has just opened this descriptor for us, and nobody else in this process knows it.
            let descriptor = unsafe { OwnedFd::from_raw_fd(descriptor) };
            received = received.or(Some(descriptor));
        }
    }
    received.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the message holds no descriptor"))
}

/// Sets the size of the terminal behind `master`, in characters; its foreground processes get SIGWINCH.
pub(super) fn set_size(master: BorrowedFd<'_>, width: u16, height: u16) -> io::Result<()> {
    let size = libc::winsize {
        ws_row: height,
        ws_col: width,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: TIOCSWINSZ reads one winsize, and the pointer is to a live one.
    let rc = unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
    if rc == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
