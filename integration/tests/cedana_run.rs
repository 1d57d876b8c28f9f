//! `cedana run` and `cedana manage`: how a container becomes a job.
#![expect(
    unused_results,
    reason = "a test acts through calls, and compares only the answers it is about"
)]

use std::fs;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use integration::cedana::{Cedana, code};
use integration::cedana_counter::{COUNTER, Counter};
use integration::host::{Host, IMAGE};
use integration::messages::Status;
use integration::need;
use integration::stdio::eventually;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const THEIR_RUNTIME: &str = "io.containerd.runc.v2";
const SHORT: Duration = Duration::from_secs(20);

/// `cedana run containerd` in the test's namespace, with these flags and this command.
fn run<'a>(host: &'a Host, flags: &[&'a str], command: &[&'a str]) -> Vec<&'a str> {
    let verb = ["run", "containerd", "--namespace", host.namespace()];
    [&verb, flags, &[IMAGE], command].concat()
}

/// A command that waits, until its end.
struct Waiting(Child);

impl Waiting {
    fn start(cedana: &Cedana, args: &[&str]) -> Result<Self> {
        let mut command = cedana.command(args);
        Ok(Self(
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?,
        ))
    }

    fn pid(&self) -> Result<Pid> {
        Ok(Pid::from_raw(i32::try_from(self.0.id())?))
    }

    fn end(mut self) -> Result<(Option<i32>, String, String)> {
        eventually("the command ends", SHORT, || {
            matches!(self.0.try_wait(), Ok(Some(_)))
        })?;
        let said = self.0.wait_with_output()?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        Ok((said.status.code(), text(&said.stdout), text(&said.stderr)))
    }
}

/// The signals that a process has a handler for are a bit mask, of which the first bit is signal 1.
fn catches_interrupts(pid: Pid) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
    let mask = caught.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask & 1 << (Signal::SIGINT as u64 - 1) != 0)
}

#[test]
fn run_starts_a_job_with_a_name_and_a_log() -> Result<()> {
    need!(OurShim, "runs under our shim");
    let host = Host::with_image()?;
    let cedana = Cedana::on(&host);
    let log = host.dir().join("out.log");
    let (log_text, pid_file) = (log.display().to_string(), host.dir().join("pid"));
    let pid_text = pid_file.display().to_string();
    let flags = [
        "--jid",
        "accounts",
        "--id",
        "acc",
        "-o",
        &log_text,
        "--pid-file",
        &pid_text,
        "--env",
        "WHO=me",
    ];
    let line = cedana.last_line(&run(&host, &flags, &["sh", "-c", "echo $WHO; sleep 1000"]))?;
    let pid = host.api().get("acc", "")?.pid;
    assert_eq!(line, format!("Running managed containerd PID {pid}"));
    assert_eq!(fs::read_to_string(&pid_file)?.trim(), pid.to_string());
    let written = || fs::read_to_string(&log).is_ok_and(|text| text == "me\n");
    eventually("its output is in the log", SHORT, written)?;
    let job = cedana.job(host.namespace(), "acc")?;
    assert_eq!((job.job.as_str(), job.pid), ("accounts", Some(pid)));
    let shown = cedana.says(&["ps"])?;
    let line = shown
        .lines()
        .find(|line| line.starts_with("accounts "))
        .context("its line")?;
    ensure!(line.trim_end().ends_with(&log_text), "{line}");
    Ok(())
}

#[test]
fn a_job_without_a_name_gets_one_and_a_log_of_that_name() -> Result<()> {
    need!(OurShim, "runs under our shim");
    let host = Host::with_image()?;
    let cedana = Cedana::on(&host);
    cedana.says(&run(
        &host,
        &["--id", "anonymous"],
        &["sh", "-c", "echo hello; sleep 1000"],
    ))?;
    let name = cedana.job(host.namespace(), "anonymous")?.job;
    let (adjective, surname) = name
        .split_once('_')
        .with_context(|| format!("two words in {name}"))?;
    ensure!(!adjective.is_empty() && !surname.is_empty(), "{name}");
    let log = format!("/var/log/cedana-output-{name}.log");
    let written = || fs::read_to_string(&log).is_ok_and(|text| text == "hello\n");
    eventually("its output is in the log", SHORT, written)?;
    fs::remove_file(log)?;
    Ok(())
}

#[test]
fn attached_it_ends_with_the_code_of_the_job() -> Result<()> {
    need!(OurShim, "runs under our shim");
    let host = Host::with_image()?;
    let cedana = Cedana::on(&host);
    let said = cedana.run(&run(
        &host,
        &["--attach"],
        &["sh", "-c", "echo out; echo err >&2; exit 7"],
    ))?;
    assert_eq!(said.code, 7, "{said:?}");
    ensure!(
        said.stdout.contains("out\n") && said.stderr.contains("err\n"),
        "{said:?}"
    );
    host.assert_clean()
}

#[test]
fn a_run_that_cannot_be_is_refused() -> Result<()> {
    need!(OurShim, "runs under our shim");
    let host = Host::with_image()?;
    let cedana = Cedana::on(&host);
    let namespace = ["--namespace", host.namespace()];
    let missing = ["run", "containerd", "localhost/no/such:image", "true"];
    cedana.fails(
        &[&missing, &namespace[..]].concat(),
        code::NOT_FOUND,
        "localhost/no/such:image",
    )?;
    let _first = Counter::run(&host, "taken")?;
    for name in ["a b", "a/b", ""] {
        let rule = "is no name for a job: a name has letters, digits";
        cedana.fails(&run(&host, &["--jid", name], &["true"]), code::USAGE, rule)?;
    }
    cedana.fails(
        &run(&host, &["--id", "taken"], &["true"]),
        code::WRONG_STATE,
        "taken",
    )?;
    host.container("unrelated", integration::workload::Workload::forever())?;
    Ok(())
}

#[test]
fn what_run_started_is_dumped_and_restored() -> Result<()> {
    need!(OurShim, "runs under our shim");
    need!(Criu, "dumps");
    let host = Host::with_image()?;
    let cedana = Cedana::on(&host);
    let log = host.dir().join("out.log");
    let text = || fs::read_to_string(&log).unwrap_or_default();
    let flags = ["-j", "ledger", "-o", &log.display().to_string()].map(str::to_owned);
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    cedana.says(&run(&host, &flags, &["sh", "-c", COUNTER]))?;
    eventually("it counts", SHORT, || text().lines().count() > 3)?;
    cedana.dump(&["ledger", "--dir", &host.made_dir("checkpoints")?])?;
    let before = text().lines().count();
    cedana.restore(&["ledger"])?;
    eventually("it counts on", SHORT, || text().lines().count() > before + 3)?;
    assert_eq!(
        text().lines().filter(|line| *line == "1").count(),
        1,
        "it did not begin anew"
    );
    Ok(())
}

#[test]
fn a_container_of_containerd_s_own_shim_is_managed_dumped_and_restored_under_ours() -> Result<()> {
    need!(OurShim, "restores under our shim");
    need!(Criu, "dumps");
    let host = Host::with_image()?;
    let cedana = Cedana::on(&host);
    let counter = Counter::run_with(&host, "foreign", THEIR_RUNTIME, &[])?;
    ensure!(
        cedana.find(host.namespace(), "foreign")?.is_none(),
        "nobody has said that it is a job"
    );
    let manage = [
        "manage",
        "containerd",
        "foreign",
        "--namespace",
        host.namespace(),
        "-j",
        "adopted",
    ];
    let line = cedana.last_line(&manage)?;
    assert_eq!(line, format!("Managing containerd PID {}", counter.pid()?));
    let job = cedana.job(host.namespace(), "foreign")?;
    assert_eq!((job.job.as_str(), job.pid), ("adopted", Some(counter.pid()?)));

    let into = host.made_dir("checkpoints")?;
    let dumped = counter.seen()?;
    let path = cedana.dump(&["adopted", "--leave-running", "--dir", &into])?;
    ensure!(
        Path::new(&path).join("inventory.img").is_file() || Path::new(&path).is_dir(),
        "{path}"
    );
    let said = cedana.says(&["checkpoint", "verify", &path])?;
    ensure!(said.contains(": good"), "{said}");
    counter.goes_on()?;
    let again = counter.seen()?;
    cedana.dump(&["adopted", "--dir", &into])?;
    eventually("it ends", SHORT, || counter.has_ended().is_ok())?;
    let ended = counter.seen()?;
    assert_eq!(cedana.job(host.namespace(), "foreign")?.status, "halted");
    let pid = cedana.restore(&["adopted"])?;
    counter.continues(again, ended)?;
    assert_eq!(counter.pid()?, pid);
    assert_eq!(host.places().shims().len(), 1);
    let shim = host.places().shims().into_iter().next().context("a shim")?;
    let line = integration::leftovers::command_line(shim).unwrap_or_default();
    ensure!(line.contains("cedana"), "it is under our shim now: {line}");
    // And now it is dumped as any of ours.
    let last = cedana.dump(&["adopted", "--dir", &into])?;
    counter.has_ended()?;
    cedana.restore(&["adopted", "--path", &last])?;
    counter.goes_on()?;
    ensure!(dumped.eq(&dumped), "the first checkpoint stays a file");
    Ok(())
}

/// Whoever traces a process.
fn tracer(pid: u32) -> Option<Pid> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let tracer = status.lines().find_map(|line| line.strip_prefix("TracerPid:"))?;
    let tracer = tracer.trim().parse().ok()?;
    (tracer != 0).then_some(Pid::from_raw(tracer))
}

#[test]
fn a_container_of_containerd_s_own_shim_is_not_lost_with_containerd() -> Result<()> {
    need!(OurShim, "restores under our shim");
    need!(Criu, "dumps");
    lose_containerd(false)?;
    lose_containerd(true)
}

/// containerd is killed in the middle of a dump, or at its end, when CRIU has written all and is about to end the container.
/// Either it goes on, and nothing is left of the dump, or its images are there.
fn lose_containerd(at_the_end: bool) -> Result<()> {
    let mut host = Host::with_own_containerd()?.forgiving_sockets();
    host.load_image()?;
    let cedana = Cedana::on(&host);
    let counter = Counter::run_with(&host, "lost", THEIR_RUNTIME, &[])?;
    let (init, into) = (counter.pid()?, host.made_dir("checkpoints")?);
    let namespace = host.namespace().to_owned();
    let dump = [
        "dump",
        "containerd",
        "lost",
        "--namespace",
        &namespace,
        "--dir",
        &into,
    ];
    let waiting = Waiting::start(&cedana, &dump)?;
    eventually("CRIU holds the container", SHORT, || tracer(init).is_some())?;
    if at_the_end {
        let inventory = || -> Option<bool> {
            let partial = fs::read_dir(&into).ok()?.next()?.ok()?;
            Some(partial.path().join("inventory.img").is_file())
        };
        let end = Instant::now() + SHORT;
        // Without a pause: the moment is short.
        while inventory() != Some(true) {
            ensure!(Instant::now() < end, "CRIU writes no inventory");
        }
        host.daemon()?.kill()?;
    } else {
        let criu = tracer(init).context("CRIU holds it no more")?;
        kill(criu, Signal::SIGSTOP)?;
        host.daemon()?.kill()?;
        kill(criu, Signal::SIGCONT)?;
    }
    let (code, _, stderr) = waiting.end()?;
    assert_eq!(code, Some(6), "{stderr}");
    eventually("CRIU lets go", SHORT, || tracer(init).is_none())?;
    let kept = fs::read_dir(&into)?.next().transpose()?;
    let stat = fs::read_to_string(format!("/proc/{init}/stat")).unwrap_or_default();
    let lives = stat
        .rsplit_once(") ")
        .is_some_and(|(_, state)| !state.starts_with('Z'));
    host.daemon()?.restart()?;
    if lives {
        ensure!(kept.is_none(), "it goes on, and {kept:?} is left: {stderr}");
        return counter.goes_on();
    }
    let kept = kept.context("its images, the only copy of it")?.path();
    ensure!(stderr.contains(&kept.display().to_string()), "{stderr}");
    cedana.restore(&[&counter.job(), "--path", &kept.display().to_string()])?;
    counter.goes_on()
}

#[test]
fn what_cannot_be_managed_is_refused() -> Result<()> {
    need!(OurShim, "jobs are containers of our shim");
    let host = Host::with_image()?;
    let cedana = Cedana::on(&host);
    let manage = |id: &'static str| ["manage", "containerd", id, "--namespace", host.namespace()];
    cedana.fails(&manage("nobody"), code::NOT_FOUND, "nobody")?;
    let _ours = Counter::run(&host, "ours")?;
    cedana.fails(&manage("ours"), code::WRONG_STATE, "ours")?;
    host.container("idle", integration::workload::Workload::forever())?;
    cedana.fails(&manage("idle"), code::WRONG_STATE, "idle")?;
    Ok(())
}

#[test]
fn upcoming_waits_for_the_container() -> Result<()> {
    need!(OurShim, "restores under our shim");
    let host = Host::with_image()?;
    let cedana = Cedana::on(&host);
    let manage = [
        "manage",
        "containerd",
        "later",
        "--namespace",
        host.namespace(),
        "--upcoming",
    ];
    let waiting = Waiting::start(&cedana, &manage)?;
    // It must not matter when it comes: one that is there already ends the wait at once.
    let counter = Counter::run_with(&host, "later", THEIR_RUNTIME, &[])?;
    let (code, stdout, stderr) = waiting.end()?;
    assert_eq!(code, Some(0), "{stderr}");
    assert_eq!(
        stdout.lines().last(),
        Some(format!("Managing containerd PID {}", counter.pid()?).as_str())
    );
    assert_eq!(cedana.job(host.namespace(), "later")?.pid, Some(counter.pid()?));
    Ok(())
}

#[test]
fn upcoming_ends_when_it_is_told_to() -> Result<()> {
    let host = Host::with_image()?;
    let cedana = Cedana::on(&host);
    let manage = [
        "manage",
        "containerd",
        "never",
        "--namespace",
        host.namespace(),
        "--upcoming",
    ];
    cedana.fails(
        &[&manage[..], &["--timeout", "1s"]].concat(),
        code::NOT_FOUND,
        "never",
    )?;
    let waiting = Waiting::start(&cedana, &manage)?;
    let pid = waiting.pid()?;
    eventually("it listens to Ctrl+C", SHORT, || catches_interrupts(pid))?;
    kill(pid, Signal::SIGINT)?;
    let (code, _stdout, stderr) = waiting.end()?;
    assert_eq!(code, Some(code::INTERRUPTED), "{stderr}");
    Ok(())
}

#[test]
fn a_restored_job_can_be_stopped_by_its_client() -> Result<()> {
    need!(OurShim, "runs under our shim");
    need!(Criu, "dumps");
    let host = Host::with_image()?;
    let cedana = Cedana::new();
    let counter = Counter::run(&host, "client-s")?;
    cedana.dump(&["client-s", "--dir", &host.made_dir("checkpoints")?])?;
    cedana.restore(&["client-s"])?;
    counter.goes_on()?;
    host.ctr(&["tasks", "kill", "--signal", "KILL", "client-s"])?
        .ok()?;
    assert_eq!(host.api().wait("client-s", "")?.exit_status, 137);
    assert_eq!(host.api().get("client-s", "")?.status(), Status::Stopped);
    host.ctr(&["tasks", "delete", "client-s"]).map(|_| ())?;
    host.ctr(&["containers", "delete", "client-s"])?.ok()?;
    host.assert_clean()
}
