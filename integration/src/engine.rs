//! Command-line clients, run with a deadline: `ctr`, `docker`, `nerdctl`, `crictl`.

use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::channel;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Longest a client may take. Docker needs the most: some seconds when both cores are busy.
pub const CLIENT_DEADLINE: Duration = Duration::from_secs(60);

/// What a client said and how it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    /// Exit code; 128 plus the signal for a client that was killed.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Said {
    /// Standard output without the newline at its end, or an error when the client failed.
    pub fn ok(self) -> Result<String> {
        if self.code != 0 {
            bail!("exit code {}: {}{}", self.code, self.stdout, self.stderr);
        }
        Ok(self.stdout.trim_end().to_owned())
    }
}

/// Runs a client to its end.
pub fn run(program: &str, args: &[&str]) -> Result<Said> {
    finish(Command::new(program).args(args), "")
}

/// Runs a client to its end, with text on its standard input.
pub fn run_with_input(program: &str, args: &[&str], input: &str) -> Result<Said> {
    finish(Command::new(program).args(args), input)
}

/// Runs a prepared command to its end, or kills it at the deadline.
pub fn finish(command: &mut Command, input: &str) -> Result<Said> {
    let shown = format!("{command:?}");
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("run {shown}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A client that does not read its input may close it first.
        let _closed = stdin.write_all(input.as_bytes());
    }
    collect(child).with_context(|| format!("run {shown}"))
}

fn collect(mut child: Child) -> Result<Said> {
    let pid = Pid::from_raw(i32::try_from(child.id())?);
    let stdout = drain(child.stdout.take());
    let stderr = drain(child.stderr.take());
    let (exited, exit) = channel();
    let _waiter = std::thread::spawn(move || exited.send(child.wait()));
    let Ok(status) = exit.recv_timeout(CLIENT_DEADLINE) else {
        let _gone_meanwhile = kill(pid, Signal::SIGKILL);
        let said = stderr.recv_timeout(CLIENT_DEADLINE).unwrap_or_default();
        bail!("no end within {CLIENT_DEADLINE:?}; it said {said:?}");
    };
    use std::os::unix::process::ExitStatusExt;
    let status = status.context("wait for it")?;
    let code = status
        .code()
        .or_else(|| status.signal().map(|signal| 128 + signal))
        .unwrap_or(-1);
    let text = |lines: std::sync::mpsc::Receiver<String>| {
        lines
            .recv_timeout(CLIENT_DEADLINE)
            .context("its output never ended: something it left behind holds it open")
    };
    Ok(Said {
        code,
        stdout: text(stdout)?,
        stderr: text(stderr)?,
    })
}

fn drain(source: Option<impl Read + Send + 'static>) -> std::sync::mpsc::Receiver<String> {
    let (done, text) = channel();
    let _reader = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut source) = source {
            // What was read before an error is worth showing as well.
            let _error = source.read_to_end(&mut bytes);
        }
        done.send(String::from_utf8_lossy(&bytes).into_owned())
    });
    text
}
