//! `bench --beside`: a gigabyte saved by `cedana dump`, by Podman and by Docker, each by its command line as a user has it, from a
//! container that goes on. What is asked of the application is the largest gap between two of its ticks.
//!
//! Docker has no form but a directory of images; the others make one file by zstd. Docker does not wait for the disk, so its time
//! includes a sync of what it wrote, as ours does of itself; Podman's is taken as it is.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use super::ctr::NAMESPACE;
use super::dump::sync;
use super::figure::Side;
use super::hog::{Hog, LIBRARIES};
use crate::attached::Attached;
use crate::engine::{Said, run};
use crate::host::IMAGE;

const MIB: u32 = 1024;
/// Images as the testbed keeps them.
const IMAGES: &str = "/usr/share/cedana-testbed/images.tar";
const NAME: &str = "beside";

/// What one dump cost.
#[derive(Debug, Clone, Copy)]
struct Cost {
    /// The largest gap, in milliseconds.
    gap: f64,
    /// From the request to the answer, in milliseconds.
    took: f64,
    /// What it takes on the disk, in MiB.
    size: f64,
}

/// The table, for memory that is random and for memory that is text.
///
/// # Errors
/// An engine does not run, or does not dump.
pub fn beside(runs: u32) -> Result<String> {
    let mut table = format!(
        "{:<8} {:<8} {:>10} {:>10} {:>10}\n",
        "memory", "by", "gap ms", "took ms", "MiB"
    );
    for content in ["random", "text"] {
        // One after another: each holds a gigabyte.
        for name in ["cedana", "podman", "docker"] {
            let mut engine: Box<dyn Dumps> = match name {
                "cedana" => Box::new(Cedana::start(content)?),
                _ => Box::new(Client::start(name, content)?),
            };
            let cost = median(engine.as_mut(), runs)?;
            let Cost { gap, took, size } = cost;
            table.push_str(&format!(
                "{content:<8} {name:<8} {gap:>10.0} {took:>10.0} {size:>10.0}\n"
            ));
        }
    }
    Ok(table)
}

/// By the time of the whole dump.
fn median(engine: &mut dyn Dumps, runs: u32) -> Result<Cost> {
    let mut costs = (0..runs).map(|_| engine.dump()).collect::<Result<Vec<Cost>>>()?;
    costs.sort_by(|a, b| a.took.total_cmp(&b.took));
    costs.get(costs.len() / 2).copied().context("one run at least")
}

/// A hog under some engine.
trait Dumps {
    fn dump(&mut self) -> Result<Cost>;
}

struct Cedana {
    hog: Hog,
    dir: TempDir,
}

impl Cedana {
    fn start(content: &str) -> Result<Self> {
        let dir = scratch()?;
        let hog = Hog::start(dir.path(), Side::Ours, NAME, MIB, content)?;
        Ok(Self { hog, dir })
    }
}

impl Dumps for Cedana {
    fn dump(&mut self) -> Result<Cost> {
        let job = format!("{NAMESPACE}/{}", self.hog.id);
        let dir = fs::canonicalize(self.dir.path())?.display().to_string();
        let _before = self.hog.gap()?;
        let start = Instant::now();
        let form = ["--leave-running", "--compression", "zstd", "--dir", &dir];
        let said = run("cedana", &[&["dump", "job", &job], &form[..]].concat())?.ok()?;
        let took = start.elapsed();
        let (_, path) = said.trim().rsplit_once(' ').context("where it is")?;
        cost(self.hog.gap()?, took.as_secs_f64(), Path::new(path))
    }
}

/// A client of the usual kind; its container reads and answers by it.
struct Client {
    name: &'static str,
    hog: Attached,
    dir: TempDir,
}

impl Client {
    fn start(name: &'static str, content: &str) -> Result<Self> {
        if name == "podman" {
            let _loaded = client(name, &["load", "--quiet", "--input", IMAGES])?.ok()?;
        }
        let hog = std::env::current_exe()?.with_file_name("hog");
        let bind = |from: &str, to: &str| format!("{from}:{to}:ro");
        let mounts = [bind(&hog.display().to_string(), "/hog")];
        let mounts = mounts
            .into_iter()
            .chain(LIBRARIES.iter().map(|(from, to)| bind(from, to)));
        let mut command = Command::new(name);
        let _ = command.args(global(name));
        let _ = command.args(["run", "--interactive", "--name", NAME, "--network", "none"]);
        for mount in mounts {
            let _ = command.args(["--volume", &mount]);
        }
        let hog = Attached::start(command.args([IMAGE, "/hog", &MIB.to_string(), content]))?;
        let first = hog.line()?;
        ensure!(
            first == "ready",
            "{name}'s hog began with {first:?}; {}",
            hog.stderr()
        );
        let dir = scratch()?;
        Ok(Self { name, hog, dir })
    }

    fn gap(&mut self) -> Result<f64> {
        let answer = self.hog.ask("gap")?;
        let microseconds = answer
            .rsplit(' ')
            .next()
            .and_then(|word| word.parse::<f64>().ok());
        Ok(microseconds.with_context(|| format!("a gap in {answer:?}"))? / 1000.0)
    }
}

impl Dumps for Client {
    fn dump(&mut self) -> Result<Cost> {
        let at = fs::canonicalize(self.dir.path())?.join("kept");
        let path = at.display().to_string();
        let _before = self.gap()?;
        let start = Instant::now();
        if self.name == "podman" {
            let export = ["--leave-running", "--compress", "zstd", "--export", &path, NAME];
            let _said = client(self.name, &[&["container", "checkpoint"], &export[..]].concat())?.ok()?;
        } else {
            let create = [
                "create",
                "--leave-running",
                "--checkpoint-dir",
                &path,
                NAME,
                "one",
            ];
            let _said = client(self.name, &[&["checkpoint"], &create[..]].concat())?.ok()?;
            sync(&at.join("one"))?;
        }
        let took = start.elapsed();
        cost(self.gap()?, took.as_secs_f64(), &at)
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _removed = client(self.name, &["rm", "--force", NAME]);
    }
}

/// What it cost, and removes what was saved.
fn cost(gap: f64, seconds: f64, saved: &Path) -> Result<Cost> {
    let blocks = blocks(saved)?;
    match saved.is_dir() {
        true => fs::remove_dir_all(saved)?,
        false => fs::remove_file(saved)?,
    }
    // In units of 512 bytes.
    #[expect(clippy::cast_precision_loss, reason = "a few million blocks")]
    let size = blocks as f64 / 2048.0;
    let took = seconds * 1000.0;
    Ok(Cost { gap, took, size })
}

fn blocks(path: &Path) -> Result<u64> {
    let metadata = fs::symlink_metadata(path)?;
    let mut sum = metadata.blocks();
    if metadata.is_dir() {
        for entry in fs::read_dir(path)? {
            sum += blocks(&entry?.path())?;
        }
    }
    Ok(sum)
}

/// What goes before a command of Podman's: a store that works on any file system, and the runtime and cgroups of the others.
fn global(name: &str) -> &'static [&'static str] {
    match name {
        "podman" => &[
            "--storage-driver",
            "vfs",
            "--runtime",
            "runc",
            "--cgroup-manager",
            "cgroupfs",
        ],
        _ => &[],
    }
}

fn client(name: &str, args: &[&str]) -> Result<Said> {
    run(name, &[global(name), args].concat())
}

/// On a disk, where checkpoints are; /tmp may be memory.
fn scratch() -> Result<TempDir> {
    TempDir::with_prefix_in("bench-", "target").context("make a scratch directory")
}
