//! From the rows of the database to jobs, and the rows of containers that published none.

use std::path::PathBuf;

use super::job::{self, EngineKind, Job, Saved};
use super::rows::Row;
use crate::liveness;
use crate::record::{Checkpoint, Key, Process, Record, SCHEMA, Shim, Status, Stdio};

/// A job as a user sees it, of what the database has of it and the checkpoints that are there.
pub(super) fn assemble(checkpoints: Vec<Checkpoint>, row: Row) -> Job {
    let Row {
        mut record,
        managed,
        engine_name,
        name,
        image,
        ..
    } = row;
    let key = record.key.clone();
    let engine = engine_name.as_deref().and_then(EngineKind::parse);
    let plain_name = record
        .name
        .clone()
        .or(name)
        .unwrap_or_else(|| job::shown_id(&key.id).to_owned());
    let liveness = liveness::look(&record.init);
    let image = record.image.clone().or(image);
    let saved = Saved {
        latest: checkpoints.last().cloned(),
        count: checkpoints.len(),
    };
    record.checkpoints = checkpoints;
    Job {
        engine: engine.unwrap_or_else(|| EngineKind::of_namespace(&key.namespace)),
        key,
        name: plain_name.clone(),
        type_: "containerd",
        image,
        liveness,
        status: job::status_word(record.status, liveness),
        record,
        checkpoints: saved,
        managed,
        plain_name,
    }
}

/// What the database has of a container of which no shim has published anything.
pub(super) fn unpublished(file: &str, record: Record) -> Row {
    Row {
        file: file.to_owned(),
        record,
        stamp: None,
        managed: false,
        enriched: false,
        engine_name: None,
        name: None,
        image: None,
    }
}

/// Of a container of which nothing is known but what was saved of it.
pub(super) fn bare_record(key: &Key) -> Record {
    Record {
        schema: SCHEMA,
        key: key.clone(),
        name: None,
        sandbox: false,
        image: None,
        bundle: PathBuf::new(),
        shim: Shim::default(),
        init: Process::default(),
        status: Status::Deleted,
        exit: None,
        stdio: Stdio::default(),
        created: 0,
        changed: 0,
        checkpoints: Vec::new(),
        last: None,
        restored_from: None,
    }
}
