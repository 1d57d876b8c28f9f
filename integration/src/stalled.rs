//! A runc that stops at a chosen step, so that a test can kill somebody exactly there.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::messages::RuncOptions;
use crate::stdio::eventually;

const REACHED_DEADLINE: Duration = Duration::from_secs(20);

/// When the stop happens, as seen from the step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// The shim has asked for the step; nothing of it is done.
    Before,
    /// All of it is done; the shim does not know yet.
    After,
}

/// A wrapper around runc that stops once, and from then on is runc.
#[derive(Debug)]
pub struct StalledRunc {
    program: PathBuf,
    reached: PathBuf,
    calls: PathBuf,
}

impl StalledRunc {
    /// Makes one in `dir` that stops at runc's `verb` (`create`, `start`, `exec`, …).
    pub fn new(dir: &Path, verb: &str, moment: Moment) -> Result<Self> {
        let name = format!("runc-{verb}-{moment:?}").to_lowercase();
        let (program, reached) = (dir.join(&name), dir.join(format!("{name}.reached")));
        let calls = dir.join(format!("{name}.calls"));
        let text = script(verb, moment, &reached, &calls);
        fs::write(&program, text).with_context(|| format!("write {}", program.display()))?;
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).context("make it executable")?;
        Ok(Self {
            program,
            reached,
            calls,
        })
    }

    /// One that only writes down how it was called.
    pub fn that_never_stops(dir: &Path) -> Result<Self> {
        Self::new(dir, "never", Moment::Before)
    }

    /// The options that make a shim use it.
    pub fn options(&self) -> RuncOptions {
        RuncOptions {
            binary_name: self.program.display().to_string(),
            ..RuncOptions::default()
        }
    }

    /// Waits until it has stopped.
    pub fn wait_until_reached(&self) -> Result<()> {
        eventually("runc reaches the step", REACHED_DEADLINE, || self.is_reached())
    }

    /// Whether it has stopped.
    pub fn is_reached(&self) -> bool {
        self.reached.is_dir()
    }

    /// The arguments of every call so far, a line for each.
    pub fn calls(&self) -> Vec<String> {
        fs::read_to_string(&self.calls)
            .unwrap_or_default()
            .lines()
            .map(str::to_owned)
            .collect()
    }
}

/// `mkdir` is what lets exactly one call stop. The stop is an `exec`: whoever kills runc when the shim dies (the shim
/// asks the kernel to) must find one process, for a child left over would hold whatever it inherited from the shim.
fn script(verb: &str, moment: Moment, reached: &Path, calls: &Path) -> String {
    let (before, after) = match moment {
        Moment::Before => ("stop", ":"),
        Moment::After => (":", "stop"),
    };
    let (reached, calls) = (reached.display(), calls.display());
    format!(
        r#"#!/bin/sh
stop() {{ mkdir {reached} 2>/dev/null && exec sleep 600; }}
echo "$*" >>{calls}
for word; do
    [ "$word" = {verb} ] || continue
    {before}
    runc "$@"
    code=$?
    {after}
    exit $code
done
exec runc "$@"
"#
    )
}
