//! The figure `fill_rate`: how fast the memory of a lazily restored process comes behind it; ours by our worker, theirs by CRIU's
//! own daemon, of the same images.
//!
//! Both are measured at the process: from the moment when it is seen, until its memory is there. What came before does not count.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::figure::{FILL_RATE, Figure, Side};
use super::measure::Measure;
use super::restore::{Restore, Size};
use crate::workload::lay_rootfs;

/// What is restored.
const PROGRAM: &str = "stir";
/// What is filled.
const MIB: u32 = 1024;
/// It is full when so many hundredths are there: the kernel counts a little late.
const FULL_PERCENT: u64 = 98;
/// The slowest daemon takes seconds.
const DEADLINE: Duration = Duration::from_secs(60);
/// How often it is looked; 50 times a fill at least.
const LOOK_EVERY: Duration = Duration::from_millis(2);
/// Where runc keeps the state of theirs.
const RUNC_ROOT: &str = "/run/fill-bench";
const ID: &str = "fill-theirs";

/// The figure.
#[derive(Debug)]
pub struct Fill(Restore);

impl Fill {
    /// Dumps what is to be restored.
    ///
    /// # Errors
    /// It cannot be run or dumped.
    pub fn prepare() -> Result<Self> {
        let restore = Restore::prepare(Size::Filled(MIB))?;
        lay_rootfs(&restore.dir().join("bundle/rootfs"))?;
        let spec = restore.spec(Side::Ours, ID)?;
        fs::write(restore.dir().join("bundle/config.json"), spec.to_string()).context("write a spec")?;
        Ok(Self(restore))
    }

    fn ours(&mut self) -> Result<f64> {
        let (mut watch, mut rate) = (Some(Watch::start()), Ok(0.0));
        let mut seen = |_pid| rate = watch.take().map_or(Ok(0.0), Watch::end);
        let _ms = self.0.restore(Side::Ours, &mut seen)?;
        rate
    }

    fn theirs(&self) -> Result<f64> {
        let (images, work) = (self.0.images(Side::Ours), self.0.dir().join("work"));
        let _gone = fs::remove_dir_all(&work);
        fs::create_dir(&work).context("make a work directory")?;
        let mut daemon = Daemon::start(&images, &work)?;
        let watch = Watch::start();
        let _restored = Restored::by_runc(&images, &work, &self.0.dir().join("bundle"))?;
        let rate = watch.end()?;
        daemon.end()?;
        Ok(rate)
    }
}

impl Measure for Fill {
    fn sample(&mut self, side: Side) -> Result<Vec<(Figure, f64)>> {
        let rate = match side {
            Side::Ours => self.ours()?,
            Side::Theirs => self.theirs()?,
        };
        Ok(vec![(FILL_RATE, rate)])
    }

    fn runs(&self, asked: u32) -> u32 {
        self.0.runs(asked)
    }
}

/// Looks out for the process, whose memory may be there before anybody says that it is.
struct Watch(JoinHandle<Result<f64>>);

impl Watch {
    fn start() -> Self {
        Self(thread::spawn(|| {
            let deadline = Instant::now() + DEADLINE;
            loop {
                if let Some(pid) = find() {
                    return watch(pid);
                }
                ensure!(Instant::now() < deadline, "no {PROGRAM} after {DEADLINE:?}");
                thread::sleep(LOOK_EVERY);
            }
        }))
    }

    fn end(self) -> Result<f64> {
        self.0.join().map_err(|_| anyhow!("the watch panicked"))?
    }
}

/// The restored process: until it is that, it has CRIU's name.
fn find() -> Option<u32> {
    let names = fs::read_dir("/proc")
        .ok()?
        .filter_map(|entry| Some(entry.ok()?.file_name()));
    let mut pids = names.filter_map(|name| name.to_str()?.parse().ok());
    pids.find(|pid: &u32| {
        let says = |file: &str, what: fn(&str) -> bool| {
            fs::read_to_string(format!("/proc/{pid}/{file}")).is_ok_and(|text| what(&text))
        };
        says("comm", |name| name.trim_end() == PROGRAM) && says("cgroup", |groups| groups.contains("/fill-"))
    })
}

/// Watches the memory of a process come, and returns GiB a second.
fn watch(pid: u32) -> Result<f64> {
    let (start, before) = (Instant::now(), resident_kib(pid)?);
    let full = u64::from(MIB) * 1024 * FULL_PERCENT / 100;
    ensure!(before < full / 2, "{before} KiB were there before it was looked");
    loop {
        let there = resident_kib(pid)?;
        let took = start.elapsed();
        if there >= full {
            let gib = (there - before) as f64 / f64::from(1 << 20);
            return Ok(gib / took.as_secs_f64());
        }
        ensure!(took < DEADLINE, "{there} KiB are there after {DEADLINE:?}");
        thread::sleep(LOOK_EVERY);
    }
}

fn resident_kib(pid: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).context("read what is resident")?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let number = line.and_then(|line| line.split_whitespace().next());
    Ok(number.context("RssAnon")?.parse()?)
}

/// CRIU's own server of pages. It ends when all are given.
#[derive(Debug)]
struct Daemon(Child);

impl Daemon {
    fn start(images: &str, work: &Path) -> Result<Self> {
        let mut command = Command::new("criu");
        let _command = command.args(["lazy-pages", "--images-dir", images, "--work-dir"]);
        let daemon = Self(command.arg(work).spawn().context("start criu lazy-pages")?);
        let deadline = Instant::now() + DEADLINE;
        while !work.join("lazy-pages.socket").exists() {
            ensure!(Instant::now() < deadline, "criu lazy-pages does not listen");
            thread::sleep(LOOK_EVERY);
        }
        Ok(daemon)
    }

    fn end(&mut self) -> Result<()> {
        let status = self.0.wait().context("wait for criu lazy-pages")?;
        ensure!(status.success(), "criu lazy-pages: {status}");
        Ok(())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It has ended, unless something failed.
        let _killed = self.0.kill();
        let _ended = self.0.wait();
    }
}

/// A container that runc restored without an engine.
#[derive(Debug)]
struct Restored {
    pid: u32,
    /// Has the other ends of its streams.
    _runc: Child,
}

impl Restored {
    fn by_runc(images: &str, work: &Path, bundle: &Path) -> Result<Self> {
        let pid_file: PathBuf = work.join("pid");
        let mut runc = runc("restore")
            .args(["--detach", "--lazy-pages", "--image-path", images, "--work-path"])
            .arg(work)
            .arg("--bundle")
            .arg(bundle)
            .arg("--pid-file")
            .arg(&pid_file)
            .arg(ID)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("start runc restore")?;
        // Not by `wait`, which closes its input.
        let deadline = Instant::now() + DEADLINE;
        let status = loop {
            if let Some(status) = runc.try_wait().context("wait for runc restore")? {
                break status;
            }
            ensure!(
                Instant::now() < deadline,
                "runc restore: not done after {DEADLINE:?}"
            );
            thread::sleep(Duration::from_millis(1));
        };
        ensure!(status.success(), "runc restore --lazy-pages: {status}");
        let pid = fs::read_to_string(&pid_file)
            .context("read its pid")?
            .trim()
            .parse()?;
        Ok(Self { pid, _runc: runc })
    }
}

impl Drop for Restored {
    fn drop(&mut self) {
        let pid = i32::try_from(self.pid).unwrap_or_default();
        let _killed = kill(Pid::from_raw(pid), Signal::SIGKILL);
        // What stays shows in the check for leftovers.
        let _deleted = runc("delete").args(["--force", ID]).status();
    }
}

fn runc(verb: &str) -> Command {
    let mut command = Command::new("runc");
    let _command = command.args(["--root", RUNC_ROOT, verb]);
    command
}
