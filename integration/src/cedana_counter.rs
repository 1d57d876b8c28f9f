//! A container that counts into a file: what it wrote tells whether a restore went on, began anew, or did nothing.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::host::{Host, IMAGE};
use crate::messages::Status;
use crate::stdio::eventually;
use crate::task_api::TaskApi;

/// A dump interrupts the `sleep`, which fails then: the loop must not depend on it.
pub const COUNTER: &str = "n=0; while :; do n=$((n+1)); echo $n; sleep 0.05; done";

/// It counts twenty times a second; two busy cores, or an emulated one, take longer.
const COUNTS_WITHIN: Duration = Duration::from_secs(30);

const KILL: u32 = 9;

impl Seen {
    /// The last number.
    pub fn last(&self) -> u64 {
        self.last
    }
}

/// A container of plain `ctr run --detach`.
#[derive(Debug)]
pub struct Counter {
    api: TaskApi,
    namespace: String,
    id: String,
    log: PathBuf,
}

/// How far a count was at some moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    bytes: usize,
    last: u64,
}

impl Counter {
    /// Runs one and waits until it counts. The host has the image.
    ///
    /// # Errors
    /// It does not run.
    pub fn run(host: &Host, id: &str) -> Result<Self> {
        Self::run_with(host, id, host.runtime(), &[])
    }

    /// The same under a runtime, and with more flags for `ctr run`.
    ///
    /// # Errors
    /// It does not run.
    pub fn run_with(host: &Host, id: &str, runtime: &str, flags: &[&str]) -> Result<Self> {
        Self::run_script(host, id, runtime, flags, COUNTER)
    }

    /// One that holds so much memory that its dump has a worker, and its restore too.
    ///
    /// # Errors
    /// It does not run.
    pub fn run_large(host: &Host, id: &str, flags: &[&str]) -> Result<Self> {
        let script = format!("x=$(head -c 40000000 /dev/zero | tr '\\0' x); {COUNTER}");
        Self::run_script(host, id, host.runtime(), flags, &script)
    }

    /// One whose numbers a script of the test's prints.
    ///
    /// # Errors
    /// It does not run.
    pub fn run_script(host: &Host, id: &str, runtime: &str, flags: &[&str], script: &str) -> Result<Self> {
        let log = host.dir().join(format!("{id}.log"));
        let uri = format!("file://{}", log.display());
        let run = ["run", "--detach", "--runtime", runtime, "--log-uri", &uri];
        let _said = host
            .ctr(&[&run, flags, &[IMAGE, id, "sh", "-c", script]].concat())?
            .ok()
            .with_context(|| format!("run {id}"))?;
        let counter = Self {
            api: host.api().clone(),
            namespace: host.namespace().to_owned(),
            id: id.to_owned(),
            log,
        };
        // So far that a count that begins anew is none that goes on.
        let counted = || counter.numbers(0).len() > 3;
        eventually("it counts", COUNTS_WITHIN, counted)?;
        Ok(counter)
    }

    /// Its job's name among all jobs of the machine.
    pub fn job(&self) -> String {
        format!("{}/{}", self.namespace, self.id)
    }

    /// Its id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// How far it is, once it has counted at all.
    ///
    /// # Errors
    /// It never does.
    pub fn seen(&self) -> Result<Seen> {
        eventually("a number", COUNTS_WITHIN, || !self.numbers(0).is_empty())?;
        // Of one look: whoever writes does not wait for a second. A line that is not whole yet comes later.
        let text = self.text();
        let bytes = text.rfind('\n').map_or(0, |end| end + 1);
        let numbers = numbers(text.get(..bytes).unwrap_or_default());
        let last = *numbers.last().context("no number")?;
        Ok(Seen { bytes, last })
    }

    /// It counts on now, from where it is.
    ///
    /// # Errors
    /// It stands still, or counts from somewhere else.
    pub fn goes_on(&self) -> Result<()> {
        // One that was restored from an earlier count may not have written yet: the last number is of its former life then.
        let before = self.seen()?;
        eventually("a new number", COUNTS_WITHIN, || {
            !self.numbers(before.bytes).is_empty()
        })?;
        let now = self.seen()?;
        self.continues(now, now)
    }

    /// What it writes after `ended` follows on something it wrote after `dumped`, the moment before its dump.
    ///
    /// # Errors
    /// It writes nothing, or it counts from somewhere else.
    pub fn continues(&self, dumped: Seen, ended: Seen) -> Result<()> {
        self.continues_between(dumped, ended, ended)
    }

    /// The same for a container that counted on after its dump: `after` is a moment after the dump.
    ///
    /// # Errors
    /// It writes nothing, or it counts from somewhere else.
    pub fn continues_between(&self, dumped: Seen, after: Seen, ended: Seen) -> Result<()> {
        let new = || self.numbers(ended.bytes);
        eventually("it counts on", COUNTS_WITHIN, || new().len() >= 3)?;
        let first = *new().first().context("no number")?;
        ensure!(
            (dumped.last + 1..=after.last + 1).contains(&first),
            "{} was at {} before its dump and at {} after it, and goes on with {first}",
            self.id,
            dumped.last,
            after.last
        );
        Ok(())
    }

    /// The task has ended.
    ///
    /// # Errors
    /// It has not, or there is no task.
    pub fn has_ended(&self) -> Result<()> {
        let status = self.api.get(&self.id, "")?.status();
        ensure!(status == Status::Stopped, "{} is {status:?}", self.id);
        Ok(())
    }

    /// Kills the task and waits for its end; the task stays.
    ///
    /// # Errors
    /// There is nothing to kill.
    pub fn kill(&self) -> Result<()> {
        self.api.kill(&self.id, "", KILL, false)?;
        let _exit = self.api.wait(&self.id, "")?;
        Ok(())
    }

    /// Kills and deletes the task; the container stays.
    ///
    /// # Errors
    /// There is nothing to kill.
    pub fn kill_and_delete(&self) -> Result<()> {
        self.kill()?;
        let _status = self.api.delete(&self.id, "")?;
        Ok(())
    }

    /// Pid of its init, in the books of containerd.
    ///
    /// # Errors
    /// There is no task.
    pub fn pid(&self) -> Result<u32> {
        Ok(self.api.get(&self.id, "")?.pid)
    }

    /// All that it has ever printed, in whole lines.
    ///
    /// # Errors
    /// Something in it is no number.
    pub fn all(&self) -> Result<Vec<u64>> {
        let text = self.text();
        let (whole, _) = text.rsplit_once('\n').context("a line")?;
        whole
            .lines()
            .map(|line| line.parse().with_context(|| format!("a number in {line:?}")))
            .collect()
    }

    fn text(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The whole lines from a place on. A line that a dump cut in two is of one number.
    fn numbers(&self, from: usize) -> Vec<u64> {
        let text = self.text();
        let whole = text
            .get(from..)
            .and_then(|rest| rest.rsplit_once('\n'))
            .map_or("", |(whole, _)| whole);
        numbers(whole)
    }
}

fn numbers(whole: &str) -> Vec<u64> {
    whole.lines().filter_map(|line| line.parse().ok()).collect()
}
