//! `ctr`, timed, with a deadline.

use std::process::{Command, Output, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::figure::Side;

/// The image every suite of the testbed has loaded.
pub const IMAGE: &str = "localhost/cedana/busybox:latest";
/// The namespace of containerd that has the image.
pub const NAMESPACE: &str = "default";
/// A command that takes longer hangs: the slowest takes a second on a loaded machine.
const DEADLINE: Duration = Duration::from_secs(60);

/// What a command said, and how long it took from its start to its end.
#[derive(Debug)]
pub struct Timed {
    /// Its standard output.
    pub stdout: String,
    /// Start of the process to its exit, in milliseconds.
    pub ms: f64,
}

/// Runs `ctr` with these arguments in the bench's namespace of containerd.
///
/// # Errors
/// It could not be started, ran past the deadline (it is killed then), or failed; with what it wrote to stderr.
pub fn ctr(args: &[&str]) -> Result<Timed> {
    timed(Command::new("ctr").args(["--namespace", NAMESPACE]).args(args))
        .with_context(|| format!("ctr {}", args.join(" ")))
}

/// Runs any command; see [`ctr`].
///
/// # Errors
/// As [`ctr`].
pub fn timed(command: &mut Command) -> Result<Timed> {
    let (end, ended) = mpsc::sync_channel(1);
    let start = Instant::now();
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("spawn")?;
    let pid = Pid::from_raw(i32::try_from(child.id())?);
    let waiter = std::thread::spawn(move || {
        let output = child.wait_with_output();
        // The receiver is gone only after the deadline, when nobody asks any more.
        let _late = end.send((output, start.elapsed()));
    });
    let Ok((output, took)) = ended.recv_timeout(DEADLINE) else {
        kill(pid, Signal::SIGKILL).context("kill it after its deadline")?;
        let _joined = waiter.join();
        anyhow::bail!("not done after {DEADLINE:?}");
    };
    let output: Output = output.context("wait")?;
    ensure!(
        output.status.success(),
        "{}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(Timed {
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        ms: took.as_secs_f64() * 1000.0,
    })
}

/// A detached container that runs until dropped.
#[derive(Debug)]
pub struct Container {
    /// Its id, one per side and use.
    pub id: String,
    /// The pid of its init, in our pid namespace.
    pub pid: u32,
}

impl Container {
    /// Starts `command` in a new container of this side.
    ///
    /// # Errors
    /// As [`ctr`]; or the task's pid is not to be found.
    pub fn start(side: Side, name: &str, command: &[&str]) -> Result<Self> {
        let id = format!("{name}-{}", side.word());
        let mut args = vec![
            "run",
            "--detach",
            "--null-io",
            "--runtime",
            side.runtime(),
            IMAGE,
            &id,
        ];
        args.extend(command);
        let _timed = ctr(&args)?;
        let list = ctr(&["tasks", "list"])?.stdout;
        let pid = pid_in(&list, &id).with_context(|| format!("no pid of {id} in: {list}"))?;
        Ok(Self { id, pid })
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        remove(&self.id);
    }
}

/// Removes a container and its task, whatever state they are in.
pub fn remove(id: &str) {
    // What is already gone makes these fail, and what stays shows in the check for leftovers at the end.
    let _task = ctr(&["tasks", "delete", "--force", id]);
    let _container = ctr(&["containers", "delete", id]);
}

fn pid_in(list: &str, id: &str) -> Option<u32> {
    let words = list
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>());
    words.into_iter().find_map(|words| match words.as_slice() {
        [task, pid, ..] if *task == id => pid.parse().ok(),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::pid_in;

    #[test]
    fn pid_is_in_the_line_of_the_task() {
        let list = "TASK    PID     STATUS\na-b     17      RUNNING\na       18      RUNNING\n";
        for (id, expected) in [("a", Some(18)), ("a-b", Some(17)), ("b", None), ("TASK", None)] {
            assert_eq!(pid_in(list, id), expected, "{id}");
        }
    }
}
