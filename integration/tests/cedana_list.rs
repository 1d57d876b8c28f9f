//! `cedana ps` of records made by hand, and what needs no container.
//!
//! A new registry learns of the jobs that run on the machine, so there are none here.
#![expect(
    unused_results,
    reason = "a test acts through calls, and compares only the answers it is about"
)]

use anyhow::{Context, Result, ensure};
use integration::cedana::{Cedana, code};
use integration::cedana_records::{Process, Records};
use integration::engine::run;
use integration::host::{Host, IMAGE};
use serde_json::{Value, json};

const COLUMNS: [&str; 8] = ["JOB", "TYPE", "PID", "STATUS", "GPU", "CHECKPOINT", "SIZE", "LOG"];

/// A registry of the test's own, with nothing in it.
fn records(host: &Host) -> Result<(Records, Cedana)> {
    let records = Records::within(host.dir())?;
    let cedana = Cedana::new().registry(records.database());
    Ok((records, cedana))
}

#[test]
fn the_table_has_the_columns_that_users_know() -> Result<()> {
    let host = Host::new()?;
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
        // The state of a process may be another one by then, and its column wider.
        let text = cedana.says(same)?;
        let header: Vec<&str> = text
            .lines()
            .next()
            .unwrap_or_default()
            .split_whitespace()
            .collect();
        assert_eq!(header, COLUMNS, "{same:?}");
    }
    Ok(())
}

#[test]
fn an_empty_registry_says_so() -> Result<()> {
    let host = Host::new()?;
    let (_records, cedana) = records(&host)?;
    let text = cedana.says(&["ps"])?;
    ensure!(text.starts_with("No jobs found"), "{text}");
    assert_eq!(cedana.json::<Value>(&["ps"])?, json!([]));
    Ok(())
}

#[test]
fn the_status_is_asked_of_the_process() -> Result<()> {
    let host = Host::new()?;
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
    let alive = cedana.job("default", "alive")?;
    ensure!(alive.lives(), "{alive:?}");
    Ok(())
}

#[test]
fn all_jobs_are_ended_only_by_who_says_yes() -> Result<()> {
    let host = Host::new()?;
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
fn watch_shows_what_changes() -> Result<()> {
    let host = Host::new()?;
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
fn failures_are_named_and_have_their_codes() -> Result<()> {
    let host = Host::new()?;
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
    let host = Host::new()?;
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
fn what_is_no_record_hides_none() -> Result<()> {
    let host = Host::new()?;
    let (records, cedana) = records(&host)?;
    let own = Process::own()?;
    records.publish("default", "good", &own, json!({}))?;
    records.publish(
        "default",
        "newer",
        &own,
        json!({"schema": 99, "status": "of the future"}),
    )?;
    records.publish(
        "default",
        "strange",
        &own,
        json!({"key": {"engine": "/x", "namespace": "y", "id": "../../z"}}),
    )?;
    records.publish("default", "long", &own, json!({"name": "x".repeat(1 << 20)}))?;
    let spool = records.spool();
    std::fs::write(spool.join("default@noise@00000000.json"), [0xff, 0, 0x7b])?;
    std::fs::write(spool.join("default@empty@00000000.json"), "")?;
    std::fs::create_dir(spool.join("default@directory@00000000.json"))?;
    std::os::unix::fs::symlink("/dev/zero", spool.join("default@endless@00000000.json"))?;
    // Opening it to read waits for a writer who never comes.
    nix::unistd::mkfifo(
        &spool.join("default@fifo@00000000.json"),
        nix::sys::stat::Mode::S_IRWXU,
    )?;
    for _call in 0..2 {
        let said = cedana.run(&["ps", "--json"])?;
        let jobs: Vec<integration::cedana::Job> = serde_json::from_str(&said.clone().ok()?)?;
        let ids: Vec<&str> = jobs.iter().map(|job| job.id.as_str()).collect();
        assert_eq!(ids, ["good"], "{said:?}");
    }
    Ok(())
}

#[test]
fn a_name_cannot_paint_on_the_terminal() -> Result<()> {
    let host = Host::new()?;
    let (records, cedana) = records(&host)?;
    let name = "evil\u{1b}[2J\nJOB";
    records.publish(
        "default",
        "painted",
        &Process::own()?,
        json!({"name": name, "stdio": {
        "stdin": "", "stdout": "file:///tmp/\u{1b}[31mred", "stderr": "", "terminal": false}}),
    )?;
    let text = cedana.says(&["ps"])?;
    ensure!(
        !text.contains('\u{1b}') && text.trim_end().lines().count() == 2,
        "{text:?}"
    );
    Ok(())
}
