//! What `/proc` tells of a container's processes.

use std::fs;
use std::os::unix::fs::MetadataExt;

/// The size of a page; resident sizes are counted in these.
const PAGE_SIZE: u64 = 4096;

/// Where the parent of a vfork waits, by the kernel's function; the names changed over time.
const VFORK_WAITS: [&str; 4] = ["kernel_clone", "wait_for_vfork_done", "_do_fork", "do_fork"];

/// Where a stopped task waits, by the kernel's function.
const STOP_WAIT: &str = "do_signal_stop";

/// Looking at a thread costs 10 µs; a process with more threads than this is not one that starts programs all the time.
const THREADS_MAX: usize = 1024;

/// SIGKILL in a mask of `/proc/PID/status`.
const KILL_BIT: u64 = 1 << (nix::libc::SIGKILL - 1);

/// The memory that is present, in bytes, all processes together. Shared pages count for each.
pub fn resident_bytes(pids: &[i32]) -> u64 {
    let pages = |pid: &i32| {
        let text = fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
        text.split_ascii_whitespace().nth(1)?.parse::<u64>().ok()
    };
    pids.iter()
        .filter_map(pages)
        .sum::<u64>()
        .saturating_mul(PAGE_SIZE)
}

/// What was taken out of memory, in bytes, all processes together.
pub fn swapped_bytes(pids: &[i32]) -> u64 {
    let kib = |pid: &i32| parse_swap(&fs::read_to_string(format!("/proc/{pid}/status")).ok()?);
    pids.iter().filter_map(kib).sum::<u64>().saturating_mul(1024)
}

fn parse_swap(status: &str) -> Option<u64> {
    let swap = status.lines().find_map(|line| line.strip_prefix("VmSwap:"))?;
    swap.trim().strip_suffix("kB")?.trim().parse().ok()
}

/// How many threads a process has; none if it is gone.
pub fn threads(pid: i32) -> u64 {
    // One link for each, and those that every directory has.
    let links = fs::metadata(format!("/proc/{pid}/task")).map_or(0, |task| task.nlink());
    links.saturating_sub(2)
}

/// Whether a process is in the network namespace of this one. If it cannot be told, it is: what is the host's is left alone.
pub fn shares_network(pid: i32) -> bool {
    let of = |process: &str| fs::read_link(format!("/proc/{process}/ns/net")).ok();
    of(&pid.to_string()).is_none_or(|network| of("self") == Some(network))
}

/// The state letter of a process: R, S, D, T (stopped), t (traced), Z, X; none if it is gone.
pub fn state(pid: i32) -> Option<char> {
    parse_stat(&stat(pid)?).map(|(state, _)| state)
}

/// Whether a signal stopped it. What is stopped and frozen calls itself D, like all that is frozen under cgroup v1, and
/// only what it waits in tells it apart.
pub fn is_stopped(pid: i32) -> bool {
    let waits_in = || fs::read_to_string(format!("/proc/{pid}/wchan")).unwrap_or_default();
    match state(pid) {
        Some('T') => true,
        Some('D') => waits_in().trim_end() == STOP_WAIT,
        _ => false,
    }
}

/// Whether it is neither gone nor a zombie.
pub fn is_running(pid: i32) -> bool {
    state(pid).is_some_and(|state| !matches!(state, 'Z' | 'X'))
}

/// Whether it is alive and nobody has killed it. What is frozen under cgroup v1 keeps its death waiting.
pub fn is_unharmed(pid: i32) -> bool {
    // A task on its way out has given its memory back, and with it its program.
    let has_program = fs::read_link(format!("/proc/{pid}/exe")).is_ok();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    has_program && is_running(pid) && !is_killed(&status)
}

fn is_killed(status: &str) -> bool {
    let lines = status.lines().filter_map(|line| {
        line.strip_prefix("SigPnd:")
            .or_else(|| line.strip_prefix("ShdPnd:"))
    });
    lines
        .filter_map(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .any(|mask| mask & KILL_BIT != 0)
}

/// Whether a thread of it waits for a child of its own vfork (or posix_spawn) to execute. A kernel that hides what tasks
/// wait for answers no.
pub fn is_vforking(pid: i32) -> bool {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return false;
    };
    threads.flatten().take(THREADS_MAX).any(|thread| {
        fs::read_to_string(thread.path().join("wchan"))
            .is_ok_and(|wait| VFORK_WAITS.contains(&wait.trim_end()))
    })
}

/// Whether it is still runc's init, on the way to the container's own program. Its executable lies outside the container,
/// where no restore could find it.
pub fn is_launching(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.starts_with("runc:["))
}

/// Its parent, in our pid namespace.
pub fn parent(pid: i32) -> Option<i32> {
    parse_stat(&stat(pid)?).map(|(_, parent)| parent)
}

/// Its pid in its own pid namespace.
pub fn inner_pid(pid: i32) -> Option<i32> {
    parse_inner_pid(&fs::read_to_string(format!("/proc/{pid}/status")).ok()?)
}

fn stat(pid: i32) -> Option<String> {
    fs::read_to_string(format!("/proc/{pid}/stat")).ok()
}

/// `7 (name) S 1 …`; the name may hold anything, brackets and spaces too.
fn parse_stat(stat: &str) -> Option<(char, i32)> {
    let (_, rest) = stat.rsplit_once(") ")?;
    let mut fields = rest.split_ascii_whitespace();
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}

fn parse_inner_pid(status: &str) -> Option<i32> {
    let pids = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
    pids.split_ascii_whitespace().last()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn state_and_parent_are_read_whatever_the_process_calls_itself() {
        for (stat, expected) in [
            ("7 (sh) S 1 7 7 0", Some(('S', 1))),
            ("7 (a) T 9 (b) T 2 7", Some(('T', 2))),
            ("7 (sh", None),
            ("7 (sh) S", None),
            ("", None),
        ] {
            assert_eq!(parse_stat(stat), expected, "{stat}");
        }
    }

    #[test]
    fn the_inner_pid_is_the_last_one() {
        assert_eq!(parse_inner_pid("Pid:\t812\nNSpid:\t812\t7\n"), Some(7));
        assert_eq!(parse_inner_pid("Pid:\t812\nNSpid:\t812\n"), Some(812));
        assert_eq!(parse_inner_pid("Pid:\t812\n"), None);
    }

    #[test]
    fn swap_is_read_and_threads_are_counted() {
        assert_eq!(parse_swap("Name:\tsh\nVmSwap:\t      12 kB\n"), Some(12));
        assert_eq!(parse_swap("Name:\tkthread\n"), None);
        let us = std::process::id().cast_signed();
        assert!(threads(us) >= 1);
        assert_eq!((threads(i32::MAX), swapped_bytes(&[i32::MAX])), (0, 0));
    }

    #[test]
    fn a_death_that_waits_is_seen() {
        for (status, expected) in [
            ("SigPnd:\t0000000000000000\nShdPnd:\t0000000000000100\n", true),
            ("SigPnd:\t0000000000000100\nShdPnd:\t0000000000000000\n", true),
            ("SigPnd:\t0000000000000000\nShdPnd:\t0000000000040000\n", false),
            ("Name:\tsh\n", false),
        ] {
            assert_eq!(is_killed(status), expected, "{status}");
        }
        assert!(is_unharmed(std::process::id().cast_signed()));
        assert!(!is_unharmed(i32::MAX));
    }

    #[test]
    fn we_are_not_in_a_vfork() {
        assert!(!is_vforking(std::process::id().cast_signed()));
        assert!(!is_vforking(i32::MAX));
    }

    #[test]
    fn we_are_running_and_have_memory() {
        let pid = std::process::id().cast_signed();
        assert!(is_running(pid) && !is_stopped(pid) && resident_bytes(&[pid]) > 0);
        assert!(!is_running(i32::MAX));
    }
}
