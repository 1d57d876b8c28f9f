//! A partial view of a bundle's `config.json`; the one edit we make to it is in `edit`.
//!
//! The full specification as Rust types costs more resident text than the rest of a shim, so only fields that
//! decide something are read. Unknown fields are skipped, `null` reads as absent (as in Go).

mod binds;
mod devices;
mod edit;
pub mod rights;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny};

pub use binds::{Bind, bind_at};
pub use devices::Devices;
pub use edit::inject_annotations;

/// Name of the configuration file in a bundle.
pub const CONFIG_FILE: &str = "config.json";

/// The largest `config.json` that is read, in bytes: containerd takes no gRPC message above 16 MiB, and a spec
/// arrives in one.
const CONFIG_BYTES_MAX: u64 = 16 << 20;

/// Why a bundle's configuration could not be used.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    /// The file is missing, unreadable or could not be replaced.
    #[error("{action} {}: {source}", path.display())]
    Io {
        /// What was tried: "read" or "replace".
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the kernel answered.
        source: io::Error,
    },
    /// The file is larger than 16 MiB.
    #[error("read {}: larger than {CONFIG_BYTES_MAX} bytes", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// The text is not a configuration.
    #[error("parse {CONFIG_FILE}: {0}")]
    Parse(#[from] serde_json::Error),
}

/// The fields of `config.json` that decide something for us.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct SpecView {
    /// Annotations, sorted by key.
    #[serde(deserialize_with = "null_is_default")]
    pub annotations: BTreeMap<String, String>,
    /// The init process; absent in a bundle without one.
    pub process: Option<ProcessView>,
    /// The root file system; absent for a virtual machine's container.
    pub root: Option<RootView>,
    /// The Linux part; empty when the specification has none.
    #[serde(deserialize_with = "null_is_default")]
    pub linux: LinuxView,
    /// Which kinds of hooks are configured.
    #[serde(deserialize_with = "null_is_default")]
    pub hooks: HooksView,
}

/// What `process` says.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct ProcessView {
    /// Whether it gets a terminal.
    pub terminal: bool,
    /// Whom it runs as, in the container's user namespace.
    #[serde(deserialize_with = "null_is_default")]
    pub user: UserView,
}

/// `process.user`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct UserView {
    /// User id in the container.
    pub uid: u32,
    /// Group id in the container.
    pub gid: u32,
}

/// `root`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct RootView {
    /// Absolute, or relative to the bundle.
    pub path: PathBuf,
    /// Whether the root file system is mounted read-only.
    pub readonly: bool,
}

/// `linux`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct LinuxView {
    /// Where the container's cgroup goes; empty lets the runtime choose.
    #[serde(deserialize_with = "null_is_default")]
    pub cgroups_path: String,
    /// The namespaces; a kind that is not listed is shared with the runtime.
    #[serde(deserialize_with = "null_is_default")]
    pub namespaces: Vec<Namespace>,
    /// User ids of the user namespace; empty without one.
    #[serde(deserialize_with = "null_is_default")]
    pub uid_mappings: Vec<IdMapping>,
    /// Group ids of the user namespace; empty without one.
    #[serde(deserialize_with = "null_is_default")]
    pub gid_mappings: Vec<IdMapping>,
    /// The limits that matter to whoever copies memory; absent when none is set.
    pub resources: Option<ResourcesView>,
}

/// One entry of `linux.namespaces`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Namespace {
    /// `pid`, `network`, `mount`, `ipc`, `uts`, `user`, `cgroup` or `time`.
    #[serde(rename = "type")]
    pub kind: String,
    /// An existing namespace to join; empty makes a new one.
    #[serde(deserialize_with = "null_is_default")]
    pub path: PathBuf,
}

/// One range of a user namespace's ids.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct IdMapping {
    /// First id in the container.
    #[serde(rename = "containerID")]
    pub container_id: u32,
    /// First id on the host.
    #[serde(rename = "hostID")]
    pub host_id: u32,
    /// How many ids.
    pub size: u32,
}

/// `linux.resources`, as far as we look.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct ResourcesView {
    /// `memory.limit` in bytes; -1 is unlimited.
    #[serde(deserialize_with = "null_is_default")]
    pub memory: MemoryView,
}

/// `linux.resources.memory`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct MemoryView {
    /// Limit in bytes; absent or negative is unlimited.
    pub limit: Option<i64>,
}

/// Which lists of `hooks` hold at least one hook.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct HooksView {
    /// Deprecated `prestart` hooks; runc runs them on restore as well.
    #[serde(deserialize_with = "is_not_empty")]
    pub prestart: bool,
    /// `createRuntime` hooks.
    #[serde(deserialize_with = "is_not_empty")]
    pub create_runtime: bool,
    /// `createContainer` hooks.
    #[serde(deserialize_with = "is_not_empty")]
    pub create_container: bool,
    /// `startContainer` hooks.
    #[serde(deserialize_with = "is_not_empty")]
    pub start_container: bool,
    /// `poststart` hooks.
    #[serde(deserialize_with = "is_not_empty")]
    pub poststart: bool,
    /// `poststop` hooks.
    #[serde(deserialize_with = "is_not_empty")]
    pub poststop: bool,
}

impl HooksView {
    /// Whether any hook is configured.
    pub fn any(&self) -> bool {
        self.prestart
            || self.create_runtime
            || self.create_container
            || self.start_container
            || self.poststart
            || self.poststop
    }
}

impl SpecView {
    /// Reads `<bundle>/config.json`, at most 16 MiB of it.
    pub fn read(bundle: &Path) -> Result<Self, SpecError> {
        Self::parse(&read_config(&bundle.join(CONFIG_FILE))?)
    }

    /// Parses the text of a `config.json`.
    pub fn parse(text: &[u8]) -> Result<Self, SpecError> {
        Ok(serde_json::from_slice(text)?)
    }

    /// The value of an annotation.
    pub fn annotation(&self, key: &str) -> Option<&str> {
        self.annotations.get(key).map(String::as_str)
    }

    /// Whether init gets a terminal.
    pub fn terminal(&self) -> bool {
        self.process.as_ref().is_some_and(|process| process.terminal)
    }

    /// Whether the container has a pid namespace that is created for it: killing its init then kills all of it.
    pub fn has_private_pid_namespace(&self) -> bool {
        self.linux
            .namespaces
            .iter()
            .any(|ns| ns.kind == "pid" && ns.path.as_os_str().is_empty())
    }

    /// Whether the cgroup path has the form `slice:prefix:name`, which only systemd's driver understands. Clients
    /// that know no runtime options for a foreign runtime name still write the path in this form.
    pub fn has_systemd_cgroup(&self) -> bool {
        let path = &self.linux.cgroups_path;
        !path.starts_with('/') && path.split(':').count() == 3
    }

    /// Host user and group of the init process, when the container has a user namespace that maps them: whom its
    /// stdio pipes must belong to.
    pub fn mapped_owner(&self) -> Option<(u32, u32)> {
        let user = self
            .process
            .as_ref()
            .map(|process| process.user)
            .unwrap_or_default();
        let uid = host_id(&self.linux.uid_mappings, user.uid)?;
        let gid = host_id(&self.linux.gid_mappings, user.gid)?;
        Some((uid, gid))
    }
}

/// Host id of an id in the container, if a range maps it.
pub fn host_id(mappings: &[IdMapping], id: u32) -> Option<u32> {
    mappings.iter().find_map(|range| {
        let offset = id.checked_sub(range.container_id)?;
        if offset < range.size {
            range.host_id.checked_add(offset)
        } else {
            None
        }
    })
}

fn read_config(path: &Path) -> Result<Vec<u8>, SpecError> {
    let failed = |source| SpecError::Io {
        action: "read",
        path: path.to_owned(),
        source,
    };
    let file = File::open(path).map_err(failed)?;
    let mut text = Vec::new();
    let read = file
        .take(CONFIG_BYTES_MAX + 1)
        .read_to_end(&mut text)
        .map_err(failed)?;
    if read as u64 > CONFIG_BYTES_MAX {
        return Err(SpecError::TooLarge {
            path: path.to_owned(),
        });
    }
    Ok(text)
}

/// Go writes `null` for an empty list or map that has no `omitempty`.
fn null_is_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

/// Whether a list holds anything; its elements are not looked at.
fn is_not_empty<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    Ok(Option::<Vec<IgnoredAny>>::deserialize(deserializer)?.is_some_and(|list| !list.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const POD: &str = r#"{"ociVersion":"1.1.0","process":{"terminal":true,"user":{"uid":1000,"gid":5,"additionalGids":[7]},"args":["sh"]},
        "root":{"path":"rootfs"},"hostname":"x","hooks":{"prestart":[],"poststop":[{"path":"/bin/true"}]},
        "annotations":{"a":"1"},"linux":{"cgroupsPath":"system.slice:docker:abc","resources":{"memory":{"limit":4096},"cpu":{"shares":2}},
        "namespaces":[{"type":"pid"},{"type":"network","path":"/var/run/netns/n"}],
        "uidMappings":[{"containerID":0,"hostID":100000,"size":65536}],"gidMappings":[{"containerID":0,"hostID":200000,"size":6}],"seccomp":{"x":[1,2]}}}"#;

    #[test]
    fn the_fields_that_decide_something_are_read() {
        let spec = SpecView::parse(POD.as_bytes()).unwrap();
        assert!(spec.terminal());
        assert_eq!(spec.annotation("a"), Some("1"));
        assert_eq!(spec.mapped_owner(), Some((101_000, 200_005)));
        assert!(spec.has_private_pid_namespace());
        assert!(spec.has_systemd_cgroup());
        assert!(spec.hooks.any() && spec.hooks.poststop && !spec.hooks.prestart);
        assert_eq!(spec.root.unwrap().path, Path::new("rootfs"));
        assert_eq!(spec.linux.resources.unwrap().memory.limit, Some(4096));
        assert_eq!(spec.linux.namespaces[1].path, Path::new("/var/run/netns/n"));
    }

    #[test]
    fn absent_and_null_fields_are_the_same() {
        let empty = SpecView::parse(b"{}").unwrap();
        let nulls = r#"{"annotations":null,"process":null,"root":null,"hooks":null,
            "linux":{"cgroupsPath":null,"namespaces":null,"uidMappings":null,"gidMappings":null,"resources":null}}"#;
        assert_eq!(SpecView::parse(nulls.as_bytes()).unwrap(), empty);
        assert_eq!(empty.mapped_owner(), None);
        assert!(!empty.has_private_pid_namespace() && !empty.hooks.any());
        for text in ["", "7", "{", r#"{"annotations":[]}"#] {
            assert!(SpecView::parse(text.as_bytes()).is_err(), "{text}");
        }
    }

    #[test]
    fn only_the_three_part_form_is_systemds() {
        let cases = [
            ("", false),
            ("/default/c1", false),
            ("/kubepods/a:b:c", false),
            ("system.slice:cri-containerd:abc", true),
            (":docker:abc", true),
            ("a:b", false),
            ("a:b:c:d", false),
        ];
        for (path, systemd) in cases {
            let linux = LinuxView {
                cgroups_path: path.to_owned(),
                ..LinuxView::default()
            };
            let spec = SpecView {
                linux,
                ..SpecView::default()
            };
            assert_eq!(spec.has_systemd_cgroup(), systemd, "{path}");
        }
    }

    #[test]
    fn ids_outside_every_range_have_no_host_id() {
        let ranges = [
            IdMapping {
                container_id: 0,
                host_id: 1000,
                size: 10,
            },
            IdMapping {
                container_id: 100,
                host_id: u32::MAX - 1,
                size: 5,
            },
        ];
        for (id, host) in [
            (0, Some(1000)),
            (9, Some(1009)),
            (10, None),
            (101, Some(u32::MAX)),
            (102, None),
        ] {
            assert_eq!(host_id(&ranges, id), host, "{id}");
        }
    }

    #[test]
    fn a_missing_and_an_endless_file_are_errors() {
        let bundle = tempfile::tempdir().unwrap();
        assert!(matches!(SpecView::read(bundle.path()), Err(SpecError::Io { .. })));
        std::os::unix::fs::symlink("/dev/zero", bundle.path().join(CONFIG_FILE)).unwrap();
        assert!(matches!(
            SpecView::read(bundle.path()),
            Err(SpecError::TooLarge { .. })
        ));
    }
}
