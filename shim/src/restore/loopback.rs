//! The loopback interface of a restored container.
//!
//! runc brings `lo` up when it creates a network namespace. At a restore the namespace is made by CRIU, which is told by
//! runc to leave networks alone, and `lo` stays down: what listens on 127.0.0.1 is restored and cannot be reached.

use std::env;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::thread;

use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket,
};
use nix::sys::time::TimeVal;

/// The first interface of every network namespace is `lo`.
const LOOPBACK_INDEX: i32 = 1;

/// From `linux/netlink.h`, `linux/rtnetlink.h` and `linux/if.h`.
const RTM_NEWLINK: u16 = 16;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLMSG_ERROR: u16 = 2;
const IFF_UP: u32 = 1;

/// A `nlmsghdr` and an `ifinfomsg`, 16 bytes each.
const REQUEST_LENGTH: u32 = 32;

/// The thread opens two files and sends one message.
const STACK_SIZE: usize = 128 * 1024;

/// The kernel answers at once, or waits for other changes to networks, which take milliseconds.
const ANSWER_SECONDS_MAX: i64 = 5;

/// What CRIU tells a script in its environment: at which stage it is, and the restored init in our pid namespace.
const STAGE: &str = "CRTOOLS_SCRIPT_ACTION";
const INIT_PID: &str = "CRTOOLS_INIT_PID";

/// The stage at which a dump is written, and its tasks stand.
const IMAGES_WRITTEN: &str = "post-dump";

/// The stage at which the namespaces are there and nothing of the processes is.
const NAMESPACES_MADE: &str = "setup-namespaces";

/// The script for CRIU: this program, which then finds [`STAGE`] in its environment. CRIU executes the path as it is, with
/// no arguments, and the bundle may be on a file system that is mounted noexec.
///
/// # Errors
/// The program's own file cannot be found: it was replaced while it ran.
pub(crate) fn script() -> io::Result<PathBuf> {
    let path = env::current_exe()?;
    if path.exists() {
        Ok(path)
    } else {
        Err(io::Error::new(
            io::ErrorKind::NotFound,
            path.display().to_string(),
        ))
    }
}

/// Does what CRIU's script is for, if this program was started as one.
pub fn run_as_script() -> Option<io::Result<()>> {
    let stage = env::var_os(STAGE)?;
    if stage == IMAGES_WRITTEN {
        return Some(crate::dump::hold::ask_as_script());
    }
    if stage != NAMESPACES_MADE {
        return Some(Ok(()));
    }
    let pid = env::var(INIT_PID).ok().and_then(|pid| pid.parse().ok());
    Some(
        pid.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, format!("{INIT_PID} is no pid")))
            .and_then(raise),
    )
}

/// Brings `lo` up in the network namespace of a process.
///
/// A thread of its own enters the namespace and ends there, so that nothing else ever runs in the wrong one.
///
/// # Errors
/// The process is gone, or what the kernel says.
pub(super) fn raise(pid: i32) -> io::Result<()> {
    let namespace = File::open(format!("/proc/{pid}/ns/net"))?;
    let enter = move || {
        setns(&namespace, CloneFlags::CLONE_NEWNET)?;
        ask()
    };
    let thread = thread::Builder::new()
        .name("loopback".to_owned())
        .stack_size(STACK_SIZE)
        .spawn(enter)?;
    thread
        .join()
        .map_err(|_| io::Error::other("the thread panicked"))?
}

fn ask() -> io::Result<()> {
    let socket = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkRoute,
    )?;
    let limit = TimeVal::new(ANSWER_SECONDS_MAX, 0);
    nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::ReceiveTimeout, &limit)?;
    let _ = sendto(
        socket.as_raw_fd(),
        &request(),
        &NetlinkAddr::new(0, 0),
        MsgFlags::empty(),
    )?;
    let mut answer = [0; 256];
    let length = recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    parse(answer.get(..length).unwrap_or_default())
}

/// Sets the flag "up" of `lo` and no other.
fn request() -> Vec<u8> {
    let mut message = Vec::new();
    message.extend(REQUEST_LENGTH.to_ne_bytes());
    message.extend(RTM_NEWLINK.to_ne_bytes());
    message.extend((NLM_F_REQUEST | NLM_F_ACK).to_ne_bytes());
    message.extend([0; 8]); // sequence, port: there is only this one message
    message.extend([0; 4]); // family, padding, type
    message.extend(LOOPBACK_INDEX.to_ne_bytes());
    message.extend(IFF_UP.to_ne_bytes()); // the flags
    message.extend(IFF_UP.to_ne_bytes()); // which of them change
    message
}

/// The answer is an error message, whose error is zero for success.
fn parse(answer: &[u8]) -> io::Result<()> {
    let malformed = || io::Error::new(io::ErrorKind::InvalidData, "not an answer of rtnetlink");
    let kind = answer
        .get(4..6)
        .and_then(|bytes| bytes.try_into().ok())
        .map(u16::from_ne_bytes);
    let code = answer
        .get(16..20)
        .and_then(|bytes| bytes.try_into().ok())
        .map(i32::from_ne_bytes);
    match (kind, code) {
        (Some(NLMSG_ERROR), Some(0)) => Ok(()),
        (Some(NLMSG_ERROR), Some(code)) => Err(io::Error::from_raw_os_error(-code)),
        _ => Err(malformed()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_success_an_error_or_nonsense() {
        let answer = |kind: u16, code: i32| {
            let mut bytes = vec![0; 20];
            bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
            bytes[16..].copy_from_slice(&code.to_ne_bytes());
            bytes
        };
        assert!(parse(&answer(NLMSG_ERROR, 0)).is_ok());
        assert!(parse(&answer(NLMSG_ERROR, -1)).is_err_and(|error| error.raw_os_error() == Some(1)));
        assert!(parse(&answer(3, 0)).is_err());
        assert!(parse(&[]).is_err());
        assert_eq!(request().len(), 32);
    }

    #[test]
    fn a_process_that_is_gone_is_an_error() {
        assert!(raise(i32::MAX).is_err_and(|error| error.kind() == io::ErrorKind::NotFound));
    }
}
