//! A command whose stdin and stdout we hold, line by line, no wait without an end.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// How long a line or an exit may take: a hundred times what it takes on a loaded machine, so passing it means a hang.
pub const DEADLINE: Duration = Duration::from_secs(30);
/// How long a failing command gets to close its stderr; one that does not fail is not asked for it.
const STDERR_GRACE: Duration = Duration::from_secs(1);
/// Lines kept for a reader that is behind; more than a test leaves unread.
const LINES_QUEUED: usize = 1 << 16;
/// Between two looks at whether a process has ended.
const POLL: Duration = Duration::from_millis(2);

/// A running command; killed when dropped.
#[derive(Debug)]
pub struct Attached {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
    errors: Receiver<String>,
}

impl Attached {
    /// Starts the command with pipes on all three of its standard files.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(command: &mut Command) -> Result<Self> {
        let pipes = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = pipes.spawn().with_context(|| format!("start {command:?}"))?;
        let stdin = child.stdin.take();
        let lines = lines_of(child.stdout.take().context("no stdout")?);
        let errors = lines_of(child.stderr.take().context("no stderr")?);
        Ok(Self {
            child,
            stdin,
            lines,
            errors,
        })
    }

    /// Its pid.
    pub fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// The next line, without its end.
    ///
    /// # Errors
    /// None came within [`DEADLINE`], or stdout ended; with what the command wrote to stderr.
    pub fn line(&self) -> Result<String> {
        match self.lines.recv_timeout(DEADLINE) {
            Ok(line) => Ok(line),
            Err(RecvTimeoutError::Timeout) => bail!("no line within {DEADLINE:?}; {}", self.stderr()),
            Err(RecvTimeoutError::Disconnected) => bail!("no more lines; {}", self.stderr()),
        }
    }

    /// The next line on stderr, without its end.
    ///
    /// # Errors
    /// None came within [`DEADLINE`], or stderr ended.
    pub fn error_line(&self) -> Result<String> {
        self.errors.recv_timeout(DEADLINE).context("no line on stderr")
    }

    /// Sends a line and returns the next line that comes back.
    ///
    /// # Errors
    /// Stdin is closed, or as [`Self::line`].
    pub fn ask(&mut self, line: &str) -> Result<String> {
        let stdin = self.stdin.as_mut().context("stdin is closed")?;
        writeln!(stdin, "{line}").with_context(|| format!("send {line:?}; {}", self.stderr()))?;
        self.line().with_context(|| format!("answer to {line:?}"))
    }

    /// Closes stdin.
    pub fn close_stdin(&mut self) {
        self.stdin = None;
    }

    /// Waits for the command to end by itself.
    ///
    /// # Errors
    /// It still runs after [`DEADLINE`].
    pub fn wait(&mut self) -> Result<ExitStatus> {
        let end = Instant::now() + DEADLINE;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if Instant::now() > end {
                bail!("still running after {DEADLINE:?}; {}", self.stderr());
            }
            std::thread::sleep(POLL);
        }
    }

    /// What came on stderr since the last call, after waiting a little for its end.
    pub fn stderr(&self) -> String {
        let end = Instant::now() + STDERR_GRACE;
        let rest = || end.saturating_duration_since(Instant::now());
        let text: Vec<String> = std::iter::from_fn(|| self.errors.recv_timeout(rest()).ok()).collect();
        format!("stderr: {:?}", text.join("\n"))
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        // Already gone is as good as killed.
        let _gone = self.child.kill().and_then(|()| self.child.wait());
    }
}

/// Reads lines in a thread, which ends with the stream or with the receiver.
fn lines_of(stream: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, lines) = sync_channel(LINES_QUEUED);
    let _reader = std::thread::spawn(move || {
        for line in BufReader::new(stream).lines() {
            let Ok(line) = line else { return };
            if sender.send(line.trim_end_matches('\r').to_owned()).is_err() {
                return;
            }
        }
    });
    lines
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::Attached;

    #[test]
    fn lines_go_in_and_come_back() {
        let mut cat = Attached::start(&mut Command::new("cat")).unwrap();
        assert_eq!(cat.ask("one").unwrap(), "one");
        assert_eq!(cat.ask("two").unwrap(), "two");
        cat.close_stdin();
        assert!(cat.wait().unwrap().success());
    }

    #[test]
    fn end_of_output_is_an_error_that_holds_stderr() {
        let failing = Attached::start(Command::new("sh").args(["-c", "echo why >&2"])).unwrap();
        let error = format!("{:#}", failing.line().unwrap_err());
        assert!(error.contains("why"), "{error}");
    }
}
