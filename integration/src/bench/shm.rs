//! The figure `dump_shm`: a dump of a container with 64 MiB in `/dev/shm`, which CRIU has packed by the program `tar`.
//!
//! By the Task API, as [`super::dump`] does it; ours answers when it is on the disk, theirs is timed until it is.

use std::fs;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use tempfile::TempDir;

use super::ctr::{Container, NAMESPACE, ctr};
use super::dump::sync;
use super::figure::{DUMP_SHM, Figure, Side};
use super::measure::{IDLE, Measure};
use crate::messages as msg;
use crate::task_api::TaskApi;

const SOCKET: &str = "/run/containerd/containerd.sock";
/// Theirs takes seconds.
const RUNS_MAX: u32 = 5;
/// All that a container's `/dev/shm` has room for by default: 64 MiB, which no compressor makes smaller.
const FILL: [&str; 5] = ["dd", "if=/dev/urandom", "of=/dev/shm/full", "bs=1M", "count=64"];

/// A container a side.
#[derive(Debug)]
pub struct Shm {
    ours: Container,
    theirs: Container,
    api: TaskApi,
    dir: TempDir,
}

impl Shm {
    /// Starts them and fills their memory.
    ///
    /// # Errors
    /// They cannot be run.
    pub fn prepare() -> Result<Self> {
        let start = |side| -> Result<Container> {
            let container = Container::start(side, "dump-shm", &IDLE)?;
            let exec = ["tasks", "exec", "--exec-id", "fill", &container.id];
            let _timed = ctr(&[&exec[..], &FILL].concat())?;
            Ok(container)
        };
        Ok(Self {
            ours: start(Side::Ours)?,
            theirs: start(Side::Theirs)?,
            api: TaskApi::new(Path::new(SOCKET), NAMESPACE)?,
            // On a disk, where checkpoints are; /tmp may be memory.
            dir: TempDir::with_prefix_in("bench-", "target").context("make a scratch directory")?,
        })
    }
}

impl Measure for Shm {
    fn sample(&mut self, side: Side) -> Result<Vec<(Figure, f64)>> {
        let images = fs::canonicalize(self.dir.path())?.join("images");
        let options = msg::CheckpointOptions {
            image_path: images.display().to_string(),
            ..Default::default()
        };
        let container = match side {
            Side::Ours => &self.ours,
            Side::Theirs => &self.theirs,
        };
        let start = Instant::now();
        let _descriptors = self.api.checkpoint(&container.id, Some(&options))?;
        if side == Side::Theirs {
            sync(&images)?;
        }
        let took = start.elapsed().as_secs_f64() * 1000.0;
        fs::remove_dir_all(&images).with_context(|| format!("remove {}", images.display()))?;
        Ok(vec![(DUMP_SHM, took)])
    }

    fn runs(&self, asked: u32) -> u32 {
        asked.min(RUNS_MAX)
    }
}
