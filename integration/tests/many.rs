//! Many containers, and the machine is as it was.
#![expect(
    unused_results,
    reason = "a test acts through calls, and compares only the answers it is about"
)]

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use integration::host::Host;
use integration::leftovers::{cgroups, command_line};
use integration::stdio::{StreamNames, eventually};
use integration::workload::Workload;

const CONTAINERS: usize = 200;
const AT_A_TIME: usize = 20;

/// Opened once by containerd for itself while the first containers run, and kept.
const DESCRIPTORS_SLACK: usize = 8;

/// What is counted before and after.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Counts {
    processes: usize,
    mounts: usize,
    cgroups: usize,
    sockets: usize,
    bundles: usize,
}

fn counts(host: &Host) -> Counts {
    let entries = |dir: &Path| fs::read_dir(dir).map(Iterator::count).unwrap_or_default();
    let bundles = host
        .places()
        .state
        .join("io.containerd.runtime.v2.task")
        .join(host.namespace());
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pid = |entry: fs::DirEntry| entry.file_name().to_str()?.parse().ok();
    Counts {
        processes: processes
            .filter_map(pid)
            .filter(|pid| command_line(*pid).is_some())
            .count(),
        mounts: fs::read_to_string("/proc/self/mountinfo")
            .unwrap_or_default()
            .lines()
            .count(),
        cgroups: cgroups("").len(),
        sockets: entries(Path::new("/run/containerd/s")),
        bundles: entries(&bundles),
    }
}

/// Descriptors that containerd has open.
fn containerd_descriptors() -> Result<usize> {
    let pids = fs::read_dir("/proc")?
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let is_it =
        |pid: &i32| command_line(*pid).is_some_and(|line| line.split(' ').next() == Some("containerd"));
    let pid = pids
        .into_iter()
        .find(is_it)
        .context("find containerd among the processes")?;
    Ok(fs::read_dir(format!("/proc/{pid}/fd"))?.count())
}

/// A whole life with output and an exec, in which each step is checked.
fn live(host: &Host, id: &str) -> Result<()> {
    let container = host.container(id, Workload::shell("echo ready; read line; echo $line; exit 7"))?;
    let fifos = container.fifos("init")?;
    let (stdout, _stderr) = fifos.read();
    container.create_with(&fifos.names(false), None)?;
    container.start()?;
    stdout.wait_for("ready\n")?;
    let exec = container.add_exec_with("e", &["true"], &StreamNames::default(), false)?;
    exec.start()?;
    ensure!(exec.wait()? == 0);
    exec.delete()?;
    integration::stdio::write(&mut fifos.stdin()?, "end\n")?;
    ensure!(container.wait()? == 7);
    ensure!(container.delete()? == 7);
    ensure!(stdout.to_end()? == b"ready\nend\n");
    Ok(container.remove()?)
}

fn live_many(host: &Host, count: usize, at_a_time: usize) -> Result<()> {
    std::thread::scope(|scope| {
        let lane = |lane: usize| (lane..count).step_by(at_a_time);
        let live = |id: usize| live(host, &format!("c{id}")).with_context(|| format!("container {id}"));
        let lanes: Vec<_> = (0..at_a_time)
            .map(|it| scope.spawn(move || lane(it).try_for_each(live)))
            .collect();
        lanes
            .into_iter()
            .try_for_each(|lane| lane.join().map_err(|_| anyhow::anyhow!("a lane panicked"))?)
    })
}

#[test]
fn two_hundred_containers_leave_the_machine_as_it_was() -> Result<()> {
    let host = Host::new()?;
    live_many(&host, AT_A_TIME, AT_A_TIME)?;
    host.assert_clean()?;
    let (before, descriptors) = (counts(&host), containerd_descriptors()?);
    live_many(&host, CONTAINERS, AT_A_TIME)?;
    let settled = eventually("all is as it was", integration::stdio::OUTPUT_DEADLINE, || {
        counts(&host) == before
    });
    settled.with_context(|| format!("{:?} after {before:?}", counts(&host)))?;
    let after = containerd_descriptors()?;
    ensure!(
        after <= descriptors + DESCRIPTORS_SLACK,
        "containerd has {after} descriptors open after {descriptors}"
    );
    Ok(())
}
