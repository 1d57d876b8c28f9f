//! `cedana ps` and the other verbs that look at jobs, or end them.
#![expect(
    unused_results,
    reason = "a test acts through calls, and compares only the answers it is about"
)]

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use integration::cedana::{Cedana, code};
use integration::cedana_counter::Counter;
use integration::host::{Host, IMAGE};
use integration::need;
use integration::stdio::eventually;
use integration::workload::Workload;
use serde_json::{Value, json};

const SHORT: Duration = Duration::from_secs(15);
/// What a user is promised; the command itself is part of it.
const APPEARS_WITHIN: Duration = Duration::from_secs(1);

#[test]
fn a_container_of_plain_ctr_run_appears_within_a_second() -> Result<()> {
    need!(OurShim, "jobs are containers of our shim");
    let host = Host::with_image()?;
    let cedana = Cedana::new();
    let began = Instant::now();
    host.ctr(&[
        "run",
        "--detach",
        "--runtime",
        host.runtime(),
        IMAGE,
        "appears",
        "sleep",
        "1000",
    ])?
    .ok()?;
    let job = cedana.job(host.namespace(), "appears")?;
    let took = began.elapsed();
    ensure!(took < APPEARS_WITHIN, "it took {took:?}");
    assert_eq!(job.job, "appears");
    assert_eq!(job.kind, "containerd");
    assert_eq!(job.pid, Some(host.api().get("appears", "")?.pid));
    ensure!(job.lives(), "{job:?}");
    Ok(())
}

#[test]
fn a_name_from_an_annotation_and_a_long_id_are_found() -> Result<()> {
    need!(OurShim, "jobs are containers of our shim");
    let host = Host::with_image()?;
    let cedana = Cedana::new();
    let named = host.container("plain", Workload::forever().annotation("cedana.job", "payroll"))?;
    named.create()?;
    named.start()?;
    let id = "c0ffee0123456789".repeat(4);
    let long = host.container(&id, Workload::forever())?;
    long.create()?;
    long.start()?;
    assert_eq!(cedana.job(host.namespace(), "plain")?.job, "payroll");
    assert_eq!(cedana.job(host.namespace(), &id)?.job, "c0ffee012345");
    for name in ["payroll", "payr", &id, "c0ffee012345", "c0ffee"] {
        cedana
            .says(&["job", "inspect", name])
            .with_context(|| format!("inspect {name}"))?;
    }
    Ok(())
}

#[test]
fn two_of_one_name_are_told_apart_by_their_namespaces() -> Result<()> {
    need!(OurShim, "jobs are containers of our shim");
    let (one, two) = (Host::with_image()?, Host::with_image()?);
    let cedana = Cedana::new();
    let (first, second) = (Counter::run(&one, "twin")?, Counter::run(&two, "twin")?);
    let said = cedana.fails(&["freeze", "twin"], code::USAGE, &first.job())?;
    ensure!(said.stderr.contains(&second.job()), "{}", said.stderr);
    cedana.says(&["freeze", &second.job()])?;
    assert_eq!(cedana.job(two.namespace(), "twin")?.status, "frozen");
    first.goes_on()?;
    cedana.says(&["unfreeze", &second.job()])?;
    second.goes_on()
}

#[test]
fn sandboxes_and_execs_are_no_jobs() -> Result<()> {
    need!(OurShim, "jobs are containers of our shim");
    let host = Host::with_image()?;
    let cedana = Cedana::new();
    let pause = Workload::forever().annotation("io.kubernetes.cri.container-type", "sandbox");
    let sandbox = host.container("pause", pause)?;
    sandbox.create()?;
    sandbox.start()?;
    let container = host.run_with("app", Workload::forever(), &Default::default())?;
    let exec = container.add_exec("shell", "while :; do sleep 1000; done")?;
    exec.start()?;
    let of_ours = |all: bool| -> Result<Vec<String>> {
        let args: &[&str] = if all { &["ps", "--all"] } else { &["ps"] };
        let jobs: Vec<integration::cedana::Job> = cedana.json(args)?;
        let mut ids: Vec<String> = jobs
            .into_iter()
            .filter(|job| job.namespace == host.namespace())
            .map(|job| job.id)
            .collect();
        ids.sort();
        Ok(ids)
    };
    assert_eq!(of_ours(false)?, ["app"]);
    assert_eq!(of_ours(true)?, ["app", "pause"]);
    Ok(())
}

#[test]
fn freeze_and_unfreeze() -> Result<()> {
    need!(OurShim, "the shim's own service");
    let host = Host::with_image()?;
    let cedana = Cedana::on(&host);
    let counter = Counter::run(&host, "ice")?;
    for freeze in [
        &["freeze", "ice"][..],
        &["freeze", "job", "ice"],
        &["freeze", "containerd", "ice", "--namespace", host.namespace()],
    ] {
        let said = cedana.last_line(freeze)?;
        ensure!(said.starts_with("Froze"), "{freeze:?} says {said}");
        assert_eq!(cedana.job(host.namespace(), "ice")?.status, "frozen");
        cedana.fails(freeze, code::WRONG_STATE, "ice")?;
        let said = cedana.last_line(&["unfreeze", "ice"])?;
        ensure!(said.starts_with("Unfroze"), "{said}");
        counter.goes_on()?;
    }
    cedana.fails(&["unfreeze", "ice"], code::WRONG_STATE, "ice")?;
    counter.goes_on()
}

#[test]
fn kill_and_delete() -> Result<()> {
    need!(OurShim, "jobs are containers of our shim");
    let host = Host::with_image()?;
    let cedana = Cedana::new();
    let counter = Counter::run(&host, "doomed")?;
    let job = counter.job();
    let running = "is running, please kill it first";
    cedana.fails(&["job", "delete", &job], code::WRONG_STATE, running)?;
    counter.goes_on()?;
    assert_eq!(cedana.last_line(&["job", "kill", &job])?, "Killed job doomed");
    assert_eq!(host.api().wait("doomed", "")?.exit_status, 137);
    assert_eq!(cedana.job(host.namespace(), "doomed")?.status, "halted");
    cedana.fails(&["kill", &job], code::WRONG_STATE, "not running")?;
    assert_eq!(cedana.last_line(&["delete", &job])?, "Deleted job doomed");
    assert!(cedana.find(host.namespace(), "doomed")?.is_none());
    cedana.fails(&["delete", &job], code::NOT_FOUND, "doomed")?;
    Ok(())
}

#[test]
fn kill_sends_the_signal_that_is_named() -> Result<()> {
    need!(OurShim, "jobs are containers of our shim");
    let host = Host::with_image()?;
    let cedana = Cedana::new();
    let (container, _out) = host.run_until_ready(Workload::forever().annotation("cedana.job", "polite"))?;
    cedana.says(&["job", "kill", "--signal", "TERM", "polite"])?;
    assert_eq!(container.wait()?, 143);
    cedana.fails(
        &["job", "kill", "--signal", "NONSENSE", "polite"],
        code::USAGE,
        "NONSENSE",
    )?;
    Ok(())
}

#[test]
fn a_removed_container_goes_from_the_list() -> Result<()> {
    need!(OurShim, "jobs are containers of our shim");
    let host = Host::with_image()?;
    let cedana = Cedana::new();
    let counter = Counter::run(&host, "removed")?;
    counter.kill_and_delete()?;
    let shown = cedana.jobs()?.into_iter().any(|job| job.id == "removed");
    ensure!(!shown, "it is still listed");
    let job = cedana.job(host.namespace(), "removed")?;
    assert_eq!((job.status.as_str(), job.pid), ("halted", None));
    Ok(())
}

#[test]
fn every_answer_to_parse_is_json_when_asked() -> Result<()> {
    need!(OurShim, "jobs are containers of our shim");
    let host = Host::with_image()?;
    let cedana = Cedana::on(&host);
    let counter = Counter::run(&host, "parsed")?;
    let job = counter.job();
    for args in [
        &["ps"][..],
        &["job", "list"],
        &["job", "checkpoints", &job],
        &["checkpoints", &job],
        &["job", "inspect", &job],
        &["freeze", &job],
        &["unfreeze", &job],
        &["config"],
        &["version"],
        &["job", "kill", &job],
        &["job", "delete", &job],
    ] {
        let _document: Value = cedana.json(args)?;
    }
    Ok(())
}

#[test]
fn a_stopped_container_shows_its_end() -> Result<()> {
    need!(OurShim, "jobs are containers of our shim");
    let host = Host::with_image()?;
    let cedana = Cedana::new();
    let container = host.run_with("short", Workload::shell("exit 7"), &Default::default())?;
    assert_eq!(container.wait()?, 7);
    let halted = || {
        cedana
            .job(host.namespace(), "short")
            .is_ok_and(|job| job.status == "halted")
    };
    eventually("it is halted", SHORT, halted)?;
    let job = cedana.job(host.namespace(), "short")?;
    assert_eq!(job.pid, None);
    let status = job.rest.get("exit").and_then(|exit| exit.get("status"));
    assert_eq!(status, Some(&json!(7)), "{job:?}");
    Ok(())
}
