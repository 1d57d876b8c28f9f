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
    /// Its buffer for pages: its largest piece of memory.
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
        buffer: longest(&maps) / 1024,
    })
}

/// The longest stretch of memory that belongs to no file, in bytes: the kernel shows it in several mappings where only some of it has huge
/// pages.
fn longest(maps: &str) -> u64 {
    let (mut longest, mut begin, mut end) = (0, 0, 0);
    for (from, to) in maps.lines().filter_map(anonymous) {
        if from != end {
            begin = from;
        }
        end = to;
        longest = longest.max(end - begin);
    }
    longest
}

/// The stacks of threads stand beside it; they are no part of it.
const STACK_BYTES: u64 = 2 << 20;

/// Where the mapping in a line of `maps` begins and ends, if it belongs to no file.
fn anonymous(line: &str) -> Option<(u64, u64)> {
    let mut words = line.split_whitespace();
    let (begin, end) = words.next()?.split_once('-')?;
    let address = |text| u64::from_str_radix(text, 16).ok();
    // Offset, device and inode come before the name.
    let is_memory = words.next()? == "rw-p" && words.nth(3).is_none();
    let (begin, end) = (address(begin)?, address(end)?);
    (is_memory && end.checked_sub(begin)? > STACK_BYTES).then_some((begin, end))
}

#[cfg(test)]
mod tests {
    use super::{is_worker, longest};

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
    fn what_adjoins_is_one_piece() {
        let maps = "1000000-9000000 r-xp 00000000 08:01 77 /usr/bin/x\n10000000-10200000 rw-p 00000000 00:00 0\n\
                    10200000-10800000 rw-p 00000000 00:00 0\n10800000-11200000 rw-p 00000000 00:00 0 \n\
                    11200000-19000000 ---p 00000000 00:00 0\n7f0000000000\n20000000-20800000 rw-p 00000000 00:00 0 [heap]\n";
        assert_eq!(longest(maps), 16 << 20);
        assert_eq!(longest(""), 0);
    }
}
