//! What a manifest says beside what a restore needs: where a dump was made, what it left out, and where the time went.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use oci_bundles::manifest::{Host, NotSaved, Timing};
use oci_bundles::spec::CONFIG_FILE;
use serde::Deserialize;

use crate::criu::file::read_regular;
use crate::phases;

/// containerd takes no gRPC message above 16 MiB, and a specification arrives in one.
const CONFIG_BYTES_MAX: u64 = 16 << 20;

/// The first processor's part of `/proc/cpuinfo` has 2 KiB; the others are like it.
const CPUINFO_BYTES_MAX: u64 = 8 << 10;

/// A container's own mounts and all that the host has.
const MOUNTINFO_BYTES_MAX: u64 = 4 << 20;

/// Files that engines make and make again, of which nobody expects a copy.
const OF_ENGINES: [&str; 5] = [
    "/etc/hosts",
    "/etc/hostname",
    "/etc/resolv.conf",
    "/dev/termination-log",
    "/sbin/docker-init",
];

/// From its begin the processes stand.
const FREEZE: &str = "freeze";

/// From its begin those that go on do.
const VERIFY: &str = "verify";

/// Versions of what takes part in a dump.
pub(super) fn versions(criu: &str) -> BTreeMap<String, String> {
    let kernel = small(Path::new("/proc/sys/kernel/osrelease"), 256);
    let all = [
        ("cedana", env!("CARGO_PKG_VERSION")),
        ("criu", criu),
        ("kernel", kernel.trim()),
    ];
    let known = all.iter().filter(|(_, version)| !version.is_empty());
    known
        .map(|(name, version)| ((*name).to_owned(), (*version).to_owned()))
        .collect()
}

/// This machine.
pub(crate) fn host() -> Host {
    processor(&small(Path::new("/proc/cpuinfo"), CPUINFO_BYTES_MAX))
}

/// The first processor of `/proc/cpuinfo`.
fn processor(cpuinfo: &str) -> Host {
    let first = cpuinfo.split("\n\n").next().unwrap_or_default();
    let field = |names: &[&str]| {
        let mut fields = first.lines().filter_map(|line| line.split_once(':'));
        fields.find_map(|(name, value)| names.contains(&name.trim()).then(|| value.trim()))
    };
    let features = field(&["flags", "Features"]).unwrap_or_default();
    Host {
        architecture: std::env::consts::ARCH.to_owned(),
        cpu: field(&["model name", "CPU part"]).unwrap_or_default().to_owned(),
        cpu_features: features.split_whitespace().map(str::to_owned).collect(),
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Spec {
    mounts: Option<Vec<Mount>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Mount {
    destination: PathBuf,
    #[serde(rename = "type")]
    kind: Option<String>,
    source: Option<PathBuf>,
    options: Option<Vec<String>>,
}

impl Mount {
    fn is_bind(&self) -> bool {
        let is_bind = |option: &String| option == "bind" || option == "rbind";
        self.kind.as_deref() == Some("bind") || self.options.iter().flatten().any(is_bind)
    }
}

/// The bind mounts of a container: CRIU takes none of what is in them. What cannot be read is not told of.
pub(super) fn not_saved(bundle: &Path, init: i32) -> Vec<NotSaved> {
    let config = read_regular(&bundle.join(CONFIG_FILE), CONFIG_BYTES_MAX).unwrap_or_default();
    let mountinfo = small(Path::new(&format!("/proc/{init}/mountinfo")), MOUNTINFO_BYTES_MAX);
    binds(&config, &mountinfo)
}

/// Where a container's configuration has something bound in.
pub(super) fn bind_points(bundle: &Path) -> Vec<PathBuf> {
    let config = read_regular(&bundle.join(CONFIG_FILE), CONFIG_BYTES_MAX).unwrap_or_default();
    let spec: Spec = serde_json::from_slice(&config).unwrap_or_default();
    let mounts = spec.mounts.unwrap_or_default().into_iter();
    mounts
        .filter(Mount::is_bind)
        .map(|mount| mount.destination)
        .collect()
}

fn binds(config: &[u8], mountinfo: &str) -> Vec<NotSaved> {
    let spec: Spec = serde_json::from_slice(config).unwrap_or_default();
    let memory: Vec<&str> = mountinfo.lines().filter_map(tmpfs).collect();
    let told =
        |mount: &Mount| mount.is_bind() && !OF_ENGINES.iter().any(|own| mount.destination == Path::new(own));
    let all = spec.mounts.unwrap_or_default().into_iter().filter(told);
    all.map(|mount| {
        let source = mount.source.unwrap_or_default();
        let is_in_memory = memory.iter().any(|point| mount.destination == Path::new(point));
        let kind = if is_in_memory {
            "tmpfs"
        } else if is_volume(&source) {
            "volume"
        } else {
            "bind"
        };
        NotSaved {
            kind: kind.to_owned(),
            path: mount.destination,
            source: source.display().to_string(),
        }
    })
    .collect()
}

/// The mount point of a line of `mountinfo`, if that is memory.
fn tmpfs(line: &str) -> Option<&str> {
    let (mount, filesystem) = line.split_once(" - ")?;
    filesystem
        .starts_with("tmpfs ")
        .then(|| mount.split(' ').nth(4))?
}

/// Docker and nerdctl keep volumes in `…/volumes/…/NAME/_data`.
fn is_volume(source: &Path) -> bool {
    source.ends_with("_data") && source.components().any(|part| part.as_os_str() == "volumes")
}

/// The phases as a manifest has them, and for how many microseconds the processes stood still.
pub(super) fn timings(phases: &[phases::Timing]) -> (Vec<Timing>, u64) {
    let us = |timing: &phases::Timing| u64::try_from(timing.took.as_micros()).unwrap_or(u64::MAX);
    let standing = phases.iter().skip_while(|timing| timing.phase != FREEZE);
    let standing = standing.take_while(|timing| timing.phase != VERIFY);
    let frozen = standing.map(us).fold(0, u64::saturating_add);
    let each = phases.iter().map(|timing| Timing {
        phase: timing.phase.to_owned(),
        us: us(timing),
    });
    (each.collect(), frozen)
}

/// The beginning of a file of the kernel's; nothing if it cannot be read.
fn small(path: &Path, bytes_max: u64) -> String {
    let mut bytes = Vec::new();
    // What was read before an error counts.
    let _ = File::open(path).and_then(|file| file.take(bytes_max).read_to_end(&mut bytes));
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_processor_is_the_first_one() {
        for (text, cpu, features) in [
            (
                "processor\t: 0\nmodel name\t: Some CPU @ 3 GHz\nflags\t\t: fpu avx2\n\nprocessor: 1\nflags: other\n",
                "Some CPU @ 3 GHz",
                &["avx2", "fpu"][..],
            ),
            (
                "processor: 0\nFeatures: fp asimd\nCPU part: 0xd0c\n",
                "0xd0c",
                &["asimd", "fp"],
            ),
            ("", "", &[]),
        ] {
            let host = processor(text);
            assert_eq!(host.cpu, cpu);
            assert!(host.cpu_features.iter().eq(features), "{host:?}");
        }
        assert!(versions("4.2").contains_key("kernel"));
    }

    #[test]
    fn binds_are_named_by_what_they_are() {
        let config = br#"{"mounts":[
            {"destination":"/proc","type":"proc","source":"proc"},
            {"destination":"/dev/shm","type":"bind","source":"/run/sandbox/shm","options":["rbind"]},
            {"destination":"/data","type":"none","source":"/srv/data","options":["bind","ro"]},
            {"destination":"/db","type":"bind","source":"/var/lib/docker/volumes/db/_data"},
            {"destination":"/etc/hosts","type":"bind","source":"/x/hosts"},
            {"destination":"/tmp","type":"tmpfs","source":"tmpfs","options":null}]}"#;
        let mountinfo = "22 1 0:5 / /proc rw - proc proc rw\n\
                         23 1 0:6 / /dev/shm rw,nosuid shared:1 - tmpfs shm rw\n\
                         24 1 8:1 /srv/data /data rw - ext4 /dev/sda rw\n";
        let told: Vec<String> = binds(config, mountinfo)
            .iter()
            .map(|one| format!("{} {} {}", one.kind, one.path.display(), one.source))
            .collect();
        assert_eq!(
            told,
            [
                "tmpfs /dev/shm /run/sandbox/shm",
                "bind /data /srv/data",
                "volume /db /var/lib/docker/volumes/db/_data"
            ]
        );
        assert!(binds(b"", "").is_empty() && binds(br#"{"mounts":null}"#, "").is_empty());
    }

    #[test]
    fn the_processes_stand_from_the_freeze_until_they_are_let_go_on() {
        let phase = |phase, ms| phases::Timing {
            phase,
            took: Duration::from_millis(ms),
        };
        let all = [
            phase("find criu", 5),
            phase(FREEZE, 1),
            phase("save", 60),
            phase(VERIFY, 40),
        ];
        let (timings, frozen) = timings(&all);
        assert_eq!(frozen, 61_000);
        assert_eq!((timings[3].phase.as_str(), timings[3].us), (VERIFY, 40_000));
    }
}
