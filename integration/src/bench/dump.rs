//! The figures of a dump of a gigabyte that runs on: `freeze_1g`, `freeze_floor`, `dump_1g`, `capture_memory`, and what
//! zeros take on the disk, `dump_half_zero`, and text as one file, `dump_1g_text`.
//!
//! Both sides are asked by the Task API, into a directory on the same disk: `ctr` would pause the container around either's whole
//! dump. Ours answers when the checkpoint is on the disk; theirs is timed until it has been synced.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use super::ctr::{NAMESPACE, timed};
use super::figure::{
    CAPTURE_MEMORY, DUMP_1G, DUMP_1G_TEXT, DUMP_1G_TEXT_SIZE, DUMP_HALF_ZERO, FREEZE_1G, FREEZE_FLOOR,
    Figure, Side,
};
use super::floor;
use super::hog::Hog;
use super::measure::Measure;
use super::worker::Watch;

const MIB: u32 = 1024;
/// Each writes a gigabyte and takes seconds.
const LARGE_RUNS_MAX: u32 = 5;
/// What is counted and not timed comes out the same each time.
const COUNTED_RUNS: u32 = 1;

/// A hog a side, and where they are dumped.
#[derive(Debug)]
struct Hogs {
    ours: Hog,
    theirs: Hog,
    dir: TempDir,
}

impl Hogs {
    fn start(name: &str, content: &str) -> Result<Self> {
        // On a disk, where checkpoints are; /tmp may be memory.
        let dir = TempDir::with_prefix_in("bench-", "target").context("make a scratch directory")?;
        let start = |side| Hog::start(dir.path(), side, name, MIB, content);
        Ok(Self {
            ours: start(Side::Ours)?,
            theirs: start(Side::Theirs)?,
            dir,
        })
    }

    fn of(&mut self, side: Side) -> &mut Hog {
        match side {
            Side::Ours => &mut self.ours,
            Side::Theirs => &mut self.theirs,
        }
    }

    fn images(&self) -> Result<PathBuf> {
        Ok(fs::canonicalize(self.dir.path())?.join("images"))
    }

    /// Dumps a side; returns the gap it saw and the time until the checkpoint was on the disk, in milliseconds.
    fn dump(&mut self, side: Side, images: &Path) -> Result<(f64, f64)> {
        let hog = self.of(side);
        let _before = hog.gap()?;
        let start = Instant::now();
        hog.checkpoint(images)?;
        if side == Side::Theirs {
            sync(images)?;
        }
        let took = start.elapsed().as_secs_f64() * 1000.0;
        Ok((hog.gap()?, took))
    }
}

/// The figures that are timed.
#[derive(Debug)]
pub struct Large(Hogs);

impl Large {
    /// Starts a hog a side.
    ///
    /// # Errors
    /// They cannot be run.
    pub fn prepare() -> Result<Self> {
        Hogs::start("dump-large", "random").map(Self)
    }

    fn floor(&mut self) -> Result<f64> {
        let images = self.0.images()?;
        let hog = self.0.of(Side::Theirs);
        let _before = hog.gap()?;
        let bytes = floor::dump(&images, &hog.id, hog.pid)?;
        ensure!(bytes >= u64::from(MIB) << 20, "only {bytes} bytes of pages came");
        let gap = hog.gap()?;
        remove(&images)?;
        Ok(gap)
    }
}

impl Measure for Large {
    fn sample(&mut self, side: Side) -> Result<Vec<(Figure, f64)>> {
        let images = self.0.images()?;
        let watch = (side == Side::Ours).then(Watch::start);
        let dumped = self.0.dump(side, &images);
        let peak = watch.map(Watch::end);
        let (gap, took) = dumped?;
        remove(&images)?;
        let (floor, memory) = match peak {
            Some(peak) => {
                let peak = peak?;
                (gap, peak.resident.saturating_sub(peak.buffer))
            }
            None => (self.floor()?, u64::from(CAPTURE_MEMORY_KIB_MAX)),
        };
        // A worker's memory is counted in KiB, far below where a float loses one.
        #[expect(clippy::cast_precision_loss, reason = "see above")]
        let memory = memory as f64 / 1024.0;
        Ok(vec![
            (FREEZE_1G, gap),
            (FREEZE_FLOOR, floor),
            (DUMP_1G, took),
            (CAPTURE_MEMORY, memory),
        ])
    }

    fn runs(&self, asked: u32) -> u32 {
        asked.min(LARGE_RUNS_MAX)
    }
}

/// What a worker may take beyond its buffer, which stands in the place of theirs.
const CAPTURE_MEMORY_KIB_MAX: u32 = 64 * 1024;

/// The figure `dump_half_zero`.
#[derive(Debug)]
pub struct HalfZero(Hogs);

impl HalfZero {
    /// Starts a hog a side, every second page of which is zero.
    ///
    /// # Errors
    /// They cannot be run.
    pub fn prepare() -> Result<Self> {
        Hogs::start("dump-zero", "half-zero").map(Self)
    }
}

impl Measure for HalfZero {
    fn sample(&mut self, side: Side) -> Result<Vec<(Figure, f64)>> {
        let images = self.0.images()?;
        let _dumped = self.0.dump(side, &images)?;
        let blocks = blocks(&images)?;
        remove(&images)?;
        // In units of 512 bytes.
        #[expect(clippy::cast_precision_loss, reason = "a few million blocks")]
        let mib = blocks as f64 / 2048.0;
        Ok(vec![(DUMP_HALF_ZERO, mib)])
    }

    fn runs(&self, _asked: u32) -> u32 {
        COUNTED_RUNS
    }
}

/// The figures `dump_1g_text` and `dump_1g_text_size`.
#[derive(Debug)]
pub struct Text(Hogs);

impl Text {
    /// Starts a hog a side, full of what compresses as logs do.
    ///
    /// # Errors
    /// They cannot be run.
    pub fn prepare() -> Result<Self> {
        Hogs::start("dump-text", "text").map(Self)
    }

    /// By the command line, as nobody else asks for a file.
    fn ours(&mut self) -> Result<(f64, u64)> {
        let dir = fs::canonicalize(self.0.dir.path())?;
        let job = format!("{NAMESPACE}/{}", self.0.of(Side::Ours).id);
        let timed = timed(
            Command::new("cedana")
                .args(["dump", "job", &job, "--leave-running", "--compression", "zstd"])
                .args(["--name", "text", "--dir"])
                .arg(&dir),
        )?;
        let file = dir.join("text.tar.zst");
        let blocks = fs::metadata(&file)?.blocks();
        fs::remove_file(&file)?;
        Ok((timed.ms, blocks))
    }

    fn theirs(&mut self) -> Result<(f64, u64)> {
        let images = self.0.images()?;
        let (_gap, took) = self.0.dump(Side::Theirs, &images)?;
        let blocks = blocks(&images)?;
        remove(&images)?;
        Ok((took, blocks))
    }
}

impl Measure for Text {
    fn sample(&mut self, side: Side) -> Result<Vec<(Figure, f64)>> {
        let (took, blocks) = match side {
            Side::Ours => self.ours()?,
            Side::Theirs => self.theirs()?,
        };
        #[expect(clippy::cast_precision_loss, reason = "a few million blocks of 512 bytes")]
        let mib = blocks as f64 / 2048.0;
        Ok(vec![(DUMP_1G_TEXT, took), (DUMP_1G_TEXT_SIZE, mib)])
    }

    fn runs(&self, asked: u32) -> u32 {
        asked.min(LARGE_RUNS_MAX)
    }
}

fn remove(images: &Path) -> Result<()> {
    fs::remove_dir_all(images).with_context(|| format!("remove {}", images.display()))
}

/// Brings every file of a directory to the disk, and the directory: what has been written by others need not wait.
pub(super) fn sync(dir: &Path) -> Result<()> {
    for entry in fs::read_dir(dir)? {
        File::open(entry?.path())?.sync_all()?;
    }
    Ok(File::open(dir)?.sync_all()?)
}

/// Blocks of the disk that a tree takes.
fn blocks(dir: &Path) -> Result<u64> {
    let mut sum = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        sum += metadata.blocks();
        if metadata.is_dir() {
            sum += blocks(&entry.path())?;
        }
    }
    Ok(sum)
}
