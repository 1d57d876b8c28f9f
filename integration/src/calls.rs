//! System calls of a program, in the order in which they were made: what is on the disk when, as far as can be told without
//! pulling the plug.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::attached::Attached;

/// Those that make something lasting, give it a name, or take it away.
const TRACED: &str = "trace=fsync,fdatasync,syncfs,rename,renameat,renameat2,unlink,unlinkat,rmdir,write";

/// A call that succeeded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Made {
    /// Its name.
    pub name: String,
    /// Its arguments, as strace shows them, descriptors with their paths.
    pub args: String,
    /// When it was made, and when it came back: places in the trace.
    pub from: usize,
    /// See `from`.
    pub to: usize,
}

/// A process that is traced.
#[derive(Debug)]
pub struct Tracing {
    strace: Attached,
    out: PathBuf,
}

impl Tracing {
    /// Traces a process that runs, and the programs that it starts. When this returns, no call is missed.
    ///
    /// # Errors
    /// strace is not there, or may not.
    pub fn follow(pid: i32, out: &Path) -> Result<Self> {
        let mut command = strace(out);
        let strace = Attached::start(command.args(["-p", &pid.to_string()]))?;
        while !strace
            .error_line()
            .context("follow by strace")?
            .contains(" attached")
        {}
        let out = out.to_owned();
        Ok(Self { strace, out })
    }

    /// Ends it.
    ///
    /// # Errors
    /// strace does not end, or its output is not there.
    pub fn made(mut self) -> Result<Vec<Made>> {
        kill(Pid::from_raw(self.strace.pid()), Signal::SIGINT).context("end strace")?;
        let _interrupted = self.strace.wait()?;
        read(&self.out)
    }
}

fn strace(out: &Path) -> Command {
    let mut command = Command::new("strace");
    let _command = command.args(["-f", "-y", "-s", "0", "-e", TRACED, "-o"]).arg(out);
    command
}

fn read(out: &Path) -> Result<Vec<Made>> {
    let text = fs::read_to_string(out).with_context(|| format!("read {}", out.display()))?;
    Ok(parse(&text))
}

fn parse(text: &str) -> Vec<Made> {
    let mut begun: HashMap<&str, Made> = HashMap::new();
    let mut made = Vec::new();
    for (at, line) in text.lines().enumerate() {
        let Some((pid, rest)) = line.split_once(' ') else {
            continue;
        };
        let rest = rest.trim_start();
        if rest.starts_with("<... ") {
            if let Some(call) = begun.remove(pid).filter(|_| rest.ends_with("= 0")) {
                made.push(Made { to: at, ..call });
            }
            continue;
        }
        let Some((name, args)) = rest.split_once('(') else {
            continue;
        };
        let call = |args: &str| Made {
            name: name.to_owned(),
            args: args.trim_end().to_owned(),
            from: at,
            to: at,
        };
        if let Some(args) = args.strip_suffix(" <unfinished ...>") {
            let _before = begun.insert(pid, call(args));
        } else if let Some((args, result)) = args.rsplit_once(" = ")
            && let Some(args) = args.trim_end().strip_suffix(')')
            && !result.starts_with('-')
        {
            made.push(call(args));
        }
    }
    made
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_gives_the_calls_that_succeeded_with_when_they_began_and_ended() {
        let text = "7   fsync(3</a/b>)          = 0\n\
            8   fsync(4</a> <unfinished ...>\n\
            7   rename(\"/a/b\", \"/a/c\") = 0\n\
            7   rename(\"/a/x\", \"/a/y\") = -1 ENOENT (No such file or directory)\n\
            8   <... fsync resumed>)        = 0\n\
            7   --- SIGCHLD {si_signo=SIGCHLD} ---\n";
        let made = parse(text);
        let shown: Vec<_> = made
            .iter()
            .map(|call| (call.name.as_str(), call.args.as_str(), call.from, call.to))
            .collect();
        assert_eq!(
            shown,
            [
                ("fsync", "3</a/b>", 0, 0),
                ("rename", "\"/a/b\", \"/a/c\"", 2, 2),
                ("fsync", "4</a>", 1, 4)
            ]
        );
    }
}
