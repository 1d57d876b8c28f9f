//! Statistics, limits and running out of memory, with cgroup v1 and v2 alike.
#![expect(
    unused_results,
    reason = "a test acts through calls, and compares only the answers it is about"
)]

use std::time::Duration;

use anyhow::Result;
use integration::container::{Container, refused};
use integration::host::Host;
use integration::metrics::{self, Stats};
use integration::stdio::eventually;
use integration::workload::Workload;
use serde_json::json;

const MIB: u64 = 1 << 20;
const SHORT: Duration = Duration::from_secs(10);

/// Memory without end, fast.
const GREEDY: &str = "tail /dev/zero";

fn stats(container: &Container) -> Result<Stats> {
    metrics::parse(&container.api().metrics(container.id())?)
}

/// The file of a limit, under its name in v1 or in v2.
fn limit(container: &Container, controller: &str, v1: &str, v2: &str) -> Result<String> {
    container
        .cgroup_file(controller, v1)
        .or_else(|_| container.cgroup_file(controller, v2))
}

#[test]
fn statistics_have_the_type_of_the_machine_and_plausible_values() -> Result<()> {
    let host = Host::new()?;
    let limits = json!({"pids": {"limit": 77}, "memory": {"limit": 64 * MIB}});
    let script =
        "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done; echo ready; while true; do sleep 3600; done";
    let (container, _stdout) = host.run_until_ready(Workload::shell(script).resources(limits))?;
    let stats = stats(&container)?;
    let unified = std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    assert_eq!(stats.cgroup_version, if unified { 2 } else { 1 });
    assert_eq!((stats.pids_limit, stats.memory_limit), (77, 64 * MIB));
    assert!((1..=4).contains(&stats.pids), "{stats:?}");
    assert!((MIB / 16..64 * MIB).contains(&stats.memory), "{stats:?}");
    let (least, most) = (
        Duration::from_millis(5).as_nanos(),
        Duration::from_secs(60).as_nanos(),
    );
    assert!((least..most).contains(&u128::from(stats.cpu_ns)), "{stats:?}");
    Ok(())
}

#[test]
fn statistics_follow_what_the_container_does() -> Result<()> {
    let host = Host::new()?;
    let (container, _stdout) = host.run_until_ready(Workload::forever())?;
    let before = stats(&container)?;
    container.add_exec("e1", "while true; do :; done")?.start()?;
    let worked = |now: &Stats| now.cpu_ns > before.cpu_ns + 100_000_000 && now.pids > before.pids;
    eventually("a tenth of a second of work is counted", SHORT, || {
        stats(&container).is_ok_and(|now| worked(&now))
    })
}

#[test]
fn an_update_is_seen_in_the_cgroup() -> Result<()> {
    let host = Host::new()?;
    let limits = json!({"pids": {"limit": 50}, "memory": {"limit": 64 * MIB}});
    let container = host.run(Workload::forever().resources(limits))?;
    let changed = json!({
        "pids": {"limit": 33},
        "memory": {"limit": 48 * MIB},
        "cpu": {"quota": 20_000, "period": 100_000},
    });
    container.api().update("c", &changed)?;
    assert_eq!(limit(&container, "pids", "pids.max", "pids.max")?, "33");
    let memory = limit(&container, "memory", "memory.limit_in_bytes", "memory.max")?;
    assert_eq!(memory, (48 * MIB).to_string());
    let quota = limit(&container, "cpu", "cpu.cfs_quota_us", "cpu.max")?;
    assert!(quota == "20000" || quota == "20000 100000", "{quota}");
    Ok(())
}

#[test]
fn an_update_before_start_holds_after_it() -> Result<()> {
    let host = Host::new()?;
    let container = host.container("c", Workload::forever())?;
    container.create()?;
    container.api().update("c", &json!({"pids": {"limit": 44}}))?;
    container.start()?;
    assert_eq!(limit(&container, "pids", "pids.max", "pids.max")?, "44");
    Ok(())
}

#[test]
fn an_update_that_the_kernel_refuses_fails_and_harms_nothing() -> Result<()> {
    let host = Host::new()?;
    let (container, _stdout) = host.run_until_ready(Workload::forever())?;
    refused(
        container
            .api()
            .update("c", &json!({"cpu": {"quota": 20_000, "period": 1}})),
    )?;
    assert_eq!(container.run_exec("e1", "true")?.1, 0);
    Ok(())
}

#[test]
fn running_out_of_memory_is_told_and_ends_the_container() -> Result<()> {
    let host = Host::new()?;
    let events = host.events()?;
    let limits = json!({"memory": {"limit": 32 * MIB, "swap": 32 * MIB}});
    let container = host.run(Workload::command(GREEDY.split(' ')).resources(limits))?;
    assert_eq!(container.wait()?, 137);
    container.delete()?;
    let told = events.until("c", "exit 137")?;
    eventually("the lack of memory is told", SHORT, || {
        events.of("c").iter().any(|event| event.kind == "oom")
    })?;
    assert!(
        told.starts_with(&["create".to_owned(), "start".to_owned()]),
        "{told:?}"
    );
    assert_eq!(
        events.of("c").iter().filter(|event| event.kind == "oom").count(),
        1
    );
    host.assert_clean()?;
    container.create()?;
    container.start()?;
    Ok(())
}

#[test]
fn an_exec_that_runs_out_of_memory_leaves_the_container_running() -> Result<()> {
    let host = Host::new()?;
    let events = host.events()?;
    let limits = json!({"memory": {"limit": 32 * MIB, "swap": 32 * MIB}});
    let (container, _stdout) = host.run_until_ready(Workload::forever().resources(limits))?;
    let exec = container.add_exec("e1", GREEDY)?;
    exec.start()?;
    assert_eq!(exec.wait()?, 137);
    eventually("the lack of memory is told", SHORT, || {
        events.of("c").iter().any(|event| event.kind == "oom")
    })?;
    assert_eq!(container.run_exec("e2", "true")?.1, 0);
    Ok(())
}
