//! Where the server lives: its cgroup, and its place in the OOM killer's list.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Where cgroup hierarchies are mounted, by the convention that runc and containerd rely on too.
const CGROUP_ROOT: &str = "/sys/fs/cgroup";

/// The kernel's highest score: such a process is killed first.
const OOM_SCORE_MAX: i32 = 1000;

/// Moves the process to an existing cgroup: with cgroup v1 in every hierarchy that has it.
///
/// # Errors
/// `NotFound` if there is no such cgroup; else what the kernel says.
pub(super) fn join_cgroup(pid: u32, cgroup: &str) -> io::Result<()> {
    let members: Vec<PathBuf> = hierarchies()
        .into_iter()
        .map(|hierarchy| {
            hierarchy
                .join(cgroup.trim_start_matches('/'))
                .join("cgroup.procs")
        })
        .filter(|members| members.exists())
        .collect();
    if members.is_empty() {
        return Err(io::ErrorKind::NotFound.into());
    }
    members
        .iter()
        .try_for_each(|members| fs::write(members, pid.to_string()))
}

/// Has the OOM killer take the server before containerd, whose child we are: the loss of a server is the smaller one.
///
/// # Errors
/// What the kernel says about `/proc`.
pub(super) fn offer_to_oom_killer(pid: u32) -> io::Result<()> {
    let containerd = nix::unistd::getppid();
    let score = fs::read_to_string(format!("/proc/{containerd}/oom_score_adj"))?;
    match raised(score.trim()) {
        Some(score) => fs::write(format!("/proc/{pid}/oom_score_adj"), score.to_string()),
        None => Ok(()),
    }
}

/// One more than the score; none if that is not to be had.
fn raised(score: &str) -> Option<i32> {
    let score: i32 = score.parse().ok()?;
    (score < OOM_SCORE_MAX).then_some(score + 1)
}

/// The roots of all cgroup hierarchies; with cgroup v2 there is one.
pub(crate) fn hierarchies() -> Vec<PathBuf> {
    hierarchies_at(Path::new(CGROUP_ROOT))
}

fn hierarchies_at(root: &Path) -> Vec<PathBuf> {
    if root.join("cgroup.controllers").exists() {
        return vec![root.to_owned()];
    }
    let Ok(entries) = fs::read_dir(root) else {
        return Vec::new();
    };
    // Links are second names of hierarchies with several controllers (cpu -> cpu,cpuacct).
    let is_hierarchy = |entry: &fs::DirEntry| entry.file_type().is_ok_and(|kind| kind.is_dir());
    entries
        .flatten()
        .filter(is_hierarchy)
        .map(|entry| entry.path())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_are_raised_up_to_the_highest() {
        let cases = [
            ("0", Some(1)),
            ("-999", Some(-998)),
            ("999", Some(1000)),
            ("1000", None),
            ("", None),
            ("x", None),
        ];
        for (score, want) in cases {
            assert_eq!(raised(score), want, "{score}");
        }
    }

    #[test]
    fn hierarchies_are_directories_or_the_one_unified() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        fs::create_dir(root.join("cpu,cpuacct")).unwrap();
        std::os::unix::fs::symlink("cpu,cpuacct", root.join("cpu")).unwrap();
        assert_eq!(hierarchies_at(root), [root.join("cpu,cpuacct")]);
        fs::write(root.join("cgroup.controllers"), "").unwrap();
        assert_eq!(hierarchies_at(root), [root]);
        assert!(hierarchies_at(Path::new("/nonexistent")).is_empty());
    }
}
