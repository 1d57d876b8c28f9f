//! Jobs in unusual states: frozen, without their shim, wanted twice at once, in a pod.
#![expect(
    unused_results,
    reason = "a test acts through calls, and compares only the answers it is about"
)]

use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use integration::by_ctr::Talker;
use integration::cedana::{Cedana, code};
use integration::cedana_counter::Counter;
use integration::engine::{Said, run};
use integration::host::{Host, IMAGE};
use integration::messages::Status;
use integration::need;
use integration::stdio::eventually;
use integration::workload::FOREVER;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

const WORKLOAD: &str = env!("CARGO_BIN_EXE_workload");
const SHORT: Duration = Duration::from_secs(20);
/// CRIU takes some tenths of a second for this much: two commands that start together meet.
const MUCH_MEMORY_MIB: &str = "256";

#[test]
fn a_frozen_job_is_dumped_and_stays_frozen() -> Result<()> {
    need!(OurShim, "the shim's own service");
    need!(Criu, "dumps");
    let host = Host::with_image()?;
    let cedana = Cedana::new();
    let counter = Counter::run(&host, "frozen-dump")?;
    cedana.says(&["freeze", "frozen-dump"])?;
    let dumped = counter.seen()?;
    cedana.dump(&[
        "frozen-dump",
        "--leave-running",
        "--dir",
        &host.made_dir("checkpoints")?,
    ])?;
    assert_eq!(cedana.job(host.namespace(), "frozen-dump")?.status, "frozen");
    assert_eq!(host.api().get("frozen-dump", "")?.status(), Status::Paused);
    cedana.says(&["unfreeze", "frozen-dump"])?;
    counter.goes_on()?;
    counter.kill()?;
    let ended = counter.seen()?;
    cedana.restore(&["frozen-dump"])?;
    counter.continues_between(dumped, dumped, ended)
}

#[test]
fn a_frozen_job_is_killed() -> Result<()> {
    need!(OurShim, "the shim's own service");
    let host = Host::with_image()?;
    let cedana = Cedana::new();
    let _counter = Counter::run(&host, "frozen-kill")?;
    cedana.says(&["freeze", "frozen-kill"])?;
    cedana.says(&["kill", "frozen-kill"])?;
    assert_eq!(host.api().wait("frozen-kill", "")?.exit_status, 137);
    Ok(())
}

/// Both at once; how many went well.
fn twice(act: impl Fn(usize) -> Result<Said> + Sync) -> Result<(usize, Vec<Said>)> {
    let act = &act;
    let said: Result<Vec<Said>> = thread::scope(|scope| {
        let both = [0, 1].map(|number| scope.spawn(move || act(number)));
        both.into_iter()
            .map(|one| one.join().unwrap_or_else(|_| Err(anyhow!("a thread panicked"))))
            .collect()
    });
    let said = said?;
    Ok((said.iter().filter(|one| one.code == 0).count(), said))
}

#[test]
fn of_two_dumps_at_once_one_is_refused_or_waits() -> Result<()> {
    need!(OurShim, "the shim's own service");
    need!(Criu, "dumps");
    let host = Host::with_image()?;
    let cedana = Cedana::new();
    let mut talker = Talker::run(&host, "wanted", WORKLOAD, &["memory", MUCH_MEMORY_MIB], &[])?;
    let into = host.made_dir("checkpoints")?;
    let (well, said) = twice(|number| {
        let name = format!("number-{number}");
        cedana.run(&[
            "dump",
            "job",
            "wanted",
            "--leave-running",
            "--dir",
            &into,
            "--name",
            &name,
        ])
    })?;
    ensure!(well >= 1, "{said:?}");
    for one in said.iter().filter(|one| one.code != 0) {
        assert_eq!(one.code, code::WRONG_STATE, "{one:?}");
    }
    assert_eq!(
        fs::read_dir(&into)?.count(),
        well,
        "a dump that was refused leaves nothing"
    );
    assert_eq!(talker.check()?, 1);
    talker.remove()
}

#[test]
fn of_two_restores_at_once_one_is_refused() -> Result<()> {
    need!(OurShim, "the shim's own service");
    need!(Criu, "dumps");
    let host = Host::with_image()?;
    let cedana = Cedana::new();
    let counter = Counter::run(&host, "once")?;
    let dumped = counter.seen()?;
    cedana.dump(&["once", "--dir", &host.made_dir("checkpoints")?])?;
    for deleted in [false, true] {
        if deleted {
            counter.kill_and_delete()?;
        }
        let ended = counter.seen()?;
        let (well, said) = twice(|_| cedana.run(&["restore", "job", "once"]))?;
        assert_eq!(well, 1, "deleted {deleted}: {said:?}");
        counter
            .continues_between(dumped, ended, ended)
            .with_context(|| format!("deleted {deleted}: {said:?}"))?;
    }
    Ok(())
}

#[test]
fn a_job_without_its_shim_is_not_dumped_and_does_not_hang() -> Result<()> {
    need!(OurShim, "the shim's own service");
    let host = Host::with_image()?.forgiving_sockets();
    let cedana = Cedana::new();
    let _counter = Counter::run(&host, "bereft")?;
    let shim = host.places().shims().into_iter().next().context("a shim")?;
    // Stopped, it holds its socket and does not answer; killed, it is gone.
    kill(Pid::from_raw(shim), Signal::SIGSTOP)?;
    let shown = cedana.job(host.namespace(), "bereft")?;
    ensure!(shown.pid.is_some(), "{shown:?}");
    kill(Pid::from_raw(shim), Signal::SIGKILL)?;
    let said = cedana.run(&["dump", "job", "bereft"])?;
    ensure!([code::WRONG_STATE, code::TOOL].contains(&said.code), "{said:?}");
    ensure!(said.stderr.contains("bereft"), "{said:?}");
    Ok(())
}

const ENDPOINT: &str = "unix:///run/containerd/containerd.sock";

fn crictl(args: &[&str]) -> Result<Said> {
    let endpoint = ["--runtime-endpoint", ENDPOINT, "--image-endpoint", ENDPOINT];
    run("crictl", &[&endpoint, args].concat())
}

fn write(path: &Path, value: &serde_json::Value) -> Result<String> {
    fs::write(path, value.to_string()).with_context(|| format!("write {}", path.display()))?;
    Ok(path.display().to_string())
}

/// A pod's container is its own kubelet's to start.
#[test]
fn a_pod_s_container_is_dumped_and_its_restore_is_refused_with_a_remedy() -> Result<()> {
    need!(OurShim, "jobs are containers of our shim");
    need!(Crictl, "asks as a kubelet does");
    need!(Criu, "dumps");
    let dir = tempfile::Builder::new().prefix("cedana-").tempdir()?;
    let cedana = Cedana::new();
    let pod = json!({
        "metadata": {"name": "shop", "namespace": "default", "uid": "shop", "attempt": 1},
        "log_directory": dir.path(),
        "linux": {"security_context": {"namespace_options": {"network": 2}}},
    });
    let app = json!({
        "metadata": {"name": "till"},
        "labels": {"io.kubernetes.pod.name": "shop", "io.kubernetes.container.name": "till"},
        "image": {"image": IMAGE},
        "command": ["sh", "-c", FOREVER],
        "log_path": "till.log",
        "linux": {},
    });
    let (pod, app) = (
        write(&dir.path().join("pod.json"), &pod)?,
        write(&dir.path().join("app.json"), &app)?,
    );
    let sandbox = crictl(&["runp", "--runtime", "cedana", &pod])?.ok()?;
    let container = crictl(&["create", &sandbox, &app, &pod])?.ok()?;
    crictl(&["start", &container])?.ok()?;
    let log = || fs::read_to_string(dir.path().join("till.log")).unwrap_or_default();
    eventually("it says ready", SHORT, || log().contains("ready"))?;
    let job = cedana.job("k8s.io", &container)?;
    assert_eq!(job.job, "shop/till");
    let shown = cedana.says(&["ps"])?;
    ensure!(
        !shown.contains(sandbox.get(..12).context("a long id")?),
        "{shown}"
    );
    let path = cedana.dump(&["shop/till", "--leave-running"])?;
    crictl(&["stop", "--timeout", "0", &container])?.ok()?;
    let said = cedana.fails(&["restore", "job", "shop/till"], code::UNSUPPORTED, "shop/till")?;
    ensure!(said.stderr.contains("hint: "), "{}", said.stderr);
    crictl(&["rm", "--force", &container])?.ok()?;
    crictl(&["stopp", &sandbox])?.ok()?;
    crictl(&["rmp", &sandbox])?.ok()?;
    fs::remove_dir_all(path)?;
    Ok(())
}
