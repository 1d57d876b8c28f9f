//! What is mounted in the container: what a dump does not take, and what it stumbles over.

use std::collections::HashSet;
use std::fs::File;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use jobs::preflight::Severity;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::sys::stat::Mode;
use oci_bundles::spec::CONFIG_FILE;
use serde::Deserialize;

use super::findings::{Findings, shown};
use super::read;
use super::tree::{self, Process};

/// The largest `config.json` that is read, in bytes: containerd takes no gRPC message above 16 MiB, and a spec arrives in
/// one.
const CONFIG_BYTES_MAX: u64 = 16 << 20;

/// File systems that CRIU mounts again by itself, content included where it is memory; all others must come with the
/// container's configuration. (`filesystems.c` of CRIU 4.2.)
const KNOWN: [&str; 19] = [
    "proc",
    "sysfs",
    "devtmpfs",
    "binfmt_misc",
    "tmpfs",
    "devpts",
    "simfs",
    "btrfs",
    "pstore",
    "mqueue",
    "securityfs",
    "fusectl",
    "debugfs",
    "tracefs",
    "cgroup",
    "cgroup2",
    "aufs",
    "autofs",
    "overlay",
];

/// Bind mounts that engines make and make again, of which nobody expects a copy in a checkpoint.
const OF_ENGINES: [&str; 5] = [
    "/etc/hosts",
    "/etc/hostname",
    "/etc/resolv.conf",
    "/dev/shm",
    "/sbin/docker-init",
];

/// One line of `mountinfo`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Mount {
    id: i64,
    device: String,
    root: String,
    point: String,
    /// The peer group it is in, and the one it takes mounts from.
    shared: Option<u32>,
    master: Option<u32>,
    fstype: String,
}

/// One entry of the configuration's `mounts`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Configured {
    destination: PathBuf,
    #[serde(rename = "type")]
    kind: Option<String>,
    options: Option<Vec<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Spec {
    mounts: Option<Vec<Configured>>,
    linux: Option<Linux>,
}

/// What `linux` has that becomes mounts.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Linux {
    masked_paths: Option<Vec<PathBuf>>,
}

impl Spec {
    /// Everything that runc mounts. After a restore a masked file is the host's /dev/null, and not the container's any more.
    fn mounts(self) -> Vec<Configured> {
        let masked = self
            .linux
            .and_then(|linux| linux.masked_paths)
            .unwrap_or_default();
        let masked = masked.into_iter().map(|destination| Configured {
            destination,
            ..Configured::default()
        });
        self.mounts
            .unwrap_or_default()
            .into_iter()
            .chain(masked)
            .collect()
    }
}

/// The mounts of all mount namespaces of a container. A process that has gone into one of its own keeps what it had open.
#[derive(Debug, Default)]
pub(super) struct Mounts(HashSet<i64>);

impl Mounts {
    /// Those of these processes.
    pub(super) fn of(processes: &[Process]) -> Self {
        let mut seen = HashSet::new();
        let mut ids = HashSet::new();
        for process in processes {
            if tree::namespace(process.pid, "mnt").is_some_and(|namespace| seen.insert(namespace)) {
                let mounts = mounts_of(process.pid).unwrap_or_default();
                ids.extend(mounts.iter().map(|mount| mount.id));
            }
        }
        Self(ids)
    }

    /// Whether the container has that mount. Yes, if it cannot be told.
    pub(super) fn has(&self, id: i64) -> bool {
        self.0.is_empty() || self.0.contains(&id)
    }
}

/// Looks at the mounts of the init.
pub(super) fn look(pid: i32, bundle: Option<&Path>, findings: &mut Findings) {
    let configured = bundle.and_then(|bundle| configured(&bundle.join(CONFIG_FILE)));
    let Some(configured) = configured else {
        findings.unseen("mounts: the container's configuration is not known");
        return;
    };
    note_binds(&configured, findings);
    if let Some(mounts) = mounts_of(pid) {
        let ids = ids_of(pid, &configured);
        let points: HashSet<&str> = mounts
            .iter()
            .filter(|mount| ids.contains(&mount.id))
            .map(|mount| mount.point.as_str())
            .collect();
        for mount in strange(&mounts, &points) {
            findings.add(
                "outside-mount",
                Severity::Blocks,
                format!(
                    "{} ({}) is mounted from outside and not in the container's configuration, so a restore cannot make it again",
                    mount.point, mount.fstype
                ),
                "unmount it, put it into the container's configuration, or make the volume that it is in rprivate",
            );
        }
    }
}

fn note_binds(configured: &[Configured], findings: &mut Findings) {
    let binds: Vec<String> = configured
        .iter()
        .filter(|mount| is_bind(mount))
        .map(|mount| mount.destination.display().to_string())
        .filter(|destination| !OF_ENGINES.contains(&destination.as_str()))
        .collect();
    if !binds.is_empty() {
        findings.add(
            "bind-mount",
            Severity::NotSaved,
            format!(
                "{} volume(s) or bind mount(s) are not part of a checkpoint: {}",
                binds.len(),
                shown(&binds)
            ),
            "a restore finds them as they are then: keep or copy them beside it",
        );
    }
}

fn is_bind(mount: &Configured) -> bool {
    let options = mount.options.as_deref().unwrap_or_default();
    mount.kind.as_deref() == Some("bind")
        || options.iter().any(|option| option == "bind" || option == "rbind")
}

/// The mounts that are neither the container's configuration nor made from what it has: of a file system that CRIU does
/// not know, a part of one whose root is not there, or such as take mounts from a group outside of the container.
fn strange<'a>(mounts: &'a [Mount], configured: &HashSet<&str>) -> Vec<&'a Mount> {
    let whole: HashSet<&str> = mounts
        .iter()
        .filter(|mount| mount.root == "/" || mount.point == "/" || configured.contains(mount.point.as_str()))
        .map(|mount| mount.device.as_str())
        .collect();
    let groups: HashSet<u32> = mounts.iter().filter_map(|mount| mount.shared).collect();
    mounts
        .iter()
        .filter(|mount| mount.point != "/" && !configured.contains(mount.point.as_str()))
        .filter(|mount| !mount.fstype.starts_with("cgroup"))
        .filter(|mount| {
            let known = KNOWN.contains(&mount.fstype.as_str());
            let is_fed = mount.master.is_some_and(|group| !groups.contains(&group));
            is_fed || !whole.contains(mount.device.as_str()) || (!known && mount.root == "/")
        })
        .collect()
}

/// The mounts that stand where the configuration wants some. They are looked up as the container sees them: in an image where
/// `/var/run` is a link, what is configured below it is mounted below `/run`.
fn ids_of(pid: i32, configured: &[Configured]) -> HashSet<i64> {
    let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
    let Ok(root) = open(format!("/proc/{pid}/root").as_str(), flags, Mode::empty()) else {
        return HashSet::new();
    };
    let how = OpenHow::new()
        .flags(flags)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    configured
        .iter()
        .filter_map(|mount| {
            let place = openat2(&root, &mount.destination, how).ok()?;
            let info = read::text(
                format!("/proc/self/fdinfo/{}", place.as_raw_fd()),
                read::FILE_BYTES_MAX,
            );
            read::number(&info.ok()?, "mnt_id")
        })
        .collect()
}

fn configured(path: &Path) -> Option<Vec<Configured>> {
    let mut text = Vec::new();
    let _ = File::open(path)
        .ok()?
        .take(CONFIG_BYTES_MAX)
        .read_to_end(&mut text)
        .ok()?;
    let spec: Spec = serde_json::from_slice(&text).ok()?;
    Some(spec.mounts())
}

fn mounts_of(pid: i32) -> Option<Vec<Mount>> {
    let text = read::text(format!("/proc/{pid}/mountinfo"), read::TABLE_BYTES_MAX).ok()?;
    Some(text.lines().filter_map(parse).collect())
}

/// `36 35 98:0 /root /point options … - type source options`.
fn parse(line: &str) -> Option<Mount> {
    let (left, right) = line.split_once(" - ")?;
    let mut left = left.split(' ');
    let id = left.next()?.parse().ok()?;
    let device = left.nth(1)?.to_owned();
    let root = left.next()?.to_owned();
    let point = left.next()?.to_owned();
    let tags: Vec<&str> = left.collect();
    let group = |name: &str| {
        let tag = tags.iter().find_map(|tag| tag.strip_prefix(name));
        tag.and_then(|number| number.parse().ok())
    };
    let fstype = right.split(' ').next()?.to_owned();
    Some(Mount {
        id,
        device,
        root,
        point,
        shared: group("shared:"),
        master: group("master:"),
        fstype,
    })
}

/// Any line.
#[cfg(any(test, fuzzing))]
pub(super) fn read_any(line: &str) {
    let _mount = parse(line);
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONTAINER: &str = "\
        10 1 0:50 / / rw - overlay overlay rw\n\
        11 10 0:51 / /proc rw - proc proc rw\n\
        12 10 0:52 / /dev rw - tmpfs tmpfs rw\n\
        13 12 0:53 / /dev/pts rw - devpts devpts rw\n\
        14 12 0:53 /0 /dev/console rw - devpts devpts rw\n\
        15 11 0:52 /null /proc/kcore rw - tmpfs tmpfs rw\n\
        16 10 254:1 /srv/data /data rw master:1 - ext4 /dev/vda1 rw\n\
        17 10 0:30 /c /sys/fs/cgroup/memory ro master:2 - cgroup cgroup rw,memory\n";

    fn strange_in(more: &str) -> Vec<String> {
        let mounts: Vec<Mount> = CONTAINER.lines().chain(more.lines()).filter_map(parse).collect();
        let configured = HashSet::from(["/proc", "/dev", "/dev/pts", "/data", "/sys/fs/cgroup"]);
        strange(&mounts, &configured)
            .into_iter()
            .map(|mount| mount.point.clone())
            .collect()
    }

    #[test]
    fn mounts_from_outside_are_told_from_the_containers_own() {
        for (more, expected) in [
            ("", vec![]),
            ("20 10 0:60 / /mnt rw - tmpfs tmpfs rw", vec![]),
            ("20 10 0:50 /etc /mnt rw - overlay overlay rw", vec![]),
            ("20 10 254:1 /srv/data/sub /mnt rw - ext4 /dev/vda1 rw", vec![]),
            ("20 10 254:7 /srv /mnt rw - ext4 /dev/vdb rw", vec!["/mnt"]),
            ("20 10 0:70 / /mnt rw - fuse.sshfs host rw", vec!["/mnt"]),
            (
                "20 16 254:7 / /data/disk rw - ext4 /dev/vdb rw",
                vec!["/data/disk"],
            ),
        ] {
            assert_eq!(strange_in(more), expected, "{more}");
        }
    }

    #[test]
    fn masked_paths_are_configured() {
        let spec: Spec = serde_json::from_str(r#"{"linux":{"maskedPaths":["/proc/keys"]}}"#).unwrap();
        assert_eq!(spec.mounts()[0].destination, Path::new("/proc/keys"));
        assert!(
            serde_json::from_str::<Spec>(r#"{"linux":null,"mounts":null}"#)
                .unwrap()
                .mounts()
                .is_empty()
        );
    }

    #[test]
    fn volumes_are_named_and_what_engines_always_bind_is_not() {
        let spec: Spec = serde_json::from_str(
            r#"{"mounts":[{"destination":"/proc","type":"proc"},
                {"destination":"/data","type":"bind","options":["rbind","rw"]},
                {"destination":"/lib","type":"none","options":["bind"]},
                {"destination":"/etc/hosts","type":"bind"}]}"#,
        )
        .unwrap();
        let mut findings = Findings::default();
        note_binds(&spec.mounts(), &mut findings);
        let (all, _unseen) = findings.into_sorted();
        let what: Vec<&str> = all.iter().map(|finding| finding.what.as_str()).collect();
        assert_eq!(
            what,
            ["2 volume(s) or bind mount(s) are not part of a checkpoint: /data, /lib"]
        );
    }
}
