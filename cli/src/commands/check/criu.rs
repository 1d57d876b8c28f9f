//! CRIU: whether it is there, fits this kernel, and finds in it what it needs.

use std::path::Path;

use super::checks::Checks;
use super::kernel::Release;
use super::tool::{self, Places, TOOL_LIMIT, run};

const COMPONENT: &str = "criu";
const INSTALL: &str =
    "install CRIU 4.2 or later where containerd finds it (Debian and Ubuntu: the package criu)";

/// From this version on network sockets can be saved on the kernels from [`SOCKETS_CHANGED`] on, and guard pages.
const GOOD: (u32, u32) = (4, 2);

/// The oldest version that is known to work under runc 1.1 with our options.
const OLDEST: (u32, u32) = (3, 17);

/// The kernel that changed how sockets are asked for their options.
const SOCKETS_CHANGED: Release = Release { major: 6, minor: 16 };

/// What CRIU may find in the kernel, by its own names: what it is good for, and what is lost without it.
const FEATURES: &[(&str, &str, &str)] = &[
    ("mem_dirty_track", "incremental dumps", "every dump is a full one"),
    (
        "uffd-noncoop",
        "restores that do not wait for memory",
        "a restore waits for all memory",
    ),
    (
        "network_lock_nftables",
        "network lock by nftables",
        "iptables are used to lock the network",
    ),
    (
        "pidfd_store",
        "pids that are taken again",
        "a pid that was taken again is not noticed",
    ),
];

/// The CRIU of this host, by its version.
pub async fn version(places: &Places) -> Option<(u32, u32)> {
    let path = places.find(COMPONENT)?;
    let said = run(&path, &["--version"], TOOL_LIMIT).await.ok()?;
    tool::version(&said.stdout)
}

/// Whether a CRIU of that version fails on every network socket on this kernel.
pub fn lacks_sockets(version: (u32, u32), release: Release) -> bool {
    version < GOOD && release >= SOCKETS_CHANGED
}

/// Looks at it.
pub async fn look(places: &Places, release: Release, checks: &mut Checks) {
    let Some(path) = places.find(COMPONENT) else {
        checks.error(COMPONENT, "binary", "not found", INSTALL);
        return;
    };
    let version = run(&path, &["--version"], TOOL_LIMIT).await;
    match version {
        Err(silent) => {
            checks.error(
                COMPONENT,
                "binary",
                format!("{} {silent}", path.display()),
                INSTALL,
            );
            return;
        }
        Ok(said) => judge_version(&path, &said.stdout, release, checks),
    }
    check_kernel(&path, checks).await;
    look_at_features(&path, checks).await;
    look_at_network_lock(places, checks);
}

fn judge_version(path: &Path, said: &str, release: Release, checks: &mut Checks) {
    let found = format!("{} ({})", shown(said), path.display());
    match tool::version(said) {
        None => checks.error(COMPONENT, "version", found, INSTALL),
        Some(version) if version < OLDEST => checks.error(COMPONENT, "version", found, INSTALL),
        Some(version) if lacks_sockets(version, release) => checks.warning(
            COMPONENT,
            "version",
            format!("{found}: cannot save network sockets on kernel {release}"),
            INSTALL,
        ),
        Some(version) if version < GOOD => checks.warning(
            COMPONENT,
            "version",
            format!("{found}: cannot save memory with guard pages (glibc 2.42 and later)"),
            INSTALL,
        ),
        Some(_) => checks.good(COMPONENT, "version", found),
    }
}

/// `4.2.1` of `Version: 4.2.1`, and the git id below.
fn shown(said: &str) -> &str {
    let line = said.lines().next().unwrap_or_default();
    line.trim_start_matches("Version:").trim()
}

async fn check_kernel(path: &Path, checks: &mut Checks) {
    let remedy = "run `criu check` for all it says; the kernel needs CONFIG_CHECKPOINT_RESTORE and the socket \
                  monitoring modules (unix_diag, inet_diag …), and this command root";
    match run(path, &["check"], TOOL_LIMIT).await {
        Ok(said) if said.success => checks.good(COMPONENT, "kernel", "has what CRIU needs"),
        Ok(said) => checks.error(COMPONENT, "kernel", said.last_line().to_owned(), remedy),
        Err(silent) => checks.error(COMPONENT, "kernel", format!("criu check {silent}"), remedy),
    }
}

async fn look_at_features(path: &Path, checks: &mut Checks) {
    for (name, good_for, lost) in FEATURES {
        let asked = run(path, &["check", "--feature", name], TOOL_LIMIT).await;
        if asked.is_ok_and(|said| said.success) {
            checks.good(COMPONENT, good_for, *name);
        } else {
            checks.absent(COMPONENT, good_for, format!("no {name}: {lost}"));
        }
    }
}

/// CRIU keeps packets away by running iptables, or by nftables if it was built with them.
fn look_at_network_lock(places: &Places, checks: &mut Checks) {
    let has_nftables = checks
        .all()
        .iter()
        .any(|check| check.found == "network_lock_nftables");
    if places.find("iptables").is_some() || has_nftables {
        checks.good(COMPONENT, "network lock", "established connections can be saved");
    } else {
        checks.warning(
            COMPONENT,
            "network lock",
            "neither iptables nor nftables: dumps with dump.tcp=established fail",
            "install iptables",
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn release(major: u32, minor: u32) -> Release {
        Release { major, minor }
    }

    #[test]
    fn an_old_criu_fails_on_sockets_only_on_new_kernels() {
        for (version, on, expected) in [
            ((4, 1), release(6, 16), true),
            ((4, 1), release(7, 0), true),
            ((4, 1), release(6, 15), false),
            ((4, 2), release(6, 18), false),
            ((5, 0), release(6, 18), false),
        ] {
            assert_eq!(lacks_sockets(version, on), expected, "{version:?} on {on}");
        }
    }

    #[test]
    fn versions_are_judged() {
        for (said, on, errors, warnings) in [
            ("Version: 4.2.1\n", release(6, 18), 0, 0),
            ("Version: 4.1.1\n", release(6, 18), 0, 1),
            ("Version: 4.1.1\n", release(6, 12), 0, 1),
            ("Version: 3.15\n", release(6, 1), 1, 0),
            ("no version", release(6, 1), 1, 0),
        ] {
            let mut checks = Checks::default();
            judge_version(Path::new("/usr/sbin/criu"), said, on, &mut checks);
            assert_eq!((checks.errors(), checks.warnings()), (errors, warnings), "{said}");
        }
    }
}
