//! The life of a container, as containerd's clients live it, and the codes with which wrong calls are refused.
//!
//! All `lifecycle*`, `stdio` and `events` tests pass against containerd's own shim as well, which tests the tests:
//! `CEDANA_TEST_RUNTIME=io.containerd.runc.v2`.
#![expect(
    unused_results,
    reason = "a test acts through calls, and compares only the answers it is about"
)]

mod freeze;

use std::time::Duration;

use anyhow::{Context, Result};
use integration::container::refused;
use integration::host::Host;
use integration::messages::Status;
use integration::need;
use integration::stdio::eventually;
use integration::workload::Workload;
use tonic::Code;

const SHORT: Duration = Duration::from_secs(10);
const KILL: u32 = 9;
const TERM: u32 = 15;
/// `SIGRTMIN+3`, with which systemd is told to halt.
const RT_SIGNAL: u32 = 37;

fn check_exit(script: &str, expected: u32) -> Result<()> {
    let host = Host::new()?;
    let container = host.run(Workload::shell(script))?;
    assert_eq!(container.wait()?, expected, "{script}");
    assert_eq!(
        container.delete()?,
        expected,
        "{script}: delete says the same as wait"
    );
    host.assert_clean()
}

#[test]
fn the_exit_code_is_that_of_the_process() -> Result<()> {
    check_exit("true", 0)?;
    check_exit("exit 7", 7)?;
    check_exit("exit 255", 255)
}

#[test]
fn a_signal_gives_128_and_its_number() -> Result<()> {
    for (signal, expected) in [(KILL, 137), (TERM, 143)] {
        let host = Host::new()?;
        let (container, _stdout) = host.run_until_ready(Workload::forever())?;
        container.kill(signal)?;
        assert_eq!(container.wait()?, expected);
        assert_eq!(container.delete()?, expected);
    }
    Ok(())
}

#[test]
fn a_real_time_signal_arrives() -> Result<()> {
    let host = Host::new()?;
    let script = format!("trap 'exit 42' {RT_SIGNAL}; echo ready; while true; do sleep 3600 & wait $!; done");
    let (container, _stdout) = host.run_until_ready(Workload::shell(&script))?;
    container.kill(RT_SIGNAL)?;
    assert_eq!(container.wait()?, 42);
    Ok(())
}

#[test]
fn a_task_goes_from_created_to_running_to_stopped_to_gone() -> Result<()> {
    let host = Host::new()?;
    let container = host.container("c", Workload::forever())?;
    assert_eq!(refused(container.state())?, Code::NotFound);
    let pid = container.create()?;
    assert_eq!(
        (container.status()?, container.state()?.pid),
        (Status::Created, pid)
    );
    assert_eq!(
        container.start()?,
        pid,
        "start keeps the pid that create returned"
    );
    assert_eq!(
        (container.status()?, container.state()?.pid),
        (Status::Running, pid)
    );
    container.kill(KILL)?;
    assert_eq!(container.wait()?, 137);
    let stopped = container.state()?;
    assert_eq!((stopped.status(), stopped.exit_status), (Status::Stopped, 137));
    assert!(
        stopped.exited_at.is_some_and(|at| at.seconds > 0),
        "a stopped task has the time of its exit"
    );
    container.delete()?;
    assert_eq!(refused(container.state())?, Code::NotFound);
    host.assert_clean()
}

#[test]
fn a_created_task_can_be_deleted_without_ever_being_started() -> Result<()> {
    let host = Host::new()?;
    let container = host.container("c", Workload::forever())?;
    container.create()?;
    container.delete()?;
    assert_eq!(refused(container.state())?, Code::NotFound);
    host.assert_clean()
}

#[test]
fn an_id_can_be_used_again_after_delete() -> Result<()> {
    let host = Host::new()?;
    let container = host.container("c", Workload::shell("exit 3"))?;
    for _ in 0..3 {
        container.create()?;
        container.start()?;
        assert_eq!(container.wait()?, 3);
        container.delete()?;
    }
    host.assert_clean()
}

#[test]
fn a_program_that_is_not_there_fails_create_and_leaves_nothing() -> Result<()> {
    let host = Host::new()?;
    let container = host.container("c", Workload::command(["/no/such/program"]))?;
    for _ in 0..2 {
        let refusal = container.create().err().context("expect create to fail")?;
        assert!(
            refusal.message().contains("no such file or directory"),
            "docker looks for this: {refusal:?}"
        );
        assert_eq!(refused(container.state())?, Code::NotFound);
        host.assert_clean()?;
    }
    Ok(())
}

#[test]
fn kill_reaches_one_process() -> Result<()> {
    let host = Host::new()?;
    let script = "(trap 'echo told; exit' TERM; echo child; while true; do sleep 3600 & wait $!; done) &
        trap 'exit 143' TERM; echo ready; while true; do wait; done";
    let (container, stdout) = host.run_until_ready(Workload::shell(script))?;
    stdout.wait_for("child\n")?;
    container.kill(TERM)?;
    assert_eq!(container.wait()?, 143);
    container.delete()?;
    assert!(
        !String::from_utf8(stdout.to_end()?)?.contains("told"),
        "the child was not meant"
    );
    Ok(())
}

/// With another signal runc 1.2 and later tell the first process alone, whatever `all` says.
#[test]
fn kill_all_reaches_every_process() -> Result<()> {
    let host = Host::new()?;
    let script = "sleep 3600 & echo ready; while true; do sleep 3600 & wait $!; done";
    let (container, _stdout) = host.run_until_ready(Workload::shell(script).shared_pids())?;
    container.kill_all(KILL)?;
    assert_eq!(container.wait()?, 137);
    let sleepers = || {
        host.places()
            .processes()
            .into_iter()
            .filter(|(_, line)| line.starts_with("sleep"))
            .count()
    };
    eventually("every process is gone", SHORT, || sleepers() == 0)?;
    container.delete()?;
    host.assert_clean()
}

#[test]
fn the_processes_of_a_container_in_the_host_s_pid_namespace_die_with_its_first() -> Result<()> {
    let host = Host::new()?;
    let script = "sleep 3600 & echo ready; read line </run/never || sleep 3600";
    let (container, _stdout) = host.run_until_ready(Workload::shell(script).shared_pids())?;
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(container.state()?.pid.try_into()?),
        nix::sys::signal::SIGKILL,
    )?;
    assert_eq!(container.wait()?, 137);
    container.delete()?;
    host.assert_clean()
}

#[test]
fn every_waiter_is_told_also_one_that_comes_late() -> Result<()> {
    let host = Host::new()?;
    let (container, _stdout) = host.run_until_ready(Workload::forever())?;
    let waiters: Vec<_> = (0..20)
        .map(|_| {
            let container = container.clone();
            std::thread::spawn(move || container.wait())
        })
        .collect();
    container.kill(TERM)?;
    for waiter in waiters {
        assert_eq!(waiter.join().expect("no waiter panics")?, 143);
    }
    assert_eq!(container.wait()?, 143, "a waiter that comes after the exit");
    Ok(())
}

#[test]
fn calls_for_what_is_not_there_are_not_found() -> Result<()> {
    let host = Host::new()?;
    let container = host.container("c", Workload::forever())?;
    let api = container.api();
    let without_task = [
        refused(container.start())?,
        refused(container.kill(KILL))?,
        refused(container.delete())?,
    ];
    assert_eq!(without_task, [Code::NotFound; 3]);
    assert_eq!(
        [refused(container.wait())?, refused(api.pids("c"))?],
        [Code::NotFound; 2]
    );
    container.create()?;
    container.start()?;
    let exec = "no-such-exec";
    assert_eq!(refused(api.start("c", exec))?, Code::NotFound, "start");
    assert_eq!(refused(api.get("c", exec))?, Code::NotFound, "state");
    assert_eq!(refused(api.kill("c", exec, KILL, false))?, Code::NotFound, "kill");
    assert_eq!(refused(api.delete("c", exec))?, Code::NotFound, "delete");
    assert_eq!(refused(api.wait("c", exec))?, Code::NotFound, "wait");
    assert_eq!(refused(api.resize("c", exec, 80, 25))?, Code::NotFound, "resize");
    assert_eq!(refused(api.close_io("c", exec))?, Code::NotFound, "close-io");
    container.kill(KILL)?;
    container.wait()?;
    assert_eq!(
        refused(container.kill(KILL))?,
        Code::NotFound,
        "kill of a stopped task"
    );
    container.delete()?;
    assert_eq!(
        refused(container.delete())?,
        Code::NotFound,
        "delete of a deleted task"
    );
    Ok(())
}

#[test]
fn a_second_create_already_exists() -> Result<()> {
    let host = Host::new()?;
    let container = host.run(Workload::forever())?;
    assert_eq!(refused(container.create())?, Code::AlreadyExists);
    assert_eq!(
        container.status()?,
        Status::Running,
        "the task is none the worse for it"
    );
    Ok(())
}

/// Calls that are wrong in the state of the task: refused, and the task is as it was.
fn wrong_calls() -> Result<Vec<(&'static str, Code)>> {
    let host = Host::new()?;
    let container = host.container("c", Workload::forever())?;
    let api = container.api();
    let mut codes = Vec::new();
    let mut note = |call, code: Result<Code>| code.map(|code| codes.push((call, code))).context(call);
    container.create()?;
    note("pause created", refused(api.pause("c")))?;
    note("resume created", refused(api.resume("c")))?;
    assert_eq!(container.status()?, Status::Created);
    container.start()?;
    note("start running", refused(container.start()))?;
    note("delete running", refused(container.delete()))?;
    note("resume running", refused(api.resume("c")))?;
    assert_eq!(container.status()?, Status::Running);
    api.pause("c")?;
    note("pause paused", refused(api.pause("c")))?;
    note("delete paused", refused(container.delete()))?;
    note("start paused", refused(container.start()))?;
    assert_eq!(container.status()?, Status::Paused);
    api.resume("c")?;
    container.kill(KILL)?;
    container.wait()?;
    note("start stopped", refused(container.start()))?;
    note("pause stopped", refused(api.pause("c")))?;
    note("resume stopped", refused(api.resume("c")))?;
    assert_eq!(container.status()?, Status::Stopped);
    container.delete()?;
    Ok(codes)
}

#[test]
fn calls_that_are_wrong_in_a_state_are_refused_and_change_nothing() -> Result<()> {
    assert_eq!(wrong_calls()?.len(), 11);
    Ok(())
}

#[test]
fn calls_that_are_wrong_in_a_state_are_failed_preconditions() -> Result<()> {
    need!(
        OurShim,
        "containerd's shim refuses these with the code for unknown errors"
    );
    let other: Vec<_> = wrong_calls()?
        .into_iter()
        .filter(|(_, code)| *code != Code::FailedPrecondition)
        .collect();
    assert_eq!(other, []);
    Ok(())
}
