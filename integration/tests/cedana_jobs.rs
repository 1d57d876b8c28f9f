//! `cedana ps` and the other verbs that look at jobs, or end them.
#![expect(
    unused_results,
    reason = "a test acts through calls, and compares only the answers it is about"
)]

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use integration::cedana::{Cedana, code};
use integration::cedana_counter::Counter;
use integration::cedana_records::{Process, Records};
use integration::engine::run;
use integration::host::{Host, IMAGE};
use integration::need;
use integration::stdio::eventually;
use integration::workload::Workload;
use serde_json::{Value, json};

const COLUMNS: [&str; 8] = ["JOB", "TYPE", "PID", "STATUS", "GPU", "CHECKPOINT", "SIZE", "LOG"];
const SHORT: Duration = Duration::from_secs(15);
/// What a user is promised; the command itself is part of it.
const APPEARS_WITHIN: Duration = Duration::from_secs(1);

fn host() -> Result<Host> {
    let host = Host::new()?;
    host.load_image()?;
    Ok(host)
}

/// A registry of the test's own, with nothing in it.
fn records(host: &Host) -> Result<(Records, Cedana)> {
    let records = Records::within(host.dir())?;
    let cedana = Cedana::new().registry(records.database());
    Ok((records, cedana))
}

#[test]
fn a_container_of_plain_ctr_run_appears_within_a_second() -> Result<()> {
    need!(OurShim, "jobs are containers of our shim");
    let host = host()?;
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
    ensure!(["running", "sleep"].contains(&job.status.as_str()), "{job:?}");
    Ok(())
}

#[test]
fn the_table_has_the_columns_that_users_know() -> Result<()> {
    let host = host()?;
    let (records, cedana) = records(&host)?;
    let checkpoint = host.dir().join("saved");
    std::fs::create_dir(&checkpoint)?;
    records.publish("default", "web", &Process::own()?, json!({
        "checkpoints": [{"id": "5f0c9d9e-0000-4000-8000-000000000000", "path": checkpoint, "at": 1_700_000_000_000_u64,
            "size": 3 << 20, "left_running": true}],
    }))?;
    let text = cedana.says(&["ps"])?;
    let mut lines = text.lines();
    let header: Vec<&str> = lines.next().context("a header")?.split_whitespace().collect();
    assert_eq!(header, COLUMNS);
    let line = lines.next().context("a job")?;
    let words: Vec<&str> = line.split_whitespace().collect();
    assert_eq!(
        words.get(..3),
        Some(["web", "containerd", &std::process::id().to_string()].as_slice())
    );
    ensure!(
        line.contains(" ago ") && line.contains("3 MiB") && line.contains(" no "),
        "{line}"
    );
    for same in [&["job", "list"][..], &["jobs"]] {
        assert_eq!(cedana.says(same)?, text, "{same:?}");
    }
    Ok(())
}

#[test]
fn an_empty_registry_says_so() -> Result<()> {
    let host = host()?;
    let (_records, cedana) = records(&host)?;
    let text = cedana.says(&["ps"])?;
    ensure!(text.starts_with("No jobs found"), "{text}");
    assert_eq!(cedana.json::<Value>(&["ps"])?, json!([]));
    Ok(())
}

#[test]
fn a_name_from_an_annotation_and_a_long_id_are_found() -> Result<()> {
    need!(OurShim, "jobs are containers of our shim");
    let host = host()?;
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
    let (one, two) = (host()?, host()?);
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
    let host = host()?;
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
fn the_status_is_asked_of_the_process() -> Result<()> {
    let host = host()?;
    let (records, cedana) = records(&host)?;
    let own = Process::own()?;
    let earlier = Process {
        started: own.started - 1,
        ..own.clone()
    };
    let rebooted = Process {
        boot: "6f1cbe4e-8a05-4a0c-9f3c-8c2f7c1f6a10".to_owned(),
        ..own.clone()
    };
    // The kernel gives no pid above this.
    let gone = Process {
        pid: (1 << 22) + 1,
        ..own.clone()
    };
    for (id, init, changes, expected) in [
        ("reused", &earlier, json!({}), "stale"),
        ("rebooted", &rebooted, json!({}), "halted"),
        ("gone", &gone, json!({}), "halted"),
        (
            "ended",
            &gone,
            json!({"status": "stopped", "exit": {"status": 137, "at": 1}}),
            "halted",
        ),
        ("frozen", &own, json!({"status": "paused"}), "frozen"),
        ("fresh", &own, json!({"status": "created"}), "created"),
    ] {
        records.publish("default", id, init, changes)?;
        assert_eq!(cedana.job("default", id)?.status, expected, "{id}");
    }
    records.publish("default", "alive", &own, json!({}))?;
    let status = cedana.job("default", "alive")?.status;
    ensure!(["running", "sleep"].contains(&status.as_str()), "{status}");
    Ok(())
}

#[test]
fn freeze_and_unfreeze() -> Result<()> {
    need!(OurShim, "the shim's own service");
    let host = host()?;
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
    let host = host()?;
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
    let host = host()?;
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
fn all_jobs_are_ended_only_by_who_says_yes() -> Result<()> {
    let host = host()?;
    let (records, cedana) = records(&host)?;
    let gone = Process {
        pid: (1 << 22) + 1,
        ..Process::own()?
    };
    for id in ["one", "two"] {
        records.publish("default", id, &gone, json!({"status": "stopped"}))?;
    }
    for args in [
        &["job", "delete"][..],
        &["job", "kill"],
        &["job", "delete", "--all"],
        &["job", "kill", "--all"],
    ] {
        cedana.fails(args, code::USAGE, "")?;
    }
    assert_eq!(cedana.jobs()?.len(), 2);
    cedana.says(&["job", "delete", "-a", "-y"])?;
    assert_eq!(
        cedana.says(&["ps", "--all"])?.lines().next(),
        Some("No jobs found")
    );
    Ok(())
}

#[test]
fn a_removed_container_goes_from_the_list() -> Result<()> {
    need!(OurShim, "jobs are containers of our shim");
    let host = host()?;
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
fn watch_shows_what_changes() -> Result<()> {
    need!(OurShim, "jobs are containers of our shim");
    let host = host()?;
    let (records, cedana) = records(&host)?;
    records.publish("default", "early", &Process::own()?, json!({}))?;
    let watch = cedana.start(&["ps", "--watch"])?;
    let until = |name: &str| -> Result<()> {
        while !watch.line()?.contains(name) {}
        Ok(())
    };
    until("early")?;
    records.publish("default", "late", &Process::own()?, json!({}))?;
    until("late")
}

#[test]
fn every_answer_to_parse_is_json_when_asked() -> Result<()> {
    need!(OurShim, "jobs are containers of our shim");
    let host = host()?;
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
fn failures_are_named_and_have_their_codes() -> Result<()> {
    let host = host()?;
    let (_records, cedana) = records(&host)?;
    for args in [
        &["dump", "job", "nobody"][..],
        &["restore", "job", "nobody"],
        &["freeze", "nobody"],
        &["unfreeze", "nobody"],
        &["job", "kill", "nobody"],
        &["job", "delete", "nobody"],
        &["job", "inspect", "nobody"],
        &["job", "checkpoints", "nobody"],
        &["check", "nobody"],
    ] {
        cedana.fails(args, code::NOT_FOUND, "nobody")?;
        cedana.fails(&[args, &["--json"]].concat(), code::NOT_FOUND, "nobody")?;
    }
    for args in [
        &["nonsense"][..],
        &["dump"],
        &["dump", "job"],
        &["restore", "job"],
        &["dump", "job", "x", "--compression", "rar"],
        &["ps", "--nonsense"],
        &["manage", "containerd"],
    ] {
        cedana.fails(args, code::USAGE, "")?;
    }
    let nowhere = Cedana::new().with("CONTAINERD_ADDRESS", host.dir().join("no.sock"));
    for args in [
        &["manage", "containerd", "x"][..],
        &["dump", "containerd", "x"],
        &["run", "containerd", IMAGE],
    ] {
        nowhere.fails(args, code::TOOL, "no.sock")?;
    }
    Ok(())
}

#[test]
fn completion_names_the_verbs_and_the_jobs() -> Result<()> {
    let host = host()?;
    let (records, cedana) = records(&host)?;
    records.publish("default", "complete-me", &Process::own()?, json!({}))?;
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let script = cedana.says(&["completion", shell])?;
        ensure!(
            script.contains("cedana") && script.len() > 100,
            "{shell}: {script}"
        );
    }
    cedana.fails(&["completion", "cmd"], code::USAGE, "cmd")?;
    let script = host.dir().join("completion");
    std::fs::write(&script, cedana.says(&["completion", "bash"])?)?;
    let database = records.database().display();
    for (words, expected) in [
        ("cedana dump jo", "job"),
        ("cedana dump job comp", "complete-me"),
        ("cedana kill comp", "complete-me"),
        ("cedana completion ba", "bash"),
    ] {
        // What bash does when the tab key is pressed after these words.
        let pressed = format!(
            "source {}; export CEDANA_DB_PATH={database}; COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); \
            _clap_complete_cedana cedana ${{COMP_WORDS[-1]}}; echo ${{COMPREPLY[@]}}",
            script.display()
        );
        let said = run("bash", &["-c", &pressed])?.ok()?;
        ensure!(
            said.split_whitespace().any(|word| word == expected),
            "{words}: {said}"
        );
    }
    Ok(())
}

#[test]
fn a_stopped_container_shows_its_end() -> Result<()> {
    need!(OurShim, "jobs are containers of our shim");
    let host = host()?;
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
