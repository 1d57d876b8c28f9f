//! Dumps of containers that are in a state in which CRIU by itself would hang, fail or lose something.

use std::fs::{create_dir_all, read_dir, read_to_string, write};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use integration::by_ctr::Talker;
use integration::engine::run;
use integration::host::Host;
use integration::messages as msg;
use integration::need;
use integration::spoken::Spoken;
use integration::stdio::eventually;
use integration::workload::Workload;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const WORKLOAD: &str = env!("CARGO_BIN_EXE_workload");

/// CRIU gives up on a task it cannot stop after 10 s; a dump that takes half of that has met one.
const STUCK: Duration = Duration::from_secs(5);

/// How long a signal may take to be seen.
const SIGNAL_DEADLINE: Duration = Duration::from_secs(10);

/// The annotation that has connections saved.
const SAVE_CONNECTIONS: [&str; 2] = ["--annotation", "cedana.dump.tcp=established"];

fn state(pid: i32) -> Result<char> {
    let stat =
        read_to_string(format!("/proc/{pid}/stat")).with_context(|| format!("read the state of {pid}"))?;
    let rest = stat.rsplit_once(") ").map(|(_, rest)| rest);
    rest.and_then(|rest| rest.chars().next())
        .context("a process without a state")
}

/// The children of a process that are not threads of it.
fn children(pid: u32) -> Result<Vec<i32>> {
    let mut children = Vec::new();
    for task in read_dir(format!("/proc/{pid}/task"))? {
        let text = read_to_string(task?.path().join("children"))?;
        children.extend(text.split_whitespace().filter_map(|pid| pid.parse::<i32>().ok()));
    }
    Ok(children)
}

/// Who traces a process.
fn tracer(pid: u32) -> Result<Option<Pid>> {
    let status = read_to_string(format!("/proc/{pid}/status"))?;
    let tracer = status
        .lines()
        .find_map(|line| line.strip_prefix("TracerPid:"))
        .context("a status without a tracer")?;
    let tracer: i32 = tracer.trim().parse()?;
    Ok((tracer != 0).then(|| Pid::from_raw(tracer)))
}

#[test]
fn stopped_process_is_dumped_and_stays_stopped() -> Result<()> {
    need!(
        OurShim,
        "under cgroup v1, CRIU hangs on a task that is stopped and frozen"
    );
    need!(Criu, "dumps");
    need!(CriuSockets, "the tree listens");
    let host = Host::with_image()?;
    let mut talker = Talker::run(&host, "c", WORKLOAD, &["tree"], &[])?;
    let child = *children(talker.pid()?)?
        .first()
        .context("the tree has no child")?;
    kill(Pid::from_raw(child), Signal::SIGSTOP)?;
    eventually("the child to stop", SIGNAL_DEADLINE, || {
        state(child).is_ok_and(|state| state == 'T')
    })?;
    talker.checkpoint("kept")?;
    // The stop is sent before it may run; that it has come there may be a moment later.
    eventually("the dumped child to be stopped", SIGNAL_DEADLINE, || {
        state(child).is_ok_and(|state| state == 'T')
    })?;
    kill(Pid::from_raw(child), Signal::SIGCONT)?;
    assert_eq!(talker.check()?, 1);
    talker.remove()?;

    let mut talker = Talker::restore(&host, "c", "kept")?;
    let stopped: Vec<i32> = children(talker.pid()?)?
        .into_iter()
        .filter(|pid| state(*pid).is_ok_and(|state| state == 'T'))
        .collect();
    assert_eq!(stopped.len(), 1, "one child was stopped");
    kill(Pid::from_raw(stopped[0]), Signal::SIGCONT)?;
    assert_eq!(talker.check()?, 1);
    talker.remove()
}

#[test]
fn shell_that_starts_programs_all_the_time_is_dumped_each_time() -> Result<()> {
    need!(
        OurShim,
        "CRIU cannot stop the parent of a vfork, and gives up after 10 s"
    );
    need!(Criu, "dumps");
    need!(
        CheckpointAgain,
        "containerd 1.7 refuses a second dump, whose spec it has"
    );
    let host = Host::with_image()?;
    let script = "while :; do /bin/true; done & while read line; do echo \"$line\"; done";
    let first = Spoken::run(host.container("c", Workload::shell(script))?)?;
    for round in 0..10 {
        let start = Instant::now();
        let _dump = first.container.api().checkpoint("c", None)?;
        ensure!(start.elapsed() < STUCK, "dump {round} took {:?}", start.elapsed());
        let line = round.to_string();
        first.says(&line, &line)?;
    }
    Ok(())
}

#[test]
fn connection_within_the_container_goes_on_after_a_restore() -> Result<()> {
    need!(OurShim, "said by an annotation of ours");
    need!(Criu, "dumps");
    need!(CriuSockets, "the workload connects");
    let host = Host::with_image()?;
    let mut talker = Talker::run(&host, "c", WORKLOAD, &["hold", "connection"], &SAVE_CONNECTIONS)?;
    assert_eq!(talker.check()?, 1);
    talker.checkpoint("kept")?;
    assert_eq!(talker.check()?, 2, "the dumped one goes on");
    talker.remove()?;
    let mut talker = Talker::restore(&host, "c", "kept")?;
    assert_eq!(talker.check()?, 2);
    talker.remove()
}

#[test]
fn loopback_of_a_restored_container_is_up() -> Result<()> {
    need!(OurShim, "containerd's own shim leaves it down");
    need!(Criu, "dumps");
    need!(CriuSockets, "the tree listens");
    let host = Host::with_image()?;
    let talker = Talker::run(&host, "c", WORKLOAD, &["tree"], &[])?;
    talker.checkpoint("kept")?;
    talker.remove()?;
    let mut talker = Talker::restore(&host, "c", "kept")?;
    assert_eq!(talker.ask("connect")?, "ok 1");
    talker.remove()
}

/// How often CRIU may be killed in the very millisecond in which it puts its code into a task: the task then meets that code
/// without CRIU and ends by SIGTRAP, which nobody can undo (one of eight kills right after the lock).
const INJECTION_ATTEMPTS: u32 = 6;

#[test]
fn killed_criu_leaves_no_lock_on_the_network() -> Result<()> {
    need!(OurShim, "CRIU does not unlock when it is killed");
    need!(Criu, "dumps");
    need!(CriuSockets, "the workload connects");
    for _ in 0..INJECTION_ATTEMPTS {
        if survives_a_killed_criu()? {
            return Ok(());
        }
    }
    bail!("the container ended with its CRIU {INJECTION_ATTEMPTS} times")
}

/// Kills CRIU when the network is locked. False if it took the container with it.
fn survives_a_killed_criu() -> Result<bool> {
    let host = Host::with_image()?;
    let mut talker = Talker::run(&host, "c", WORKLOAD, &["hold", "connection"], &SAVE_CONNECTIONS)?;
    let pid = talker.pid()?.to_string();
    let rules = || run("nsenter", &["-t", &pid, "-n", "iptables", "-S"]).map(|said| said.stdout);
    let init = talker.pid()?;
    let said = std::thread::scope(|scope| -> Result<_> {
        let dump = scope.spawn(|| host.ctr(&["tasks", "checkpoint", "c"]));
        eventually("the network to be locked", SIGNAL_DEADLINE, || {
            dump.is_finished() || rules().is_ok_and(|rules| rules.contains("CRIU"))
        })?;
        let criu = tracer(init)?;
        if let Some(criu) = criu {
            kill(criu, Signal::SIGKILL)?;
        }
        let said = dump
            .join()
            .map_err(|_| anyhow::anyhow!("the dumping thread panicked"))??;
        ensure!(
            criu.is_some(),
            "the dump was over before the network was seen locked"
        );
        ensure!(said.code != 0, "a dump without CRIU succeeded");
        Ok(said)
    })?;
    if said.stderr.contains("the container has ended") {
        let _ = talker.remove();
        return Ok(false);
    }
    assert!(!rules()?.contains("CRIU"), "{}", rules()?);
    // It may end a moment after the dump has told that it goes on.
    let survived = talker.check().is_ok_and(|checked| checked == 1);
    let _ = talker.remove();
    Ok(survived)
}

#[test]
fn files_beside_the_images_stay_and_those_of_an_older_dump_go() -> Result<()> {
    need!(OurShim, "containerd's own shim removes nothing of an older dump");
    need!(Criu, "dumps");
    need!(
        CheckpointAgain,
        "containerd 1.7 refuses a second dump, whose spec it has"
    );
    let host = Host::with_image()?;
    let talker = Talker::run(&host, "c", WORKLOAD, &["memory", "1"], &[])?;
    let images = host.dir().join("images");
    let options = msg::CheckpointOptions {
        image_path: images.display().to_string(),
        ..Default::default()
    };
    let dump = || host.api().checkpoint("c", Some(&options));
    create_dir_all(&images)?;
    write(images.join("disk.img"), "the user's")?;
    write(images.join("core-99999.img"), "no inventory: whose is it?")?;
    let _first = dump()?;
    ensure!(
        images.join("core-99999.img").exists(),
        "removed where no dump was"
    );
    let _second = dump()?;
    ensure!(!images.join("core-99999.img").exists(), "left of an older dump");
    assert_eq!(read_to_string(images.join("disk.img"))?, "the user's");
    ensure!(images.join("cedana.json").exists() && !images.join(".cedana-partial").exists());
    talker.remove()
}

#[test]
fn name_that_is_taken_is_refused_before_anything_ends() -> Result<()> {
    need!(
        OurShim,
        "containerd's own shim finds out when the container has ended"
    );
    need!(Criu, "dumps");
    need!(CheckpointOptions, "says what it wants by ctr");
    let host = Host::with_image()?;
    let mut talker = Talker::run(&host, "c", WORKLOAD, &["memory", "1"], &[])?;
    let images = host.dir().join("images");
    create_dir_all(images.join("pstree.img"))?;
    let path = images.display().to_string();
    let said = host.ctr(&["tasks", "checkpoint", "--exit", "--image-path", &path, "c"])?;
    ensure!(said.code != 0, "the dump succeeded");
    ensure!(
        said.stderr.contains("pstree.img is a directory"),
        "{}",
        said.stderr
    );
    assert_eq!(talker.check()?, 1);
    talker.remove()
}
