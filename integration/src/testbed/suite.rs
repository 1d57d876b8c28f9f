//! The suites: which engines, from which Debian release.

use anyhow::{Result, bail};

/// A set of engines of known versions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Suite {
    /// Debian testing: containerd 2.1, runc 1.3, CRIU 4.2, Docker 28. The default.
    Forky,
    /// Debian 13: containerd 1.7, runc 1.1, CRIU 4.1, Docker 26.
    Trixie,
    /// Forky, with pinned releases of containerd, runc and the clients in place of Debian's.
    Latest,
    /// Debian 13 with its own kernel, systemd and cgroup v2, in a virtual machine.
    Vm,
}

/// How a root file system is made. Its hash names the cached result, so a change here makes a new one.
#[derive(Debug, Clone)]
pub struct Recipe {
    /// The Debian release, by code name.
    pub release: &'static str,
    /// The packages it holds besides apt's own.
    pub packages: Vec<&'static str>,
}

/// Raised when what is put into a root file system changes without a change of the packages.
pub const RECIPE_VERSION: u32 = 1;

const ENGINES: &[&str] = &[
    "busybox-static",
    "ca-certificates",
    "containerd",
    "containernetworking-plugins",
    "criu",
    "crun",
    "docker-cli",
    "docker.io",
    "iproute2",
    "iptables",
    "mount",
    "nftables",
    "procps",
    "runc",
    "strace",
    "util-linux",
];

/// Engines of which only Debian testing has a version that is worth a test.
const NEWER: &[&str] = &["podman"];

/// What makes a root file system a machine.
const MACHINE: &[&str] = &[
    "apparmor",
    "dbus",
    "initramfs-tools",
    "kmod",
    "linux-image-amd64",
    "systemd",
    "systemd-sysv",
    "udev",
];

impl Suite {
    const ALL: [(Self, &'static str); 4] = [
        (Self::Forky, "forky"),
        (Self::Trixie, "trixie"),
        (Self::Latest, "latest"),
        (Self::Vm, "vm"),
    ];

    /// The suite of that name.
    pub fn named(name: &str) -> Result<Self> {
        match Self::ALL.iter().find(|(_, known)| *known == name) {
            Some((suite, _)) => Ok(*suite),
            None => bail!("find suite {name:?}: there are {}", Self::names()),
        }
    }

    /// All names, for messages.
    pub fn names() -> String {
        Self::ALL.map(|(_, name)| name).join(", ")
    }

    /// Its name, as typed, and as `TESTBED_SUITE` says it inside.
    pub fn name(self) -> &'static str {
        match self {
            Self::Forky => "forky",
            Self::Trixie => "trixie",
            Self::Latest => "latest",
            Self::Vm => "vm",
        }
    }

    /// The root file system it runs on.
    pub fn recipe(self) -> Recipe {
        let release = match self {
            Self::Forky | Self::Latest => "forky",
            Self::Trixie | Self::Vm => "trixie",
        };
        let mut packages = ENGINES.to_vec();
        if release == "forky" {
            packages.extend(NEWER);
        }
        if self == Self::Vm {
            packages.extend(MACHINE);
        }
        Recipe { release, packages }
    }
}
