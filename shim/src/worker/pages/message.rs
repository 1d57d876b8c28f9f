//! Messages on sockets that may carry a descriptor.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};

/// Receives up to `bytes.len()` bytes, and the descriptor that came with them, close-on-exec. No bytes: the other end is closed.
///
/// # Errors
/// What the kernel says; `WouldBlock` if nothing is there.
pub(super) fn receive(socket: BorrowedFd<'_>, bytes: &mut [u8]) -> io::Result<(usize, Option<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC;
    let message = recvmsg(socket, &mut [IoSliceMut::new(bytes)], &mut control, flags)?;
    let mut received = None;
    for control in control.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = control {
            // Whatever comes beside the first is closed.
            received = descriptors.fold(received, |first: Option<OwnedFd>, next| first.or(Some(next)));
        }
    }
    Ok((message.bytes, received))
}

/// Sends bytes, and a descriptor with them.
///
/// # Errors
/// What the kernel says; nobody gets a signal.
pub(super) fn send(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    descriptor: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors: Vec<_> = descriptor.into_iter().collect();
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let flags = SendFlags::NOSIGNAL;
    let _ = sendmsg(socket, &[IoSlice::new(bytes)], &mut control, flags)?;
    Ok(())
}
