//! Additional processes in a running container.
#![expect(
    unused_results,
    reason = "a test acts through calls, and compares only the answers it is about"
)]

use std::time::Duration;

use anyhow::{Context, Result};
use integration::container::refused;
use integration::host::Host;
use integration::messages::{ProcessDetails, Status};
use integration::need;
use integration::stdio::{StreamNames, eventually};
use integration::workload::Workload;
use prost::Message;
use tonic::Code;

const KILL: u32 = 9;
const TERM: u32 = 15;
/// The kernel takes no single argument that is longer (`MAX_ARG_STRLEN`, with the zero at its end).
const ARGUMENT_MAX: usize = 128 * 1024 - 1;
const SHORT: Duration = Duration::from_secs(10);

#[test]
fn an_exec_runs_in_the_container_and_returns_its_code() -> Result<()> {
    let host = Host::new()?;
    let container = host.run(Workload::forever())?;
    let (text, code) = container.run_exec("e1", "readlink /proc/1/exe; exit 5")?;
    assert_eq!((text.as_str(), code), ("/bin/busybox\n", 5));
    assert_eq!(container.status()?, Status::Running);
    Ok(())
}

#[test]
fn an_exec_goes_from_created_to_running_to_stopped_to_gone() -> Result<()> {
    let host = Host::new()?;
    let container = host.run(Workload::forever())?;
    let exec = container.add_exec("e1", "sleep 3600")?;
    assert_eq!(exec.state()?.status(), Status::Created);
    assert_eq!(
        refused(exec.kill(KILL))?,
        Code::FailedPrecondition,
        "it has no process yet"
    );
    let pid = exec.start()?;
    assert_eq!(
        (exec.state()?.status(), exec.state()?.pid),
        (Status::Running, pid)
    );
    refused(exec.delete())?;
    exec.kill(KILL)?;
    assert_eq!(exec.wait()?, 137);
    assert_eq!(
        (exec.state()?.status(), exec.state()?.exit_status),
        (Status::Stopped, 137)
    );
    assert_eq!(
        refused(exec.kill(KILL))?,
        Code::NotFound,
        "it has no process any more"
    );
    assert_eq!(exec.delete()?, 137);
    assert_eq!(refused(exec.state())?, Code::NotFound);
    assert_eq!(refused(exec.delete())?, Code::NotFound);
    assert_eq!(
        container.status()?,
        Status::Running,
        "the container is none the worse for it"
    );
    Ok(())
}

#[test]
fn a_second_start_of_an_exec_is_refused_and_harms_nothing() -> Result<()> {
    need!(
        OurShim,
        "containerd's shim counts its execs wrong after that, and panics when the container exits"
    );
    let host = Host::new()?;
    let container = host.run(Workload::forever())?;
    let exec = container.add_exec("e1", "sleep 3600")?;
    exec.start()?;
    assert_eq!(refused(exec.start())?, Code::FailedPrecondition);
    exec.kill(KILL)?;
    assert_eq!(exec.wait()?, 137);
    assert_eq!(refused(exec.start())?, Code::FailedPrecondition);
    exec.delete()?;
    assert_eq!(container.kill_and_delete()?, 137);
    host.assert_clean()
}

#[test]
fn an_exec_that_was_never_started_can_be_deleted_and_its_id_used_again() -> Result<()> {
    let host = Host::new()?;
    let container = host.run(Workload::forever())?;
    let exec = container.add_exec("e1", "true")?;
    assert_eq!(
        refused(container.add_exec("e1", "true").map(|_| ()))?,
        Code::AlreadyExists
    );
    exec.delete()?;
    assert_eq!(container.run_exec("e1", "exit 4")?.1, 4);
    Ok(())
}

#[test]
fn an_exec_of_what_is_not_there_fails_its_start_and_only_that() -> Result<()> {
    let host = Host::new()?;
    let container = host.run(Workload::forever())?;
    let exec = container.add_exec_with("e1", &["/no/such/program"], &StreamNames::default(), false)?;
    let refusal = exec.start().err().context("expect start to fail")?;
    assert!(
        refusal.message().contains("no such file or directory"),
        "docker looks for this: {refusal:?}"
    );
    exec.delete()?;
    assert_eq!(container.run_exec("e1", "true")?.1, 0);
    Ok(())
}

#[test]
fn an_exec_can_run_before_the_container_is_started() -> Result<()> {
    let host = Host::new()?;
    let container = host.container("c", Workload::forever())?;
    container.create()?;
    assert_eq!(container.run_exec("e1", "exit 6")?.1, 6);
    container.start()?;
    assert_eq!(container.status()?, Status::Running);
    Ok(())
}

#[test]
fn no_exec_starts_in_a_paused_or_stopped_container() -> Result<()> {
    let host = Host::new()?;
    let container = host.run(Workload::forever())?;
    container.api().pause("c")?;
    refused(container.add_exec("e1", "true").and_then(|exec| exec.start()))?;
    container.api().resume("c")?;
    container.kill(KILL)?;
    container.wait()?;
    refused(container.add_exec("e2", "true").and_then(|exec| exec.start()))?;
    container.delete()?;
    host.assert_clean()
}

#[test]
fn running_execs_end_with_the_container() -> Result<()> {
    let host = Host::new()?;
    let (container, _stdout) = host.run_until_ready(Workload::forever())?;
    let execs = ["e1", "e2", "e3"].map(|id| container.add_exec(id, "sleep 3600"));
    let execs: Vec<_> = execs.into_iter().collect::<Result<_, _>>()?;
    for exec in &execs {
        exec.start()?;
    }
    container.kill(TERM)?;
    assert_eq!(container.wait()?, 143);
    for exec in &execs {
        assert_eq!(exec.wait()?, 137);
        exec.delete()?;
    }
    container.delete()?;
    host.assert_clean()
}

#[test]
fn many_execs_at_once_get_their_own_codes() -> Result<()> {
    let host = Host::new()?;
    let container = host.run(Workload::forever())?;
    let runs: Vec<_> = (0..16)
        .map(|number| {
            let container = container.clone();
            std::thread::spawn(move || container.run_exec(&format!("e{number}"), &format!("exit {number}")))
        })
        .collect();
    for (number, run) in runs.into_iter().enumerate() {
        assert_eq!(run.join().expect("no run panics")?.1, u32::try_from(number)?);
    }
    Ok(())
}

#[test]
fn pids_lists_every_process_and_marks_the_execs() -> Result<()> {
    let host = Host::new()?;
    let (container, _stdout) = host.run_until_ready(Workload::forever())?;
    let exec = container.add_exec("e1", "sleep 3600; true")?;
    let pid = exec.start()?;
    let listed = || container.api().pids("c").unwrap_or_default();
    eventually(
        "two processes for the container and two for the exec",
        SHORT,
        || listed().len() == 4,
    )?;
    let listed = listed();
    assert!(
        listed
            .iter()
            .any(|process| process.pid == container.state().map(|it| it.pid).unwrap_or_default())
    );
    let marked = listed
        .iter()
        .find(|process| process.pid == pid)
        .context("find the exec")?;
    let details = marked.info.as_ref().context("find the exec's details")?;
    assert_eq!(ProcessDetails::decode(details.value.as_slice())?.exec_id, "e1");
    assert_eq!(listed.iter().filter(|process| process.info.is_some()).count(), 1);
    Ok(())
}

#[test]
fn the_largest_arguments_reach_an_exec_whole() -> Result<()> {
    let host = Host::new()?;
    let container = host.run(Workload::forever())?;
    let fifos = container.fifos("e1")?;
    let (stdout, _stderr) = fifos.read();
    let names = StreamNames {
        stdin: String::new(),
        ..fifos.names(false)
    };
    let large = "x".repeat(ARGUMENT_MAX);
    let args = ["sh", "-c", "echo ${#1} ${#2} ${#3}", "sh", &large, &large, &large];
    let exec = container.add_exec_with("e1", &args, &names, false)?;
    exec.start()?;
    assert_eq!(exec.wait()?, 0);
    assert_eq!(
        String::from_utf8(stdout.to_end()?)?,
        format!("{ARGUMENT_MAX} {ARGUMENT_MAX} {ARGUMENT_MAX}\n")
    );
    Ok(())
}
