//! What in a container CRIU cannot save, found by looking at its processes.
//!
//! CRIU's log names a descriptor of its own or an inode; a user needs the process and what it holds. So after a failed
//! dump the processes are looked through for the things that no CRIU saves. It is not asked before a dump: a newer CRIU
//! may have learned to save one of them.

use std::fs;

/// More than these would not be read by a person.
const CULPRITS_MAX: usize = 5;

/// A container with more descriptors than this is not looked through to the end.
const DESCRIPTORS_MAX: usize = 16 * 1024;

/// What a descriptor's link begins with, and what it is.
const UNSAVABLE: &[(&str, &str)] = &[
    ("anon_inode:[io_uring]", "an io_uring"),
    ("anon_inode:[perf_event]", "a perf event"),
    ("anon_inode:[userfaultfd]", "a userfaultfd"),
    ("anon_inode:bpf-", "a BPF object"),
    ("anon_inode:[landlock-ruleset]", "a landlock ruleset"),
    ("/secretmem", "secret memory"),
    ("/dev/nvidia", "an NVIDIA device"),
    ("/dev/kfd", "an AMD GPU"),
    ("/dev/dri/", "a graphics device"),
];

/// One line for each thing found: which process holds what.
pub fn find(pids: &[i32]) -> Vec<String> {
    let mut found = Vec::new();
    let mut seen = 0;
    for pid in pids {
        let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fd")) else {
            continue;
        };
        for entry in entries.flatten() {
            seen += 1;
            if found.len() >= CULPRITS_MAX || seen > DESCRIPTORS_MAX {
                return found;
            }
            let Ok(link) = fs::read_link(entry.path()) else {
                continue;
            };
            if let Some(what) = unsavable(&link.to_string_lossy()) {
                found.push(line(*pid, &entry.file_name().to_string_lossy(), what));
            }
        }
    }
    found
}

/// What a link of `/proc/PID/fd`, or a path of `maps`, says is there, if no CRIU saves it.
pub(crate) fn unsavable(link: &str) -> Option<&'static str> {
    UNSAVABLE
        .iter()
        .find(|(prefix, _)| link.starts_with(prefix))
        .map(|(_, what)| *what)
}

fn line(pid: i32, descriptor: &str, what: &str) -> String {
    let comm = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    format!(
        "process {pid} ({}) has {what} open as descriptor {descriptor}",
        comm.trim_end()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_saved_is_told_from_its_link() {
        for (link, expected) in [
            ("anon_inode:[io_uring]", Some("an io_uring")),
            ("anon_inode:bpf-map", Some("a BPF object")),
            ("/secretmem (deleted)", Some("secret memory")),
            ("/dev/nvidia0", Some("an NVIDIA device")),
            ("anon_inode:[eventpoll]", None),
            ("/home/secretmem", None),
            ("pipe:[7]", None),
        ] {
            assert_eq!(unsavable(link), expected, "{link}");
        }
    }
}
