//! `cedana dump`: what is kept, what is said of it, and that what fails changes nothing.
#![expect(
    unused_results,
    reason = "a test acts through calls, and compares only the answers it is about"
)]

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use integration::by_ctr::Talker;
use integration::cedana::{Cedana, code};
use integration::cedana_counter::Counter;
use integration::engine;
use integration::host::Host;
use integration::leftovers::command_line;
use integration::messages::Status;
use integration::need;
use integration::stdio::eventually;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

const WORKLOAD: &str = env!("CARGO_BIN_EXE_workload");
const SHORT: Duration = Duration::from_secs(20);
/// CRIU takes some tenths of a second for this much: time enough to be met in the middle.
const MUCH_MEMORY_MIB: &str = "256";

/// What is in a directory.
fn entries(dir: &str) -> Result<Vec<PathBuf>> {
    Ok(fs::read_dir(dir)?.flatten().map(|entry| entry.path()).collect())
}

#[test]
fn leave_running_keeps_a_checkpoint_and_the_container() -> Result<()> {
    need!(OurShim, "the shim's own service");
    need!(Criu, "dumps");
    let host = Host::with_image()?;
    let cedana = Cedana::new();
    let counter = Counter::run(&host, "keeps-on")?;
    let job = counter.job();
    let into = host.made_dir("checkpoints")?;
    let path = cedana.dump(&[&job, "--leave-running", "--dir", &into])?;
    counter.goes_on()?;
    ensure!(
        path.starts_with(&format!("{into}/dump-containerd-keeps-on-")),
        "{path}"
    );
    ensure!(
        Path::new(&path).join("checkpoint/inventory.img").is_file(),
        "no images in {path}"
    );
    assert_eq!(entries(&into)?.len(), 1, "nothing but the checkpoint is there");

    let table = cedana.says(&["job", "checkpoints", &job])?;
    let header: Vec<&str> = table
        .lines()
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .collect();
    assert_eq!(header, ["ID", "TIME", "SIZE", "PATH"]);
    ensure!(table.contains(&path), "{table}");
    let shown = cedana.says(&["ps"])?;
    let line = shown
        .lines()
        .find(|line| line.starts_with("keeps-on "))
        .context("its line")?;
    ensure!(
        (line.contains(" ago ") || line.contains(" now ")) && line.contains("iB"),
        "{line}"
    );

    let second = cedana.dump(&[&job, "--leave-running", "--dir", &into])?;
    assert_ne!(path, second, "two dumps in one second have two names");
    let all: Vec<Value> = cedana.json(&["job", "checkpoints", &job])?;
    let paths: Vec<&str> = all.iter().filter_map(|one| one.get("path")?.as_str()).collect();
    assert_eq!(paths, [second.as_str(), path.as_str()], "the newest is first");
    fs::remove_dir_all(&second)?;
    let all: Vec<Value> = cedana.json(&["job", "checkpoints", &job])?;
    assert_eq!(all.len(), 1, "what is gone is not listed");
    Ok(())
}

#[test]
fn the_default_directory_is_made_for_its_owner_alone() -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    need!(OurShim, "the shim's own service");
    need!(Criu, "dumps");
    let host = Host::with_image()?;
    let counter = Counter::run(&host, "default-dir")?;
    let path = Cedana::new().dump(&[&counter.job(), "--leave-running"])?;
    ensure!(path.starts_with("/var/lib/cedana/checkpoints/"), "{path}");
    let mode = fs::metadata("/var/lib/cedana/checkpoints")?.permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
    fs::remove_dir_all(path)?;
    Ok(())
}

#[test]
fn the_client_sees_the_container_exit() -> Result<()> {
    need!(OurShim, "the shim's own service");
    need!(Criu, "dumps");
    let host = Host::with_image()?;
    let mut talker = Talker::run(&host, "seen-off", WORKLOAD, &["memory", "1"], &[])?;
    talker.check()?;
    let into = host.made_dir("checkpoints")?;
    let path = Cedana::new().dump(&["seen-off", "--dir", &into, "--name", "mine"])?;
    assert_eq!(path, format!("{into}/mine"));
    talker.gone()?;
    host.assert_clean()
}

#[test]
fn each_form_has_its_name() -> Result<()> {
    need!(OurShim, "the shim's own service");
    need!(Criu, "dumps");
    let host = Host::with_image()?;
    let cedana = Cedana::new();
    let counter = Counter::run(&host, "packed")?;
    let into = host.made_dir("checkpoints")?;
    for (form, suffix) in [
        ("none", ""),
        ("tar", ".tar"),
        ("gzip", ".tar.gz"),
        ("lz4", ".tar.lz4"),
        ("zlib", ".tar.zlib"),
        ("zstd", ".tar.zst"),
    ] {
        let args = [
            "--leave-running",
            "--dir",
            &into,
            "--name",
            form,
            "--compression",
            form,
        ];
        let path = cedana.dump(&[&[counter.job().as_str()], &args[..]].concat())?;
        assert_eq!(path, format!("{into}/{form}{suffix}"));
        assert_eq!(Path::new(&path).is_dir(), suffix.is_empty(), "{path}");
    }
    assert_eq!(entries(&into)?.len(), 6, "nothing but the checkpoints is there");
    counter.goes_on()
}

#[test]
fn what_cannot_be_is_refused_and_the_container_goes_on() -> Result<()> {
    need!(OurShim, "the shim's own service");
    need!(Criu, "dumps");
    let host = Host::with_image()?;
    let cedana = Cedana::new();
    let counter = Counter::run(&host, "refused")?;
    let job = counter.job();
    let into = host.made_dir("checkpoints")?;
    host.made_dir("checkpoints/taken")?;
    let nowhere = format!("{into}/nowhere");
    let dump = ["dump", "job", job.as_str()];
    for (more, code, part) in [
        (&["--dir", nowhere.as_str()][..], code::NOT_FOUND, "nowhere"),
        (&["--dir", &into, "--name", "taken"], code::WRONG_STATE, "taken"),
        (&["--dir", &into, "--name", "../out"], code::USAGE, "../out"),
        (&["--criu-opts", "{\"Nonsense\": 1}"], code::USAGE, "Nonsense"),
        (&["--criu-opts", "nonsense"], code::USAGE, "criu-opts"),
    ] {
        cedana.fails(&[&dump, more].concat(), code, part)?;
    }
    assert_eq!(entries(&into)?.len(), 1);
    counter.goes_on()?;
    counter.kill()?;
    cedana.fails(&dump, code::WRONG_STATE, "not running")?;
    Ok(())
}

#[test]
fn what_criu_refuses_is_told_and_changes_nothing() -> Result<()> {
    need!(OurShim, "the shim's own service");
    need!(Criu, "dumps");
    let host = Host::with_image()?;
    let cedana = Cedana::new();
    let limit = ["--annotation", "cedana.dump.ghost-limit=1M"];
    let mut talker = Talker::run(&host, "ghostly", WORKLOAD, &["hold", "ghost"], &limit)?;
    let into = host.made_dir("checkpoints")?;
    let said = cedana.fails(
        &["dump", "job", "ghostly", "--dir", &into],
        code::WRONG_STATE,
        "ghost file",
    )?;
    ensure!(
        said.stderr.contains("hint: ") || said.stderr.contains("the log is"),
        "{}",
        said.stderr
    );
    assert_eq!(
        entries(&into)?,
        Vec::<PathBuf>::new(),
        "a failed dump leaves nothing"
    );
    assert_eq!(talker.status()?, Status::Running);
    talker.check()?;
    let job: Value = cedana.json(&["job", "inspect", "ghostly"])?;
    let last = |field: &str| {
        job.pointer(&format!("/last/{field}"))
            .and_then(Value::as_str)
            .unwrap_or_default()
    };
    assert_eq!((last("verb"), last("phase")), ("dump", "save"));
    ensure!(last("error").contains("ghost file"), "{:?}", last("error"));
    talker.ask("drop")?;
    cedana.dump(&["ghostly", "--dir", &into, "--leave-running"])?;
    talker.check()?;
    talker.remove()
}

#[test]
fn a_flag_is_a_setting_of_this_dump_alone() -> Result<()> {
    need!(OurShim, "the shim's own service");
    need!(Criu, "dumps");
    need!(CriuSockets, "holds a connection");
    let host = Host::with_image()?;
    let cedana = Cedana::new();
    let talker = Talker::run(&host, "connected", WORKLOAD, &["hold", "half-connection"], &[])?;
    let into = host.made_dir("checkpoints")?;
    let pid = talker.pid()?.to_string();
    engine::run("nsenter", &["-t", &pid, "-n", "ip", "link", "set", "lo", "up"])?.ok()?;
    let plain = ["connected", "--leave-running", "--dir", &into];
    for flag in [
        &["--tcp-established"][..],
        &["--criu-opts", "{\"TcpEstablished\": true}"],
    ] {
        cedana.fails(
            &[&["dump", "job"], &plain[..]].concat(),
            code::WRONG_STATE,
            "connected",
        )?;
        cedana.dump(&[&plain, flag].concat())?;
    }
    talker.remove()
}

/// The CRIU that traces a process, once it holds it.
fn tracer(pid: u32) -> Option<Pid> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("TracerPid:"))?;
    let tracer = line.trim().parse().ok().filter(|tracer| *tracer != 0)?;
    command_line(tracer)
        .is_some_and(|line| line.contains("criu"))
        .then(|| Pid::from_raw(tracer))
}

#[test]
fn ctrl_c_takes_a_dump_back() -> Result<()> {
    need!(OurShim, "the shim's own service");
    need!(Criu, "dumps");
    let host = Host::with_image()?;
    let cedana = Cedana::new();
    let mut talker = Talker::run(&host, "regretted", WORKLOAD, &["memory", MUCH_MEMORY_MIB], &[])?;
    let into = host.made_dir("checkpoints")?;
    let init = talker.pid()?;
    let mut child = cedana
        .command(&["dump", "job", "regretted", "--dir", &into])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()?;
    eventually("CRIU holds the init", SHORT, || tracer(init).is_some())?;
    kill(Pid::from_raw(i32::try_from(child.id())?), Signal::SIGINT)?;
    eventually("the command ends", SHORT, || {
        matches!(child.try_wait(), Ok(Some(_)))
    })?;
    let said = child.wait_with_output()?;
    let stderr = String::from_utf8_lossy(&said.stderr);
    assert_eq!(said.status.code(), Some(code::INTERRUPTED), "{stderr}");
    ensure!(stderr.contains("rolled back"), "{stderr}");
    assert_eq!(entries(&into)?, Vec::<PathBuf>::new());
    assert_eq!(talker.check()?, 1, "the same process goes on");
    cedana.dump(&["regretted", "--dir", &into, "--leave-running"])?;
    assert_eq!(talker.check()?, 2);
    talker.remove()
}

#[test]
fn a_killed_command_line_leaves_a_checkpoint_or_a_container() -> Result<()> {
    need!(OurShim, "the shim's own service");
    need!(Criu, "dumps");
    let host = Host::with_image()?;
    let cedana = Cedana::new();
    let mut talker = Talker::run(&host, "orphaned", WORKLOAD, &["memory", MUCH_MEMORY_MIB], &[])?;
    let into = host.made_dir("checkpoints")?;
    let init = talker.pid()?;
    let mut child = cedana
        .command(&["dump", "job", "orphaned", "--dir", &into, "--leave-running"])
        .spawn()?;
    eventually("CRIU holds the init", SHORT, || tracer(init).is_some())?;
    child.kill()?;
    child.wait()?;
    // A dropped connection interrupts nothing: the shim goes on to the end of the dump.
    let complete = || {
        cedana
            .says(&["checkpoints", "orphaned"])
            .is_ok_and(|text| text.contains(&into))
    };
    eventually("the checkpoint is in the books", SHORT, complete)?;
    assert_eq!(talker.check()?, 1);
    talker.remove()
}

#[test]
fn dump_containerd_is_the_same_act() -> Result<()> {
    need!(OurShim, "the shim's own service");
    need!(Criu, "dumps");
    let host = Host::with_image()?;
    let cedana = Cedana::on(&host);
    let counter = Counter::run(&host, "by-id")?;
    let into = host.made_dir("checkpoints")?;
    let args = [
        "dump",
        "containerd",
        "by-id",
        "--namespace",
        host.namespace(),
        "--dir",
        &into,
    ];
    let line = cedana.last_line(&[&args[..], &["--leave-running"]].concat())?;
    let path = line.strip_prefix("Dumped to ").context("a path")?;
    ensure!(cedana.says(&["checkpoints", &counter.job()])?.contains(path));
    counter.goes_on()?;
    let nobody = ["dump", "containerd", "nobody", "--namespace", host.namespace()];
    cedana.fails(&nobody, code::NOT_FOUND, "nobody")?;
    Ok(())
}

#[test]
fn ctr_and_cedana_keep_the_same_books() -> Result<()> {
    need!(OurShim, "jobs are containers of our shim");
    need!(Criu, "dumps");
    need!(CheckpointOptions, "says where the images go");
    let host = Host::with_image()?;
    let counter = Counter::run(&host, "by-ctr")?;
    let images = host.dir().join("by-ctr-images").display().to_string();
    host.ctr(&["tasks", "checkpoint", "--image-path", &images, "by-ctr"])?
        .ok()?;
    let text = Cedana::new().says(&["checkpoints", &counter.job()])?;
    ensure!(text.contains(&images), "{text}");
    Ok(())
}

#[test]
fn progress_is_shown_on_a_terminal() -> Result<()> {
    need!(OurShim, "the shim's own service");
    need!(Criu, "dumps");
    let host = Host::with_image()?;
    let mut talker = Talker::run(&host, "shown", WORKLOAD, &["memory", MUCH_MEMORY_MIB], &[])?;
    let into = host.made_dir("checkpoints")?;
    let dump = ["dump", "job", "shown", "--leave-running", "--dir", &into];
    let init = talker.pid()?;
    let dumping = Cedana::new().start_on_terminal(&[&dump[..], &["--compression", "tar"]].concat())?;
    // However fast the dump is, the line is there to be seen.
    let mut criu = None;
    eventually("CRIU holds the init", SHORT, || {
        criu = tracer(init);
        criu.is_some()
    })?;
    let criu = criu.context("CRIU")?;
    kill(criu, Signal::SIGSTOP)?;
    let shows = ["MiB", "/s", "save"].map(|part| dumping.shown().wait_for(part));
    kill(criu, Signal::SIGCONT)?;
    shows.into_iter().collect::<Result<()>>()?;
    let (code, shown) = dumping.end()?;
    assert_eq!(code, 0, "{shown}");
    let last = shown.lines().last().unwrap_or_default();
    ensure!(
        last.contains(&format!("Dumped to {into}/dump-containerd-shown-")),
        "{last:?}"
    );
    assert_eq!(talker.check()?, 1);
    talker.remove()
}
