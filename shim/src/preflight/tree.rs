//! Which processes a dump takes: the container's init and what descends from it.
//!
//! What is in the container's cgroup and descends from somebody else came in by exec. CRIU leaves it out, and it goes on
//! when the container is left running.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::io;

use jobs::preflight::Severity;

use super::findings::{Findings, shown};
use super::read;
use crate::cgroup::Cgroup;
use crate::criu::proc;

/// A container with more processes is not looked through to the end.
const PROCESSES_MAX: usize = 4096;

/// A process with more threads is not looked through to the end.
const THREADS_MAX: usize = 4096;

/// The kinds of namespaces that matter to CRIU.
pub(super) const NAMESPACES: [&str; 5] = ["user", "pid", "net", "ipc", "uts"];

/// A process of the container.
#[derive(Debug, Clone)]
pub(super) struct Process {
    /// Its pid on the host.
    pub(super) pid: i32,
    /// Its pid in the container.
    pub(super) inner_pid: i32,
    /// What it calls itself.
    pub(super) name: String,
    /// Its namespaces by kind, as the kernel links them: `net:[4026531840]`.
    pub(super) namespaces: BTreeMap<&'static str, String>,
}

/// The processes of a container.
#[derive(Debug, Default)]
pub(super) struct Tree {
    /// Those that a dump takes, the init first.
    pub(super) processes: Vec<Process>,
    /// All namespaces of all of them, mount namespaces too.
    pub(super) namespaces: HashSet<String>,
}

/// The tree below a container's init.
///
/// # Errors
/// The init cannot be looked at.
pub(super) fn of(init: i32, findings: &mut Findings) -> io::Result<Tree> {
    // The one look whose failure is told: without the right to follow this link nothing else would be seen either.
    let _ = fs::read_link(format!("/proc/{init}/ns/pid"))?;
    let mut pids = vec![init];
    let mut next = 0;
    while let Some(pid) = pids.get(next).copied() {
        next += 1;
        if pids.len() > PROCESSES_MAX {
            pids.truncate(PROCESSES_MAX);
            findings.unseen(format!("processes beyond the first {PROCESSES_MAX}"));
            break;
        }
        pids.extend(children(pid));
    }
    let taken: HashSet<i32> = pids.iter().copied().collect();
    note_strangers(init, &taken, findings);
    let mut tree = Tree::default();
    for pid in pids {
        let Some(process) = process(pid) else { continue };
        tree.namespaces.extend(process.namespaces.values().cloned());
        tree.namespaces.extend(
            ["mnt", "cgroup", "time"]
                .iter()
                .filter_map(|kind| namespace(pid, kind)),
        );
        tree.processes.push(process);
    }
    Ok(tree)
}

/// The processes whose parent is a thread of this one.
fn children(pid: i32) -> Vec<i32> {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return Vec::new();
    };
    let lists = threads
        .flatten()
        .take(THREADS_MAX)
        .filter_map(|thread| read::text(thread.path().join("children"), read::FILE_BYTES_MAX).ok());
    lists.flat_map(|list| parse_children(&list)).collect()
}

fn parse_children(list: &str) -> Vec<i32> {
    list.split_ascii_whitespace()
        .filter_map(|word| word.parse().ok())
        .collect()
}

/// Says which processes of the cgroup are not in the tree.
fn note_strangers(init: i32, taken: &HashSet<i32>, findings: &mut Findings) {
    let Ok(cgroup) = Cgroup::of_pid(init) else {
        findings.unseen("processes outside of the init's tree: the container's cgroup is not mounted here");
        return;
    };
    // A container in the cgroup of a whole session (`runc` without one of its own) has all kinds of neighbours.
    if cgroup.is_shared() {
        return;
    }
    let strangers: Vec<String> = cgroup
        .procs()
        .into_iter()
        .filter(|pid| !taken.contains(pid) && proc::is_running(*pid))
        .filter_map(process)
        .map(|process| format!("{} ({})", process.pid, process.name))
        .collect();
    if !strangers.is_empty() {
        findings.add(
            "exec",
            Severity::NotSaved,
            format!(
                "{} process(es) came in by exec and are not part of a dump: {}",
                strangers.len(),
                shown(&strangers)
            ),
            "let them end first if their work matters",
        );
    }
}

fn process(pid: i32) -> Option<Process> {
    let name = read::text(format!("/proc/{pid}/comm"), read::FILE_BYTES_MAX).ok()?;
    let namespaces = NAMESPACES
        .iter()
        .filter_map(|kind| Some((*kind, namespace(pid, kind)?)))
        .collect();
    Some(Process {
        pid,
        inner_pid: proc::inner_pid(pid).unwrap_or(pid),
        name: name.trim_end().to_owned(),
        namespaces,
    })
}

/// A namespace of a process, as the kernel links it.
pub(super) fn namespace(pid: i32, kind: &str) -> Option<String> {
    let link = fs::read_link(format!("/proc/{pid}/ns/{kind}")).ok()?;
    Some(link.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn children_are_a_list_of_pids() {
        for (list, expected) in [("7 12 ", vec![7, 12]), ("", vec![]), ("x 3", vec![3])] {
            assert_eq!(parse_children(list), expected, "{list:?}");
        }
    }

    #[test]
    fn a_child_of_ours_is_in_our_tree() {
        let mut child = Command::new("sleep").arg("100").spawn().unwrap();
        let tree = of(std::process::id().cast_signed(), &mut Findings::default()).unwrap();
        let pids: Vec<i32> = tree.processes.iter().map(|process| process.pid).collect();
        child.kill().unwrap();
        let _status = child.wait().unwrap();
        assert!(pids.contains(&child.id().cast_signed()), "{pids:?}");
        assert_eq!(pids.first().copied(), Some(std::process::id().cast_signed()));
    }
}
