//! The cgroup of a container that runc may not know any more, or not yet: a server that dies during `runc create` leaves
//! processes and cgroups for which there is no `state.json`.

use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getpid};

use crate::options::is_systemd_path;
use crate::runc::fast;
use crate::start::hierarchies;

/// How long killed processes may take to leave. Part of the five seconds that containerd gives us.
const LEAVE_LIMIT: Duration = Duration::from_millis(1500);

/// First and longest pause between two looks at a cgroup that is becoming empty.
const LOOK_PAUSE: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(50));

/// How deep cgroups below the container's are looked for; no runtime nests that far.
const DEPTH_MAX: u32 = 32;

/// Directories of one cgroup, one in each hierarchy that has it.
#[derive(Debug)]
pub(crate) struct Leftover {
    directories: Vec<PathBuf>,
}

impl Leftover {
    /// The container's cgroup, from what runc noted of it or from what its specification asked for.
    pub(crate) fn find(state: &Path, cgroups_path: &str) -> Self {
        let mut directories = fast::cgroup_dirs(state).unwrap_or_default();
        if let Some(path) = relative(cgroups_path) {
            directories.extend(hierarchies().into_iter().map(|hierarchy| hierarchy.join(&path)));
        }
        directories.sort();
        directories.dedup();
        directories.retain(|directory| directory.is_dir());
        Self { directories }
    }

    /// Whether there is no such cgroup at all.
    pub(crate) fn is_nothing(&self) -> bool {
        self.directories.is_empty()
    }

    /// All processes in it.
    pub(crate) fn members(&self) -> Vec<i32> {
        let mut pids = Vec::new();
        for directory in &self.directories {
            collect(directory, 0, &mut pids);
        }
        pids.sort_unstable();
        pids.dedup();
        pids
    }

    /// Kills what is in it and removes it. Returns what could not be.
    pub(crate) fn remove(&self) -> Vec<String> {
        let end = Instant::now() + LEAVE_LIMIT;
        let (mut pause, pause_max) = LOOK_PAUSE;
        loop {
            let members = self.members();
            if members.contains(&getpid().as_raw()) {
                return vec![format!(
                    "this process is in the container's cgroup {:?}",
                    self.directories
                )];
            }
            for pid in &members {
                // Gone already is as good.
                let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
            }
            self.thaw();
            let left: Vec<_> = self
                .directories
                .iter()
                .filter_map(|directory| remove_tree(directory, 0).err())
                .collect();
            if left.is_empty() || Instant::now() >= end {
                return left;
            }
            sleep(pause);
            pause = pause_max.min(pause * 2);
        }
    }

    /// A frozen process does not die on cgroup v1.
    fn thaw(&self) {
        for directory in &self.directories {
            for (file, thawed) in [("freezer.state", "THAWED"), ("cgroup.freeze", "0")] {
                if directory.join(file).exists() {
                    // If that fails its processes stay, and are complained about.
                    let _ = fs::write(directory.join(file), thawed);
                }
            }
        }
    }
}

/// Path of a cgroup within each hierarchy, from the form in a specification. None for one that is not the container's own: empty,
/// the root, or leading out.
fn relative(cgroups_path: &str) -> Option<PathBuf> {
    let path = if is_systemd_path(cgroups_path) {
        scope(cgroups_path)?
    } else {
        // A relative path would be below the cgroup that the server was in.
        cgroups_path.strip_prefix('/')?.trim_start_matches('/').to_owned()
    };
    let path = PathBuf::from(path);
    let is_plain = path.components().all(|part| matches!(part, Component::Normal(_)));
    (is_plain && path.components().next().is_some()).then_some(path)
}

/// Where systemd puts `slice:prefix:name`: the slice below those it is named after, the unit in it.
fn scope(cgroups_path: &str) -> Option<String> {
    let mut parts = cgroups_path.split(':');
    let (slice, prefix, name) = (parts.next()?, parts.next()?, parts.next()?);
    let unit = match prefix {
        _ if name.ends_with(".slice") => name.to_owned(),
        "" => format!("{name}.scope"),
        prefix => format!("{prefix}-{name}.scope"),
    };
    let slice = if slice.is_empty() { "system.slice" } else { slice };
    let stem = slice.strip_suffix(".slice")?;
    let dashes = stem.match_indices('-').map(|(at, _)| at).filter(|at| *at > 0);
    let mut path: String = dashes
        .filter_map(|at| stem.get(..at))
        .map(|parent| format!("{parent}.slice/"))
        .collect();
    if stem != "-" {
        path.push_str(slice);
        path.push('/');
    }
    Some(path + &unit)
}

/// Pids of a cgroup and those below. What vanishes while it is read has no processes.
fn collect(directory: &Path, depth: u32, pids: &mut Vec<i32>) {
    let text = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
    // A zero stands for a process of another pid namespace, which cannot be one of ours.
    pids.extend(
        text.lines()
            .filter_map(|line| line.parse::<i32>().ok())
            .filter(|pid| *pid > 0),
    );
    for child in children(directory, depth) {
        collect(&child, depth + 1, pids);
    }
}

fn remove_tree(directory: &Path, depth: u32) -> Result<(), String> {
    for child in children(directory, depth) {
        remove_tree(&child, depth + 1)?;
    }
    match fs::remove_dir(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(format!("remove cgroup {}: {error}", directory.display()))
        }
        _ => Ok(()),
    }
}

fn children(directory: &Path, depth: u32) -> Vec<PathBuf> {
    if depth >= DEPTH_MAX {
        return Vec::new();
    }
    let Ok(entries) = fs::read_dir(directory) else {
        return Vec::new();
    };
    let is_cgroup = |entry: &fs::DirEntry| entry.file_type().is_ok_and(|kind| kind.is_dir());
    entries
        .flatten()
        .filter(is_cgroup)
        .map(|entry| entry.path())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cgroups_are_found_by_what_the_specification_says() {
        let cases = [
            ("/default/c", Some("default/c")),
            ("//default/c", Some("default/c")),
            ("system.slice:docker:c", Some("system.slice/docker-c.scope")),
            (":docker:c", Some("system.slice/docker-c.scope")),
            ("-.slice:docker:c", Some("docker-c.scope")),
            ("a.slice::c", Some("a.slice/c.scope")),
            ("a-b.slice:x:c", Some("a.slice/a-b.slice/x-c.scope")),
            ("a.slice:x:b.slice", Some("a.slice/b.slice")),
            (
                "kubepods-burstable-pod1.slice:cri-containerd:c",
                Some(
                    "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice/cri-containerd-c.scope",
                ),
            ),
            ("", None),
            ("/", None),
            ("c", None),
            ("/../c", None),
            ("/a/../../c", None),
            ("a:b:c", None),
        ];
        for (path, want) in cases {
            assert_eq!(relative(path), want.map(PathBuf::from), "{path}");
        }
    }

    #[test]
    fn processes_are_found_in_the_whole_tree_and_only_existing_directories_count() {
        let root = tempfile::tempdir().unwrap();
        let child = root.path().join("a/b");
        fs::create_dir_all(&child).unwrap();
        fs::write(root.path().join("cgroup.procs"), "7\n0\n").unwrap();
        fs::write(child.join("cgroup.procs"), "5\n7\n").unwrap();
        let leftover = Leftover {
            directories: vec![root.path().to_owned()],
        };
        assert_eq!(leftover.members(), [5, 7]);
        assert!(
            Leftover::find(Path::new("/nonexistent"), "/not/there")
                .directories
                .is_empty()
        );
    }
}
