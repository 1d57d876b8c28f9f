//! What a killed CRIU leaves of a dump with established connections.
//!
//! CRIU locks the container's network namespace and puts the connections into repair mode, and takes both back when it
//! fails. When it is killed it does not, and the application goes on with a network that drops every packet, or with
//! sockets that answer every write with EPERM (tried). The lock is one chain of iptables, or one table of nftables, named
//! after CRIU; which of them depends on its build.

use std::fs::{self, DirEntry, File};
use std::io::{self, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use nix::libc;
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::sockopt::TcpRepair;
use nix::sys::socket::{getsockopt, setsockopt};
use tokio::time::{sleep, timeout};

use crate::reap::{Child, Reaper};

/// What CRIU itself feeds to iptables-restore to unlock; naming the chain empties it.
const UNLOCK: &str = "*filter\n:CRIU - [0:0]\n-D INPUT -j CRIU\n-D OUTPUT -j CRIU\n-X CRIU\nCOMMIT\n";

/// From `linux/tcp.h`.
const REPAIR_OFF: u32 = 0;
const REPAIR_ON: u32 = 1;

/// How often the lock is looked for, and the pause between: CRIU's tools take milliseconds, and only a dump with
/// connections that has failed comes here.
const ROUNDS: u32 = 3;
const ROUND_PAUSE: Duration = Duration::from_millis(50);

/// Each of the tools takes milliseconds, and waits for others that change the same tables.
const TOOL_DEADLINE: Duration = Duration::from_secs(10);

/// Removes the lock from the network namespace of a container's init. True if one was there.
///
/// More than once: the tool that a killed CRIU had started may still be on its way to lock.
pub async fn remove(reaper: &Arc<Reaper>, init: i32) -> bool {
    let mut removed = false;
    for round in 0..ROUNDS {
        if round > 0 {
            sleep(ROUND_PAUSE).await;
        }
        removed |= remove_once(reaper, init).await;
    }
    removed
}

async fn remove_once(reaper: &Arc<Reaper>, init: i32) -> bool {
    let table = format!("CRIU-{init}");
    let tools: [(&str, &[&str], &str); 3] = [
        ("iptables-restore", &["-w", "--noflush"], UNLOCK),
        ("ip6tables-restore", &["-w", "--noflush"], UNLOCK),
        ("nft", &["delete", "table", "inet", &table], ""),
    ];
    let mut removed = false;
    for (tool, arguments, input) in tools {
        let mut command = Command::new(tool);
        let _ = command
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        match run(reaper, init, command, input).await {
            Ok(0) => removed = true,
            // No such chain: the lock is of another kind.
            Ok(status) => tracing::debug!(tool, status, "no lock of this kind"),
            Err(error) => tracing::debug!(tool, %error, "failed to look for a lock of this kind"),
        }
    }
    removed
}

/// Takes every TCP socket of these processes out of repair mode. Returns how many were in it.
pub fn end_repair(pids: &[i32]) -> usize {
    let sockets = pids.iter().flat_map(|pid| sockets_of(*pid));
    sockets
        .filter(|socket| getsockopt(socket, TcpRepair) == Ok(REPAIR_ON))
        .filter(leave_repair)
        .count()
}

fn leave_repair(socket: &OwnedFd) -> bool {
    setsockopt(socket, TcpRepair, &REPAIR_OFF)
        .inspect_err(|error| tracing::warn!(%error, "a connection stays in repair mode"))
        .is_ok()
}

/// Duplicates of the sockets a process has open.
fn sockets_of(pid: i32) -> Vec<OwnedFd> {
    let Ok(process) = pidfd(pid) else {
        return Vec::new();
    };
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fd")) else {
        return Vec::new();
    };
    let is_socket = |entry: &DirEntry| {
        fs::read_link(entry.path()).is_ok_and(|link| link.to_string_lossy().starts_with("socket:"))
    };
    let numbers = entries
        .flatten()
        .filter(is_socket)
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    numbers
        .filter_map(|number| duplicate(&process, number).ok())
        .collect()
}

#[allow(unsafe_code)]
fn pidfd(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: the call takes two numbers and touches no memory of ours; a descriptor it returns is new and ours.
    unsafe { owned(libc::syscall(libc::SYS_pidfd_open, pid, 0)) }
}

/// The descriptor of that number of a process, as one of ours.
#[allow(unsafe_code)]
fn duplicate(process: &OwnedFd, number: i32) -> io::Result<OwnedFd> {
    // SAFETY: as above, and the process' descriptor is open for as long as it is borrowed.
    unsafe {
        owned(libc::syscall(
            libc::SYS_pidfd_getfd,
            process.as_raw_fd(),
            number,
            0,
        ))
    }
}

/// # Safety
/// The result is of a system call that returns a new descriptor.
#[allow(unsafe_code)]
unsafe fn owned(result: libc::c_long) -> io::Result<OwnedFd> {
    match i32::try_from(result) {
        // SAFETY: the caller's promise.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

async fn run(reaper: &Arc<Reaper>, init: i32, command: Command, input: &str) -> io::Result<u32> {
    let mut child = spawn_inside(reaper, init, command)?;
    if let Some(mut stdin) = child.stdin.take() {
        // A tool that does not read says why by its status.
        let _ = stdin.write_all(input.as_bytes());
    }
    match timeout(TOOL_DEADLINE, child.exit.wait()).await {
        Ok(exit) => Ok(exit.status),
        Err(_) => {
            super::stray::kill(child.pid);
            Err(io::ErrorKind::TimedOut.into())
        }
    }
}

/// Spawns in the network namespace of a process: a thread of its own enters it and ends.
fn spawn_inside(reaper: &Arc<Reaper>, init: i32, mut command: Command) -> io::Result<Child> {
    let namespace = File::open(format!("/proc/{init}/ns/net"))?;
    let spawn = || {
        setns(&namespace, CloneFlags::CLONE_NEWNET)?;
        reaper.spawn(&mut command)
    };
    thread::scope(|scope| {
        scope
            .spawn(spawn)
            .join()
            .map_err(|_| io::Error::other("the thread panicked"))?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_of_a_process_is_found_and_is_not_in_repair_mode() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("listen");
        let pid = std::process::id().cast_signed();
        assert!(!sockets_of(pid).is_empty());
        assert_eq!(end_repair(&[pid, i32::MAX]), 0);
        drop(listener);
    }

    #[tokio::test]
    async fn the_lock_of_a_process_that_is_gone_is_none() {
        assert!(!remove(&Reaper::new(), i32::MAX).await);
    }
}
