//! The `cedana` command as a test types it, and what its answers mean to a script.

use std::ffi::OsString;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::attached::Attached;
use crate::engine::{self, Said};
use crate::host::Host;
use crate::on_terminal::OnTerminal;

const PROGRAM: &str = "cedana";

/// Exit codes as the documentation has them.
pub mod code {
    /// What was asked for did not work.
    pub const FAILED: i32 = 1;
    /// The command line makes no sense.
    pub const USAGE: i32 = 2;
    /// No such job, checkpoint or file.
    pub const NOT_FOUND: i32 = 3;
    /// It is there, and in no state for this.
    pub const WRONG_STATE: i32 = 4;
    /// Cannot be done here.
    pub const UNSUPPORTED: i32 = 5;
    /// containerd, runc, CRIU or another program failed.
    pub const TOOL: i32 = 6;
    /// Ended by Ctrl+C, and taken back.
    pub const INTERRUPTED: i32 = 130;
}

/// The command and its environment.
#[derive(Clone, Debug, Default)]
pub struct Cedana {
    variables: Vec<(String, OsString)>,
}

impl Cedana {
    /// As a user on the machine would have it.
    pub fn new() -> Self {
        Self::default()
    }

    /// For the verbs that ask for a container of an engine, not for a job: they ask the host's containerd.
    pub fn on(host: &Host) -> Self {
        Self::new().with("CONTAINERD_ADDRESS", host.address())
    }

    /// With a variable of the environment.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<OsString>) -> Self {
        self.variables.push((name.to_owned(), value.into()));
        self
    }

    /// With another registry than the machine's.
    #[must_use]
    pub fn registry(self, path: &Path) -> Self {
        self.with("CEDANA_DB_PATH", path)
    }

    /// The command, not started.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(PROGRAM);
        let _command = command.args(args).envs(self.variables.iter().cloned());
        command
    }

    /// Runs it to its end.
    ///
    /// # Errors
    /// It cannot be started, or hangs.
    pub fn run(&self, args: &[&str]) -> Result<Said> {
        engine::finish(&mut self.command(args), "")
    }

    /// Runs it to its end, with text on its standard input.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub fn run_with_input(&self, args: &[&str], input: &str) -> Result<Said> {
        engine::finish(&mut self.command(args), input)
    }

    /// Starts it and keeps its streams.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(&self, args: &[&str]) -> Result<Attached> {
        Attached::start(&mut self.command(args))
    }

    /// Starts it with a terminal for all its streams.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start_on_terminal(&self, args: &[&str]) -> Result<OnTerminal> {
        OnTerminal::start(&mut self.command(args))
    }

    /// What it prints when all is well.
    ///
    /// # Errors
    /// It failed, or complained: what goes well is quiet in a pipe.
    pub fn says(&self, args: &[&str]) -> Result<String> {
        let said = self.run(args)?;
        let shown = args.join(" ");
        ensure!(
            said.code != 0 || said.stderr.is_empty(),
            "cedana {shown} went well and yet wrote: {}",
            said.stderr
        );
        said.ok().with_context(|| format!("cedana {shown}"))
    }

    /// Its last line on stdout.
    ///
    /// # Errors
    /// As [`Self::says`].
    pub fn last_line(&self, args: &[&str]) -> Result<String> {
        let text = self.says(args)?;
        Ok(text.lines().last().unwrap_or_default().to_owned())
    }

    /// The one JSON document that `--json` makes of its output.
    ///
    /// # Errors
    /// It failed, or printed something else.
    pub fn json<T: DeserializeOwned>(&self, args: &[&str]) -> Result<T> {
        let text = self.says(&[args, &["--json"]].concat())?;
        serde_json::from_str(&text).with_context(|| format!("cedana {}: {text}", args.join(" ")))
    }

    /// It fails with this code, says this on stderr in one message, and nothing on stdout.
    ///
    /// # Errors
    /// It does not.
    pub fn fails(&self, args: &[&str], code: i32, part: &str) -> Result<Said> {
        let said = self.run(args)?;
        let shown = args.join(" ");
        ensure!(
            said.code == code,
            "cedana {shown} ended with {}, not {code}: {said:?}",
            said.code
        );
        ensure!(
            said.stderr.contains(part),
            "cedana {shown} does not say {part:?}: {}",
            said.stderr
        );
        let message = said.stderr.lines().filter(|line| line.starts_with("cedana: "));
        ensure!(
            code == code::USAGE || message.count() == 1,
            "cedana {shown} says other than one message: {}",
            said.stderr
        );
        ensure!(
            said.stdout.is_empty(),
            "cedana {shown} failed, and printed {:?}",
            said.stdout
        );
        Ok(said)
    }

    /// All that `cedana ps` shows.
    ///
    /// # Errors
    /// As [`Self::json`].
    pub fn jobs(&self) -> Result<Vec<Job>> {
        self.json(&["ps"])
    }

    /// The line of one container, if `cedana ps --all` shows it.
    ///
    /// # Errors
    /// As [`Self::json`].
    pub fn find(&self, namespace: &str, id: &str) -> Result<Option<Job>> {
        let all: Vec<Job> = self.json(&["ps", "--all"])?;
        Ok(all
            .into_iter()
            .find(|job| job.namespace == namespace && job.id == id))
    }

    /// The line of one container.
    ///
    /// # Errors
    /// There is none.
    pub fn job(&self, namespace: &str, id: &str) -> Result<Job> {
        self.find(namespace, id)?
            .with_context(|| format!("find {namespace}/{id} in the list of jobs"))
    }

    /// Dumps a job; returns where to, as a script takes it from the last line.
    ///
    /// # Errors
    /// It failed, or its last line is none of ours.
    pub fn dump(&self, args: &[&str]) -> Result<String> {
        let line = self.last_line(&[&["dump", "job"], args].concat())?;
        line.strip_prefix("Dumped to ")
            .map(str::to_owned)
            .with_context(|| format!("a path in {line:?}"))
    }

    /// Restores a job; returns the pid that it says.
    ///
    /// # Errors
    /// It failed, or its last line is none of ours.
    pub fn restore(&self, args: &[&str]) -> Result<u32> {
        let line = self.last_line(&[&["restore", "job"], args].concat())?;
        let pid = line.strip_prefix("Restored successfully, PID: ");
        pid.and_then(|pid| pid.parse().ok())
            .with_context(|| format!("a pid in {line:?}"))
    }
}

/// A line of `cedana ps --json`, as far as the tests look at it.
#[derive(Clone, Debug, Deserialize)]
pub struct Job {
    /// Its name.
    pub job: String,
    /// How it is run.
    #[serde(rename = "type")]
    pub kind: String,
    /// containerd's namespace.
    pub namespace: String,
    /// The container's id.
    pub id: String,
    /// Its init's pid, if it lives.
    #[serde(default)]
    pub pid: Option<u32>,
    /// The word of the column STATUS.
    pub status: String,
    /// All of it.
    #[serde(flatten)]
    pub rest: serde_json::Map<String, Value>,
}

impl Job {
    /// Its process lives, and is not frozen: the word is what the kernel says it is doing at this moment.
    pub fn lives(&self) -> bool {
        let words = ["running", "sleep", "blocked", "idle"];
        self.pid.is_some() && words.contains(&self.status.as_str())
    }
}
