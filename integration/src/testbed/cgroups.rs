//! An instance's own cgroup in each hierarchy, so that what its containers leave can be found and removed.
//!
//! On cgroup v1 it lies below the testbed's own cgroup. On v2 it lies below the root, because a cgroup that
//! holds processes (as ours does) cannot have children with controllers. Inside, a cgroup namespace makes it look like
//! the root of everything.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use super::report::say;

/// Prefix of the cgroups' names; the process id of the testbed outside follows.
const PREFIX: &str = "cedana-testbed-";

/// The kernel lets go of a dead process's cgroup a little after the process is gone, and tells nobody (v1).
const REMOVAL_MAX: Duration = Duration::from_secs(10);
const REMOVAL_STEP: Duration = Duration::from_millis(10);

/// One mounted cgroup hierarchy, as the host has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hierarchy {
    /// Where it is mounted.
    pub mount_point: PathBuf,
    /// The mount's root within the hierarchy; not `/` where the host is a container itself.
    pub root: PathBuf,
    /// Options that mount the same hierarchy again (v1), nothing for v2.
    pub options: Option<String>,
}

/// The cgroups of one instance.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Cgroups {
    /// Each hierarchy, and the instance's directory in it.
    pub places: Vec<(Hierarchy, PathBuf)>,
}

impl Cgroups {
    /// Makes the cgroups of the instance whose testbed has this process id, and removes those of dead ones.
    pub fn create(testbed_pid: u32) -> Result<Self> {
        let mountinfo = fs::read_to_string("/proc/self/mountinfo").context("read /proc/self/mountinfo")?;
        let memberships = fs::read_to_string("/proc/self/cgroup").context("read /proc/self/cgroup")?;
        let hierarchies = hierarchies(&mountinfo);
        let only_v2 = hierarchies.iter().all(|one| one.options.is_none());
        let parent = |hierarchy: &Hierarchy| {
            if only_v2 {
                hierarchy.mount_point.clone()
            } else {
                own(hierarchy, &memberships)
            }
        };
        let stale = Self {
            places: hierarchies
                .iter()
                .flat_map(|one| stale(&parent(one)).into_iter().map(|at| (one.clone(), at)))
                .collect(),
        };
        stale.thaw();
        if let Err(error) = stale.remove() {
            say(&format!(
                "an earlier instance is not quite gone: failed to {error}"
            ));
        }
        let mut made = Self { places: Vec::new() };
        for hierarchy in hierarchies {
            let parent = parent(&hierarchy);
            let place = parent.join(format!("{PREFIX}{testbed_pid}"));
            fs::create_dir(&place).with_context(|| format!("make cgroup {}", place.display()))?;
            made.places.push((hierarchy, place.clone()));
            prepare(&parent, &place, only_v2)?;
        }
        if made.places.is_empty() {
            bail!("find a cgroup hierarchy: none is mounted");
        }
        Ok(made)
    }

    /// Puts the calling process into all of them.
    pub fn join(&self) -> Result<()> {
        for (_, place) in &self.places {
            // Zero stands for whoever writes it, whatever its number is in which pid namespace.
            fs::write(place.join("cgroup.procs"), "0")
                .with_context(|| format!("join cgroup {}", place.display()))?;
        }
        Ok(())
    }

    /// Thaws everything that is frozen in them. A process frozen by cgroup v1 does not even die of SIGKILL, and a pid
    /// namespace is not gone before its last process is.
    pub fn thaw(&self) {
        for (_, place) in &self.places {
            thaw_tree(place);
        }
    }

    /// The same, from inside, where each looks like the root of its hierarchy.
    pub fn thaw_inside(&self) {
        for (hierarchy, _) in &self.places {
            thaw_tree(&hierarchy.mount_point);
        }
    }

    /// Removes them with everything below. Goes on to the end; the error names what could not be removed.
    pub fn remove(&self) -> Result<()> {
        let deadline = Instant::now() + REMOVAL_MAX;
        let mut left: Vec<&PathBuf> = self.places.iter().map(|(_, place)| place).collect();
        loop {
            left.retain(|place| remove_tree(place).is_err());
            if left.is_empty() {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("remove cgroups {left:?}: something in them is still alive");
            }
            std::thread::sleep(REMOVAL_STEP);
        }
    }
}

/// Makes a new cgroup fit to hold processes and children.
fn prepare(parent: &Path, place: &Path, only_v2: bool) -> Result<()> {
    // A new v1 cpuset is empty, and no process may enter it until it has processors and memory.
    for setting in ["cpuset.cpus", "cpuset.mems"] {
        if !only_v2 && place.join(setting).exists() {
            let value = fs::read(parent.join(setting)).with_context(|| format!("read {setting}"))?;
            fs::write(place.join(setting), value).with_context(|| format!("write {setting}"))?;
        }
    }
    if only_v2 { delegate(parent) } else { Ok(()) }
}

/// Gives all controllers of a v2 cgroup to its children.
pub fn delegate(cgroup: &Path) -> Result<()> {
    let controllers =
        fs::read_to_string(cgroup.join("cgroup.controllers")).context("read cgroup.controllers")?;
    let enable: String = controllers
        .split_whitespace()
        .map(|name| format!("+{name} "))
        .collect();
    fs::write(cgroup.join("cgroup.subtree_control"), enable)
        .with_context(|| format!("give the controllers of {} to its children", cgroup.display()))
}

/// The cgroups of instances whose testbed was killed before it could remove them.
fn stale(parent: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(parent).into_iter().flatten().flatten();
    let of_the_dead = |entry: &fs::DirEntry| {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| name.strip_prefix(PREFIX));
        pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists())
    };
    entries.filter(of_the_dead).map(|entry| entry.path()).collect()
}

fn thaw_tree(cgroup: &Path) {
    let state = cgroup.join("freezer.state");
    if state.exists() {
        // It fails when the cgroup has just gone, which is as good.
        let _ = fs::write(&state, "THAWED");
    }
    for child in fs::read_dir(cgroup).into_iter().flatten().flatten() {
        if child.file_type().is_ok_and(|kind| kind.is_dir()) {
            thaw_tree(&child.path());
        }
    }
}

fn remove_tree(cgroup: &Path) -> std::io::Result<()> {
    let entries = match fs::read_dir(cgroup) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path())?;
        }
    }
    fs::remove_dir(cgroup)
}

/// The directory of our own cgroup in a hierarchy.
fn own(hierarchy: &Hierarchy, memberships: &str) -> PathBuf {
    let path = memberships.lines().find_map(|line| {
        let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
        let same = match &hierarchy.options {
            Some(options) => controllers
                .split(',')
                .eq(options.split(',').filter(|option| *option != "none")),
            None => controllers.is_empty(),
        };
        same.then_some(path)
    });
    let path = Path::new(path.unwrap_or("/"));
    hierarchy
        .mount_point
        .join(path.strip_prefix(&hierarchy.root).unwrap_or(Path::new("")))
}

/// The cgroup mounts among the lines of a mountinfo, each hierarchy once.
fn hierarchies(mountinfo: &str) -> Vec<Hierarchy> {
    let mut found: Vec<Hierarchy> = mountinfo.lines().filter_map(hierarchy).collect();
    let mut seen = Vec::new();
    found.retain(|one| {
        let fresh = !seen.contains(&one.options);
        seen.push(one.options.clone());
        fresh
    });
    found
}

fn hierarchy(line: &str) -> Option<Hierarchy> {
    let (mount, file_system) = line.split_once(" - ")?;
    let mut mount = mount.split(' ').skip(3);
    let (root, mount_point) = (mount.next()?, mount.next()?);
    let mut file_system = file_system.split(' ');
    let options = match file_system.next()? {
        "cgroup" => Some(remount_options(file_system.nth(1)?)),
        "cgroup2" => None,
        _ => return None,
    };
    Some(Hierarchy {
        mount_point: mount_point.into(),
        root: root.into(),
        options,
    })
}

/// The controllers, or the name, of a v1 hierarchy: the rest of its options the kernel takes only once.
fn remount_options(super_options: &str) -> String {
    let other = [
        "rw",
        "ro",
        "xattr",
        "clone_children",
        "noprefix",
        "cpuset_v2_mode",
    ];
    let kept: Vec<&str> = super_options
        .split(',')
        .filter(|option| !other.contains(option) && !option.starts_with("release_agent="))
        .collect();
    if kept.iter().any(|option| option.starts_with("name=")) {
        format!("none,{}", kept.join(","))
    } else {
        kept.join(",")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
29 23 0:25 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
30 29 0:26 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,release_agent=/lib/x,name=systemd
31 29 0:27 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
32 29 0:28 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
33 29 0:27 / /mnt/again rw - cgroup cgroup rw,cpu,cpuacct";

    #[test]
    fn hierarchies_are_found_once_with_the_options_that_mount_them_again() {
        let found: Vec<_> = hierarchies(HYBRID)
            .into_iter()
            .map(|one| {
                (
                    one.mount_point.display().to_string(),
                    one.options.unwrap_or_default(),
                )
            })
            .collect();
        let expected = [
            ("/sys/fs/cgroup/systemd", "none,name=systemd"),
            ("/sys/fs/cgroup/cpu,cpuacct", "cpu,cpuacct"),
            ("/sys/fs/cgroup/unified", ""),
        ];
        assert_eq!(
            found,
            expected.map(|(at, options)| (at.to_owned(), options.to_owned()))
        );
    }

    #[test]
    fn own_cgroup_is_below_the_mount_of_its_hierarchy() {
        let memberships = "3:cpu,cpuacct:/a/b\n2:name=systemd:/s\n0::/u\n";
        let at: Vec<_> = hierarchies(HYBRID)
            .iter()
            .map(|one| own(one, memberships))
            .collect();
        let expected = [
            "/sys/fs/cgroup/systemd/s",
            "/sys/fs/cgroup/cpu,cpuacct/a/b",
            "/sys/fs/cgroup/unified/u",
        ];
        assert_eq!(at, expected.map(PathBuf::from));
        let in_container =
            hierarchy("1 2 0:3 /a /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct").unwrap();
        assert_eq!(own(&in_container, memberships), Path::new("/sys/fs/cgroup/cpu/b"));
    }
}
