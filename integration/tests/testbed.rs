//! The testbed itself: what it returns, and that nothing of an instance outlives it.
//!
//! These run in an instance like all tests, so instances are started within one: `TESTBED=host` takes the engines there for a
//! host's.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use integration::need;
use integration::stdio::eventually;

/// An instance is up in a second; this is for a loaded machine.
const SECONDS_MAX: &str = "120";

/// Starts a container and freezes it, which a kill does not end on cgroup v1.
const PAUSED: &str = "ctr run -d localhost/cedana/busybox:latest frozen sh -c 'while :; do sleep 1; done' </dev/null \
                      && ctr tasks pause frozen && echo ready";

/// The testbed on the engines around it, with a cache of its own; given up after a while.
fn testbed(cache: &Path, script: &str) -> Command {
    let mut command = Command::new("timeout");
    let _ = command
        .args([
            "--foreground",
            SECONDS_MAX,
            env!("CARGO_BIN_EXE_testbed"),
            "--",
            "sh",
            "-c",
            script,
        ])
        .env("TESTBED", "host")
        .env("CEDANA_TESTBED_CACHE", cache)
        .stdin(Stdio::null());
    command
}

/// Starts it and waits until the script says that it is ready.
fn started(cache: &Path, script: &str) -> Result<Child> {
    let mut child = testbed(cache, script).stdout(Stdio::piped()).spawn()?;
    let mut line = String::new();
    let output = child.stdout.take().context("take the testbed's output")?;
    let mut output = BufReader::new(output);
    while line.trim() != "ready" {
        line.clear();
        ensure!(
            output.read_line(&mut line)? > 0,
            "the testbed ended before it was ready"
        );
    }
    Ok(child)
}

/// Processes of the testbed with that process id, its own process apart.
fn processes_of(testbed: u32) -> Vec<PathBuf> {
    let place = format!("/cedana-testbed-{testbed}");
    let processes = fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path());
    processes
        .filter(|process| fs::read_to_string(process.join("cgroup")).is_ok_and(|text| text.contains(&place)))
        .collect()
}

/// Its cgroups, wherever the instance's own lies.
fn cgroups_of(testbed: u32) -> Result<String> {
    let name = format!("cedana-testbed-{testbed}");
    let found = Command::new("find")
        .args(["/sys/fs/cgroup", "-name", &name])
        .output()?;
    Ok(String::from_utf8(found.stdout)?)
}

/// `timeout` has one child: the testbed.
fn testbed_pid(timeout: &Child) -> Result<u32> {
    let path = format!("/proc/{0}/task/{0}/children", timeout.id());
    let children = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    children
        .trim()
        .parse()
        .with_context(|| format!("one child among {children:?}"))
}

#[test]
fn its_status_is_that_of_the_command() -> Result<()> {
    need!(CgroupV1, "the machine's suite has an instance of its own kind");
    let cache = tempfile::tempdir()?;
    for (script, expected) in [
        ("exit 0", 0),
        ("exit 7", 7),
        ("kill -9 $$", 137),
        ("no-such-program", 127),
    ] {
        let status = testbed(cache.path(), script).status()?;
        assert_eq!(status.code(), Some(expected), "{script}");
    }
    Ok(())
}

#[test]
fn a_frozen_container_does_not_keep_an_instance() -> Result<()> {
    need!(CgroupV1, "only there does a frozen process outlive a kill");
    let cache = tempfile::tempdir()?;
    let status = testbed(cache.path(), PAUSED).status()?;
    assert_eq!(status.code(), Some(0));
    Ok(())
}

#[test]
fn a_signal_takes_the_instance_down() -> Result<()> {
    need!(CgroupV1, "the machine's suite has an instance of its own kind");
    let cache = tempfile::tempdir()?;
    let mut child = started(cache.path(), &format!("{PAUSED}; exec sleep 100"))?;
    let testbed = testbed_pid(&child)?;
    ensure!(!processes_of(testbed).is_empty(), "an instance has processes");
    let told = Command::new("kill")
        .args(["-TERM", &testbed.to_string()])
        .status()?;
    assert!(told.success());
    assert_eq!(child.wait()?.code(), Some(143));
    assert_eq!(processes_of(testbed), Vec::<PathBuf>::new());
    assert_eq!(cgroups_of(testbed)?, "");
    Ok(())
}

#[test]
fn what_a_killed_testbed_leaves_is_gone_after_the_next() -> Result<()> {
    need!(CgroupV1, "the machine's suite has an instance of its own kind");
    let cache = tempfile::tempdir()?;
    let mut child = started(cache.path(), &format!("{PAUSED}; exec sleep 100"))?;
    let testbed_id = testbed_pid(&child)?;
    let killed = Command::new("kill")
        .args(["-KILL", &testbed_id.to_string()])
        .status()?;
    assert!(killed.success());
    let _ = child.wait()?;
    assert!(testbed(cache.path(), "true").status()?.success());
    eventually("the killed instance is gone", Duration::from_secs(20), || {
        processes_of(testbed_id).is_empty() && cgroups_of(testbed_id).is_ok_and(|left| left.is_empty())
    })?;
    Ok(())
}

#[test]
fn two_instances_do_not_see_one_another() -> Result<()> {
    need!(CgroupV1, "the machine's suite has an instance of its own kind");
    let cache = tempfile::tempdir()?;
    let mut first = started(cache.path(), &format!("{PAUSED}; exec sleep 100"))?;
    // The same container id, while the first one's lives.
    let second = testbed(cache.path(), PAUSED).status()?;
    assert_eq!(second.code(), Some(0));
    let told = Command::new("kill")
        .args(["-TERM", &testbed_pid(&first)?.to_string()])
        .status()?;
    assert!(told.success());
    assert_eq!(first.wait()?.code(), Some(143));
    Ok(())
}
