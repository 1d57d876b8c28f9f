//! The figures of the registry: `ps_1000`, a list of a thousand jobs beside containerd's list of as many tasks, and
//! `run_registry`, what keeping the books costs a container.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;

use anyhow::{Context, Result, anyhow, ensure};
use tempfile::TempDir;

use super::ctr::{IMAGE, NAMESPACE, ctr, remove, timed};
use super::figure::{Figure, PS_1000, RUN_REGISTRY, Side};
use super::measure::Measure;
use crate::messages as msg;
use crate::task_api::{TaskApi, json_any};
use crate::workload::{Workload, lay_rootfs};

const SOCKET: &str = "/run/containerd/containerd.sock";
const SPEC_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/Spec";
const KILL: u32 = 9;
const JOBS: usize = 1000;
/// Containers started and ended at a time: two a core, since each waits for its runc now and then.
const AT_A_TIME: usize = 4;
/// The host's settings, where `cedana` and every shim look for them.
const SETTINGS: &str = "/etc/cedana/config.json";
/// The difference is a few tenths of a millisecond, in runs that differ by several: it takes many to see it.
const REGISTRY_RUNS_FACTOR: u32 = 6;

/// The figure `ps_1000`.
#[derive(Debug)]
pub struct Ps {
    api: TaskApi,
    rootfs: TempDir,
}

impl Ps {
    /// Starts a thousand containers.
    ///
    /// # Errors
    /// One does not start.
    pub fn prepare() -> Result<Self> {
        let rootfs = TempDir::with_prefix("bench-").context("make a scratch directory")?;
        lay_rootfs(rootfs.path())?;
        let api = TaskApi::new(Path::new(SOCKET), NAMESPACE)?;
        let ps = Self { api, rootfs };
        in_parallel(|number| ps.start(number))?;
        Ok(ps)
    }

    fn start(&self, number: usize) -> Result<()> {
        let id = id(number);
        let spec = Workload::command(["sleep", "100000"]).spec(NAMESPACE, &id);
        self.api.create_container(msg::ContainerRecord {
            id: id.clone(),
            runtime: Some(msg::Runtime {
                name: Side::Ours.runtime().to_owned(),
                options: None,
            }),
            spec: Some(json_any(SPEC_TYPE, &spec)),
            ..Default::default()
        })?;
        let _pid = self.api.create(msg::CreateTaskRequest {
            container_id: id.clone(),
            rootfs: vec![msg::Mount {
                r#type: "bind".to_owned(),
                source: self.rootfs.path().display().to_string(),
                target: String::new(),
                options: vec!["rbind".to_owned(), "ro".to_owned()],
            }],
            ..Default::default()
        })?;
        let _pid = self.api.start(&id, "")?;
        Ok(())
    }

    fn end(&self, number: usize) -> Result<()> {
        let id = id(number);
        self.api.kill(&id, "", KILL, false)?;
        let _exit = self.api.wait(&id, "")?;
        let _deleted = self.api.delete(&id, "")?;
        Ok(self.api.delete_container(&id)?)
    }
}

impl Measure for Ps {
    fn sample(&mut self, side: Side) -> Result<Vec<(Figure, f64)>> {
        let list = match side {
            Side::Ours => timed(Command::new("cedana").arg("ps")).context("cedana ps")?,
            Side::Theirs => ctr(&["tasks", "list"])?,
        };
        let lines = list.stdout.lines().filter(|line| line.starts_with("ps-")).count();
        ensure!(lines == JOBS, "{lines} of {JOBS} are listed");
        Ok(vec![(PS_1000, list.ms)])
    }
}

impl Drop for Ps {
    fn drop(&mut self) {
        // What stays shows in the check for leftovers at the end.
        let _ended = in_parallel(|number| self.end(number));
    }
}

fn id(number: usize) -> String {
    format!("ps-{number:04}")
}

fn in_parallel(act: impl Fn(usize) -> Result<()> + Sync) -> Result<()> {
    let act = &act;
    thread::scope(|scope| {
        let parts: Vec<_> = (0..AT_A_TIME)
            .map(|part| scope.spawn(move || (part..JOBS).step_by(AT_A_TIME).try_for_each(act)))
            .collect();
        parts
            .into_iter()
            .try_for_each(|part| part.join().unwrap_or_else(|_| Err(anyhow!("a thread panicked"))))
    })
}

/// The figure `run_registry`: both sides are our shim, with the registry and without one.
#[derive(Debug)]
pub struct RunRegistry {
    before: Option<Vec<u8>>,
}

impl RunRegistry {
    /// Takes the host's settings away for the time.
    ///
    /// # Errors
    /// They cannot be changed.
    pub fn prepare() -> Result<Self> {
        let directory = Path::new(SETTINGS).parent().unwrap_or(Path::new("/"));
        fs::create_dir_all(directory).with_context(|| format!("make {}", directory.display()))?;
        Ok(Self {
            before: fs::read(SETTINGS).ok(),
        })
    }
}

impl Measure for RunRegistry {
    fn sample(&mut self, side: Side) -> Result<Vec<(Figure, f64)>> {
        let settings = match side {
            Side::Ours => r#"{"db": {"path": "/var/lib/cedana/jobs.db"}}"#,
            Side::Theirs => r#"{"db": {"path": ""}}"#,
        };
        fs::write(SETTINGS, settings).with_context(|| format!("write {SETTINGS}"))?;
        let id = format!("registry-{}", side.word());
        let run = ctr(&[
            "run",
            "--rm",
            "--runtime",
            Side::Ours.runtime(),
            IMAGE,
            &id,
            "true",
        ]);
        if run.is_err() {
            remove(&id);
        }
        Ok(vec![(RUN_REGISTRY, run?.ms)])
    }

    fn runs(&self, asked: u32) -> u32 {
        asked * REGISTRY_RUNS_FACTOR
    }
}

impl Drop for RunRegistry {
    fn drop(&mut self) {
        // The instance goes with the bench; on a host of somebody's own the settings come back.
        let _restored = match &self.before {
            Some(text) => fs::write(SETTINGS, text),
            None => fs::remove_file(SETTINGS),
        };
    }
}
