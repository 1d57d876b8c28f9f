//! Stops a process exactly where a test wants it: at a system call that has to do with a file.
//!
//! The programs under test have no hooks for this. `strace` follows them and has the kernel stop whoever makes the call, right
//! after it was made; what is stopped then can be killed, and so can anybody else, with nothing left to chance.

use std::collections::HashMap;
use std::fs;
use std::process::Command;

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::attached::Attached;

/// The call that is waited for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// Its name, as strace has it; several are separated by commas.
    pub name: &'static str,
    /// The first path among its arguments, or that of a descriptor among them, exactly as the caller writes it.
    pub path: String,
    /// How often each thread makes it before it counts; the first is 1.
    pub nth: u32,
}

/// Who is followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Follow {
    /// The process and its threads.
    Process,
    /// All programs that it starts too.
    Programs,
}

/// A call that is waited for. Dropped, nobody is followed any more; who is stopped stays so.
#[derive(Debug)]
pub struct Tripwire {
    strace: Attached,
    call: Call,
}

impl Tripwire {
    /// Sets one for a process that runs. When this returns, no call is missed.
    ///
    /// # Errors
    /// strace is not there, or may not.
    pub fn set(pid: i32, follow: Follow, call: &Call) -> Result<Self> {
        let mut command = Command::new("strace");
        let inject = format!("inject={}:signal=SIGSTOP:when={}", call.name, call.nth);
        let trace = format!("trace={}", call.name);
        let _command = command
            .args([
                "-f",
                "-o",
                "/dev/stdout",
                "-e",
                &trace,
                "-e",
                &inject,
                "-P",
                &call.path,
            ])
            .args(["-p", &pid.to_string()]);
        if follow == Follow::Process {
            let _command = command.args(["-b", "execve"]);
        }
        let strace = Attached::start(&mut command)?;
        // It also says which path it looks for.
        while !strace
            .error_line()
            .context("follow by strace")?
            .contains(" attached")
        {}
        let call = call.clone();
        Ok(Self { strace, call })
    }

    /// Waits for the call; returns who made it, and stands still now.
    ///
    /// # Errors
    /// Nobody makes it.
    pub fn sprung(self) -> Result<Pid> {
        let (mut made, mut callers) = (HashMap::new(), Vec::new());
        loop {
            let line = self.strace.line().context("wait for the call")?;
            let (thread, rest) = line.split_once(' ').unwrap_or_default();
            let name = rest.trim_start().split('(').next().unwrap_or_default();
            if self.call.name.split(',').any(|one| one == name) {
                let count = made.entry(thread.to_owned()).or_insert(0);
                *count += 1;
                if *count == self.call.nth {
                    callers.push(process_of(thread)?);
                }
            } else if rest.contains("--- stopped by SIGSTOP ---")
                // CRIU's helpers stop themselves for a moment.
                && let Ok(process) = process_of(thread)
                && callers.contains(&process)
            {
                return Ok(process);
            }
        }
    }
}

fn process_of(thread: &str) -> Result<Pid> {
    let path = format!("/proc/{thread}/status");
    let status = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let pid = status.lines().find_map(|line| line.strip_prefix("Tgid:"));
    let pid = pid.and_then(|pid| pid.trim().parse().ok());
    Ok(Pid::from_raw(pid.with_context(|| format!("a pid in {path}"))?))
}

/// Lets one go on that was stopped; one that is gone meanwhile needs no letting.
pub fn let_go(pid: Pid) {
    let _gone = kill(pid, Signal::SIGCONT);
}
