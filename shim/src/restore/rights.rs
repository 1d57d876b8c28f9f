//! What the restored processes may do, compared with what the container may.
//!
//! CRIU takes credentials, seccomp filters and mounts from the images, and images may come from anywhere: while the processes
//! still stand, they are looked at. A container that may administer the system can mount what it likes, so that its mounts tell nothing.
//! That no process may gain privileges is not asked for: engines differ in it, and none gains more than its bounding set has.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use oci_bundles::spec::rights::{Rights, capability_names};

/// A status is 1.5 KiB; a container has some tens of mounts, and 100 bytes for each.
const TEXT_BYTES_MAX: u64 = 4 << 20;

/// File systems by which a container reaches the kernel of its host. Not those of devices: what may be opened is the cgroup's to say.
const OF_KERNEL: [&str; 12] = [
    "proc",
    "sysfs",
    "cgroup",
    "cgroup2",
    "debugfs",
    "tracefs",
    "securityfs",
    "configfs",
    "efivarfs",
    "bpf",
    "pstore",
    "binfmt_misc",
];

/// The sets of a process in `/proc/PID/status`.
const SETS: [&str; 5] = ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"];

/// What these processes have that they may not; none if all is well. One that is gone has nothing.
///
/// # Errors
/// `/proc` does not tell.
pub(super) fn excess(pids: &[i32], rights: &Rights) -> io::Result<Option<String>> {
    let mut seen: Vec<PathBuf> = Vec::new();
    for pid in pids {
        let Some(status) = text(&format!("/proc/{pid}/status"))? else {
            continue;
        };
        if let Some(problem) = of_status(&status, rights) {
            return Ok(Some(problem));
        }
        // As many as there are processes, and as a rule one.
        let namespace = fs::read_link(format!("/proc/{pid}/ns/mnt")).unwrap_or_default();
        if rights.may_mount() || seen.contains(&namespace) {
            continue;
        }
        seen.push(namespace);
        let Some(mounts) = text(&format!("/proc/{pid}/mountinfo"))? else {
            continue;
        };
        let root = PathBuf::from(format!("/proc/{pid}/root"));
        let is_there = |path: &Path| {
            let below = path.strip_prefix("/").unwrap_or(path);
            root.join(below).symlink_metadata().is_ok()
        };
        if let Some(problem) = of_mounts(&mounts, rights, is_there) {
            return Ok(Some(problem));
        }
    }
    Ok(None)
}

fn text(path: &str) -> io::Result<Option<String>> {
    let mut text = String::new();
    let read = fs::File::open(path).and_then(|file| file.take(TEXT_BYTES_MAX).read_to_string(&mut text));
    match read {
        Ok(_) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        // It ended while it was read.
        Err(error) if error.raw_os_error() == Some(nix::libc::ESRCH) => Ok(None),
        Err(error) => Err(error),
    }
}

fn of_status(status: &str, rights: &Rights) -> Option<String> {
    let value = |name: &str| {
        status
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .map(str::trim)
    };
    let allowed = rights.capabilities().unwrap_or(u64::MAX);
    let held = SETS
        .iter()
        .filter_map(|name| u64::from_str_radix(value(name)?, 16).ok())
        .fold(0, |all, set| all | set);
    if held & !allowed != 0 {
        return Some(capability_names(held & !allowed).join(", "));
    }
    if rights.has_seccomp() && value("Seccomp:") == Some("0") {
        return Some("no filter of system calls".to_owned());
    }
    None
}

/// A mount, as `/proc/PID/mountinfo` tells it.
struct Mount<'a> {
    at: &'a Path,
    is_readonly: bool,
    kind: &'a str,
}

/// Blanks in names are written as octal numbers: such a mount has another name here, and is none that may be there.
fn parse(line: &str) -> Option<Mount<'_>> {
    let (before, after) = line.split_once(" - ")?;
    let mut fields = before.split(' ').skip(4);
    Some(Mount {
        at: Path::new(fields.next()?),
        is_readonly: fields.next()?.split(',').any(|option| option == "ro"),
        kind: after.split(' ').next()?,
    })
}

fn of_mounts(mountinfo: &str, rights: &Rights, is_there: impl Fn(&Path) -> bool) -> Option<String> {
    let mounts: Vec<Mount<'_>> = mountinfo.lines().filter_map(parse).collect();
    let at = |path: &Path| mounts.iter().filter(move |mount| mount.at == path).count();
    let is_restricted = |path: &Path| {
        let mut all = rights.readonly_paths().iter().chain(rights.masked_paths());
        all.any(|restricted| restricted == path)
    };
    for mount in mounts.iter().filter(|mount| OF_KERNEL.contains(&mount.kind)) {
        let may_be = match mount.kind {
            // One mount is asked for, and there is one for each controller.
            "cgroup" | "cgroup2" => {
                rights.mounts_above("cgroup", mount.at) || rights.mounts_above("cgroup2", mount.at)
            }
            kind => rights.mounts(kind, mount.at) || is_restricted(mount.at),
        };
        // One over another hides what was read-only below it.
        if !may_be || at(mount.at) > 1 {
            return Some(format!("a mount of {} at {}", mount.kind, mount.at.display()));
        }
    }
    let is_reached = |path: &&PathBuf| is_there(path);
    for path in rights.readonly_paths().iter().filter(is_reached) {
        let mut there = mounts
            .iter()
            .filter(|mount| mount.at == path.as_path())
            .peekable();
        if there.peek().is_none() || there.any(|mount| !mount.is_readonly) {
            return Some(format!("{} to be written", path.display()));
        }
    }
    let open = rights
        .masked_paths()
        .iter()
        .filter(is_reached)
        .find(|path| at(path) == 0);
    open.map(|path| format!("{} to be seen", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPEC: &[u8] = br#"{"process": {"capabilities": {"bounding": ["CAP_CHOWN"]}},
        "linux": {"seccomp": {}, "readonlyPaths": ["/proc/sys", "/proc/none"], "maskedPaths": ["/proc/kcore"]},
        "mounts": [{"destination": "/proc", "type": "proc"}, {"destination": "/sys/fs/cgroup", "type": "cgroup"}]}"#;

    #[test]
    fn what_a_process_may_not_is_found() {
        let rights = Rights::parse(SPEC).expect("a spec");
        let status = |bounding: &str, seccomp: u8| {
            format!("Name:\tsh\nCapInh:\t0\nCapBnd:\t{bounding}\nSeccomp:\t{seccomp}\n")
        };
        assert_eq!(of_status(&status("0000000000000001", 2), &rights), None);
        let told = of_status(&status("000001fffeffffff", 2), &rights).expect("refused");
        assert!(
            told.starts_with("CAP_DAC_OVERRIDE, ") && told.contains("CAP_SYS_ADMIN"),
            "{told}"
        );
        assert!(of_status(&status("1", 0), &rights).is_some());
        assert_eq!(of_status(&status("ffff", 0), &Rights::default()), None);
    }

    #[test]
    fn mounts_that_were_not_asked_for_are_found() {
        let rights = Rights::parse(SPEC).expect("a spec");
        let there = |path: &Path| path != Path::new("/proc/none");
        let good = "1 0 0:1 / / rw - overlay overlay rw\n2 1 0:2 / /proc rw,nosuid - proc proc rw\n\
            3 2 0:2 /sys /proc/sys ro,nosuid - proc proc rw\n4 2 0:3 /null /proc/kcore rw - tmpfs tmpfs rw\n\
            5 1 0:4 / /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n";
        assert_eq!(of_mounts(good, &rights, there), None);
        for (from, to, said) in [
            ("/proc/sys ro", "/proc/sys rw", "/proc/sys to be written"),
            ("/proc/kcore rw", "/tmp rw", "/proc/kcore to be seen"),
            (
                "/proc/sys ro,nosuid - proc",
                "/mnt ro - tmpfs",
                "/proc/sys to be written",
            ),
            (
                "5 1",
                "6 1 0:2 / /proc2 rw - proc proc rw\n5 1",
                "a mount of proc at /proc2",
            ),
            (
                "5 1",
                "6 2 0:2 / /proc rw - proc proc rw\n5 1",
                "a mount of proc at /proc",
            ),
            (
                "5 1",
                "6 2 0:2 / /proc/driver rw - proc proc rw\n5 1",
                "a mount of proc at /proc/driver",
            ),
            (
                "5 1",
                "6 1 0:9 / /sys rw - sysfs sysfs rw\n5 1",
                "a mount of sysfs at /sys",
            ),
        ] {
            let bad = good.replacen(from, to, 1);
            assert_eq!(of_mounts(&bad, &rights, there).as_deref(), Some(said), "{bad}");
        }
    }
}
