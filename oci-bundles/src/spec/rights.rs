//! What a container may do, by the request that made it: what a checkpoint brings back must be within that.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::{CONFIG_FILE, SpecError, null_is_default, read_config};

/// In the order of their numbers (Linux 6.18, `capability.h`).
const CAPABILITIES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// The rights of a container.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Rights {
    process: Option<Process>,
    #[serde(deserialize_with = "null_is_default")]
    linux: Linux,
    #[serde(deserialize_with = "null_is_default")]
    mounts: Vec<Mount>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Process {
    capabilities: Option<Capabilities>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Capabilities {
    #[serde(deserialize_with = "null_is_default")]
    bounding: Vec<String>,
    #[serde(deserialize_with = "null_is_default")]
    effective: Vec<String>,
    #[serde(deserialize_with = "null_is_default")]
    permitted: Vec<String>,
    #[serde(deserialize_with = "null_is_default")]
    inheritable: Vec<String>,
    #[serde(deserialize_with = "null_is_default")]
    ambient: Vec<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Linux {
    seccomp: Option<IgnoredAny>,
    #[serde(deserialize_with = "null_is_default")]
    readonly_paths: Vec<PathBuf>,
    #[serde(deserialize_with = "null_is_default")]
    masked_paths: Vec<PathBuf>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Mount {
    destination: PathBuf,
    #[serde(rename = "type", deserialize_with = "null_is_default")]
    kind: String,
}

impl Rights {
    /// Those that `<bundle>/config.json` gives, at most 16 MiB of it.
    ///
    /// # Errors
    /// It cannot be read, or is none.
    pub fn read(bundle: &Path) -> Result<Self, SpecError> {
        Self::parse(&read_config(&bundle.join(CONFIG_FILE))?)
    }

    /// Those of the text of a `config.json`.
    ///
    /// # Errors
    /// It is none.
    pub fn parse(text: &[u8]) -> Result<Self, SpecError> {
        Ok(serde_json::from_slice(text)?)
    }

    /// The capabilities that a process may have, a bit each; none where the request says nothing of them.
    pub fn capabilities(&self) -> Option<u64> {
        let sets = self.process.as_ref()?.capabilities.as_ref()?;
        let all = [
            &sets.bounding,
            &sets.effective,
            &sets.permitted,
            &sets.inheritable,
            &sets.ambient,
        ];
        let bits = all.into_iter().flatten().filter_map(|name| bit(name));
        Some(bits.fold(0, |mask, bit| mask | bit))
    }

    /// Whether it may administer the system, and with it mount what it likes.
    pub fn may_mount(&self) -> bool {
        let admin = bit("CAP_SYS_ADMIN").unwrap_or_default();
        self.capabilities().is_none_or(|mask| mask & admin != 0)
    }

    /// System calls are filtered.
    pub fn has_seccomp(&self) -> bool {
        self.linux.seccomp.is_some()
    }

    /// What may only be read.
    pub fn readonly_paths(&self) -> &[PathBuf] {
        &self.linux.readonly_paths
    }

    /// What is hidden.
    pub fn masked_paths(&self) -> &[PathBuf] {
        &self.linux.masked_paths
    }

    /// Whether a file system of this type is mounted there.
    pub fn mounts(&self, kind: &str, at: &Path) -> bool {
        self.mounts
            .iter()
            .any(|mount| mount.destination == at && (mount.kind == kind || mount.kind == "bind"))
    }

    /// Whether one of this type is mounted there or above it.
    pub fn mounts_above(&self, kind: &str, at: &Path) -> bool {
        at.ancestors().any(|above| self.mounts(kind, above))
    }
}

/// The names of the capabilities in a mask.
pub fn capability_names(mask: u64) -> Vec<String> {
    let named = |number: usize| match CAPABILITIES.get(number) {
        Some(name) => format!("CAP_{name}"),
        None => format!("capability {number}"),
    };
    (0..64)
        .filter(|number| mask >> number & 1 == 1)
        .map(named)
        .collect()
}

fn bit(name: &str) -> Option<u64> {
    let name = name.strip_prefix("CAP_").unwrap_or(name);
    let number = CAPABILITIES.iter().position(|known| *known == name)?;
    Some(1 << number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rights_are_those_of_the_request() {
        let text = br#"{"process": {"capabilities": {"bounding": ["CAP_CHOWN", "CAP_BPF", "CAP_NEW"], "ambient": null}},
            "linux": {"seccomp": {"defaultAction": "SCMP_ACT_ALLOW"}, "maskedPaths": ["/proc/kcore"],
            "readonlyPaths": null}, "mounts": [{"destination": "/proc", "type": "proc"}, {"destination": "/sys/fs/cgroup", "type": "cgroup"}]}"#;
        let rights = Rights::parse(text).expect("a spec");
        assert_eq!(rights.capabilities(), Some(1 | 1 << 39));
        assert!(rights.has_seccomp() && !rights.may_mount());
        assert_eq!(
            (rights.masked_paths().len(), rights.readonly_paths().len()),
            (1, 0)
        );
        assert!(rights.mounts("proc", Path::new("/proc")) && !rights.mounts("sysfs", Path::new("/proc")));
        assert!(rights.mounts_above("cgroup", Path::new("/sys/fs/cgroup/memory")));
        let rights = Rights::parse(b"{}").expect("a spec");
        assert_eq!(rights.capabilities(), None);
        assert!(rights.may_mount() && !rights.has_seccomp());
        assert_eq!(
            capability_names(1 << 21 | 1 << 50),
            ["CAP_SYS_ADMIN", "capability 50"]
        );
    }
}
