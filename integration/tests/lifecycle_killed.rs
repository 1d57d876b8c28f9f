//! Somebody dies at the worst moment: the shim, containerd, the container's first process.
//!
//! Afterwards containerd's books are true, nothing is left over, and the next container with the same id starts.
#![expect(
    unused_results,
    reason = "a test acts through calls, and compares only the answers it is about"
)]

use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use integration::container::{Container, refused};
use integration::host::Host;
use integration::messages::{RuncOptions, Status};
use integration::stalled::{Moment, StalledRunc};
use integration::stdio::{StreamNames, eventually};
use integration::workload::Workload;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tonic::Code;

const SHORT: Duration = Duration::from_secs(15);

fn sigkill(pid: impl TryInto<i32>) -> Result<()> {
    let pid = pid.try_into().ok().context("fit a pid into an i32")?;
    kill(Pid::from_raw(pid), Signal::SIGKILL).with_context(|| format!("kill {pid}"))
}

fn kill_shims(host: &Host) -> Result<()> {
    host.places().shims().into_iter().try_for_each(sigkill)
}

/// What must hold after the shim of `c` died, whatever it was doing.
fn check_books(host: &Host, container: &Container) -> Result<()> {
    let gone = || {
        container
            .state()
            .is_err_and(|refusal| refusal.code() == Code::NotFound)
    };
    eventually("containerd forgets the task", SHORT, gone)?;
    ensure!(host.api().list()?.is_empty(), "tasks: {:?}", host.api().list()?);
    host.assert_clean()?;
    // containerd tells of the delete, and answers that there is no task, a moment before the id is free.
    let id_is_free = || {
        !container
            .create()
            .is_err_and(|refusal| refusal.code() == Code::AlreadyExists)
    };
    eventually("the id is free", SHORT, id_is_free)?;
    container.start()?;
    ensure!(container.status()? == Status::Running);
    ensure!(container.run_exec("again", "exit 3")?.1 == 3);
    ensure!(container.kill_and_delete()? == 137);
    host.assert_clean()
}

/// Takes a new container to the state that `act` makes, and kills the shim there.
fn kill_shim_after(act: impl FnOnce(&Container) -> Result<()>) -> Result<()> {
    let host = Host::new()?.forgiving_sockets();
    let events = host.events()?;
    let container = host.container("c", Workload::forever())?;
    let pid = container.create()?;
    act(&container)?;
    kill_shims(&host)?;
    let told = events.until("c", "delete")?;
    ensure!(
        told.iter().any(|text| text.starts_with("exit")),
        "the exit is told: {told:?}"
    );
    ensure!(
        !std::path::Path::new(&format!("/proc/{pid}")).exists(),
        "the process {pid} is gone"
    );
    check_books(&host, &container)
}

#[test]
fn the_shim_dies_while_the_container_is_created() -> Result<()> {
    kill_shim_after(|_| Ok(()))
}

#[test]
fn the_shim_dies_while_the_container_runs() -> Result<()> {
    kill_shim_after(|container| Ok(container.start().map(drop)?))
}

#[test]
fn the_shim_dies_while_an_exec_is_only_added() -> Result<()> {
    kill_shim_after(|container| {
        container.start()?;
        Ok(container.add_exec("e1", "sleep 3600").map(drop)?)
    })
}

#[test]
fn the_shim_dies_while_an_exec_runs() -> Result<()> {
    kill_shim_after(|container| {
        container.start()?;
        Ok(container.add_exec("e1", "sleep 3600")?.start().map(drop)?)
    })
}

#[test]
fn the_shim_dies_while_the_container_is_paused() -> Result<()> {
    kill_shim_after(|container| {
        container.start()?;
        Ok(container.api().pause("c")?)
    })
}

#[test]
fn the_shim_dies_before_the_stopped_container_is_deleted() -> Result<()> {
    kill_shim_after(|container| {
        container.start()?;
        container.kill(9)?;
        Ok(container.wait().map(drop)?)
    })
}

#[test]
fn the_shim_dies_while_somebody_waits() -> Result<()> {
    let host = Host::new()?.forgiving_sockets();
    let container = host.run(Workload::forever())?;
    let waiting = container.clone();
    // Whether it gets a status or an error depends on who is first; it must get something.
    let waiter = std::thread::spawn(move || waiting.wait().map_err(|refusal| refusal.code()));
    kill_shims(&host)?;
    let told = join(waiter)?;
    ensure!(told != Err(Code::DeadlineExceeded), "the waiter was never told");
    check_books(&host, &container)
}

/// Kills the shim when runc is at the given step, and has or has not done it.
fn kill_shim_at(verb: &str, moment: Moment) -> Result<()> {
    let host = Host::new()?.forgiving_sockets();
    let runc = StalledRunc::new(host.dir(), verb, moment)?;
    let container = host.container_with("c", Workload::forever(), Some(&runc.options()))?;
    let client = {
        let (container, verb) = (container.clone(), verb.to_owned());
        // What the client is told is not of interest here: the shim is killed under its hands.
        std::thread::spawn(move || live(&container, &verb).is_ok())
    };
    eventually("runc reaches the step, or the life is over", SHORT, || {
        runc.is_reached() || client.is_finished()
    })?;
    // A shim may do a step without runc; `kill_shim_while` is for those.
    if runc.is_reached() {
        kill_shims(&host)?;
    }
    let _told = join(client)?;
    check_books(&host, &container).with_context(|| format!("{moment:?} runc {verb}"))
}

/// Kills the shim some time after `call` was sent to a container that `prepare` has taken to the state for it.
fn kill_shim_while(prepare: fn(&Container) -> Result<()>, call: fn(&Container) -> Result<()>) -> Result<()> {
    for delay_ms in [0, 1, 2, 4, 8, 16] {
        let host = Host::new()?.forgiving_sockets();
        let container = host.container("c", Workload::forever())?;
        prepare(&container)?;
        let shims = host.places().shims();
        let client = {
            let container = container.clone();
            // Answered or not: both are right, depending on who was first.
            std::thread::spawn(move || call(&container).is_ok())
        };
        std::thread::sleep(Duration::from_millis(delay_ms));
        for shim in shims {
            let _gone_already = sigkill(shim);
        }
        let _told = join(client)?;
        check_books(&host, &container).with_context(|| format!("{delay_ms} ms after the call"))?;
    }
    Ok(())
}

fn join<T>(thread: JoinHandle<T>) -> Result<T> {
    thread
        .join()
        .map_err(|_| anyhow!("a thread of the test panicked"))
}

fn run(container: &Container) -> Result<()> {
    container.create()?;
    Ok(container.start().map(drop)?)
}

#[test]
fn the_shim_dies_around_start() -> Result<()> {
    kill_shim_while(|it| Ok(it.create().map(drop)?), |it| Ok(it.start().map(drop)?))
}

#[test]
fn the_shim_dies_around_exec() -> Result<()> {
    kill_shim_while(run, |it| {
        Ok(it.add_exec("e1", "sleep 3600")?.start().map(drop)?)
    })
}

#[test]
fn the_shim_dies_around_pause_and_resume() -> Result<()> {
    kill_shim_while(run, |it| Ok(it.api().pause("c")?))?;
    let run_and_pause = |it: &Container| {
        run(it)?;
        Ok(it.api().pause("c")?)
    };
    kill_shim_while(run_and_pause, |it| Ok(it.api().resume("c")?))
}

#[test]
fn the_shim_dies_around_kill_and_delete() -> Result<()> {
    kill_shim_while(run, |it| Ok(it.kill_and_delete().map(drop)?))
}

/// A whole life in which every step occurs, up to the one that the test is about.
fn live(container: &Container, verb: &str) -> Result<()> {
    container.create()?;
    container.start()?;
    if verb == "exec" {
        container.add_exec("e1", "sleep 3600")?.start()?;
    }
    if verb == "pause" || verb == "resume" {
        container.api().pause("c")?;
        container.api().resume("c")?;
    }
    container.kill(9)?;
    container.wait()?;
    container.delete()?;
    Ok(())
}

#[test]
fn the_shim_dies_during_create() -> Result<()> {
    kill_shim_at("create", Moment::Before)?;
    kill_shim_at("create", Moment::After)
}

#[test]
fn the_shim_dies_during_start() -> Result<()> {
    kill_shim_at("start", Moment::Before)?;
    kill_shim_at("start", Moment::After)
}

#[test]
fn the_shim_dies_during_exec() -> Result<()> {
    kill_shim_at("exec", Moment::Before)?;
    kill_shim_at("exec", Moment::After)
}

#[test]
fn the_shim_dies_during_pause_and_resume() -> Result<()> {
    kill_shim_at("pause", Moment::After)?;
    kill_shim_at("resume", Moment::Before)
}

#[test]
fn the_shim_dies_during_delete() -> Result<()> {
    kill_shim_at("delete", Moment::Before)?;
    kill_shim_at("delete", Moment::After)
}

#[test]
fn the_first_process_is_killed_from_outside() -> Result<()> {
    let host = Host::new()?;
    let events = host.events()?;
    let (container, _stdout) = host.run_until_ready(Workload::forever())?;
    let exec = container.add_exec("e1", "sleep 3600")?;
    exec.start()?;
    sigkill(container.state()?.pid)?;
    assert_eq!(container.wait()?, 137);
    assert_eq!(exec.wait()?, 137);
    events.until("c", "exit 137")?;
    assert_eq!(container.delete()?, 137);
    assert_eq!(refused(container.state())?, Code::NotFound);
    host.assert_clean()
}

#[test]
fn a_created_container_is_killed_from_outside() -> Result<()> {
    let host = Host::new()?;
    let container = host.container("c", Workload::forever())?;
    sigkill(container.create()?)?;
    assert_eq!(container.wait()?, 137);
    assert_eq!(container.status()?, Status::Stopped);
    container.delete()?;
    host.assert_clean()
}

#[test]
fn containerd_dies_and_finds_everything_again() -> Result<()> {
    let mut host = Host::with_own_containerd()?;
    let (container, stdout) = host.run_until_ready(Workload::forever())?;
    let pid = container.state()?.pid;
    container.add_exec("e1", "exec sleep 3600")?.start()?;
    host.daemon()?.kill()?;
    host.daemon()?.restart()?;
    assert_eq!(
        (container.status()?, container.state()?.pid),
        (Status::Running, pid)
    );
    assert_eq!(container.run_exec("e2", "exit 4")?.1, 4);
    assert_eq!(container.api().get("c", "e1")?.status(), Status::Running);
    assert!(!stdout.has_ended(), "the client's fifos are still served");
    let events = host.events()?;
    container.kill(15)?;
    assert_eq!(container.wait()?, 143);
    container.delete()?;
    events.until("c", "exit 143")?;
    host.assert_clean()
}

/// containerd asks every shim that it finds for its processes, and reaps one that has none as leaked: then the task is
/// gone, which is the truth as well.
#[test]
fn an_exit_while_containerd_is_down_leaves_true_books() -> Result<()> {
    let mut host = Host::with_own_containerd()?;
    let container = host.run(Workload::shell("while ! [ -e /go ]; do sleep 0.05; done; exit 7"))?;
    let pid = container.state()?.pid;
    host.daemon()?.kill()?;
    std::fs::write(format!("/proc/{pid}/root/go"), "")?;
    eventually("the process ends", SHORT, || has_ended(pid))?;
    host.daemon()?.restart()?;
    match container.state() {
        Ok(task) => {
            assert_eq!((task.status(), task.exit_status), (Status::Stopped, 7));
            assert_eq!((container.wait()?, container.delete()?), (7, 7));
        }
        Err(refusal) => assert_eq!(refusal.code(), Code::NotFound),
    }
    std::fs::remove_file(container.path_in_upper("/go"))?;
    check_books(&host, &container)
}

/// Gone, or dead and waiting for a parent that has other things to do.
fn has_ended(pid: u32) -> bool {
    let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    state
        .rsplit(") ")
        .next()
        .is_none_or(|rest| rest.is_empty() || rest.starts_with('Z'))
}

#[test]
fn containerd_and_the_shim_die_together() -> Result<()> {
    let mut host = Host::with_own_containerd()?.forgiving_sockets();
    let container = host.run(Workload::forever())?;
    let pid = container.state()?.pid;
    host.daemon()?.kill()?;
    kill_shims(&host)?;
    host.daemon()?.restart()?;
    eventually("the process is gone", SHORT, || {
        !std::path::Path::new(&format!("/proc/{pid}")).exists()
    })?;
    check_books(&host, &container)
}

#[test]
fn containerd_dies_during_create() -> Result<()> {
    let mut host = Host::with_own_containerd()?.forgiving_sockets();
    let runc = StalledRunc::new(host.dir(), "create", Moment::Before)?;
    let container = host.container_with("c", Workload::forever(), Some(&runc.options()))?;
    let client = {
        let container = container.clone();
        std::thread::spawn(move || {
            container
                .create_with(&StreamNames::default(), None::<&RuncOptions>)
                .is_err()
        })
    };
    runc.wait_until_reached()?;
    host.daemon()?.kill()?;
    assert!(join(client)?, "create cannot succeed");
    kill_shims(&host)?;
    host.daemon()?.restart()?;
    check_books(&host, &container)
}
