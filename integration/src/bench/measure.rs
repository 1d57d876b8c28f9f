//! How one sample of each figure is taken.

use std::fs::read_to_string;

use anyhow::{Context, Result};

use super::ctr::{Container, IMAGE, ctr, remove};
use super::figure::{DUMP_SMALL, EXEC, Figure, RUN, SHIM_DIRTY, SHIM_RSS, SHIM_THREADS, Side};

/// Execs before a shim's memory is read: a leak or a pool that grows with use shows after that many.
const EXECS_BEFORE_REST: u32 = 50;
/// What the measured containers run: next to nothing. A bare `sleep` would end at the first dump, which interrupts it.
pub(super) const IDLE: [&str; 3] = ["sh", "-c", "while :; do sleep 1000; done"];

/// Something that can be measured on either side, again and again.
pub trait Measure {
    /// One sample of each figure it stands for.
    ///
    /// # Errors
    /// What was measured did not work.
    fn sample(&mut self, side: Side) -> Result<Vec<(Figure, f64)>>;

    /// Samples to take a side, where this many were asked for.
    fn runs(&self, asked: u32) -> u32 {
        asked
    }
}

/// The figure `run`.
#[derive(Debug)]
pub struct Run;

impl Measure for Run {
    fn sample(&mut self, side: Side) -> Result<Vec<(Figure, f64)>> {
        let id = format!("run-{}", side.word());
        let timed = ctr(&["run", "--rm", "--runtime", side.runtime(), IMAGE, &id, "true"]);
        if timed.is_err() {
            remove(&id);
        }
        Ok(vec![(RUN, timed?.ms)])
    }
}

/// One container a side, running as long as the measure lives.
#[derive(Debug)]
struct Pair {
    ours: Container,
    theirs: Container,
}

impl Pair {
    fn start(name: &str) -> Result<Self> {
        Ok(Self {
            ours: Container::start(Side::Ours, name, &IDLE)?,
            theirs: Container::start(Side::Theirs, name, &IDLE)?,
        })
    }

    fn of(&self, side: Side) -> &Container {
        match side {
            Side::Ours => &self.ours,
            Side::Theirs => &self.theirs,
        }
    }
}

fn exec_true(container: &Container) -> Result<f64> {
    Ok(ctr(&["tasks", "exec", "--exec-id", "true", &container.id, "true"])?.ms)
}

/// The figure `exec`.
#[derive(Debug)]
pub struct Exec(Pair);

impl Exec {
    /// Starts the containers.
    ///
    /// # Errors
    /// As [`Container::start`].
    pub fn prepare() -> Result<Self> {
        Pair::start("exec").map(Self)
    }
}

impl Measure for Exec {
    fn sample(&mut self, side: Side) -> Result<Vec<(Figure, f64)>> {
        Ok(vec![(EXEC, exec_true(self.0.of(side))?)])
    }
}

/// The figures `shim_rss`, `shim_dirty` and `shim_threads`: a fresh shim for each sample.
#[derive(Debug)]
pub struct ShimAtRest;

impl Measure for ShimAtRest {
    fn sample(&mut self, side: Side) -> Result<Vec<(Figure, f64)>> {
        let container = Container::start(side, "rest", &IDLE)?;
        for _exec in 0..EXECS_BEFORE_REST {
            let _ms = exec_true(&container)?;
        }
        // The init of a container is a child of its shim, which is its subreaper.
        let shim = field(&proc_text(container.pid, "status")?, "PPid:").context("no parent of the init")?;
        let memory = proc_text(shim, "smaps_rollup")?;
        let status = proc_text(shim, "status")?;
        let read = |text: &str, name: &str| {
            field(text, name)
                .map(f64::from)
                .with_context(|| format!("no {name} of shim {shim}"))
        };
        Ok(vec![
            (SHIM_RSS, read(&memory, "Rss:")?),
            (SHIM_DIRTY, read(&memory, "Private_Dirty:")?),
            (SHIM_THREADS, read(&status, "Threads:")?),
        ])
    }
}

/// The figure `dump_small`.
#[derive(Debug)]
pub struct Dump(Pair);

impl Dump {
    /// Starts the containers.
    ///
    /// # Errors
    /// As [`Container::start`].
    pub fn prepare() -> Result<Self> {
        Pair::start("dump").map(Self)
    }
}

impl Measure for Dump {
    fn sample(&mut self, side: Side) -> Result<Vec<(Figure, f64)>> {
        let timed = ctr(&["tasks", "checkpoint", &self.0.of(side).id])?;
        // ctr prints the name of the image it makes of the checkpoint.
        for image in timed.stdout.split_whitespace() {
            let _removed = ctr(&["images", "delete", image])?;
        }
        Ok(vec![(DUMP_SMALL, timed.ms)])
    }
}

fn proc_text(pid: u32, file: &str) -> Result<String> {
    let path = format!("/proc/{pid}/{file}");
    read_to_string(&path).with_context(|| format!("read {path}"))
}

/// The number that follows `name` at the start of a line.
fn field(text: &str, name: &str) -> Option<u32> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::field;

    #[test]
    fn field_is_the_first_number_after_its_name() {
        let text = "Name:\tshim\nPPid:\t12\nPss_Dirty:      7 kB\nPrivate_Dirty:        44 kB\n";
        for (name, expected) in [
            ("PPid:", Some(12)),
            ("Private_Dirty:", Some(44)),
            ("Rss:", None),
            ("Name:", None),
        ] {
            assert_eq!(field(text, name), expected, "{name}");
        }
    }
}
