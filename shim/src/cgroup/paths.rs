//! From a pid to the directories of its cgroup.
//!
//! `/proc/PID/cgroup` names the cgroup relative to the reader's cgroup namespace, and `/proc/self/mountinfo` says
//! the same way which part of a hierarchy is mounted where; with both, nothing has to be guessed in a container
//! that has its own cgroup namespace, nor in one that sees a bind mount of its part of the host's.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Component, Path, PathBuf};
use std::sync::OnceLock;

use super::{Cgroup, CgroupError, Hierarchy, Tree, files};

/// The most that is read of `mountinfo`, in bytes: some 100 000 mounts; the kernel's limit is that many in one
/// namespace.
const MOUNTINFO_BYTES_MAX: u64 = 32 << 20;

/// Where a cgroup v2 mount makes the host a unified one, for runc and containerd as well.
const CGROUP_ROOT: &str = "/sys/fs/cgroup";

/// A mount of a cgroup hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Mount {
    /// What part of the hierarchy is mounted, seen from our cgroup namespace.
    root: PathBuf,
    point: PathBuf,
    /// Mount options of the hierarchy, among them its controllers; empty for cgroup v2.
    controllers: Option<Vec<String>>,
}

/// The cgroup of `/proc/<process>`, where `process` is a pid or `self`.
pub(super) fn of_process(process: &str) -> Result<Cgroup, CgroupError> {
    let path = Path::new("/proc").join(process).join("cgroup");
    let text = files::read(&path)?;
    let mounts = mounts()?;
    resolve(&text, mounts).ok_or_else(|| {
        CgroupError::Unsupported(format!(
            "no mounted cgroup hierarchy shows the cgroup of process {process}"
        ))
    })
}

/// The mounts of cgroup hierarchies. Read once: they do not change in the life of a shim, while `mountinfo` of a
/// busy host has thousands of lines.
fn mounts() -> Result<&'static [Mount], CgroupError> {
    static MOUNTS: OnceLock<Vec<Mount>> = OnceLock::new();
    if let Some(mounts) = MOUNTS.get() {
        return Ok(mounts);
    }
    let path = Path::new("/proc/self/mountinfo");
    let file = File::open(path).map_err(|error| files::failed("read", path, error))?;
    let mut found = Vec::new();
    for line in BufReader::new(file.take(MOUNTINFO_BYTES_MAX)).lines() {
        // Paths need not be UTF-8; such a line is not one of a cgroup.
        if let Some(mount) = line.ok().as_deref().and_then(parse_mount) {
            found.push(mount);
        }
    }
    Ok(MOUNTS.get_or_init(|| found))
}

/// One line of `mountinfo`, if it is a cgroup's.
fn parse_mount(line: &str) -> Option<Mount> {
    let (left, right) = line.split_once(" - ")?;
    let mut right = right.split(' ');
    let kind = right.next()?;
    let options = right.nth(1)?;
    let controllers = match kind {
        "cgroup" => Some(options.split(',').map(str::to_owned).collect()),
        "cgroup2" => None,
        _ => return None,
    };
    let mut left = left.split(' ').skip(3);
    let root = unescape(left.next()?);
    let point = unescape(left.next()?);
    Some(Mount {
        root: root.into(),
        point: point.into(),
        controllers,
    })
}

/// Undoes the kernel's octal escapes of space, tab, newline and backslash.
fn unescape(field: &str) -> String {
    let escapes = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")];
    if !field.contains('\\') {
        return field.to_owned();
    }
    escapes
        .iter()
        .fold(field.to_owned(), |text, (escape, character)| {
            text.replace(escape, character)
        })
}

/// What `/proc/PID/cgroup` says, found among the mounts. None when no mount shows it.
fn resolve(text: &str, mounts: &[Mount]) -> Option<Cgroup> {
    let is_unified = mounts
        .iter()
        .rfind(|mount| mount.point == Path::new(CGROUP_ROOT))
        .map_or_else(
            || mounts.iter().all(|mount| mount.controllers.is_none()),
            |mount| mount.controllers.is_none(),
        );
    let mut hierarchies: Vec<Hierarchy> = Vec::new();
    for line in text.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next()) else {
            continue;
        };
        let controllers: Vec<String> = controllers
            .split(',')
            .filter(|name| !name.is_empty())
            .map(str::to_owned)
            .collect();
        if is_unified && !controllers.is_empty() {
            continue;
        }
        // The kernel marks the cgroup of a zombie that has been removed.
        let path = path.strip_suffix(" (deleted)").unwrap_or(path);
        if let Some(dir) = directory(&controllers, Path::new(path), mounts)
            && !hierarchies.iter().any(|other| other.dir == dir)
        {
            hierarchies.push(Hierarchy { controllers, dir });
        }
    }
    if is_unified {
        return hierarchies.pop().map(|one| Cgroup {
            tree: Tree::V2(one.dir),
        });
    }
    if hierarchies.iter().all(|one| one.controllers.is_empty()) {
        return None;
    }
    Some(Cgroup {
        tree: Tree::V1(hierarchies),
    })
}

/// The directory that shows `path` of the hierarchy with these controllers.
fn directory(controllers: &[String], path: &Path, mounts: &[Mount]) -> Option<PathBuf> {
    let shows = |mount: &&Mount| match &mount.controllers {
        None => controllers.is_empty(),
        Some(names) => !controllers.is_empty() && controllers.iter().all(|name| names.contains(name)),
    };
    // A later mount hides an earlier one, and what is mounted elsewhere may be anybody's.
    let (usual, elsewhere): (Vec<&Mount>, Vec<&Mount>) = mounts
        .iter()
        .rev()
        .filter(shows)
        .partition(|mount| mount.point.starts_with(CGROUP_ROOT));
    usual.into_iter().chain(elsewhere).find_map(|mount| {
        let below = path.strip_prefix(&mount.root).ok()?;
        // `..` means a cgroup outside our namespace: the directory would be another one.
        let is_inside = below
            .components()
            .all(|part| matches!(part, Component::Normal(_)));
        is_inside.then(|| {
            if below.as_os_str().is_empty() {
                mount.point.clone()
            } else {
                mount.point.join(below)
            }
        })
    })
}

/// See [`Cgroup::enable_controllers`].
pub(super) fn enable_controllers(dir: &Path) -> Result<(), CgroupError> {
    let Some(root) = mounts()?
        .iter()
        .filter(|mount| mount.controllers.is_none())
        .find(|mount| dir.starts_with(&mount.point))
    else {
        return Ok(());
    };
    let available = files::read(&root.point.join("cgroup.controllers"))?;
    let mut ancestors: Vec<&Path> = dir
        .ancestors()
        .skip(1)
        .take_while(|above| above.starts_with(&root.point))
        .collect();
    ancestors.reverse();
    let mut result = Ok(());
    for ancestor in ancestors {
        let path = ancestor.join("cgroup.subtree_control");
        // Usually all are there, and a write would wait for the lock of all cgroups for nothing.
        let missing = files::read(&path).map(|enabled| to_enable(&available, &enabled));
        if let Err(error) = missing.and_then(|missing| enable(&path, &missing)) {
            result = Err(error);
        }
    }
    result
}

/// What to write so that all available controllers are enabled.
fn to_enable(available: &str, enabled: &str) -> Vec<String> {
    let is_missing = |name: &&str| !enabled.split_whitespace().any(|other| other == *name);
    available
        .split_whitespace()
        .filter(is_missing)
        .map(|name| format!("+{name}"))
        .collect()
}

/// All in one write; one by one when that is refused, because a single controller that cannot be enabled (cpu, with
/// realtime processes about) takes the others with it.
fn enable(path: &Path, controllers: &[String]) -> Result<(), CgroupError> {
    if controllers.is_empty() || files::write(path, &controllers.join(" ")).is_ok() {
        return Ok(());
    }
    let mut result = Ok(());
    for controller in controllers {
        if let Err(error) = files::write(path, controller) {
            result = Err(error);
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    const V1: &str = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw shared:4 - cgroup2 cgroup2 rw";
    const V2: &str = "35 24 0:30 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate";
    const NESTED: &str = "700 690 0:30 /docker/abc /sys/fs/cgroup ro - cgroup2 cgroup rw";

    #[track_caller]
    fn check(mountinfo: &str, cgroup: &str, dirs: Option<&[&str]>) {
        let mounts: Vec<Mount> = mountinfo.lines().filter_map(parse_mount).collect();
        let found = resolve(cgroup, &mounts);
        let found = found.as_ref().map(Cgroup::dirs);
        assert_eq!(found, dirs.map(|dirs| dirs.iter().map(Path::new).collect()));
    }

    #[test]
    fn a_unified_host_has_one_directory() {
        check(V2, "0::/default/c1\n", Some(&["/sys/fs/cgroup/default/c1"]));
        check(V2, "0::/\n", Some(&["/sys/fs/cgroup"]));
        check(
            V2,
            "5:memory:/m\n0::/system.slice/a b.scope (deleted)\n",
            Some(&["/sys/fs/cgroup/system.slice/a b.scope"]),
        );
        check(V2, "", None);
    }

    #[test]
    fn a_hybrid_host_has_one_directory_for_each_hierarchy() {
        check(
            V1,
            "9:name=systemd:/s\n4:memory:/default/c1\n1:cpu,cpuacct:/default/c1\n7:perf_event:/p\n0::/u\n",
            Some(&[
                "/sys/fs/cgroup/systemd/s",
                "/sys/fs/cgroup/memory/default/c1",
                "/sys/fs/cgroup/cpu,cpuacct/default/c1",
                "/sys/fs/cgroup/unified/u",
            ]),
        );
        check(V1, "0::/u\n", None);
    }

    #[test]
    fn a_mounted_part_and_a_namespace_are_honoured() {
        check(
            NESTED,
            "0::/docker/abc/default/c1\n",
            Some(&["/sys/fs/cgroup/default/c1"]),
        );
        check(NESTED, "0::/docker/abc\n", Some(&["/sys/fs/cgroup"]));
        check(NESTED, "0::/docker/other\n", None);
        check(V2, "0::/../neighbour\n", None);
    }

    #[test]
    fn a_unified_mount_over_the_root_decides_as_it_does_for_runc() {
        let over = format!("{V1}\n90 31 0:38 / /sys/fs/cgroup rw - cgroup2 none rw");
        check(
            &over,
            "4:memory:/default/c1\n0::/x\n",
            Some(&["/sys/fs/cgroup/x"]),
        );
        check(
            "41 31 0:38 / /mnt/cg rw - cgroup2 none rw",
            "0::/x\n",
            Some(&["/mnt/cg/x"]),
        );
    }

    #[test]
    fn only_controllers_that_are_missing_are_enabled() {
        for (available, enabled, missing) in [
            ("cpuset cpu io\n", "cpu\n", vec!["+cpuset", "+io"]),
            ("cpu\n", "cpu\n", vec![]),
            ("cpu\n", "\n", vec!["+cpu"]),
            ("\n", "cpuset\n", vec![]),
        ] {
            assert_eq!(to_enable(available, enabled), missing, "{available}{enabled}");
        }
    }

    #[test]
    fn lines_that_are_not_of_a_cgroup_are_skipped() {
        for line in [
            "",
            "1 2 3",
            "1 2 0:3 / /a rw - ext4 /dev/sda rw",
            "1 2 0:3 / /a rw - cgroup",
            "1 2 - cgroup2 c rw",
        ] {
            assert_eq!(parse_mount(line), None, "{line}");
        }
        let escaped = parse_mount("1 2 0:3 / /a\\040b\\134 rw - cgroup2 c rw").unwrap();
        assert_eq!(escaped.point, Path::new("/a b\\"));
    }
}
