//! The kernel: what dumps and restores ask of it.

use std::fmt;
use std::fs;
use std::path::Path;

use super::checks::Checks;

const COMPONENT: &str = "kernel";

/// Each is there only with the option; none needs to be read.
const CHECKPOINT_RESTORE: &str = "/proc/sys/kernel/ns_last_pid";
const USERFAULTFD: &str = "/proc/sys/vm/unprivileged_userfaultfd";
const CGROUP_V2: &str = "/sys/fs/cgroup/cgroup.controllers";
const HYBRID: &str = "/sys/fs/cgroup/unified/cgroup.controllers";
const FREEZER_V1: &str = "/sys/fs/cgroup/freezer";

/// The oldest kernel whose unified hierarchy has a freezer.
const FREEZER_V2: Release = Release { major: 5, minor: 2 };

/// A kernel, by the numbers that decide something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Release {
    /// The 6 of 6.18.
    pub major: u32,
    /// The 18 of 6.18.
    pub minor: u32,
}

impl Release {
    /// The one that runs; zero if it does not say.
    pub fn running() -> Self {
        Self::parse(&release_text())
    }

    /// Reads `6.12.43+deb13-cloud-amd64`.
    fn parse(text: &str) -> Self {
        let mut numbers = text
            .split(|c: char| !c.is_ascii_digit())
            .map(|word| word.parse().unwrap_or(0));
        let (major, minor) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
        Self { major, minor }
    }
}

impl fmt::Display for Release {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// Looks at the kernel that runs. Returns which it is.
pub fn look(checks: &mut Checks) -> Release {
    let release = Release::running();
    checks.good(COMPONENT, "release", release_text());
    if Path::new(CHECKPOINT_RESTORE).exists() {
        checks.good(COMPONENT, "checkpoint and restore", "CONFIG_CHECKPOINT_RESTORE");
    } else {
        let remedy =
            "run a kernel with CONFIG_CHECKPOINT_RESTORE; those of Debian, Ubuntu, Fedora and RHEL have it";
        checks.error(
            COMPONENT,
            "checkpoint and restore",
            "no CONFIG_CHECKPOINT_RESTORE",
            remedy,
        );
    }
    if Path::new(USERFAULTFD).exists() {
        checks.good(COMPONENT, "userfaultfd", "CONFIG_USERFAULTFD");
    } else {
        checks.absent(COMPONENT, "userfaultfd", "none: a restore waits for all memory");
    }
    look_at_cgroups(release, checks);
    release
}

fn look_at_cgroups(release: Release, checks: &mut Checks) {
    let remedy = "mount the freezer of cgroup v1, or boot with the unified hierarchy on kernel 5.2 or later";
    let exists = |path: &str| Path::new(path).exists();
    if exists(CGROUP_V2) {
        checks.good(COMPONENT, "cgroups", "v2");
        if release >= FREEZER_V2 {
            checks.good(COMPONENT, "freezer", "cgroup.freeze");
        } else {
            checks.warning(COMPONENT, "freezer", format!("none in kernel {release}"), remedy);
        }
        return;
    }
    checks.good(
        COMPONENT,
        "cgroups",
        if exists(HYBRID) { "v1, hybrid" } else { "v1" },
    );
    if exists(FREEZER_V1) {
        checks.good(COMPONENT, "freezer", FREEZER_V1);
    } else {
        checks.warning(
            COMPONENT,
            "freezer",
            "not mounted: processes are stopped one by one",
            remedy,
        );
    }
}

fn release_text() -> String {
    fs::read_to_string("/proc/sys/kernel/osrelease")
        .unwrap_or_default()
        .trim()
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_of_all_distributions_are_read() {
        for (text, major, minor) in [
            ("6.12.43+deb13-cloud-amd64", 6, 12),
            ("5.14.0-570.el9.x86_64", 5, 14),
            ("6.18", 6, 18),
            ("7.0-rc1", 7, 0),
            ("", 0, 0),
        ] {
            assert_eq!(Release::parse(text), Release { major, minor }, "{text}");
        }
    }
}
