//! A containerd of the test's own: for tests that kill it, or that change its `PATH`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::engine;
use crate::stdio::eventually;

/// A cold containerd on two busy cores takes some seconds to open its database and answer.
const UP_DEADLINE: Duration = Duration::from_secs(30);

/// A running (or killed) containerd with private directories.
#[derive(Debug)]
pub struct Daemon {
    dir: PathBuf,
    variables: Vec<(String, String)>,
    process: Child,
}

impl Daemon {
    /// Starts a containerd whose files are all in `dir`, and waits until it answers.
    pub fn start(dir: &Path) -> Result<Self> {
        Self::start_with(dir, &[])
    }

    /// The same with variables, which its shims have as well; `PATH` is where it looks for them.
    pub fn start_with(dir: &Path, variables: &[(&str, &str)]) -> Result<Self> {
        let dir = dir.join("containerd");
        fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
        let config = dir.join("config.toml");
        fs::write(&config, settings(&dir)).with_context(|| format!("write {}", config.display()))?;
        let variables: Vec<(String, String)> = variables
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        let process = spawn(&dir, &variables)?;
        let daemon = Self {
            dir,
            variables,
            process,
        };
        daemon.wait_until_up()?;
        Ok(daemon)
    }

    /// Its gRPC socket.
    pub fn address(&self) -> PathBuf {
        self.dir.join("containerd.sock")
    }

    /// Its state directory.
    pub fn state(&self) -> PathBuf {
        self.dir.join("state")
    }

    /// Its root directory.
    pub fn root(&self) -> PathBuf {
        self.dir.join("root")
    }

    /// Its log so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }

    /// Kills it with SIGKILL, which no shim may notice.
    pub fn kill(&mut self) -> Result<()> {
        self.process.kill().context("kill containerd")?;
        let _status = self.process.wait().context("wait for containerd")?;
        Ok(())
    }

    /// Starts it again after `kill`, and waits until it answers.
    pub fn restart(&mut self) -> Result<()> {
        self.process = spawn(&self.dir, &self.variables)?;
        self.wait_until_up()
    }

    /// Starts it again if it is down, so that what is in it can be cleared.
    pub(crate) fn revive(&mut self) {
        if !matches!(self.process.try_wait(), Ok(None)) {
            // A test that failed while its containerd was down is told so by its own error.
            let _still_down = self.restart();
        }
    }

    fn wait_until_up(&self) -> Result<()> {
        let address = self.address().display().to_string();
        let answers =
            || engine::run("ctr", &["--address", &address, "version"]).is_ok_and(|said| said.code == 0);
        eventually("containerd answers", UP_DEADLINE, answers)
            .with_context(|| format!("its log: {}", self.log()))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Already dead is as good.
        let _dead = self.process.kill();
        let _status = self.process.wait();
    }
}

fn spawn(dir: &Path, variables: &[(String, String)]) -> Result<Child> {
    let log = fs::File::options()
        .create(true)
        .append(true)
        .open(dir.join("log"))
        .context("open containerd's log")?;
    let mut command = Command::new("containerd");
    let _command = command
        .arg("--config")
        .arg(dir.join("config.toml"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .envs(variables.iter().cloned());
    command.stderr(log).spawn().context("start containerd")
}

/// Version 2 is read by containerd 1.7 and 2.x alike. The CRI plugins (by their names of 1.7 and 2.x) only cost time.
fn settings(dir: &Path) -> String {
    let dir = dir.display();
    format!(
        r#"version = 2
root = "{dir}/root"
state = "{dir}/state"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.cri.v1.runtime", "io.containerd.cri.v1.images"]
[grpc]
address = "{dir}/containerd.sock"
[ttrpc]
address = "{dir}/containerd.sock.ttrpc"
[debug]
level = "debug"
"#
    )
}
