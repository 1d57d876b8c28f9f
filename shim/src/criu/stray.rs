//! A CRIU whose runc is gone.
//!
//! Killing runc does not stop the CRIU it started: the tasks stay seized and the application stands still. Killing CRIU
//! itself in the middle of a dump is nearly always safe: the code it put into each task sees its socket close, gives the
//! registers back, and the task goes on (tried with CRIU 4.1 and 4.2, TERM and KILL). Only in the millisecond of the putting
//! does a task end by SIGTRAP (one of eight kills aimed at it), so CRIU is never killed while it may still end by itself.
//! It is found in two ways: it traces the tasks, and as an orphan it has become our child.

use std::fs;
use std::time::Duration;

use nix::sys::signal::{Signal, kill as send};
use nix::unistd::Pid;
use tokio::time::{Instant, sleep};

use super::proc;

/// How often we look whether a killed CRIU is gone. It is gone in about a millisecond.
const LOOK_INTERVAL: Duration = Duration::from_millis(2);

/// How long a CRIU that lost its runc, and whoever took its pages, may take to find that out and to take everything back. Killed, it
/// might be in the very millisecond in which it must not be.
const PATIENCE: Duration = Duration::from_secs(3);

/// After SIGTERM CRIU may still put things away (its network lock); a CRIU stuck in the kernel never will.
const GRACE: Duration = Duration::from_millis(500);

/// What CRIU is asked by itself, and holds no process for.
const QUESTIONS: [&[u8]; 2] = [b"--version", b"check"];

/// A Go program has some ten threads.
const THREADS_MAX: usize = 256;

/// How long a process on its way out may take; large address spaces are torn down at about 10 GiB/s.
const DEADLINE: Duration = Duration::from_secs(10);

/// Waits a little for them to end by themselves, as they do once their readers are gone. True when none is left.
pub async fn end_by_themselves(pids: &[i32]) -> bool {
    let start = Instant::now();
    while is_any(pids) {
        if start.elapsed() > PATIENCE {
            return false;
        }
        sleep(LOOK_INTERVAL).await;
    }
    true
}

/// Kills every CRIU that holds one of these processes or was orphaned to us. True when none is left.
///
/// `pids` are the container's processes, in our pid namespace. A CRIU that another container's runc is waiting for is
/// that runc's child and does not trace ours, so it is never touched.
pub async fn kill_all(pids: &[i32]) -> bool {
    let start = Instant::now();
    let mut found = find(pids);
    for pid in &found {
        tracing::warn!(pid, "killing a criu whose runc is gone");
        signal(*pid, Signal::SIGTERM);
    }
    while !found.is_empty() && start.elapsed() < DEADLINE {
        sleep(LOOK_INTERVAL).await;
        found = find(pids);
        if start.elapsed() > GRACE {
            found.iter().for_each(|pid| kill(*pid));
        }
    }
    found.is_empty()
}

/// Whether a CRIU holds one of these processes or was orphaned to us.
pub fn is_any(pids: &[i32]) -> bool {
    !find(pids).is_empty()
}

/// Whether this runc's CRIU has ended and runc does not see it. It waits for the end of its socket to CRIU first, and what
/// a killed CRIU leaves half way (its helper, the container's first process) holds the other end open for ever (seen in
/// one of six kills, runc 1.3).
pub fn has_lost_criu(runc: i32) -> bool {
    let Ok(threads) = fs::read_dir(format!("/proc/{runc}/task")) else {
        return false;
    };
    let mut children = threads.flatten().take(THREADS_MAX).flat_map(|thread| {
        let text = fs::read_to_string(thread.path().join("children")).unwrap_or_default();
        text.split_ascii_whitespace()
            .filter_map(|pid| pid.parse().ok())
            .collect::<Vec<i32>>()
    });
    children.any(|pid| {
        let comm = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        comm.trim_end() == "criu" && !proc::is_running(pid)
    })
}

/// Sends SIGKILL; a process that is gone is fine.
pub fn kill(pid: i32) {
    signal(pid, Signal::SIGKILL);
}

/// Sends a signal; failing means that the process is gone, which callers look for themselves.
pub fn signal(pid: i32, signal: Signal) {
    if let Err(error) = send(Pid::from_raw(pid), signal) {
        tracing::debug!(pid, %signal, %error, "failed to signal a process");
    }
}

fn find(pids: &[i32]) -> Vec<i32> {
    let mut found: Vec<i32> = pids.iter().filter_map(|pid| tracer_of(*pid)).collect();
    found.extend(orphans());
    found.sort_unstable();
    found.dedup();
    found.retain(|pid| is_criu(*pid));
    found
}

fn tracer_of(pid: i32) -> Option<i32> {
    parse_tracer(&fs::read_to_string(format!("/proc/{pid}/status")).ok()?)
}

fn parse_tracer(status: &str) -> Option<i32> {
    let value = status.lines().find_map(|line| line.strip_prefix("TracerPid:"))?;
    value.trim().parse().ok().filter(|pid| *pid != 0)
}

/// Children of ours; a CRIU among them has lost its runc, for we never start one to dump or restore.
fn orphans() -> Vec<i32> {
    let children = fs::read_to_string("/proc/thread-self/children").unwrap_or_default();
    children
        .split_ascii_whitespace()
        .filter_map(|pid| pid.parse().ok())
        .collect()
}

/// Its command name is `criu`; a debugger that traces a container is left alone.
fn is_criu(pid: i32) -> bool {
    let comm = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    comm.trim_end() == "criu" && is_at_work(&arguments)
}

/// Whether these arguments, each ended by a zero, are of one that dumps or restores: we start others to ask it something. A process without
/// arguments has ended.
fn is_at_work(arguments: &[u8]) -> bool {
    let mut all = arguments.split(|byte| *byte == 0);
    !arguments.is_empty() && !all.any(|argument| QUESTIONS.contains(&argument))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tracer_is_read_from_the_status() {
        for (status, expected) in [
            ("Name:\tsh\nTracerPid:\t4711\nUid:\t0\n", Some(4711)),
            ("Name:\tsh\nTracerPid:\t0\n", None),
            ("Name:\tsh\n", None),
            ("", None),
        ] {
            assert_eq!(parse_tracer(status), expected, "{status:?}");
        }
    }

    #[test]
    fn a_criu_that_is_asked_something_is_not_at_work() {
        for (arguments, expected) in [
            (&b"criu\0swrk\x003\0"[..], true),
            (b"criu\0restore\0-D\0/check\0", true),
            (b"criu\0--version\0", false),
            (b"/usr/sbin/criu\0check\0", false),
            (b"", false),
        ] {
            assert_eq!(is_at_work(arguments), expected, "{}", arguments.escape_ascii());
        }
    }

    #[tokio::test]
    async fn nothing_is_killed_where_there_is_no_criu() {
        assert!(kill_all(&[std::process::id().cast_signed()]).await);
    }
}
