//! The figures `restore_small`, `restore_1g` and `restore_4g_vs_1g`: create and start from a checkpoint, by the Task API, until
//! the process runs on; and `restore_1g_zstd`, for which ours comes out of one file, by the command line that reads those.
//!
//! The container runs `cat`, or a program with as much memory, and its stdin holds a line before it starts: the answer comes
//! when the restored process reads and writes again, not when somebody says that it would.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::ctr::{NAMESPACE, ctr, remove, timed};
use super::figure::{FILL_RATE, Figure, RESTORE_1G, RESTORE_1G_ZSTD, RESTORE_4G, RESTORE_SMALL, Side};
use super::measure::Measure;
use crate::container::runc_options;
use crate::messages as msg;
use crate::stdio::Fifos;
use crate::task_api::{TaskApi, json_any};
use crate::workload::{Workload, lay_rootfs};

const SOCKET: &str = "/run/containerd/containerd.sock";
const SPEC_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/Spec";
const KILL: u32 = 9;

/// The libraries that the program with much memory needs in its container.
const LIBRARIES: [(&str, &str); 2] = [
    ("/usr/lib/x86_64-linux-gnu", "/lib/x86_64-linux-gnu"),
    ("/usr/lib64", "/lib64"),
];

/// A restore of so many gigabytes takes seconds on one of the sides.
const LARGE_RUNS_MAX: u32 = 5;

/// The file, without its suffix.
const ARCHIVE: &str = "checkpoint";

/// What is restored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Size {
    /// `cat`.
    Small,
    /// A program with so many MiB, the same on both sides.
    Large(u32),
    /// The same, ours out of one file.
    Archived(u32),
    /// Ours of so many MiB, and ours of so many in the place of theirs.
    Grown(u32, u32),
    /// Ours alone, of a program with so many MiB: whoever restores it looks how its memory comes.
    Filled(u32),
}

impl Size {
    fn figure(self) -> Figure {
        match self {
            Self::Small => RESTORE_SMALL,
            Self::Large(_) => RESTORE_1G,
            Self::Archived(_) => RESTORE_1G_ZSTD,
            Self::Grown(..) => RESTORE_4G,
            Self::Filled(_) => FILL_RATE,
        }
    }

    fn mib(self, side: Side) -> Option<u32> {
        match (self, side) {
            (Self::Small, _) => None,
            (Self::Large(mib) | Self::Archived(mib) | Self::Filled(mib), _)
            | (Self::Grown(mib, _), Side::Ours)
            | (Self::Grown(_, mib), Side::Theirs) => Some(mib),
        }
    }

    fn sides(self) -> &'static [Side] {
        match self {
            Self::Filled(_) => &[Side::Ours],
            _ => &[Side::Ours, Side::Theirs],
        }
    }

    fn runtime(self, side: Side) -> &'static str {
        match self {
            Self::Grown(..) => Side::Ours.runtime(),
            _ => side.runtime(),
        }
    }
}

/// The figures of one size.
#[derive(Debug)]
pub struct Restore {
    api: TaskApi,
    dir: TempDir,
    size: Size,
    fifos_made: u32,
}

impl Restore {
    /// Dumps a container of each side.
    ///
    /// # Errors
    /// The containers cannot be run or dumped.
    pub fn prepare(size: Size) -> Result<Self> {
        // On a disk, where checkpoints are; /tmp may be memory.
        let dir = TempDir::with_prefix_in("bench-", "target").context("make a scratch directory")?;
        lay_rootfs(&dir.path().join("rootfs"))?;
        let api = TaskApi::new(Path::new(SOCKET), NAMESPACE)?;
        let mut restore = Self {
            api,
            dir,
            size,
            fifos_made: 0,
        };
        for &side in size.sides() {
            restore
                .dump(side)
                .with_context(|| format!("dump {}", side.word()))?;
        }
        Ok(restore)
    }

    fn dump(&mut self, side: Side) -> Result<()> {
        let id = self.id(side);
        self.api.create_container(msg::ContainerRecord {
            id: id.clone(),
            runtime: Some(msg::Runtime {
                name: self.size.runtime(side).to_owned(),
                options: None,
            }),
            spec: Some(json_any(SPEC_TYPE, &self.spec(side, &id)?)),
            ..Default::default()
        })?;
        if self.is_archived(side) {
            return self.dump_to_archive(&id);
        }
        let _ms = self.run(side, None, &mut |_pid| ())?;
        let images = self.images(side);
        let _timed = ctr(&["tasks", "checkpoint", "--exit", "--image-path", &images, &id])?;
        let _exit = self.api.wait(&id, "")?;
        let _deleted = self.api.delete(&id, "")?;
        Ok(())
    }

    /// Its task stays, as one that has ended.
    fn dump_to_archive(&mut self, id: &str) -> Result<()> {
        let fifos = self.fifos()?;
        let (stdout, _stderr) = fifos.read();
        let _stdin = asked(&fifos)?;
        let _pid = self.api.create(self.request(id, &fifos, None)?)?;
        let _pid = self.api.start(id, "")?;
        stdout.wait_for("ok")?;
        let job = format!("{NAMESPACE}/{id}");
        let dir = fs::canonicalize(self.dir.path())?;
        let mut dump = Command::new("cedana");
        let dump = dump.args([
            "dump",
            "job",
            &job,
            "--compression",
            "zstd",
            "--name",
            ARCHIVE,
            "--dir",
        ]);
        let _timed = timed(dump.arg(dir))?;
        let _exit = self.api.wait(id, "")?;
        Ok(())
    }

    /// Out of the archive, and ends it. Returns the milliseconds until it answered.
    fn restore_archive(&mut self) -> Result<f64> {
        let id = self.id(Side::Ours);
        // At the paths that the task has.
        let fifos = self.fifos()?;
        let (stdout, _stderr) = fifos.read();
        let _stdin = asked(&fifos)?;
        let (job, path) = (
            format!("{NAMESPACE}/{id}"),
            self.dir.path().join(format!("{ARCHIVE}.tar.zst")),
        );
        let start = Instant::now();
        let _timed = timed(
            Command::new("cedana")
                .args(["restore", "job", &job, "--path"])
                .arg(path),
        )?;
        stdout.wait_for("ok")?;
        let ms = start.elapsed().as_secs_f64() * 1000.0;
        self.api.kill(&id, "", KILL, false)?;
        let _exit = self.api.wait(&id, "")?;
        Ok(ms)
    }

    fn is_archived(&self, side: Side) -> bool {
        matches!(self.size, Size::Archived(_)) && side == Side::Ours
    }

    /// New ones: at the same paths where a task is restored that is still there.
    fn fifos(&mut self) -> Result<Fifos> {
        let number = match self.size {
            Size::Archived(_) => 0,
            _ => self.fifos_made + 1,
        };
        self.fifos_made = number;
        Fifos::make(&self.dir.path().join(format!("fifos-{number}")))
    }

    /// The spec of what is dumped.
    pub(super) fn spec(&self, side: Side, id: &str) -> Result<Value> {
        let Some(mib) = self.size.mib(side) else {
            return Ok(Workload::command(["cat"]).spec(NAMESPACE, id));
        };
        let mut spec = Workload::command(["/stir".to_owned(), mib.to_string()]).spec(NAMESPACE, id);
        let program = std::env::current_exe()?.with_file_name("stir");
        let bind = |source: &str, destination: &str| json!({"destination": destination, "type": "bind", "source": source, "options": ["rbind", "ro"]});
        let mounts = spec.get_mut("mounts").and_then(Value::as_array_mut);
        let mounts = mounts.context("mounts in the spec")?;
        mounts.push(bind(&program.display().to_string(), "/stir"));
        mounts.extend(LIBRARIES.iter().map(|(source, target)| bind(source, target)));
        Ok(spec)
    }

    /// Restores what was dumped, and ends it. `seen` is told the pid as soon as it is there and let go. Returns the milliseconds
    /// until it answered.
    ///
    /// # Errors
    /// It is not restored.
    pub(super) fn restore(&mut self, side: Side, seen: &mut dyn FnMut(u32)) -> Result<f64> {
        let images = self.images(side);
        let ms = self.run(side, Some(images), seen)?;
        let id = self.id(side);
        self.api.kill(&id, "", KILL, false)?;
        let _exit = self.api.wait(&id, "")?;
        let _deleted = self.api.delete(&id, "")?;
        Ok(ms)
    }

    /// Creates and starts the task, and returns the milliseconds until it answered.
    fn run(&mut self, side: Side, images: Option<String>, seen: &mut dyn FnMut(u32)) -> Result<f64> {
        let id = self.id(side);
        let fifos = self.fifos()?;
        let (stdout, _stderr) = fifos.read();
        let _stdin = asked(&fifos)?;
        let options = images.map(|criu_image_path| {
            runc_options(&msg::RuncOptions {
                criu_image_path,
                ..Default::default()
            })
        });
        let request = self.request(&id, &fifos, options)?;
        let start = Instant::now();
        let pid = self.api.create(request)?;
        let _pid = self.api.start(&id, "")?;
        seen(pid);
        // `cat` says what it was told, the other program that all is well.
        stdout.wait_for(if self.size == Size::Small { "runs on" } else { "ok" })?;
        Ok(start.elapsed().as_secs_f64() * 1000.0)
    }

    fn request(
        &self,
        id: &str,
        fifos: &Fifos,
        options: Option<prost_types::Any>,
    ) -> Result<msg::CreateTaskRequest> {
        let names = fifos.names(false);
        Ok(msg::CreateTaskRequest {
            container_id: id.to_owned(),
            rootfs: vec![self.rootfs(id)?],
            stdin: names.stdin,
            stdout: names.stdout,
            stderr: names.stderr,
            terminal: false,
            checkpoint: None,
            options,
        })
    }

    fn id(&self, side: Side) -> String {
        let name = self.size.figure().key.replace('_', "-");
        format!("{name}-{}", side.word())
    }

    /// Where everything is.
    pub(super) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Where it is dumped to.
    pub(super) fn images(&self, side: Side) -> String {
        self.dir
            .path()
            .join(format!("images-{}", side.word()))
            .display()
            .to_string()
    }

    fn rootfs(&self, id: &str) -> Result<msg::Mount> {
        let layers = self.dir.path().join(id);
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

/// A line that it answers. Open both ways, so that opening does not wait for a reader and `cat` never sees an end.
fn asked(fifos: &Fifos) -> Result<File> {
    let mut stdin = File::options().read(true).write(true).open(fifos.path("stdin"))?;
    std::io::Write::write_all(&mut stdin, b"runs on\n")?;
    Ok(stdin)
}

impl Measure for Restore {
    fn sample(&mut self, side: Side) -> Result<Vec<(Figure, f64)>> {
        let ms = match self.is_archived(side) {
            true => self.restore_archive()?,
            false => self.restore(side, &mut |_pid| ())?,
        };
        Ok(vec![(self.size.figure(), ms)])
    }

    fn runs(&self, asked: u32) -> u32 {
        match self.size {
            Size::Small => asked,
            _ => asked.min(LARGE_RUNS_MAX),
        }
    }
}

impl Drop for Restore {
    fn drop(&mut self) {
        for &side in self.size.sides() {
            remove(&self.id(side));
        }
    }
}
