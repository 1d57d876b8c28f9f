//! Records and jobs for the tests.

use super::job::{EngineKind, Job, Saved, status_word};
use crate::liveness::Liveness;
use crate::record::{Checkpoint, Key, Process, Record, SCHEMA, Shim, Status, Stdio};

pub(super) fn key(namespace: &str, id: &str) -> Key {
    let engine = "/run/containerd/containerd.sock".into();
    Key {
        engine,
        namespace: namespace.to_owned(),
        id: id.to_owned(),
    }
}

pub(super) fn record(id: &str, status: Status) -> Record {
    Record {
        schema: SCHEMA,
        key: key("default", id),
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
        changed: crate::time::now(),
        checkpoints: Vec::new(),
        last: None,
        restored_from: None,
    }
}

pub(super) fn checkpoint(id: &str, path: &std::path::Path, at: u64) -> Checkpoint {
    Checkpoint {
        id: id.to_owned(),
        path: path.to_owned(),
        at,
        size: 7,
        left_running: true,
    }
}

pub(super) fn job(namespace: &str, id: &str, name: &str, with_task: bool) -> Job {
    let (status, liveness) = match with_task {
        true => (Status::Running, Liveness::Alive('S')),
        false => (Status::Deleted, Liveness::Gone),
    };
    Job {
        key: key(namespace, id),
        engine: EngineKind::of_namespace(namespace),
        name: name.to_owned(),
        type_: "containerd",
        image: None,
        record: Record {
            key: key(namespace, id),
            ..record(id, status)
        },
        liveness,
        status: status_word(status, liveness),
        checkpoints: Saved::default(),
        managed: false,
        plain_name: name.to_owned(),
    }
}
