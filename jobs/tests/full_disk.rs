//! A file system without room, and one that cannot be written. As root only: they are mounted for it, where nobody else sees it.
#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot go on has failed, in its helpers too"
)]

use std::io::{ErrorKind, Write};
use std::path::Path;

use jobs::liveness;
use jobs::record::{Checkpoint, Key, Record, SCHEMA, Shim, Status, Stdio};
use jobs::registry::{Registry, Warning};
use jobs::spool::Spool;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

fn record(id: &str) -> Record {
    let engine = "/run/containerd/containerd.sock".into();
    Record {
        schema: SCHEMA,
        key: Key {
            engine,
            namespace: "default".to_owned(),
            id: id.to_owned(),
        },
        name: None,
        sandbox: false,
        image: None,
        bundle: "/run/bundle".into(),
        shim: Shim::default(),
        init: liveness::own().unwrap(),
        status: Status::Running,
        exit: None,
        stdio: Stdio::default(),
        created: 1,
        changed: 2,
        checkpoints: Vec::new(),
        last: None,
        restored_from: None,
    }
}

/// Runs a check in a small file system of its own.
fn on_small_file_system(name: &str, check: fn(&Path)) {
    if !nix::unistd::geteuid().is_root() {
        let _written = writeln!(std::io::stderr(), "SKIP {name}: needs root");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path().to_owned();
    // The mount goes with the thread.
    let thread = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        mount(
            None::<&str>,
            "/",
            None::<&str>,
            MsFlags::MS_REC | MsFlags::MS_PRIVATE,
            None::<&str>,
        )
        .unwrap();
        mount(
            Some("tmpfs"),
            &place,
            Some("tmpfs"),
            MsFlags::empty(),
            Some("size=512k"),
        )
        .unwrap();
        check(&place);
    });
    thread.join().unwrap();
}

fn open(place: &Path) -> (usize, Vec<Warning>) {
    let mut opened = Registry::open(&place.join("jobs.db"));
    opened.registry.refresh().unwrap();
    let jobs = opened.registry.jobs().unwrap().len();
    opened.warnings.extend(opened.registry.take_warnings());
    (jobs, opened.warnings)
}

fn fill(place: &Path) {
    let mut file = std::fs::File::create(place.join("filler")).unwrap();
    let error = (0..).find_map(|_| file.write_all(&[0; 4096]).err()).unwrap();
    assert_eq!(error.kind(), ErrorKind::StorageFull);
}

#[test]
fn a_full_disk_costs_a_warning() {
    on_small_file_system("a_full_disk_costs_a_warning", |place| {
        let spool = Spool::beside(&place.join("jobs.db"));
        spool.publish(&record("a")).unwrap();
        assert!(matches!(open(place), (1, warnings) if warnings.is_empty()));
        let registry = Registry::open(&place.join("jobs.db")).registry;
        // Records that fit, and a database that has no room to take them in.
        for id in ["b", "c", "d"] {
            spool
                .publish(&Record {
                    name: Some("n".repeat(3000)),
                    ..record(id)
                })
                .unwrap();
        }
        fill(place);
        assert_eq!(
            spool.publish(&record("e")).unwrap_err().kind(),
            ErrorKind::StorageFull
        );
        let (jobs, warnings) = open(place);
        assert_eq!(jobs, 4);
        assert!(matches!(warnings.as_slice(), [Warning::Full(_)]), "{warnings:?}");
        drop(registry);

        std::fs::remove_file(place.join("filler")).unwrap();
        spool.publish(&record("e")).unwrap();
        let (jobs, warnings) = open(place);
        assert_eq!(jobs, 5);
        assert!(warnings.is_empty(), "{warnings:?}");
        assert_eq!(
            std::fs::read_dir(spool.directory()).unwrap().count(),
            5,
            "a temporary file stays"
        );
    });
}

#[test]
fn a_full_disk_without_a_registry_costs_a_warning() {
    on_small_file_system("a_full_disk_without_a_registry_costs_a_warning", |place| {
        let spool = Spool::beside(&place.join("jobs.db"));
        spool.publish(&record("a")).unwrap();
        fill(place);
        let (jobs, warnings) = open(place);
        assert_eq!(jobs, 1);
        assert!(matches!(warnings.as_slice(), [Warning::Full(_)]), "{warnings:?}");
        std::fs::remove_file(place.join("filler")).unwrap();
        assert!(matches!(open(place), (1, warnings) if warnings.is_empty()));
    });
}

#[test]
fn a_read_only_file_system_costs_a_warning() {
    on_small_file_system("a_read_only_file_system_costs_a_warning", |place| {
        let spool = Spool::beside(&place.join("jobs.db"));
        spool.publish(&record("a")).unwrap();
        let _made = open(place);
        let checkpoint = Checkpoint {
            id: "x".to_owned(),
            path: place.into(),
            at: 1,
            size: 1,
            left_running: false,
        };
        Registry::open(&place.join("jobs.db"))
            .registry
            .add_checkpoint(&record("a").key, &checkpoint)
            .unwrap();
        spool.publish(&record("b")).unwrap();
        let flags = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        mount(None::<&str>, place, None::<&str>, flags, None::<&str>).unwrap();
        assert!(spool.publish(&record("c")).is_err());
        let (jobs, warnings) = open(place);
        assert_eq!(jobs, 2);
        assert!(
            matches!(warnings.as_slice(), [Warning::Unusable { .. }]),
            "{warnings:?}"
        );
    });
}
