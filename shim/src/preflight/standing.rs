//! How a process stands: in which namespaces, traced by whom, in what state.

use std::collections::BTreeMap;
use std::fs;

use jobs::preflight::Severity;

use super::findings::Findings;
use super::read;
use super::tree::{self, Process};
use crate::criu::proc;

/// A process with more threads is not looked through to the end.
const THREADS_MAX: usize = 4096;

const NESTED_REMEDY: &str = "stop what made it (a sandbox, a nested container)";

/// Looks at what the whole container has in common with the host.
pub(super) fn look_at_init(init: i32, findings: &mut Findings) {
    let own = std::process::id().cast_signed();
    if tree::namespace(init, "pid").is_some_and(|of_init| tree::namespace(own, "pid") == Some(of_init)) {
        findings.add(
            "host-pids",
            Severity::Note,
            "the container has the host's pids: a restore fails if one of them is taken by then",
            "run it in a pid namespace of its own",
        );
    }
}

/// Looks at one process of the container of `init`.
pub(super) fn look(process: &Process, init: i32, findings: &mut Findings) {
    if process.pid != init {
        look_at_namespaces(process, init, findings);
    }
    look_at_tracer(process, findings);
    // In the cgroup v1 freezer everything is in state D; what is not frozen and stays there holds a dump up.
    if proc::state(process.pid) == Some('D') && !is_frozen(process.pid) {
        findings.add_of(
            process,
            "uninterruptible",
            Severity::Note,
            "waits in the kernel and cannot be stopped until that ends",
            "if it stays so, look for a disk or network file system that does not answer",
        );
    }
}

fn look_at_namespaces(process: &Process, init: i32, findings: &mut Findings) {
    let of_init: BTreeMap<&str, String> = tree::NAMESPACES
        .iter()
        .filter_map(|kind| Some((*kind, tree::namespace(init, kind)?)))
        .collect();
    for kind in nested(&process.namespaces, &of_init) {
        findings.add_of(
            process,
            &format!("nested-{kind}-namespace"),
            Severity::Blocks,
            &format!("has entered another {kind} namespace, which CRIU cannot save"),
            NESTED_REMEDY,
        );
    }
}

/// The kinds in which a process is not where the init is.
fn nested(own: &BTreeMap<&'static str, String>, of_init: &BTreeMap<&str, String>) -> Vec<&'static str> {
    own.iter()
        .filter(|(kind, link)| of_init.get(*kind).is_some_and(|of_init| of_init != *link))
        .map(|(kind, _)| *kind)
        .collect()
}

fn look_at_tracer(process: &Process, findings: &mut Findings) {
    let Ok(threads) = fs::read_dir(format!("/proc/{}/task", process.pid)) else {
        return;
    };
    let tracer = threads.flatten().take(THREADS_MAX).find_map(|thread| {
        let status = read::text(thread.path().join("status"), read::FILE_BYTES_MAX).ok()?;
        read::number(&status, "TracerPid").filter(|pid| *pid != 0)
    });
    let Some(tracer) = tracer else { return };
    let name = read::text(format!("/proc/{tracer}/comm"), read::FILE_BYTES_MAX).unwrap_or_default();
    let name = name.trim_end();
    if name == "criu" {
        findings.add_of(
            process,
            "dump-under-way",
            Severity::Note,
            &format!("is being dumped or restored by CRIU ({tracer}) at this moment"),
            "wait until that has ended",
        );
    } else {
        findings.add_of(
            process,
            "traced",
            Severity::Blocks,
            &format!("is traced by process {tracer} ({name}), and a process has one tracer only"),
            "end the debugger or tracer",
        );
    }
}

fn is_frozen(pid: i32) -> bool {
    crate::cgroup::Cgroup::of_pid(pid).is_ok_and(|cgroup| cgroup.is_frozen())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nested_is_what_differs_from_the_init() {
        let init = BTreeMap::from([("net", "net:[1]".to_owned()), ("pid", "pid:[2]".to_owned())]);
        for (own, expected) in [
            (vec![("net", "net:[1]"), ("pid", "pid:[2]")], vec![]),
            (vec![("net", "net:[7]"), ("pid", "pid:[2]")], vec!["net"]),
            (vec![("user", "user:[7]")], vec![]),
            (vec![("net", "net:[7]"), ("pid", "pid:[8]")], vec!["net", "pid"]),
        ] {
            let own: BTreeMap<&'static str, String> = own
                .into_iter()
                .map(|(kind, link)| (kind, link.to_owned()))
                .collect();
            assert_eq!(nested(&own, &init), expected, "{own:?}");
        }
    }
}
