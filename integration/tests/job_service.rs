//! The shim's own service, spoken to as `cedana` does: the same dump as containerd's, the restore in place, and how far it is.
#![expect(
    unused_results,
    reason = "a test acts through calls, and compares only the answers it is about"
)]

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use integration::by_ctr::Talker;
use integration::container::{Container, refused};
use integration::host::Host;
use integration::messages::Status;
use integration::need;
use integration::shim_api::call_job;
use integration::spoken::{Spoken, counter};
use integration::stdio::{StreamNames, eventually};
use integration::workload::Workload;
use serde_json::{Value, json};
use tonic::Code;

const WORKLOAD: &str = env!("CARGO_BIN_EXE_workload");
const SOON: Duration = Duration::from_secs(10);

/// Enough for a dump that can be met on its way, on any disk.
const MEMORY_MIB: &str = "600";

/// Counts on, a line each time, into the file its stdout is.
const COUNTS: &str = "i=0; while :; do i=$((i+1)); echo $i; sleep 0.02; done";

fn socket(container: &Container) -> Result<PathBuf> {
    container
        .shim_socket()
        .context("find the shim's socket in the bundle")
}

fn into_file(path: &Path) -> StreamNames {
    StreamNames {
        stdout: format!("file://{}", path.display()),
        ..StreamNames::default()
    }
}

/// The numbers in the log; an error if one is missing or twice.
fn numbers(log: &Path) -> Result<u64> {
    let text = fs::read_to_string(log)?;
    let mut last = 0;
    for line in text.lines() {
        let number: u64 = line.parse()?;
        ensure!(number == last + 1, "{number} follows {last}");
        last = number;
    }
    Ok(last)
}

fn goes_on(log: &Path) -> Result<()> {
    let before = numbers(log)?;
    eventually("the counter goes on", SOON, || {
        numbers(log).is_ok_and(|now| now > before + 2)
    })?;
    numbers(log).map(drop)
}

#[test]
fn a_container_is_frozen_and_thawed_and_the_status_says_so() -> Result<()> {
    need!(OurShim, "talks to the shim itself");
    let host = Host::new()?;
    let container = host.run(Workload::forever())?;
    let socket = socket(&container)?;
    let id = json!({ "id": container.id() });
    let status = || -> Result<Value> { Ok(call_job(&socket, "Status", &id)?["record"].clone()) };
    assert_eq!(status()?["status"], "running");
    assert_eq!(status()?["init"]["pid"], container.state()?.pid);
    call_job(&socket, "Freeze", &id)?;
    assert_eq!(container.status()?, Status::Paused);
    assert_eq!(status()?["status"], "paused");
    call_job(&socket, "Thaw", &id)?;
    assert_eq!(container.status()?, Status::Running);
    assert_eq!(refused(call_job(&socket, "Thaw", &id))?, Code::FailedPrecondition);
    assert_eq!(
        refused(call_job(&socket, "Cancel", &id))?,
        Code::FailedPrecondition
    );
    assert_eq!(
        refused(call_job(&socket, "Status", &json!({ "id": "other" })))?,
        Code::NotFound
    );
    assert_eq!(
        refused(call_job(&socket, "Status", &json!({ "id": 3 })))?,
        Code::InvalidArgument
    );
    assert_eq!(refused(call_job(&socket, "Fly", &id))?, Code::Unimplemented);
    Ok(())
}

#[test]
fn what_has_ended_with_its_dump_goes_on_in_place_twice() -> Result<()> {
    need!(OurShim, "talks to the shim itself");
    need!(Criu, "dumps");
    let host = Host::new()?;
    let log = host.dir().join("log");
    let container = host.run_with("c", Workload::shell(COUNTS), &into_file(&log))?;
    let socket = socket(&container)?;
    for round in 0..2 {
        goes_on(&log)?;
        let path = host.dir().join(format!("kept-{round}"));
        let dump = json!({ "id": "c", "path": path, "leave_running": false });
        let dumped = call_job(&socket, "Dump", &dump)?;
        ensure!(dumped["size"].as_u64() > Some(0), "{dumped}");
        container.wait()?;
        assert_eq!(container.status()?, Status::Stopped);
        assert_eq!(refused(call_job(&socket, "Dump", &dump))?, Code::AlreadyExists);
        let restore = json!({ "id": "c", "path": path });
        let restored = call_job(&socket, "Restore", &restore)?;
        assert_eq!(container.status()?, Status::Running);
        assert_eq!(restored["pid"], container.state()?.pid);
        assert_eq!(
            refused(call_job(&socket, "Restore", &restore))?,
            Code::FailedPrecondition
        );
        let record = call_job(&socket, "Status", &json!({ "id": "c" }))?["record"].clone();
        assert_eq!(record["restored_from"], json!(path));
    }
    goes_on(&log)?;
    assert_eq!(container.kill_and_delete()?, 137);
    host.assert_clean()
}

#[test]
fn a_restore_in_place_that_fails_leaves_it_stopped_and_can_be_repeated() -> Result<()> {
    need!(OurShim, "talks to the shim itself");
    need!(Criu, "dumps");
    let host = Host::new()?;
    let log = host.dir().join("log");
    let container = host.run_with("c", Workload::shell(COUNTS), &into_file(&log))?;
    let socket = socket(&container)?;
    goes_on(&log)?;
    let path = host.dir().join("kept");
    call_job(
        &socket,
        "Dump",
        &json!({ "id": "c", "path": path, "leave_running": false }),
    )?;
    let status = container.wait()?;
    let aside = host.dir().join("aside");
    fs::rename(path.join("checkpoint/pstree.img"), &aside)?;
    let restore = json!({ "id": "c", "path": path });
    refused(call_job(&socket, "Restore", &restore))?;
    assert_eq!(container.status()?, Status::Stopped);
    assert_eq!(container.wait()?, status);
    fs::rename(&aside, path.join("checkpoint/pstree.img"))?;
    call_job(&socket, "Restore", &restore)?;
    goes_on(&log)?;
    assert_eq!(container.kill_and_delete()?, 137);
    host.assert_clean()
}

#[test]
fn a_dump_that_is_given_up_leaves_the_container_as_it_was() -> Result<()> {
    need!(OurShim, "talks to the shim itself");
    need!(Criu, "dumps");
    let host = Host::new()?;
    let _image = host.load_image()?;
    let mut talker = Talker::run(&host, "c", WORKLOAD, &["memory", MEMORY_MIB], &[])?;
    let container = host.known("c", Workload::forever());
    let socket = socket(&container)?;
    for leave_running in [true, false] {
        let path = host.dir().join("never");
        let dump = json!({ "id": "c", "path": path, "leave_running": leave_running });
        let dumping = thread::spawn({
            let socket = socket.clone();
            move || call_job(&socket, "Dump", &dump)
        });
        let progress = || call_job(&socket, "Progress", &json!({ "id": "c", "seen": 0 })).unwrap_or_default();
        eventually("the dump writes", SOON, || {
            let step = progress();
            step["phase"] == "save" && step["bytes"].as_u64() > Some(1 << 20)
        })?;
        call_job(&socket, "Cancel", &json!({ "id": "c" }))?;
        let answer = dumping
            .join()
            .map_err(|_| anyhow::anyhow!("the dump's thread panicked"))?;
        assert_eq!(refused(answer)?, Code::Cancelled);
        assert_eq!(container.status()?, Status::Running);
        talker.check()?;
        ensure!(!path.exists(), "{} is left", path.display());
    }
    let kept = host.dir().join("kept");
    call_job(
        &socket,
        "Dump",
        &json!({ "id": "c", "path": kept, "leave_running": true }),
    )?;
    talker.check()?;
    talker.remove()
}

#[test]
fn settings_of_one_dump_win_over_the_containers() -> Result<()> {
    need!(OurShim, "talks to the shim itself");
    need!(Criu, "dumps");
    let host = Host::new()?;
    let talker = Spoken::run(host.container("c", counter())?)?;
    talker.says("one", "1 one")?;
    let socket = socket(&talker.container)?;
    let wrong = json!({ "id": "c", "path": host.dir().join("x"), "leave_running": true, "settings": { "dump.tpc": "close" } });
    assert_eq!(refused(call_job(&socket, "Dump", &wrong))?, Code::InvalidArgument);
    let right = json!({ "id": "c", "path": host.dir().join("x"), "leave_running": true, "settings": { "dump.tcp": "close" } });
    let dumped = call_job(&socket, "Dump", &right)?;
    let phases: Vec<&str> = dumped["timings"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|timing| timing[0].as_str())
        .collect();
    ensure!(
        phases.contains(&"save") && phases.contains(&"commit"),
        "{phases:?}"
    );
    talker.says("two", "2 two")
}
