//! What a test needs of the machine, and the named skip when it is not there.
//!
//! A skip is printed as `SKIP test: reason`. Where `CI=true`, a need that the suite has promised is an error instead,
//! so that a broken testbed cannot pass for a green one.

use std::io::Write;
use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};

/// Something that not every machine, suite or runtime has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// The runtime under test is ours: containerd's own shim does not do this.
    OurShim,
    /// A Docker daemon that can be started.
    Docker,
    /// The nerdctl client.
    Nerdctl,
    /// Podman.
    Podman,
    /// The crictl client, and containerd's CRI service.
    Crictl,
    /// checkpointctl, which looks into checkpoints.
    Checkpointctl,
    /// The crun runtime.
    Crun,
    /// No controllers in a unified hierarchy that stands beside those of v1: crun works with nothing else.
    NotHybrid,
    /// Memory, pids and freezer as cgroup v1 hierarchies.
    CgroupV1,
    /// The unified cgroup hierarchy with its controllers.
    CgroupV2,
    /// systemd as pid 1, with its cgroup driver.
    Systemd,
    /// A CRIU that can be run.
    Criu,
    /// A CRIU that can save network sockets on this kernel: before 4.2 it cannot from kernel 6.16 on.
    CriuSockets,
    /// Loop devices, and an ext4 in a file.
    LoopDevices,
    /// `strace`, to stop programs where a test wants them.
    Strace,
    /// A `ctr` that sends checkpoint options under the name of the runtime under test: before containerd 2 it does so
    /// only under the name of containerd's own.
    CheckpointOptions,
    /// A containerd whose checkpoint of a container that came from a checkpoint holds its task: before containerd 2 it is
    /// left out without a word, under any runtime.
    CheckpointAgain,
}

/// What each suite of the testbed promises.
const PROMISES: &[(&str, &[Need])] = &[
    (
        "forky",
        &[
            Need::Docker,
            Need::Podman,
            Need::Crun,
            Need::CgroupV1,
            Need::Criu,
            Need::CriuSockets,
            Need::Strace,
            Need::CheckpointOptions,
            Need::CheckpointAgain,
        ],
    ),
    ("trixie", &[Need::Docker, Need::Crun, Need::CgroupV1, Need::Criu]),
    (
        "latest",
        &[
            Need::Nerdctl,
            Need::Crictl,
            Need::Checkpointctl,
            Need::Crun,
            Need::CgroupV1,
            Need::Criu,
        ],
    ),
    (
        "vm",
        &[
            Need::Docker,
            Need::Crun,
            Need::CgroupV2,
            Need::Systemd,
            Need::Criu,
            Need::CriuSockets,
        ],
    ),
];

/// Runtime under test unless `CEDANA_TEST_RUNTIME` names another.
pub const OUR_RUNTIME: &str = "io.containerd.cedana.v1";

/// Name of the runtime under test.
pub fn runtime() -> String {
    variable("CEDANA_TEST_RUNTIME").unwrap_or_else(|| OUR_RUNTIME.to_owned())
}

/// The testbed's suite, or `host` outside it.
pub fn suite() -> String {
    variable("TESTBED_SUITE").unwrap_or_else(|| "host".to_owned())
}

/// Whether `test` may go on. When not, says why it was skipped; an error if the suite had promised the need.
pub fn met(test: &str, need: Need, why: &str) -> Result<bool> {
    if is_there(need) {
        return Ok(true);
    }
    let suite = suite();
    if variable("CI").as_deref() == Some("true") && promised(&suite, need) {
        bail!("{test} needs {need:?}, which the suite {suite} promises ({why})");
    }
    let _closed = writeln!(std::io::stderr(), "SKIP {test}: needs {need:?}: {why}");
    Ok(false)
}

/// Skips the test it stands in unless the need is met: `need!(Docker, "runs a container by docker");`
#[macro_export]
macro_rules! need {
    ($need:ident, $why:expr) => {{
        fn here() {}
        let test = std::any::type_name_of_val(&here).trim_end_matches("::here");
        if !$crate::need::met(test, $crate::need::Need::$need, $why)? {
            return Ok(());
        }
    }};
}

fn promised(suite: &str, need: Need) -> bool {
    PROMISES
        .iter()
        .any(|(name, needs)| *name == suite && needs.contains(&need))
}

/// Whether it is there, for a test that has something to say either way.
pub fn is_there(need: Need) -> bool {
    match need {
        Need::OurShim => runtime() == OUR_RUNTIME,
        Need::Docker => runs("dockerd", "--version") && runs("docker", "--version"),
        Need::Nerdctl => runs("nerdctl", "--version"),
        Need::Podman => runs("podman", "--version"),
        Need::Crictl => runs("crictl", "--version"),
        // Its version is that of whoever builds it with one.
        Need::Checkpointctl => runs("checkpointctl", "--help"),
        Need::Crun => runs("crun", "--version"),
        Need::NotHybrid => {
            std::fs::read_to_string("/sys/fs/cgroup/unified/cgroup.controllers")
                .is_ok_and(|controllers| controllers.trim().is_empty())
                || Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
        }
        Need::CgroupV1 => Path::new("/sys/fs/cgroup/memory").is_dir(),
        Need::CgroupV2 => Path::new("/sys/fs/cgroup/cgroup.controllers").is_file(),
        Need::Systemd => Path::new("/run/systemd/system").is_dir(),
        Need::Criu => runs("criu", "--version"),
        Need::LoopDevices => runs("losetup", "--find") && runs("fsfreeze", "--version"),
        Need::Strace => runs("strace", "--version"),
        Need::CriuSockets => {
            let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
            version_in(&kernel).is_some_and(|version| version < (6, 16))
                || version("criu").is_some_and(|version| version >= (4, 2))
        }
        Need::CheckpointOptions => {
            runtime() != OUR_RUNTIME || version("ctr").is_some_and(|version| version >= (2, 0))
        }
        Need::CheckpointAgain => version("ctr").is_some_and(|version| version >= (2, 0)),
    }
}

fn runs(program: &str, flag: &str) -> bool {
    Command::new(program)
        .arg(flag)
        .output()
        .is_ok_and(|output| output.status.success())
}

/// The first two numbers of what a program says its version is.
fn version(program: &str) -> Option<(u32, u32)> {
    let output = Command::new(program).arg("--version").output().ok()?;
    version_in(&String::from_utf8_lossy(&output.stdout))
}

fn version_in(text: &str) -> Option<(u32, u32)> {
    let word = text.split_whitespace().map(|word| word.trim_start_matches('v'));
    let mut numbers = word
        .into_iter()
        .find(|word| word.starts_with(|first: char| first.is_ascii_digit()))?
        .split(|separator: char| !separator.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_suite_promises_what_its_table_says() {
        assert!(promised("forky", Need::Docker));
        assert!(!promised("forky", Need::Systemd));
        assert!(!promised("host", Need::Docker));
    }

    #[test]
    fn a_version_is_found_in_what_a_program_says() {
        for (text, expected) in [
            ("Version: 4.2.1\n", Some((4, 2))),
            ("ctr github.com/containerd/containerd 1.7.24~ds1", Some((1, 7))),
            ("ctr github.com/containerd/containerd/v2 v2.3.4", Some((2, 3))),
            ("no number", None),
        ] {
            assert_eq!(version_in(text), expected, "{text}");
        }
    }
}
