//! Many processes at once: shims that publish, and command lines that take in, adopt, and add checkpoints.
//!
//! This binary runs itself again for each of them, with its part in the environment.
#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot go on has failed, in its helpers too"
)]

use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::Barrier;
use std::time::{Duration, SystemTime};

use jobs::liveness;
use jobs::pending::{self, Pending};
use jobs::record::{Checkpoint, Key, Record, SCHEMA, Shim, Status, Stdio};
use jobs::registry::{Adopted, EngineKind, Enrichment, Registry, Warning};
use jobs::spool::Spool;

const SHIMS: usize = 50;
const COMMANDS: usize = 10;
/// What each command line adds.
const ADDED: usize = 5;

const PART: &str = "JOBS_TEST_PART";
const PLACE: &str = "JOBS_TEST_PLACE";

fn key(id: &str) -> Key {
    Key {
        engine: "/run/containerd/containerd.sock".into(),
        namespace: "default".to_owned(),
        id: id.to_owned(),
    }
}

fn checkpoint(place: &Path, id: &str) -> Checkpoint {
    Checkpoint {
        id: id.to_owned(),
        path: place.join(id),
        at: 1,
        size: 2,
        left_running: true,
    }
}

fn record(id: &str, status: Status, changed: u64) -> Record {
    Record {
        schema: SCHEMA,
        key: key(id),
        name: None,
        sandbox: false,
        image: None,
        bundle: "/run/bundle".into(),
        shim: Shim::default(),
        init: liveness::own().unwrap(),
        status,
        exit: None,
        stdio: Stdio::default(),
        created: 1,
        changed,
        checkpoints: Vec::new(),
        last: None,
        restored_from: None,
    }
}

fn now() -> u64 {
    u64::try_from(SystemTime::UNIX_EPOCH.elapsed().unwrap().as_millis()).unwrap()
}

/// A life of a container: it ends stopped, with a checkpoint.
fn shim(place: &Path, number: usize) {
    let spool = Spool::beside(&place.join("jobs.db"));
    let id = format!("shim-{number}");
    for at in 0..40 {
        let status = if at % 2 == 0 {
            Status::Running
        } else {
            Status::Paused
        };
        spool.publish(&record(&id, status, now())).unwrap();
        std::thread::sleep(Duration::from_millis(5));
    }
    let saved = checkpoint(place, &format!("of-{id}"));
    std::fs::create_dir(&saved.path).unwrap();
    let last = Record {
        checkpoints: vec![saved],
        ..record(&id, Status::Stopped, now())
    };
    spool.publish(&last).unwrap();
}

/// A run of command lines: each opens the registry anew.
fn command(place: &Path, number: usize) {
    for at in 0..ADDED {
        let mut opened = Registry::open(&place.join("jobs.db"));
        assert!(opened.warnings.is_empty(), "{:?}", opened.warnings);
        let registry = &mut opened.registry;
        registry.refresh().unwrap();
        let adopted = Adopted {
            key: key(&format!("adopted-{number}-{at}")),
            name: None,
            image: None,
            runtime: "io.containerd.runc.v2".to_owned(),
            init: liveness::own().unwrap(),
            stdio: Stdio::default(),
            bundle: PathBuf::new(),
        };
        registry.adopt(&adopted).unwrap();
        let saved = checkpoint(place, &format!("by-{number}-{at}"));
        std::fs::create_dir(&saved.path).unwrap();
        registry
            .add_checkpoint(&key(&format!("shim-{}", (number * ADDED + at) % SHIMS)), &saved)
            .unwrap();
        let enrichment = Enrichment {
            engine_name: Some(EngineKind::Nerdctl),
            ..Enrichment::default()
        };
        registry.enrich(&adopted.key, &enrichment).unwrap();
        registry.refresh().unwrap();
        let _jobs = registry.jobs().unwrap();
        let warnings = registry.take_warnings();
        assert!(warnings.is_empty(), "{warnings:?}");
    }
}

/// Takes what is pending, as the shim of a container would; tells by its exit whether it was the one.
fn taker(place: &Path) {
    let spool = Spool::beside(&place.join("jobs.db"));
    let code = i32::from(pending::take(&spool, &key("web")).unwrap().is_none());
    std::process::exit(code);
}

fn start(test: &str, part: &str, place: &Path) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    let _command = command
        .args(["--exact", test, "--nocapture"])
        .env(PART, part)
        .env(PLACE, place);
    command.stdout(std::process::Stdio::null()).spawn().unwrap()
}

/// Whether this process is one of the many, and has done its part.
fn part() -> bool {
    let Ok(part) = std::env::var(PART) else {
        return false;
    };
    let place = PathBuf::from(std::env::var_os(PLACE).unwrap());
    match part.split_once(' ') {
        Some(("shim", number)) => shim(&place, number.parse().unwrap()),
        Some(("command", number)) => command(&place, number.parse().unwrap()),
        _ => taker(&place),
    }
    true
}

fn all_succeed(children: Vec<Child>) {
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
}

#[test]
fn fifty_shims_and_ten_command_lines_lose_nothing() {
    if part() {
        return;
    }
    let test = "fifty_shims_and_ten_command_lines_lose_nothing";
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path();
    let shims = (0..SHIMS).map(|number| start(test, &format!("shim {number}"), place));
    let commands = (0..COMMANDS).map(|number| start(test, &format!("command {number}"), place));
    all_succeed(commands.chain(shims).collect());

    let mut opened = Registry::open(&place.join("jobs.db"));
    assert!(opened.warnings.is_empty(), "{:?}", opened.warnings);
    opened.registry.refresh().unwrap();
    let jobs = opened.registry.jobs().unwrap();
    let of = |id: &str| {
        jobs.iter()
            .find(|job| job.key.id == id)
            .unwrap_or_else(|| panic!("{id} is lost"))
    };
    assert_eq!(jobs.len(), SHIMS + COMMANDS * ADDED);
    for number in 0..SHIMS {
        let job = of(&format!("shim-{number}"));
        assert_eq!(job.record.status, Status::Stopped);
        let mut saved: Vec<_> = job
            .record
            .checkpoints
            .iter()
            .map(|saved| saved.id.clone())
            .collect();
        saved.sort_unstable();
        let by = format!("by-{}-{}", number / ADDED, number % ADDED);
        assert_eq!(saved, [by, format!("of-shim-{number}")]);
    }
    for number in 0..COMMANDS * ADDED {
        let job = of(&format!("adopted-{}-{}", number / ADDED, number % ADDED));
        assert!(job.managed && job.engine == EngineKind::Nerdctl);
    }
    let left = std::fs::read_dir(place.join("jobs.d")).unwrap().count();
    assert_eq!(left, SHIMS, "a temporary file stays");
}

#[test]
fn of_many_shims_one_takes_what_is_pending() {
    if part() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let spool = Spool::beside(&directory.path().join("jobs.db"));
    let asked = Pending {
        checkpoint: "/checkpoint".into(),
        unpacked_from: None,
        left: None,
        asker: liveness::own().unwrap(),
        settings: std::collections::BTreeMap::new(),
    };
    let placed = pending::place(&spool, &key("web"), &asked).unwrap();
    let test = "of_many_shims_one_takes_what_is_pending";
    let takers: Vec<_> = (0..10).map(|_| start(test, "taker", directory.path())).collect();
    let took = takers
        .into_iter()
        .map(|mut taker| taker.wait().unwrap().success())
        .filter(|took| *took)
        .count();
    assert_eq!(took, 1);
    assert!(placed.is_taken());
}

#[test]
fn ten_that_find_the_same_damage_agree() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("jobs.db");
    for id in 0..SHIMS {
        let record = record(&format!("shim-{id}"), Status::Running, now());
        Spool::beside(&path).publish(&record).unwrap();
    }
    for round in 0..10 {
        // The last two that close a database at the same moment leave its log, from which SQLite would bring all of it back.
        let _none = std::fs::remove_file(path.with_extension("db-wal"));
        std::fs::write(&path, "not a database").unwrap();
        let together = Barrier::new(COMMANDS);
        let look = || {
            let _leader = together.wait();
            let mut opened = Registry::open(&path);
            opened.registry.refresh().unwrap();
            opened.warnings.extend(opened.registry.take_warnings());
            // On a busy machine one may have waited for too long, and goes without.
            let aside = |warning: &&Warning| matches!(warning, Warning::Damaged { .. });
            let aside = opened.warnings.iter().filter(aside).count();
            (opened.registry.jobs().unwrap().len(), aside)
        };
        let seen: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..COMMANDS).map(|_| scope.spawn(look)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(
            seen.iter().all(|(jobs, _)| *jobs == SHIMS),
            "round {round}: {seen:?}"
        );
        let aside: usize = seen.iter().map(|(_, aside)| aside).sum();
        assert_eq!(aside, 1, "round {round}: one puts it aside: {seen:?}");
    }
}
