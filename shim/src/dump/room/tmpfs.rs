//! What lies in the memory file systems of a container: CRIU packs each into an image.

use std::collections::HashSet;
use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::sys::stat::Mode;
use nix::sys::statfs::fstatfs;

use super::table;
use crate::dump::describe::bind_points;

/// The bytes in the memory file systems of these processes, the init first. What the container's configuration binds into it is not
/// CRIU's. None if that cannot be told.
pub(super) fn used(bundle: &Path, pids: &[i32]) -> Option<u64> {
    let binds = bind_points(bundle);
    let (mut namespaces, mut devices, mut sum) = (HashSet::new(), HashSet::new(), 0_u64);
    for pid in pids {
        let Ok(namespace) = fs::read_link(format!("/proc/{pid}/ns/mnt")) else {
            // It is gone.
            continue;
        };
        if !namespaces.insert(namespace) {
            continue;
        }
        let mounts = table(format!("/proc/{pid}/mountinfo"))?;
        for (device, point) in mounts.lines().filter_map(memory) {
            if binds.iter().any(|bind| bind == Path::new(point)) || !devices.insert(device.to_owned()) {
                continue;
            }
            sum = sum.saturating_add(used_at(*pid, point)?);
        }
    }
    Some(sum)
}

/// The device and the mount point of a line of `mountinfo`, if that is memory, and not the root, which is the engine's to bring.
fn memory(line: &str) -> Option<(&str, &str)> {
    let (mount, system) = line.split_once(" - ")?;
    let mut fields = mount.split(' ');
    let (device, point) = (fields.nth(2)?, fields.nth(1)?);
    (system.starts_with("tmpfs ") && point != "/").then_some((device, point))
}

/// What is used of the file system there, as the process sees it. A place with another below its name is not told.
fn used_at(pid: i32, point: &str) -> Option<u64> {
    let place = place(pid, point.trim_start_matches('/'))?;
    let system = fstatfs(&place).ok()?;
    // One without a limit does not count.
    let used = system
        .blocks()
        .checked_sub(system.blocks_free())
        .filter(|_| system.blocks() > 0)?;
    used.checked_mul(u64::try_from(system.block_size()).ok()?)
}

/// Opens no link out of the container.
fn place(pid: i32, point: &str) -> Option<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
    let root = open(&PathBuf::from(format!("/proc/{pid}/root")), flags, Mode::empty()).ok()?;
    let how = OpenHow::new()
        .flags(flags)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    openat2(&root, point, how).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_file_systems_are_told_from_others() {
        for (line, expected) in [
            ("10 1 0:50 / / rw - overlay overlay rw", None),
            ("10 1 0:50 / / rw - tmpfs tmpfs rw", None),
            (
                "12 10 0:52 / /dev rw,nosuid - tmpfs tmpfs rw,size=65536k",
                Some(("0:52", "/dev")),
            ),
            (
                "12 10 0:52 / /a\\040b rw master:1 - tmpfs none rw",
                Some(("0:52", "/a\\040b")),
            ),
            ("13 12 0:53 / /dev/pts rw - devpts devpts rw", None),
            ("12 10 0:52", None),
        ] {
            assert_eq!(memory(line), expected, "{line}");
        }
    }

    #[test]
    fn what_is_no_place_is_not_told() {
        let us = std::process::id().cast_signed();
        assert_eq!(used_at(us, "/nonexistent"), None);
        assert_eq!(used_at(i32::MAX, "/tmp"), None);
    }
}
