use std::os::unix::fs::PermissionsExt;

use rusqlite::Connection;

use super::samples::{checkpoint, key, record};
use super::*;
use crate::liveness::{self, Liveness};

/// A directory of its own with a registry in it.
struct Fixture {
    directory: tempfile::TempDir,
}

impl Fixture {
    fn new() -> Self {
        Self {
            directory: tempfile::tempdir().unwrap(),
        }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("jobs.db")
    }

    fn spool(&self) -> Spool {
        Spool::beside(&self.path())
    }

    fn publish(&self, record: &Record) {
        self.spool().publish(record).unwrap();
    }

    /// Opened and refreshed.
    fn open(&self) -> Opened {
        let mut opened = Registry::open(&self.path());
        opened.registry.refresh().unwrap();
        opened.warnings.extend(opened.registry.take_warnings());
        opened
    }

    /// Opened, and nothing to complain of.
    fn healthy(&self) -> Registry {
        let opened = self.open();
        assert!(opened.warnings.is_empty(), "{:?}", opened.warnings);
        opened.registry
    }

    /// A checkpoint that is there.
    fn saved(&self, name: &str, at: u64) -> Checkpoint {
        let path = self.directory.path().join(name);
        std::fs::create_dir(&path).unwrap();
        checkpoint(name, &path, at)
    }

    /// With one job that only the spool knows, and one of which the database knows more.
    fn with_two_jobs() -> Self {
        let fixture = Self::new();
        fixture.publish(&record("a", Status::Running));
        fixture.publish(&record("b", Status::Running));
        let saved = fixture.saved("saved", 5);
        fixture
            .healthy()
            .add_checkpoint(&key("default", "b"), &saved)
            .unwrap();
        fixture
    }
}

fn ids(registry: &mut Registry) -> Vec<String> {
    registry
        .jobs()
        .unwrap()
        .into_iter()
        .map(|job| job.key.id)
        .collect()
}

#[test]
fn a_job_lives_from_its_first_record_to_the_removal_of_it() {
    let fixture = Fixture::new();
    let opened = fixture.open();
    assert!(opened.is_new && opened.warnings.is_empty());
    let mut registry = opened.registry;
    assert!(ids(&mut registry).is_empty());

    let own = liveness::own().unwrap();
    let mut published = Record {
        init: own,
        ..record("web", Status::Created)
    };
    for (status, word) in [
        (Status::Created, "created"),
        (Status::Paused, "frozen"),
        (Status::Stopped, "halted"),
    ] {
        published.status = status;
        fixture.publish(&published);
        registry.refresh().unwrap();
        assert_eq!(registry.find("web", None).unwrap().status, word);
    }
    published.init.started += 1;
    published.status = Status::Running;
    fixture.publish(&published);
    registry.refresh().unwrap();
    let job = registry.find("web", None).unwrap();
    assert_eq!((job.status, job.liveness), ("stale", Liveness::Reused));

    fixture.spool().remove(&published.key).unwrap();
    registry.refresh().unwrap();
    assert!(ids(&mut registry).is_empty());
    // A shell that completes a name opens it, too, and does not look at the disk.
    assert!(fixture.open().is_new);
    assert_eq!(registry.rebuild_from(&[]).unwrap(), 0);
    assert!(!fixture.open().is_new);
}

#[test]
fn checkpoints_outlive_records_and_end_with_their_path() {
    let fixture = Fixture::new();
    let (first, second) = (fixture.saved("first", 1), fixture.saved("second", 2));
    let published = Record {
        checkpoints: vec![first.clone()],
        ..record("web", Status::Deleted)
    };
    fixture.publish(&published);
    let mut registry = fixture.healthy();
    registry.add_checkpoint(&published.key, &second).unwrap();
    fixture.spool().remove(&published.key).unwrap();
    registry.refresh().unwrap();
    let job = registry.find("web", None).unwrap();
    assert!(job.is_listed(false));
    assert_eq!(registry.checkpoints(&job), [second.clone(), first.clone()]);
    assert_eq!(
        job.checkpoints,
        Saved {
            latest: Some(second.clone()),
            count: 2
        }
    );

    std::fs::remove_dir(&second.path).unwrap();
    let job = registry.find("web", None).unwrap();
    assert_eq!(registry.checkpoints(&job), std::slice::from_ref(&first));
    // It was unmounted, say.
    std::fs::create_dir(&second.path).unwrap();
    assert_eq!(registry.find("web", None).unwrap().checkpoints.count, 2);

    registry.remove_checkpoint(&first.id).unwrap();
    assert!(matches!(
        registry.remove_checkpoint(&first.id),
        Err(RegistryError::NoCheckpoint(_))
    ));
    fixture.publish(&published);
    registry.refresh().unwrap();
    let job = registry.find("web", None).unwrap();
    assert_eq!(
        registry.checkpoints(&job),
        std::slice::from_ref(&second),
        "a record names it still"
    );

    registry.remove_checkpoint_at(&second.path).unwrap();
    assert_eq!(registry.find("web", None).unwrap().checkpoints.count, 0);
    registry.add_checkpoint(&published.key, &second).unwrap();
    let job = registry.find("web", None).unwrap();
    assert_eq!(
        registry.checkpoints(&job),
        std::slice::from_ref(&second),
        "somebody has put it there again"
    );

    let again = checkpoint("again", &second.path, 3);
    registry.add_checkpoint(&published.key, &again).unwrap();
    let job = registry.find("web", None).unwrap();
    assert_eq!(registry.checkpoints(&job), [again], "what is there is the newest");
}

#[test]
fn what_an_engine_knows_stays_until_the_id_is_used_again() {
    let fixture = Fixture::new();
    let mut published = record("1234", Status::Running);
    fixture.publish(&published);
    let mut registry = fixture.healthy();
    assert_eq!(registry.unenriched().unwrap(), [published.key.clone()]);
    let name = Some("web".to_owned());
    let image = Some("redis:7".to_owned());
    let enrichment = Enrichment {
        engine_name: Some(EngineKind::Nerdctl),
        name,
        image,
    };
    registry.enrich(&published.key, &enrichment).unwrap();
    registry.enrich(&key("default", "nobody"), &enrichment).unwrap();
    published.status = Status::Paused;
    fixture.publish(&published);
    registry.refresh().unwrap();
    assert!(registry.unenriched().unwrap().is_empty());
    let job = registry.find("web", None).unwrap();
    assert_eq!(
        (job.engine, job.image.as_deref()),
        (EngineKind::Nerdctl, Some("redis:7"))
    );

    published.created += 1;
    fixture.publish(&published);
    registry.refresh().unwrap();
    assert_eq!(registry.unenriched().unwrap(), [published.key.clone()]);
    published.status = Status::Deleted;
    fixture.publish(&published);
    registry.refresh().unwrap();
    assert!(
        registry.unenriched().unwrap().is_empty(),
        "nobody can be asked any more"
    );
}

#[test]
fn an_adopted_container_is_a_job_until_our_shim_has_it() {
    let fixture = Fixture::new();
    fixture.publish(&record("web", Status::Deleted));
    let mut registry = fixture.healthy();
    let adopted = Adopted {
        key: key("default", "web"),
        name: Some("mine".to_owned()),
        image: None,
        runtime: "io.containerd.runc.v2".to_owned(),
        init: liveness::own().unwrap(),
        stdio: Stdio {
            stdout: "file:///log".to_owned(),
            ..Stdio::default()
        },
        bundle: "/run/bundle".into(),
    };
    registry.adopt(&adopted).unwrap();
    // A late look at the life before.
    fixture.publish(&Record {
        changed: 2,
        ..record("web", Status::Deleted)
    });
    registry.refresh().unwrap();
    let job = registry.find("mine", None).unwrap();
    assert!(job.managed && job.is_alive());
    assert_eq!(job.record.stdio.stdout, "file:///log");

    let now = crate::time::now() + 1;
    fixture.publish(&Record {
        created: now,
        changed: now,
        ..record("web", Status::Running)
    });
    registry.refresh().unwrap();
    let job = registry.find("mine", None).unwrap();
    assert!(!job.managed, "it keeps the name it was given");
}

#[test]
fn a_deleted_job_is_forgotten() {
    let fixture = Fixture::with_two_jobs();
    let mut registry = fixture.healthy();
    registry.delete(&key("default", "b")).unwrap();
    registry.delete(&key("default", "nobody")).unwrap();
    registry.refresh().unwrap();
    assert_eq!(ids(&mut registry), ["a"]);
    assert_eq!(ids(&mut fixture.healthy()), ["a"]);
    assert!(matches!(
        registry.delete(&key("..", "b")),
        Err(RegistryError::Name(_))
    ));
}

#[test]
fn checkpoints_on_disk_make_jobs() {
    let fixture = Fixture::new();
    let saved = fixture.saved("saved", 9);
    let found = OnDisk {
        key: key("moby", &"ab".repeat(32)),
        name: Some("web".to_owned()),
        image: None,
        bundle: PathBuf::new(),
        checkpoint: saved.clone(),
    };
    let hostile = OnDisk {
        key: key("../..", "x"),
        ..found.clone()
    };
    let mut registry = fixture.healthy();
    assert_eq!(
        registry.rebuild_from(&[found.clone(), hostile.clone()]).unwrap(),
        1
    );
    assert_eq!(registry.rebuild_from(&[found, hostile]).unwrap(), 0);
    let job = registry.find("web", None).unwrap();
    assert_eq!((job.engine, job.status), (EngineKind::Docker, "halted"));
    assert_eq!(registry.checkpoints(&job), [saved]);
}

#[test]
fn what_is_gone_for_long_is_tidied_away() {
    let fixture = Fixture::new();
    let now = crate::time::now();
    let earlier = |days: u64| now - days * 24 * 3600 * 1000;
    let saved = fixture.saved("saved", 1);
    let lost = checkpoint("lost", Path::new("/nowhere"), 1);
    let other_boot = Process {
        pid: 1,
        started: 1,
        boot: "other".to_owned(),
    };
    for (id, status, days, checkpoints) in [
        ("recent", Status::Deleted, 6, vec![]),
        ("old", Status::Deleted, 8, vec![]),
        ("old-saved", Status::Deleted, 8, vec![saved]),
        ("old-lost", Status::Deleted, 8, vec![lost]),
        ("before-the-reboot", Status::Running, 8, vec![]),
        ("just-before-the-reboot", Status::Running, 1, vec![]),
    ] {
        let init = other_boot.clone();
        fixture.publish(&Record {
            changed: earlier(days),
            init,
            checkpoints,
            ..record(id, status)
        });
    }
    let running = Record {
        changed: earlier(30),
        init: liveness::own().unwrap(),
        ..record("running", Status::Running)
    };
    fixture.publish(&running);
    let mut registry = fixture.healthy();
    let expected = [
        "just-before-the-reboot",
        "old-lost",
        "old-saved",
        "recent",
        "running",
    ];
    assert_eq!(ids(&mut registry), expected);
    // Noted as missing just now: a day later it is forgotten, and its job with it.
    let db = Connection::open(fixture.path()).unwrap();
    let _rows = db
        .execute("UPDATE checkpoints SET missing = 1 WHERE missing > 0", ())
        .unwrap();
    let _rows = db.execute("UPDATE chores SET at = 0", ()).unwrap();
    registry.refresh().unwrap();
    let expected = ["just-before-the-reboot", "old-saved", "recent", "running"];
    assert_eq!(ids(&mut registry), expected);
    assert_eq!(fixture.spool().read_all().records.len(), expected.len());
}

#[test]
fn a_database_that_is_gone_is_made_anew_from_the_spool() {
    for leave_log in [false, true] {
        let fixture = Fixture::with_two_jobs();
        let mut open = fixture.healthy();
        std::fs::remove_file(fixture.path()).unwrap();
        if !leave_log {
            let _gone = std::fs::remove_file(fixture.directory.path().join("jobs.db-wal"));
        }
        // The one that has it open has all that was in it.
        let job = open.find("b", None).unwrap();
        assert_eq!(job.checkpoints.count, 1);
        drop(open);
        std::fs::remove_file(fixture.path()).unwrap();
        let mut opened = fixture.open();
        assert!(
            opened.is_new && opened.warnings.is_empty(),
            "{:?}",
            opened.warnings
        );
        assert_eq!(ids(&mut opened.registry), ["a", "b"]);
    }
}

#[test]
fn a_damaged_database_is_put_aside_and_made_anew() {
    let whole = Fixture::with_two_jobs();
    drop(whole.healthy());
    let bytes = std::fs::read(whole.path()).unwrap();
    let random = |length: usize| -> Vec<u8> { (0..length).map(|at| (at * 7919 % 251) as u8).collect() };
    let mut tail = bytes.clone();
    let from = 4096;
    tail[from..].copy_from_slice(&random(bytes.len() - from));
    for (what, bytes) in [
        ("random bytes", random(20_000)),
        ("a text", b"not a database".to_vec()),
        ("a page of it", bytes[..4096].to_vec()),
        ("half a page of it", bytes[..2048].to_vec()),
        ("its first bytes", bytes[..100].to_vec()),
        ("all but the last page", bytes[..bytes.len() - 4096].to_vec()),
        ("random pages", tail),
    ] {
        let fixture = Fixture::with_two_jobs();
        std::fs::write(fixture.path(), &bytes).unwrap();
        let mut opened = fixture.open();
        assert_eq!(ids(&mut opened.registry), ["a", "b"], "{what}");
        let warnings: Vec<_> = opened
            .warnings
            .into_iter()
            .chain(opened.registry.take_warnings())
            .collect();
        let moved_to = match warnings.as_slice() {
            [Warning::Damaged { moved_to, .. }] => moved_to,
            other => panic!("{what}: {other:?}"),
        };
        assert_eq!(std::fs::read(moved_to).unwrap().len(), bytes.len(), "{what}");
        // All is well for the next one, and the same holds for it.
        assert_eq!(ids(&mut fixture.healthy()), ["a", "b"], "{what}");
    }
}

#[test]
fn a_file_of_somebody_else_is_left_alone() {
    for text in ["root:x:0:0:root:/root:/bin/sh\n", "x", "\u{1}\u{2}"] {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("passwd");
        std::fs::write(&path, text).unwrap();
        // The first one leaves nothing behind that would have the second one take it for ours.
        for _ in 0..2 {
            let opened = Registry::open(&path);
            match opened.warnings.as_slice() {
                [Warning::Unusable { text, .. }] => assert!(text.contains("something else"), "{text}"),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
    }
    // What begins as a database, is zero or empty, was ours for all that one can tell.
    for bytes in [&b"SQLite format 3\0, once"[..], &[0; 4096], b""] {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("jobs.db");
        std::fs::write(&path, bytes).unwrap();
        let opened = Registry::open(&path);
        assert!(
            opened.registry.in_memory_because.is_none(),
            "{:?}",
            opened.warnings
        );
    }
}

#[test]
fn no_damage_is_beyond_it() {
    let whole = Fixture::with_two_jobs();
    drop(whole.healthy());
    let bytes = std::fs::read(whole.path()).unwrap();
    let mut random = 88_172_645_463_325_252_u64;
    let mut next = |below: usize| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        usize::try_from(random % below as u64).unwrap()
    };
    let fixture = Fixture::with_two_jobs();
    for round in 0..60 {
        let mut damaged = bytes.clone();
        for _ in 0..=next(4) {
            // Where there is something: the header, the schema, and the ends of pages, from where they are filled.
            let page = next(bytes.len() / 4096) * 4096;
            let (from, length) = (page + [0, 3500, next(4000)][next(3)], next(60) + 1);
            for byte in &mut damaged[from..from + length] {
                *byte = u8::try_from(next(256)).unwrap();
            }
        }
        if next(8) == 0 {
            damaged.truncate(next(bytes.len()));
        }
        std::fs::write(fixture.path(), &damaged).unwrap();
        for log in ["jobs.db-wal", "jobs.db-shm"] {
            let log = fixture.directory.path().join(log);
            match next(3) {
                0 => std::fs::write(&log, &damaged[..damaged.len() / 2]).unwrap(),
                _ => drop(std::fs::remove_file(&log)),
            }
        }
        let mut registry = fixture.open().registry;
        let _jobs = ids(&mut registry);
        let saved = checkpoint("more", Path::new("/"), round);
        match registry.add_checkpoint(&key("default", "b"), &saved) {
            Ok(()) | Err(RegistryError::NotKept { .. }) => {}
            Err(e) => panic!("round {round}: {e}"),
        }
        drop(registry);
        assert!(ids(&mut fixture.open().registry).len() >= 2, "round {round}");
    }
}

#[test]
fn a_damaged_row_is_read_again() {
    let fixture = Fixture::with_two_jobs();
    let mut registry = fixture.healthy();
    let db = Connection::open(fixture.path()).unwrap();
    let _rows = db
        .execute("UPDATE jobs SET record = substr(record, 9)", ())
        .unwrap();
    assert_eq!(ids(&mut registry), ["a", "b"]);
    assert!(registry.take_warnings().is_empty());
}

#[test]
fn a_few_damaged_ones_are_kept() {
    let fixture = Fixture::new();
    drop(fixture.healthy());
    for _ in 0..6 {
        std::fs::write(fixture.path(), "not a database").unwrap();
        assert!(fixture.open().is_new);
    }
    let kept = std::fs::read_dir(fixture.directory.path()).unwrap().flatten();
    let kept = kept
        .filter(|entry| entry.file_name().to_string_lossy().contains("damaged"))
        .count();
    assert_eq!(kept, 3);
}

#[test]
fn damage_that_turns_up_later_costs_a_warning() {
    let fixture = Fixture::with_two_jobs();
    let mut registry = fixture.healthy();
    let db = Connection::open(fixture.path()).unwrap();
    db.execute_batch("DROP TABLE checkpoints").unwrap();
    drop(db);
    assert_eq!(ids(&mut registry), ["a", "b"]);
    assert!(matches!(
        registry.take_warnings().as_slice(),
        [Warning::Damaged { .. }]
    ));
    assert_eq!(ids(&mut fixture.healthy()), ["a", "b"]);
}

#[test]
fn one_of_two_that_meet_later_damage_puts_it_aside() {
    let fixture = Fixture::with_two_jobs();
    let (mut one, mut other) = (fixture.healthy(), fixture.healthy());
    let db = Connection::open(fixture.path()).unwrap();
    db.execute_batch("DROP TABLE checkpoints").unwrap();
    drop(db);
    std::thread::scope(|scope| {
        let _one = scope.spawn(|| assert_eq!(ids(&mut one), ["a", "b"]));
        let _other = scope.spawn(|| assert_eq!(ids(&mut other), ["a", "b"]));
    });
    let warnings = (one.take_warnings(), other.take_warnings());
    assert_eq!(warnings.0.len() + warnings.1.len(), 1, "{warnings:?}");
}

#[test]
fn what_lives_stays_a_job_without_its_record() {
    let fixture = Fixture::new();
    let init = liveness::own().unwrap();
    let mut running = record("web", Status::Running);
    (running.init, running.changed) = (init, 2);
    fixture.publish(&running);
    let mut registry = fixture.healthy();
    std::fs::remove_dir_all(fixture.spool().directory()).unwrap();
    registry.refresh().unwrap();
    assert_eq!(ids(&mut registry), ["web"]);
    let db = Connection::open(fixture.path()).unwrap();
    let _rows = db.execute("UPDATE chores SET at = 0", ()).unwrap();
    registry.refresh().unwrap();
    assert_eq!(ids(&mut registry), ["web"], "and is not tidied away");
}

#[test]
fn a_job_whose_checkpoints_were_removed_ends_with_its_record() {
    let fixture = Fixture::with_two_jobs();
    let mut registry = fixture.healthy();
    registry.remove_checkpoint("saved").unwrap();
    fixture.spool().remove(&key("default", "b")).unwrap();
    registry.refresh().unwrap();
    assert_eq!(ids(&mut registry), ["a"]);
}

#[test]
fn a_locked_database_is_read_and_what_is_new_is_shown() {
    let fixture = Fixture::with_two_jobs();
    let lock = Connection::open(fixture.path()).unwrap();
    lock.execute_batch("BEGIN EXCLUSIVE").unwrap();
    fixture.publish(&record("c", Status::Running));
    let mut opened = fixture.open();
    assert!(
        matches!(opened.warnings.as_slice(), [Warning::Locked(_)]),
        "{:?}",
        opened.warnings
    );
    assert_eq!(ids(&mut opened.registry), ["a", "b", "c"]);
    assert_eq!(
        opened.registry.find("b", None).unwrap().checkpoints.count,
        1,
        "only the database knows"
    );
    lock.execute_batch("ROLLBACK").unwrap();
    assert_eq!(ids(&mut fixture.healthy()), ["a", "b", "c"]);
}

#[test]
fn what_a_locked_database_does_not_keep_is_not_said_to_be_done() {
    let fixture = Fixture::with_two_jobs();
    let mut registry = fixture.healthy();
    let lock = Connection::open(fixture.path()).unwrap();
    lock.execute_batch("BEGIN EXCLUSIVE").unwrap();
    let deleted = registry.delete(&key("default", "b"));
    let Err(RegistryError::NotKept { why }) = deleted else {
        panic!("{deleted:?}");
    };
    assert!(why.contains("locked") && why.contains("try again"), "{why}");
    let saved = fixture.saved("more", 9);
    let added = registry.add_checkpoint(&key("default", "a"), &saved);
    assert!(matches!(added, Err(RegistryError::NotKept { .. })), "{added:?}");
    // What only makes a table nicer may be lost.
    registry
        .enrich(&key("default", "a"), &Enrichment::default())
        .unwrap();
    lock.execute_batch("ROLLBACK").unwrap();

    let mut registry = fixture.healthy();
    assert_eq!(ids(&mut registry), ["a", "b"]);
    assert_eq!(fixture.spool().read_all().records.len(), 2, "nothing was removed");
    registry.delete(&key("default", "b")).unwrap();
    assert_eq!(ids(&mut fixture.healthy()), ["a"]);
}

#[test]
fn a_database_nobody_may_even_read_is_done_without() {
    let fixture = Fixture::with_two_jobs();
    let lock = Connection::open(fixture.path()).unwrap();
    lock.execute_batch("PRAGMA locking_mode = EXCLUSIVE; BEGIN EXCLUSIVE; UPDATE jobs SET size = size")
        .unwrap();
    let mut opened = fixture.open();
    assert!(
        matches!(opened.warnings.as_slice(), [Warning::Locked(_)]),
        "{:?}",
        opened.warnings
    );
    assert_eq!(ids(&mut opened.registry), ["a", "b"]);
}

#[test]
fn a_newer_database_is_left_as_it_is() {
    let fixture = Fixture::with_two_jobs();
    let newer = Connection::open(fixture.path()).unwrap();
    newer
        .execute_batch("ALTER TABLE jobs ADD COLUMN of_the_future TEXT")
        .unwrap();
    newer
        .pragma_update(None, "user_version", store::schema() + 1)
        .unwrap();
    newer.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
    let before = std::fs::read(fixture.path()).unwrap();
    fixture.publish(&record("c", Status::Running));
    let mut opened = fixture.open();
    assert!(
        matches!(opened.warnings.as_slice(), [Warning::Newer { .. }]),
        "{:?}",
        opened.warnings
    );
    let saved = fixture.saved("more", 9);
    let added = opened.registry.add_checkpoint(&key("default", "c"), &saved);
    assert!(matches!(added, Err(RegistryError::NotKept { .. })), "{added:?}");
    assert_eq!(ids(&mut opened.registry), ["a", "b", "c"]);
    drop(newer);
    assert_eq!(std::fs::read(fixture.path()).unwrap(), before);
}

#[test]
fn another_programs_database_is_left_as_it_is() {
    let fixture = Fixture::new();
    Connection::open(fixture.path())
        .unwrap()
        .execute_batch("CREATE TABLE mine (x)")
        .unwrap();
    let before = std::fs::read(fixture.path()).unwrap();
    fixture.publish(&record("a", Status::Running));
    let mut opened = fixture.open();
    assert!(
        matches!(opened.warnings.as_slice(), [Warning::Unusable { .. }]),
        "{:?}",
        opened.warnings
    );
    assert_eq!(ids(&mut opened.registry), ["a"]);
    assert_eq!(std::fs::read(fixture.path()).unwrap(), before);
}

#[test]
fn a_directory_or_link_in_its_place_is_done_without() {
    for link in [false, true] {
        let fixture = Fixture::new();
        fixture.publish(&record("a", Status::Running));
        if link {
            std::os::unix::fs::symlink("/dev/null", fixture.path()).unwrap();
        } else {
            std::fs::create_dir(fixture.path()).unwrap();
        }
        let mut opened = fixture.open();
        assert!(
            matches!(opened.warnings.as_slice(), [Warning::Unusable { .. }]),
            "{:?}",
            opened.warnings
        );
        assert_eq!(ids(&mut opened.registry), ["a"]);
    }
}

#[test]
fn records_that_are_rubbish_are_warnings() {
    let fixture = Fixture::with_two_jobs();
    for at in 0..9 {
        std::fs::write(fixture.spool().directory().join(format!("{at}.json")), "rubbish").unwrap();
    }
    let mut opened = fixture.open();
    assert_eq!(ids(&mut opened.registry), ["a", "b"]);
    assert_eq!(opened.warnings.len(), 6);
    assert!(
        opened
            .warnings
            .iter()
            .all(|warning| !warning.to_string().contains('\n'))
    );
}

#[test]
fn a_registry_of_nothing_works() {
    let Opened {
        mut registry,
        warnings,
        ..
    } = Registry::none();
    assert!(warnings.is_empty());
    registry.refresh().unwrap();
    assert!(ids(&mut registry).is_empty());
    assert_eq!(registry.find("x", None), Err(FindError::NotFound));
}

#[test]
fn its_files_are_for_root_alone() {
    let fixture = Fixture::with_two_jobs();
    let _registry = fixture.healthy();
    for name in ["jobs.db", "jobs.db-wal", "jobs.db-shm"] {
        let mode = std::fs::metadata(fixture.directory.path().join(name))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
}
