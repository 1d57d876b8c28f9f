//! What the memory of our shim's worker is at its peak: a process that lives for one dump, watched while it does.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};

/// The program and the argument by which a worker is known.
const PROGRAM: &str = "containerd-shim-cedana-v1";
/// The program, where the file has been replaced since the shim was started.
const REPLACED: &str = "/proc/self/exe";
const ROLE: &str = "capture";
/// The kernel keeps the peak itself, so only the last moments can be missed, in which a worker gives memory back.
const INTERVAL: Duration = Duration::from_millis(20);

/// Memory of a worker, in KiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peak {
    /// Most of it that was ever resident.
    pub resident: u64,
    /// Its buffer for pages: its largest mapping.
    pub buffer: u64,
}

impl Peak {
    /// A worker that is on its way out has given its buffer back already.
    fn or_more(self, earlier: Option<Self>) -> Self {
        earlier.map_or(self, |earlier| Self {
            resident: self.resident.max(earlier.resident),
            buffer: self.buffer.max(earlier.buffer),
        })
    }
}

/// Looks for a worker until it is told to stop.
#[derive(Debug)]
pub struct Watch {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Option<Peak>>,
}

impl Watch {
    /// Begins; no other dump may be running.
    pub fn start() -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let mut peak = None;
            while !stopped.load(Ordering::Relaxed) {
                let now = worker().and_then(peak_of);
                peak = now.map(|now| now.or_more(peak)).or(peak);
                thread::sleep(INTERVAL);
            }
            peak
        });
        Self { stop, thread }
    }

    /// What was seen.
    ///
    /// # Errors
    /// There was no worker.
    pub fn end(self) -> Result<Peak> {
        self.stop.store(true, Ordering::Relaxed);
        let seen = self.thread.join().map_err(|_| anyhow!("the watch panicked"))?;
        seen.context("no worker was seen")
    }
}

fn worker() -> Option<u32> {
    let pids = fs::read_dir("/proc")
        .ok()?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.into_iter().find(|pid: &u32| {
        fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|line| is_worker(&line))
    })
}

fn is_worker(cmdline: &str) -> bool {
    let mut words = cmdline.split('\0');
    words
        .next()
        .is_some_and(|program| program.ends_with(PROGRAM) || program == REPLACED)
        && words.next() == Some(ROLE)
}

fn peak_of(pid: u32) -> Option<Peak> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).ok()?;
    Some(Peak {
        resident: status.lines().find_map(|line| {
            line.strip_prefix("VmHWM:")?
                .trim()
                .strip_suffix(" kB")?
                .parse()
                .ok()
        })?,
        buffer: maps.lines().filter_map(length).max()? / 1024,
    })
}

/// Length of the mapping in a line of `maps`, in bytes.
fn length(line: &str) -> Option<u64> {
    let (start, rest) = line.split_once('-')?;
    let (end, _) = rest.split_once(' ')?;
    let address = |text| u64::from_str_radix(text, 16).ok();
    address(end)?.checked_sub(address(start)?)
}

#[cfg(test)]
mod tests {
    use super::{is_worker, length};

    #[test]
    fn worker_is_known_by_program_and_argument() {
        for (line, expected) in [
            ("/usr/local/bin/containerd-shim-cedana-v1\0capture\0", true),
            (
                "/usr/local/bin/containerd-shim-cedana-v1\0-namespace\0capture\0",
                false,
            ),
            ("/proc/self/exe\0capture\0", true),
            ("vi\0capture\0", false),
            ("", false),
        ] {
            assert_eq!(is_worker(line), expected, "{line:?}");
        }
    }

    #[test]
    fn length_is_between_the_addresses() {
        for (line, expected) in [
            ("7f0000000000-7f0000100000 rw-p 00000000 00:00 0 ", Some(1 << 20)),
            ("7f0000000000", None),
        ] {
            assert_eq!(length(line), expected, "{line}");
        }
    }
}
