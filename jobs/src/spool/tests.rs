use super::*;
use crate::record::{Act, Checkpoint, Process, Shim, Stdio};

fn key(id: &str) -> Key {
    Key {
        engine: "/run/containerd/containerd.sock".into(),
        namespace: "default".to_owned(),
        id: id.to_owned(),
    }
}

fn record(id: &str, status: Status) -> Record {
    Record {
        schema: SCHEMA,
        key: key(id),
        name: None,
        sandbox: false,
        image: None,
        bundle: "/run/bundle".into(),
        shim: Shim::default(),
        init: Process::default(),
        status,
        exit: None,
        stdio: Stdio::default(),
        created: 1,
        changed: 2,
        checkpoints: Vec::new(),
        last: None,
        restored_from: None,
    }
}

fn checkpoint(path: String) -> Checkpoint {
    Checkpoint {
        id: path.clone(),
        path: path.into(),
        at: 3,
        size: 4,
        left_running: true,
    }
}

fn spool() -> (tempfile::TempDir, Spool) {
    let directory = tempfile::tempdir().unwrap();
    let spool = Spool::beside(&directory.path().join("deep/jobs.db"));
    (directory, spool)
}

fn ids(scan: &Scan) -> Vec<&str> {
    let mut ids: Vec<_> = scan
        .records
        .iter()
        .map(|(record, _)| record.key.id.as_str())
        .collect();
    ids.sort_unstable();
    ids
}

fn known(scan: &Scan) -> HashMap<String, Stamp> {
    scan.records
        .iter()
        .map(|(record, stamp)| (file_name(&record.key).unwrap(), *stamp))
        .collect()
}

#[test]
fn only_a_gap_is_filled() {
    let (_directory, spool) = spool();
    let older = record("web", Status::Running);
    assert!(spool.publish_if_absent(&older).unwrap());
    let newer = Record {
        changed: 9,
        ..older.clone()
    };
    spool.publish(&newer).unwrap();
    assert!(!spool.publish_if_absent(&older).unwrap());
    assert_eq!(spool.read(&older.key).unwrap().unwrap().changed, 9);
    assert_eq!(std::fs::read_dir(spool.directory()).unwrap().count(), 1);
}

#[test]
fn names_are_safe_or_refused() {
    let engine = PathBuf::from("/run/containerd/containerd.sock");
    for (namespace, id, ok) in [
        ("default", "web", true),
        ("k8s.io", &"a".repeat(64), true),
        ("a-b_c.d", "web.1", true),
        ("default", "", false),
        ("", "web", false),
        ("default", "..", false),
        ("default", ".hidden", false),
        ("default", "a/b", false),
        ("default", "a@b", false),
        ("a@b", "c", false),
        ("default", "a\nb", false),
        ("default", "a\0b", false),
        ("default", &"a".repeat(200), false),
    ] {
        let key = Key {
            engine: engine.clone(),
            namespace: namespace.to_owned(),
            id: id.to_owned(),
        };
        assert_eq!(file_name(&key).is_ok(), ok, "{namespace:?} {id:?}");
    }
    let other = Key {
        engine: "/run/other.sock".into(),
        ..key("web")
    };
    assert_ne!(
        file_name(&other).unwrap(),
        file_name(&key("web")).unwrap(),
        "two engines"
    );
}

#[test]
fn a_record_is_read_as_it_was_published_and_removed() {
    let (_directory, spool) = spool();
    assert!(spool.read(&key("web")).unwrap().is_none());
    assert!(ids(&spool.read_all()).is_empty());
    let mut written = record("web", Status::Created);
    spool.publish(&written).unwrap();
    written.status = Status::Running;
    spool.publish(&written).unwrap();
    assert_eq!(spool.read(&key("web")).unwrap(), Some(written));
    let mode = std::fs::metadata(spool.directory()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
    spool.remove(&key("web")).unwrap();
    spool.remove(&key("web")).unwrap();
    assert!(ids(&spool.read_all()).is_empty());
}

#[test]
fn only_what_changed_is_read_again() {
    let (_directory, spool) = spool();
    for id in ["a", "b", "c"] {
        spool.publish(&record(id, Status::Running)).unwrap();
    }
    let first = spool.read_all();
    assert_eq!(ids(&first), ["a", "b", "c"]);
    let known = known(&first);
    assert!(ids(&spool.changed_since(&known)).is_empty());
    spool.publish(&record("b", Status::Stopped)).unwrap();
    spool.publish(&record("d", Status::Created)).unwrap();
    spool.remove(&key("c")).unwrap();
    let second = spool.changed_since(&known);
    assert_eq!(ids(&second), ["b", "d"]);
    assert_eq!(second.gone, [file_name(&key("c")).unwrap()]);
}

#[test]
fn what_is_no_record_is_a_problem_and_stays() {
    let (_directory, spool) = spool();
    spool.publish(&record("good", Status::Running)).unwrap();
    let directory = spool.directory();
    let text = std::fs::read(directory.join(file_name(&key("good")).unwrap())).unwrap();
    let bad = [
        ("empty.json", Vec::new()),
        ("half.json", text[..text.len() / 2].to_vec()),
        ("random.json", (0..=255).collect()),
        ("misplaced.json", text.clone()),
        ("deep.json", vec![b'['; 60_000]),
        ("large.json", vec![b' '; 65_537]),
    ];
    for (name, bytes) in &bad {
        std::fs::write(directory.join(name), bytes).unwrap();
    }
    let elsewhere = tempfile::tempdir().unwrap();
    let linked = file_name(&key("linked")).unwrap();
    std::fs::write(
        elsewhere.path().join("record"),
        serde_json::to_vec(&record("linked", Status::Running)).unwrap(),
    )
    .unwrap();
    std::os::unix::fs::symlink(elsewhere.path().join("record"), directory.join(linked)).unwrap();
    nix::unistd::mkfifo(&directory.join("fifo.json"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    std::fs::create_dir(directory.join("directory.json")).unwrap();
    // These are nobody's business.
    std::fs::create_dir(directory.join("restore")).unwrap();
    std::fs::write(directory.join("notes.txt"), "x").unwrap();
    std::fs::write(directory.join(".good.json.1.2"), "x").unwrap();

    let scan = spool.read_all();
    assert_eq!(ids(&scan), ["good"]);
    assert_eq!(scan.problems.len(), bad.len() + 3, "{:?}", scan.problems);
    assert_eq!(spool.sweep(0).unwrap(), 0);
    assert!(bad.iter().all(|(name, _)| directory.join(name).exists()));
}

#[test]
fn a_newer_record_is_read_and_never_written() {
    let (_directory, spool) = spool();
    let newer = Record {
        schema: SCHEMA + 1,
        ..record("web", Status::Deleted)
    };
    let mut value = serde_json::to_value(&newer).unwrap();
    value["of_the_future"] = "kept".into();
    let path = spool.directory().join(file_name(&newer.key).unwrap());
    std::fs::create_dir_all(spool.directory()).unwrap();
    std::fs::write(&path, value.to_string()).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(MODE_SWEEPABLE)).unwrap();

    assert_eq!(ids(&spool.read_all()), ["web"]);
    let refused = spool.publish(&record("web", Status::Created)).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unsupported);
    assert_eq!(
        spool.remove(&key("web")).unwrap_err().kind(),
        ErrorKind::Unsupported
    );
    assert_eq!(spool.sweep(0).unwrap(), 0);
    assert_eq!(std::fs::read_to_string(&path).unwrap(), value.to_string());
}

#[test]
fn a_damaged_record_is_written_over() {
    let (_directory, spool) = spool();
    std::fs::create_dir_all(spool.directory()).unwrap();
    std::fs::write(spool.directory().join(file_name(&key("web")).unwrap()), "{").unwrap();
    spool.publish(&record("web", Status::Created)).unwrap();
    assert!(spool.read(&key("web")).unwrap().is_some());
}

#[test]
fn a_long_record_loses_its_oldest_checkpoints() {
    let (_directory, spool) = spool();
    let mut long = record("web", Status::Running);
    long.checkpoints = (0..32)
        .map(|at| checkpoint(format!("/{at}/{}", "x".repeat(4000))))
        .collect();
    long.last = Some(Act {
        error: "ä".repeat(100_000),
        ..Act::default()
    });
    spool.publish(&long).unwrap();
    let read = spool.read(&key("web")).unwrap().unwrap();
    assert!(!read.checkpoints.is_empty());
    assert_eq!(read.checkpoints.last(), long.checkpoints.last());
    assert!(read.last.unwrap().error.starts_with("ää"));
    long.bundle = "y".repeat(100_000).into();
    assert_eq!(spool.publish(&long).unwrap_err().kind(), ErrorKind::InvalidInput);
}

#[test]
fn a_sweep_takes_the_oldest_deleted_ones_that_saved_nothing() {
    let (_directory, spool) = spool();
    spool.publish(&record("running", Status::Running)).unwrap();
    let mut saved = record("saved", Status::Deleted);
    saved.checkpoints.push(checkpoint("/c".to_owned()));
    spool.publish(&saved).unwrap();
    let now = SystemTime::now();
    for (id, days) in [("new", 0), ("newer", 1), ("older", 2), ("ancient", 8)] {
        spool.publish(&record(id, Status::Deleted)).unwrap();
        let path = spool.directory().join(file_name(&key(id)).unwrap());
        let file = std::fs::File::open(path).unwrap();
        file.set_modified(now - Duration::from_secs(days * 24 * 3600))
            .unwrap();
    }
    assert_eq!(spool.sweep(DELETED_KEPT).unwrap(), 1);
    assert_eq!(
        ids(&spool.read_all()),
        ["new", "newer", "older", "running", "saved"]
    );
    assert_eq!(spool.sweep(2).unwrap(), 1);
    assert_eq!(ids(&spool.read_all()), ["new", "newer", "running", "saved"]);
    // A name that is used again while a sweep has its last record in hand.
    let name = file_name(&key("new")).unwrap();
    spool.publish(&record("new", Status::Created)).unwrap();
    assert!(!spool.remove_if_sweepable(&name).unwrap());
    assert_eq!(spool.sweep(0).unwrap(), 1);
    assert_eq!(ids(&spool.read_all()), ["new", "running", "saved"]);
}

#[test]
fn a_directory_that_cannot_be_made_is_an_error() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("jobs.d"), "a file").unwrap();
    let spool = Spool::beside(&directory.path().join("jobs.db"));
    assert!(spool.publish(&record("web", Status::Created)).is_err());
    assert_eq!(spool.read_all().problems.len(), 1);
    assert!(spool.sweep(0).is_err());
}

#[test]
fn what_a_killed_shim_left_of_a_restore_is_swept_by_age() {
    let (_directory, spool) = spool();
    std::fs::create_dir_all(spool.restores()).unwrap();
    let old = SystemTime::now() - TEMPORARY_AGE_MAX * 2;
    for (name, is_old) in [
        (".old.json.1.0", true),
        (".new.json.1.0", false),
        ("old.json", true),
    ] {
        let file = std::fs::File::create(spool.restores().join(name)).unwrap();
        if is_old {
            file.set_modified(old).unwrap();
        }
    }
    let _removed = spool.sweep(DELETED_KEPT).unwrap();
    let left = |name: &str| spool.restores().join(name).exists();
    assert!(!left(".old.json.1.0") && left(".new.json.1.0") && left("old.json"));
}
