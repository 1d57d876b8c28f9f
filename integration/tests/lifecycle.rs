//! The life of a container, as containerd's clients live it: every call of the Task API, and the codes of the wrong ones.
//!
//! These tests must pass against `io.containerd.runc.v2` as well: `CEDANA_TEST_RUNTIME=io.containerd.runc.v2`.

#![expect(
    unused_results,
    reason = "a test acts through calls, and compares only the answers it is about"
)]

use anyhow::Result;
use integration::container::refused;
use integration::host::Host;
use integration::messages::Status;
use integration::stdio::StreamNames;
use integration::workload::Workload;
use tonic::Code;

const TERM: u32 = 15;
const KILL: u32 = 9;

#[track_caller]
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
fn the_exit_code_is_the_process_s() -> Result<()> {
    check_exit("true", 0)?;
    check_exit("exit 7", 7)?;
    check_exit("exit 255", 255)
}

#[test]
fn a_signal_gives_128_and_its_number() -> Result<()> {
    for (signal, script, expected) in [
        (KILL, "sleep 3600", 137),
        (TERM, integration::workload::FOREVER, 143),
    ] {
        let host = Host::new()?;
        let container = host.run(Workload::shell(script))?;
        container.run_exec("ready", "true")?;
        container.kill(signal)?;
        assert_eq!(container.wait()?, expected);
        assert_eq!(container.delete()?, expected);
    }
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
fn an_id_can_be_used_again_after_delete() -> Result<()> {
    let host = Host::new()?;
    let container = host.container("c", Workload::shell("exit 3"))?;
    for _ in 0..3 {
        container.create_with(&StreamNames::default(), None)?;
        container.start()?;
        assert_eq!(container.wait()?, 3);
        container.delete()?;
    }
    host.assert_clean()
}
