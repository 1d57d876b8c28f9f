//! The figure `restore_small`: create and start from a checkpoint, by the Task API, until the process runs on.
//!
//! The container runs `cat`, and its stdin holds a line before it starts: the line comes back when the restored
//! process reads and writes again, not when somebody says that it would.

use std::fs::{self, File};
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use tempfile::TempDir;

use super::ctr::{NAMESPACE, ctr, remove};
use super::figure::{Figure, RESTORE_SMALL, Side};
use super::measure::Measure;
use crate::container::runc_options;
use crate::messages as msg;
use crate::stdio::Fifos;
use crate::task_api::{TaskApi, json_any};
use crate::workload::{Workload, lay_rootfs};

const SOCKET: &str = "/run/containerd/containerd.sock";
const SPEC_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/Spec";
const KILL: u32 = 9;

/// The figure `restore_small`.
#[derive(Debug)]
pub struct Restore {
    api: TaskApi,
    dir: TempDir,
    fifos_made: u32,
}

impl Restore {
    /// Dumps a container of each side.
    ///
    /// # Errors
    /// The containers cannot be run or dumped.
    pub fn prepare() -> Result<Self> {
        let dir = TempDir::with_prefix("bench-").context("make a scratch directory")?;
        lay_rootfs(&dir.path().join("rootfs"))?;
        let api = TaskApi::new(Path::new(SOCKET), NAMESPACE)?;
        let mut restore = Self {
            api,
            dir,
            fifos_made: 0,
        };
        for side in [Side::Ours, Side::Theirs] {
            restore
                .dump(side)
                .with_context(|| format!("dump {}", side.word()))?;
        }
        Ok(restore)
    }

    fn dump(&mut self, side: Side) -> Result<()> {
        let id = id(side);
        self.api.create_container(msg::ContainerRecord {
            id: id.clone(),
            runtime: Some(msg::Runtime {
                name: side.runtime().to_owned(),
                options: None,
            }),
            spec: Some(json_any(
                SPEC_TYPE,
                &Workload::command(["cat"]).spec(NAMESPACE, &id),
            )),
            ..Default::default()
        })?;
        let _ms = self.run(side, None)?;
        let images = self.images(side);
        let _timed = ctr(&["tasks", "checkpoint", "--exit", "--image-path", &images, &id])?;
        let _exit = self.api.wait(&id, "")?;
        let _deleted = self.api.delete(&id, "")?;
        Ok(())
    }

    /// Creates and starts the task, and returns the milliseconds until it answered.
    fn run(&mut self, side: Side, images: Option<String>) -> Result<f64> {
        let id = id(side);
        self.fifos_made += 1;
        let fifos = Fifos::make(&self.dir.path().join(format!("fifos-{}", self.fifos_made)))?;
        let (stdout, _stderr) = fifos.read();
        // Both ways, so that opening does not wait for a reader and `cat` never sees an end.
        let mut stdin = File::options().read(true).write(true).open(fifos.path("stdin"))?;
        std::io::Write::write_all(&mut stdin, b"runs on\n")?;
        let names = fifos.names(false);
        let options = images.map(|criu_image_path| {
            runc_options(&msg::RuncOptions {
                criu_image_path,
                ..Default::default()
            })
        });
        let request = msg::CreateTaskRequest {
            container_id: id.clone(),
            rootfs: vec![self.rootfs(side)?],
            stdin: names.stdin,
            stdout: names.stdout,
            stderr: names.stderr,
            terminal: false,
            checkpoint: None,
            options,
        };
        let start = Instant::now();
        let _pid = self.api.create(request)?;
        let _pid = self.api.start(&id, "")?;
        stdout.wait_for("runs on")?;
        Ok(start.elapsed().as_secs_f64() * 1000.0)
    }

    fn images(&self, side: Side) -> String {
        self.dir
            .path()
            .join(format!("images-{}", side.word()))
            .display()
            .to_string()
    }

    fn rootfs(&self, side: Side) -> Result<msg::Mount> {
        let layers = self.dir.path().join(side.word());
        let (upper, work) = (layers.join("upper"), layers.join("work"));
        for dir in [&upper, &work] {
            fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
        }
        let option = |key: &str, path: &Path| format!("{key}={}", path.display());
        Ok(msg::Mount {
            r#type: "overlay".to_owned(),
            source: "overlay".to_owned(),
            target: String::new(),
            options: vec![
                option("lowerdir", &self.dir.path().join("rootfs")),
                option("upperdir", &upper),
                option("workdir", &work),
            ],
        })
    }
}

impl Measure for Restore {
    fn sample(&mut self, side: Side) -> Result<Vec<(Figure, f64)>> {
        let images = self.images(side);
        let ms = self.run(side, Some(images))?;
        let id = id(side);
        self.api.kill(&id, "", KILL, false)?;
        let _exit = self.api.wait(&id, "")?;
        let _deleted = self.api.delete(&id, "")?;
        Ok(vec![(RESTORE_SMALL, ms)])
    }
}

impl Drop for Restore {
    fn drop(&mut self) {
        for side in [Side::Ours, Side::Theirs] {
            remove(&id(side));
        }
    }
}

fn id(side: Side) -> String {
    format!("restore-{}", side.word())
}
