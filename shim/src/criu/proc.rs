//! What `/proc` tells of a container's processes.

use std::fs;

/// The size of a page; resident sizes are counted in these.
const PAGE_SIZE: u64 = 4096;

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

/// The state letter of a process: R, S, D, T (stopped), t (traced), Z, X; none if it is gone.
pub fn state(pid: i32) -> Option<char> {
    parse_stat(&stat(pid)?).map(|(state, _)| state)
}

/// Whether a signal stopped it.
pub fn is_stopped(pid: i32) -> bool {
    state(pid) == Some('T')
}

/// Whether it is neither gone nor a zombie.
pub fn is_running(pid: i32) -> bool {
    state(pid).is_some_and(|state| !matches!(state, 'Z' | 'X'))
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
    fn we_are_running_and_have_memory() {
        let pid = std::process::id().cast_signed();
        assert!(is_running(pid) && !is_stopped(pid) && resident_bytes(&[pid]) > 0);
        assert!(!is_running(i32::MAX));
    }
}
