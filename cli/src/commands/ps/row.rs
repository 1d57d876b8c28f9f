//! A job as one row.

use std::path::PathBuf;

use jobs::record::{Checkpoint, Exit, Key};
use jobs::registry::Job;
use serde::Serialize;

use crate::output::table::{Cell, Colour, Side, Table};
use crate::output::{size, time};

/// The columns that users know.
const COLUMNS: [(&str, Side); 8] = [
    ("JOB", Side::Left),
    ("TYPE", Side::Left),
    ("PID", Side::Right),
    ("STATUS", Side::Left),
    ("GPU", Side::Left),
    ("CHECKPOINT", Side::Right),
    ("SIZE", Side::Right),
    ("LOG", Side::Left),
];

/// How a client says that a container's output goes into a file.
const FILE_URI: &str = "file://";

/// One job, as it is told to a script.
#[derive(Debug, Serialize)]
pub struct Row<'a> {
    job: &'a str,
    #[serde(rename = "type")]
    kind: &'static str,
    /// Null unless it lives.
    pid: Option<i32>,
    status: &'static str,
    gpu: bool,
    /// The latest one.
    checkpoint: Option<&'a Checkpoint>,
    /// How many there are.
    checkpoints: usize,
    log: Option<PathBuf>,
    namespace: &'a str,
    id: &'a str,
    engine: &'static str,
    image: Option<&'a str>,
    exit: Option<Exit>,
    managed: bool,
    sandbox: bool,
    #[serde(skip)]
    key: &'a Key,
}

impl<'a> Row<'a> {
    fn of(job: &'a Job) -> Self {
        Self {
            job: &job.name,
            kind: job.type_,
            pid: job.is_alive().then_some(job.record.init.pid),
            status: job.status,
            // CRIU saves no GPU here, so no job has one that could be saved.
            gpu: false,
            checkpoint: job.checkpoints.latest.as_ref(),
            checkpoints: job.checkpoints.count,
            log: log(&job.record.stdio.stdout),
            namespace: &job.key.namespace,
            id: &job.key.id,
            engine: job.engine.word(),
            image: job.image.as_deref(),
            exit: job.record.exit,
            managed: job.managed,
            sandbox: job.record.sandbox,
            key: &job.key,
        }
    }

    fn cells(&self, now: u64) -> Vec<Cell> {
        let (at, bytes) = self.checkpoint.map_or_else(Default::default, |checkpoint| {
            (time::relative(checkpoint.at, now), size::whole(checkpoint.size))
        });
        vec![
            self.job.into(),
            self.kind.into(),
            self.pid.map(|pid| pid.to_string()).unwrap_or_default().into(),
            Cell::new(self.status, colour(self.status)),
            if self.gpu { "yes" } else { "no" }.into(),
            at.into(),
            bytes.into(),
            self.log
                .as_ref()
                .map(|log| log.display().to_string())
                .unwrap_or_default()
                .into(),
        ]
    }
}

/// The rows that are shown: by the words of their status, backwards through the alphabet, then those saved last, then by name.
pub fn rows(jobs: &[Job], all: bool) -> Vec<Row<'_>> {
    let mut rows: Vec<Row<'_>> = jobs
        .iter()
        .filter(|job| job.is_listed(all))
        .map(Row::of)
        .collect();
    rows.sort_by(|a, b| {
        let saved = |row: &Row<'_>| row.checkpoint.map(|checkpoint| checkpoint.at);
        (b.status, saved(b))
            .cmp(&(a.status, saved(a)))
            .then_with(|| (a.job, a.key).cmp(&(b.job, b.key)))
    });
    rows
}

/// The table of them.
pub fn table(rows: &[Row<'_>], now: u64) -> Table {
    let mut table = Table::new(&COLUMNS);
    for row in rows {
        table.row(row.cells(now));
    }
    table
}

/// The file that a container's output goes into, if it is there.
fn log(stdout: &str) -> Option<PathBuf> {
    let path = stdout.strip_prefix(FILE_URI)?;
    // What stands behind is for the writer of the log.
    let path = PathBuf::from(path.split('?').next().unwrap_or(path));
    path.is_file().then_some(path)
}

fn colour(status: &str) -> Colour {
    match status {
        "running" | "sleep" => Colour::Green,
        "zombie" | "stale" => Colour::Yellow,
        _ => Colour::Grey,
    }
}

#[cfg(test)]
mod tests {
    use jobs::registry::Registry;
    use serde_json::json;

    use super::*;

    /// Jobs as a registry makes them of what shims have published; nobody else can make one.
    fn jobs(records: &[serde_json::Value]) -> Vec<Job> {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("jobs.db");
        let spool = jobs::spool::Spool::beside(&path);
        let boot = jobs::liveness::boot().expect("a boot");
        for changes in records {
            // The kernel gives no pid so high.
            let gone = json!({"pid": (1 << 22) + 1, "started": 1, "boot": boot});
            let mut record = json!({"schema": 1, "init": gone, "bundle": "/b", "status": "stopped", "created": 1, "changed": jobs::time::now(),
                "key": {"engine": "/c.sock", "namespace": "default", "id": "web"}});
            let fields = record.as_object_mut().expect("an object");
            fields.extend(changes.as_object().expect("an object").clone());
            spool
                .publish(&serde_json::from_value(record).expect("a record"))
                .expect("published");
        }
        let mut registry = Registry::open(&path).registry;
        registry.refresh().expect("refreshed");
        registry.jobs().expect("jobs")
    }

    fn key(id: &str) -> serde_json::Value {
        json!({"engine": "/c.sock", "namespace": "default", "id": id})
    }

    #[test]
    fn the_table_is_the_one_that_users_know() {
        let dir = tempfile::tempdir().expect("a directory");
        let own = jobs::liveness::own().expect("ourselves");
        let log = dir.path().join("log");
        std::fs::write(&log, "").expect("a file");
        let path = |name: &str| {
            std::fs::write(dir.path().join(name), "").expect("a file");
            dir.path().join(name)
        };
        let jobs = jobs(&[
            json!({"key": key("old"), "checkpoints": [
                {"id": "1", "path": path("1"), "at": 1_000, "size": 3 << 20, "left_running": false}]}),
            json!({"key": key("web"), "status": "paused", "init": own,
                "stdio": {"stdout": format!("file://{}", log.display())}}),
            json!({"key": key("ended"), "checkpoints": [
                {"id": "2", "path": path("2"), "at": 9_000, "size": 2000, "left_running": false}]}),
            json!({"key": key("pause"), "sandbox": true}),
            json!({"key": key("removed"), "status": "deleted"}),
        ]);
        let shown = table(&rows(&jobs, false), 10_000).text(false);
        let pid = std::process::id().to_string();
        let expected = format!(
            "JOB    TYPE        {:>width$}  STATUS  GPU     CHECKPOINT   SIZE  LOG\n\
             ended  containerd  {:>width$}  halted  no    1 second ago  2 KiB\n\
             old    containerd  {:>width$}  halted  no   9 seconds ago  3 MiB\n\
             web    containerd  {pid:>width$}  frozen  no                         {}\n",
            "PID",
            "",
            "",
            log.display(),
            width = pid.len().max(3)
        );
        assert_eq!(shown, expected);
        let all: Vec<&str> = rows(&jobs, true).iter().map(|row| row.job).collect();
        assert_eq!(all, ["ended", "old", "pause", "removed", "web"]);
    }

    #[test]
    fn a_script_is_told_what_the_table_shows_and_more() {
        let jobs =
            jobs(&[json!({"exit": {"status": 137, "at": 5}, "stdio": {"stdout": "file:///nowhere/log"}})]);
        let told = serde_json::to_value(rows(&jobs, false)).expect("JSON");
        assert_eq!(
            told,
            json!([{"job": "web", "type": "containerd", "pid": null, "status": "halted", "gpu": false,
                "checkpoint": null, "checkpoints": 0, "log": null, "namespace": "default", "id": "web",
                "engine": "containerd", "image": null, "exit": {"status": 137, "at": 5},
                "managed": false, "sandbox": false}])
        );
    }
}
