//! A command that has a terminal for all its streams, as a person would see it.

use std::fs::File;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::pty::{Winsize, openpty};

use crate::stdio::{Output, eventually};

/// The command has closed its terminal; what is left of it takes no time.
const EXIT_DEADLINE: Duration = Duration::from_secs(10);

/// As people have it, and wide enough that no line is cut.
const SIZE: Winsize = Winsize {
    ws_row: 40,
    ws_col: 160,
    ws_xpixel: 0,
    ws_ypixel: 0,
};

/// A running command; killed when dropped.
#[derive(Debug)]
pub struct OnTerminal {
    child: Child,
    shown: Output,
}

impl OnTerminal {
    /// Starts the command.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(command: &mut Command) -> Result<Self> {
        let pty = openpty(Some(&SIZE), None).context("open a terminal")?;
        let end = || pty.slave.try_clone().map(Stdio::from);
        let command = command.stdin(end()?).stdout(end()?).stderr(end()?);
        let child = command.spawn().with_context(|| format!("start {command:?}"))?;
        // The command's own copies of the other end would keep the output from ending.
        let _replaced = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let shown = Output::of_terminal(File::from(pty.master));
        Ok(Self { child, shown })
    }

    /// What it has written so far, and whether more will come.
    pub fn shown(&self) -> &Output {
        &self.shown
    }

    /// Waits for its end; returns its exit code and all that it wrote.
    ///
    /// # Errors
    /// It does not end.
    pub fn end(mut self) -> Result<(i32, String)> {
        let shown = String::from_utf8_lossy(&self.shown.to_end()?).into_owned();
        eventually("the command ends", EXIT_DEADLINE, || {
            matches!(self.child.try_wait(), Ok(Some(_)))
        })?;
        let status = self.child.wait().context("wait for it")?;
        Ok((status.code().unwrap_or(-1), shown))
    }
}

impl Drop for OnTerminal {
    fn drop(&mut self) {
        // Already gone is as good as killed.
        let _gone = self.child.kill().and_then(|()| self.child.wait());
    }
}
