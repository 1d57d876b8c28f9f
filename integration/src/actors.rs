//! Who takes part in a dump or a restore, found by what the machine shows of them.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use nix::unistd::Pid;

use crate::leftovers::command_line;

/// How long one may take to come; the slowest, CRIU, needs 50 ms.
const COMES_WITHIN: Duration = Duration::from_secs(20);

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Actor {
    /// The container's shim.
    Shim,
    /// The worker that takes pages for a dump, or gives them after a restore.
    Worker,
    /// runc, as the shim has started it.
    Runc,
    /// The CRIU that runc has started, not the one that only said its version.
    Criu,
    /// What CRIU runs to ask whether the container may end.
    Script,
}

impl Actor {
    /// Waits until it is there, under this shim.
    ///
    /// # Errors
    /// It does not come.
    pub fn find(self, shim: i32) -> Result<Pid> {
        poll(&format!("{self:?} of the shim {shim}"), || {
            self.now(shim).map(Pid::from_raw)
        })
    }

    /// It, if it is there now.
    pub fn now(self, shim: i32) -> Option<i32> {
        let child = |of: i32, is: &dyn Fn(&str) -> bool| {
            let mut children = pids().into_iter().filter(|pid| field(*pid, "PPid:") == Some(of));
            children.find(|pid| command_line(*pid).is_some_and(|line| is(&line)))
        };
        let runc = || child(shim, &|line| line.contains("runc "));
        match self {
            Self::Shim => Some(shim),
            Self::Worker => child(shim, &|line| {
                line.ends_with(" capture") || line.contains(" worker ")
            }),
            Self::Runc => runc(),
            // It writes into its command line what it was asked for.
            Self::Criu => child(runc()?, &|line| line.starts_with("criu: ")),
            Self::Script => child(Self::Criu.now(shim)?, &|line| {
                line.contains("containerd-shim-cedana")
            }),
        }
    }
}

/// Looks again and again, every millisecond, because the moment looked for is short.
///
/// # Errors
/// It does not come.
pub fn poll<T>(what: &str, look: impl Fn() -> Option<T>) -> Result<T> {
    let end = Instant::now() + COMES_WITHIN;
    loop {
        if let Some(found) = look() {
            return Ok(found);
        }
        if Instant::now() > end {
            bail!("waited {COMES_WITHIN:?} for {what}");
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A number in `/proc/PID/status`.
pub fn field(pid: i32, name: &str) -> Option<i32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let value = status.lines().find_map(|line| line.strip_prefix(name))?;
    // Some have a unit.
    value.split_whitespace().next()?.parse().ok()
}

/// All processes.
pub fn pids() -> Vec<i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}
