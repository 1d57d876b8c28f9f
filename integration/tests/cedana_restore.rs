//! `cedana restore`: through the engine that has the container, with the same id, going on from where it was.
#![expect(
    unused_results,
    reason = "a test acts through calls, and compares only the answers it is about"
)]

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use integration::cedana::{Cedana, code};
use integration::cedana_counter::{COUNTER, Counter};
use integration::docker::{Docker, runtime};
use integration::engine::{Said, run};
use integration::host::{Host, IMAGE};
use integration::messages::Status;
use integration::need;
use integration::need::OUR_RUNTIME;
use integration::stdio::eventually;

const SHORT: Duration = Duration::from_secs(20);

/// It runs again in containerd's books and in ours, with the pid that the command said.
fn check_books(host: &Host, counter: &Counter, said: u32) -> Result<()> {
    assert_eq!(counter.pid()?, said);
    assert_eq!(host.api().get(counter.id(), "")?.status(), Status::Running);
    let job = Cedana::new().job(host.namespace(), counter.id())?;
    assert_eq!(job.pid, Some(said));
    ensure!(job.lives(), "{job:?}");
    Ok(())
}

#[test]
fn dump_list_kill_restore_and_it_goes_on() -> Result<()> {
    need!(OurShim, "the shim's own service");
    need!(Criu, "dumps");
    let host = Host::with_image()?;
    let cedana = Cedana::new();
    let counter = Counter::run(&host, "kept")?;
    let into = host.made_dir("checkpoints")?;
    let before = counter.seen()?;
    cedana.dump(&["kept", "--leave-running", "--dir", &into])?;
    counter.goes_on()?;
    let dumped = counter.seen()?;
    cedana.says(&["job", "kill", "kept"])?;
    host.api().wait("kept", "")?;
    let job = cedana
        .jobs()?
        .into_iter()
        .find(|job| job.id == "kept")
        .context("its line")?;
    assert_eq!(job.status, "halted");
    let ended = counter.seen()?;
    let pid = cedana.restore(&["kept"])?;
    counter
        .continues(before, ended)
        .or_else(|_| counter.continues(dumped, ended))?;
    check_books(&host, &counter, pid)
}

#[test]
fn a_dump_that_ends_it_loses_nothing_again_and_again() -> Result<()> {
    need!(OurShim, "the shim's own service");
    need!(Criu, "dumps");
    let host = Host::with_image()?;
    let cedana = Cedana::new();
    let counter = Counter::run(&host, "rounds")?;
    let into = host.made_dir("checkpoints")?;
    for _round in 0..3 {
        let dumped = counter.seen()?;
        cedana.dump(&["rounds", "--dir", &into])?;
        counter.has_ended()?;
        let ended = counter.seen()?;
        let pid = cedana.restore(&["rounds"])?;
        counter.continues(dumped, ended)?;
        check_books(&host, &counter, pid)?;
    }
    Ok(())
}

#[test]
fn a_deleted_task_is_made_again() -> Result<()> {
    need!(OurShim, "the shim's own service");
    need!(Criu, "dumps");
    let host = Host::with_image()?;
    let cedana = Cedana::new();
    let counter = Counter::run(&host, "remade")?;
    let dumped = counter.seen()?;
    cedana.dump(&["remade", "--dir", &host.made_dir("checkpoints")?])?;
    host.api().delete("remade", "")?;
    let listed = cedana.jobs()?.into_iter().any(|job| job.id == "remade");
    ensure!(listed, "what has a checkpoint is listed, though its task is gone");
    let ended = counter.seen()?;
    let pid = cedana.restore(&["remade"])?;
    counter.continues(dumped, ended)?;
    check_books(&host, &counter, pid)
}

#[test]
fn of_two_with_one_name_the_one_that_is_meant_comes_back() -> Result<()> {
    need!(OurShim, "the shim's own service");
    need!(Criu, "dumps");
    let (one, two) = (Host::with_image()?, Host::with_image()?);
    let cedana = Cedana::new();
    let (first, second) = (Counter::run(&one, "sibling")?, Counter::run(&two, "sibling")?);
    let (into_first, into_second) = (one.made_dir("checkpoints")?, two.made_dir("checkpoints")?);
    let dumped = [first.seen()?, second.seen()?];
    cedana.dump(&[&first.job(), "--dir", &into_first])?;
    cedana.dump(&[&second.job(), "--dir", &into_second])?;
    let ended = [first.seen()?, second.seen()?];
    cedana.fails(&["restore", "job", "sibling"], code::USAGE, &first.job())?;
    let pid = cedana.restore(&[&second.job()])?;
    second.continues(dumped[1], ended[1])?;
    check_books(&two, &second, pid)?;
    first.has_ended()?;
    let pid = cedana.restore(&[&first.job()])?;
    first.continues(dumped[0], ended[0])?;
    check_books(&one, &first, pid)
}

#[test]
fn what_is_restored_without_its_client_is_dumped_again() -> Result<()> {
    need!(OurShim, "the shim's own service");
    need!(Criu, "dumps");
    let host = Host::with_image()?;
    let cedana = Cedana::new();
    let script = "i=0; while echo $i; do i=$((i+1)); sleep 0.1; done";
    let run = [
        "run",
        "--detach",
        "--runtime",
        OUR_RUNTIME,
        IMAGE,
        "clientless",
        "sh",
        "-c",
        script,
    ];
    host.ctr(&run)?.ok()?;
    let into = host.made_dir("checkpoints")?;
    cedana.dump(&["clientless", "--dir", &into])?;
    // ctr's fifos are gone after a reboot.
    for entry in fs::read_dir("/run/containerd/fifo")?.flatten() {
        let stdin = entry.path().join("clientless-stdin");
        if stdin.exists() {
            fs::remove_dir_all(entry.path())?;
        }
    }
    for _ in 0..2 {
        let pid = cedana.restore(&["clientless"])?;
        for stream in ["1", "2"] {
            let file = fs::read_link(format!("/proc/{pid}/fd/{stream}"))?;
            ensure!(
                file.to_string_lossy().starts_with("pipe:"),
                "{stream}: {}",
                file.display()
            );
        }
        cedana.dump(&["clientless", "--dir", &into])?;
    }
    cedana.restore(&["clientless"])?;
    host.ctr(&["tasks", "kill", "--signal", "KILL", "clientless"])?
        .ok()?;
    Ok(())
}

#[test]
fn an_older_checkpoint_and_every_form_are_restored_by_path() -> Result<()> {
    need!(OurShim, "the shim's own service");
    need!(Criu, "dumps");
    let host = Host::with_image()?;
    let cedana = Cedana::new();
    let counter = Counter::run(&host, "formed")?;
    let into = host.made_dir("checkpoints")?;
    let mut kept = Vec::new();
    for form in ["none", "tar", "gzip", "lz4", "zlib", "zstd"] {
        let dumped = counter.seen()?;
        let args = ["formed", "--leave-running", "--dir", &into, "--compression", form];
        let path = cedana.dump(&args)?;
        kept.push((path, dumped, counter.seen()?));
        counter.goes_on()?;
    }
    for (path, dumped, after) in kept {
        counter.kill()?;
        let ended = counter.seen()?;
        cedana.restore(&["formed", "--path", &path])?;
        counter
            .continues_between(dumped, after, ended)
            .with_context(|| format!("restore {path}"))?;
    }
    let rest = Path::new("/var/lib/cedana/unpacked");
    let rest = fs::read_dir(rest).map(Iterator::count).unwrap_or_default();
    assert_eq!(rest, 0, "nothing of an archive stays unpacked");
    Ok(())
}

#[test]
fn failures_are_named_and_change_nothing() -> Result<()> {
    need!(OurShim, "the shim's own service");
    need!(Criu, "dumps");
    let host = Host::with_image()?;
    let cedana = Cedana::new();
    let counter = Counter::run(&host, "unrestored")?;
    let into = host.made_dir("checkpoints")?;
    let restore = ["restore", "job", "unrestored"];
    let running = cedana.fails(&restore, code::WRONG_STATE, "unrestored")?;
    ensure!(running.stderr.contains("running"), "{}", running.stderr);
    counter.goes_on()?;
    counter.kill()?;
    cedana.fails(&restore, code::NOT_FOUND, "no checkpoint")?;
    let missing = format!("{into}/missing");
    let (empty, text) = (format!("{into}/empty"), format!("{into}/text.tar"));
    fs::create_dir(&empty)?;
    fs::write(&text, "this is no archive")?;
    for (path, code) in [
        (&missing, code::NOT_FOUND),
        (&empty, code::FAILED),
        (&text, code::FAILED),
    ] {
        let said = cedana.run(&[&restore[..], &["--path", path]].concat())?;
        ensure!(said.stderr.contains(path.as_str()), "{}", said.stderr);
        ensure!(
            said.code != 0 && (said.code == code || code == code::FAILED),
            "{said:?}"
        );
        counter
            .has_ended()
            .context("a restore that fails does not start it anew")?;
    }
    Ok(())
}

#[test]
fn a_broken_checkpoint_is_no_fresh_start() -> Result<()> {
    need!(OurShim, "the shim's own service");
    need!(Criu, "dumps");
    let host = Host::with_image()?;
    let cedana = Cedana::new();
    let counter = Counter::run(&host, "broken")?;
    let dumped = counter.seen()?;
    let into = host.made_dir("checkpoints")?;
    let good = cedana.dump(&["broken", "--dir", &into, "--leave-running", "--name", "good"])?;
    let bad = cedana.dump(&["broken", "--dir", &into, "--name", "bad"])?;
    for image in fs::read_dir(Path::new(&bad).join("checkpoint"))?.flatten() {
        if image.file_name().to_string_lossy().starts_with("core-") {
            fs::write(image.path(), "garbage")?;
        }
    }
    let ended = counter.seen()?;
    // Once with its task, once without.
    cedana.fails(&["restore", "job", "broken"], code::FAILED, "broken")?;
    counter.has_ended()?;
    host.api().delete("broken", "")?;
    cedana.fails(&["restore", "job", "broken"], code::FAILED, "broken")?;
    assert_eq!(counter.seen()?, ended, "nothing ran");
    cedana.restore(&["broken", "--path", &good])?;
    counter.continues(dumped, ended)
}

#[test]
fn after_a_reboot_what_can_be_restored_is_listed_and_restored() -> Result<()> {
    need!(OurShim, "jobs are containers of our shim");
    need!(Criu, "dumps");
    let mut host = Host::with_own_containerd()?.forgiving_sockets();
    host.load_image()?;
    let cedana = Cedana::new();
    let counter = Counter::run(&host, "rebooted")?;
    let dumped = counter.seen()?;
    cedana.dump(&[
        "rebooted",
        "--leave-running",
        "--dir",
        &host.made_dir("checkpoints")?,
    ])?;
    counter.goes_on()?;
    host.power_off()?;
    let ended = counter.seen()?;
    let find = || -> Result<integration::cedana::Job> {
        let mut jobs = cedana.jobs()?.into_iter();
        jobs.find(|job| job.id == "rebooted")
            .context("its line in cedana ps")
    };
    assert_eq!(find()?.status, "halted", "with containerd down");
    cedana.fails(&["restore", "job", "rebooted"], code::TOOL, "containerd")?;
    host.daemon()?.restart()?;
    let job = find()?;
    assert_eq!((job.status.as_str(), job.pid), ("halted", None));
    let pid = cedana.restore(&["rebooted"])?;
    counter.continues_between(dumped, ended, ended)?;
    check_books(&host, &counter, pid)
}

#[test]
fn a_restore_into_another_container_by_path() -> Result<()> {
    need!(OurShim, "jobs are containers of our shim");
    need!(Criu, "dumps");
    let host = Host::with_image()?;
    let cedana = Cedana::on(&host);
    let counter = Counter::run(&host, "origin")?;
    let dumped = counter.seen()?;
    let path = cedana.dump(&["origin", "--dir", &host.made_dir("checkpoints")?])?;
    let restore = [
        "restore",
        "containerd",
        "--path",
        &path,
        "--namespace",
        host.namespace(),
    ];
    let line = cedana.last_line(&[&restore[..], &["--id", "copy"]].concat())?;
    let pid = line
        .strip_prefix("Restored successfully, PID: ")
        .context("a pid")?;
    let copy = host.api().get("copy", "")?;
    assert_eq!(
        (copy.status(), copy.pid.to_string()),
        (Status::Running, pid.to_owned())
    );
    host.ctr(&["tasks", "kill", "--signal", "KILL", "copy"])?.ok()?;
    host.api().wait("copy", "")?;
    // Without an id it is the container that was dumped.
    let ended = counter.seen()?;
    cedana.last_line(&restore)?;
    counter.continues(dumped, ended)
}

#[test]
fn docker_s_container_comes_back_in_docker_s_books() -> Result<()> {
    need!(OurShim, "jobs are containers of our shim");
    need!(Docker, "runs a container by docker");
    need!(Criu, "dumps");
    let docker = Docker::with_runtime(&runtime())?;
    let cedana = Cedana::new();
    let container = docker.start(&["--name", "shipped"], &["sh", "-c", COUNTER])?;
    let last = || -> Option<u64> { container.call(&["logs", "--tail", "1"]).ok()?.parse().ok() };
    eventually("it counts", SHORT, || last() > Some(3))?;
    let job = cedana.job("moby", container.id())?;
    assert_eq!(job.job, "shipped");
    let before = last().context("a number")?;
    let checkpoint = cedana.dump(&["shipped"])?;
    eventually("docker sees it exit", SHORT, || {
        container
            .inspect("{{.State.Status}}")
            .is_ok_and(|word| word == "exited")
    })?;
    let ended = last().context("a number")?;
    let pid = cedana.restore(&["shipped"])?;
    assert_eq!(
        container.inspect("{{.State.Status}} {{.State.Pid}}")?,
        format!("running {pid}")
    );
    eventually("it counts on", SHORT, || last() > Some(ended))?;
    let all = container.call(&["logs"])?;
    assert_eq!(
        all.lines().filter(|line| *line == "1").count(),
        1,
        "it did not begin anew"
    );
    ensure!(before <= ended, "{before} {ended}");
    container.remove()?;
    fs::remove_dir_all(checkpoint)?;
    Ok(())
}

#[test]
fn nerdctl_s_container_comes_back_with_its_logs() -> Result<()> {
    need!(OurShim, "jobs are containers of our shim");
    need!(Nerdctl, "runs a container by nerdctl");
    need!(Criu, "dumps");
    let host = Host::with_image()?;
    let cedana = Cedana::new();
    let nerdctl = |args: &[&str]| -> Result<Said> {
        run("nerdctl", &[&["--namespace", host.namespace()], args].concat())
    };
    let flags = [
        "run",
        "--network",
        "none",
        "--runtime",
        host.runtime(),
        "--detach",
        "--name",
        "crated",
    ];
    nerdctl(&[&flags[..], &[IMAGE, "sh", "-c", COUNTER]].concat())?.ok()?;
    let logs = || {
        nerdctl(&["logs", "crated"])
            .and_then(Said::ok)
            .unwrap_or_default()
    };
    let last = || -> Option<u64> { logs().lines().last()?.parse().ok() };
    eventually("it counts", SHORT, || last() > Some(3))?;
    cedana.dump(&["crated", "--dir", &host.made_dir("checkpoints")?])?;
    let ended = last().context("a number")?;
    let pid = cedana.restore(&["crated"])?;
    assert_eq!(
        nerdctl(&["inspect", "--format", "{{.State.Pid}}", "crated"])?.ok()?,
        pid.to_string()
    );
    eventually("it counts on", SHORT, || last() > Some(ended))?;
    assert_eq!(
        logs().lines().filter(|line| *line == "1").count(),
        1,
        "it did not begin anew"
    );
    nerdctl(&["rm", "--force", "crated"])?.ok()?;
    host.assert_clean()
}
