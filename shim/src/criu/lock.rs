//! The packet lock that a killed CRIU leaves.
//!
//! A dump with established connections locks the container's network namespace, and CRIU unlocks it when it fails. When
//! it is killed it does not, and the application goes on with a network that drops every packet (tried). What CRIU sets
//! is one chain of iptables, or one table of nftables, named after itself; which of them depends on its build.

use std::fs::File;
use std::io::{self, Write};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use tokio::time::timeout;

use crate::reap::{Child, Reaper};

/// What CRIU itself feeds to iptables-restore to unlock; naming the chain empties it.
const UNLOCK: &str = "*filter\n:CRIU - [0:0]\n-D INPUT -j CRIU\n-D OUTPUT -j CRIU\n-X CRIU\nCOMMIT\n";

/// Each of the tools takes milliseconds, and waits for others that change the same tables.
const TOOL_DEADLINE: Duration = Duration::from_secs(10);

/// Removes the lock from the network namespace of a container's init. True if one was there.
pub async fn remove(reaper: &Arc<Reaper>, init: i32) -> bool {
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

    #[tokio::test]
    async fn the_lock_of_a_process_that_is_gone_is_none() {
        assert!(!remove(&Reaper::new(), i32::MAX).await);
    }
}
