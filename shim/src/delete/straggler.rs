//! Processes of a dead server that outlived it: runc for a moment, CRIU for as long as it likes.
//!
//! runc gets SIGKILL when the server dies, but the kernel closes the server's connection first, and containerd starts us at
//! that: runc may still be making processes and cgroups. CRIU is told nothing: a restore would go on making processes, and a dump
//! holds by ptrace the ones it dumps.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill as send};
use nix::unistd::Pid;

/// The largest command line or environment that is searched, in bytes.
const STRINGS_BYTES_MAX: u64 = 1 << 20;

/// How long killed processes may take to be gone.
const LEAVE_LIMIT: Duration = Duration::from_millis(500);

/// Pause between two looks at them.
const LOOK_PAUSE: Duration = Duration::from_millis(2);

/// Kills every runc that was started for the container with this bundle, with its children, and every CRIU that works for it or
/// traces one of `members`. Returns when they are gone, or have had the time for it.
pub(super) fn kill(bundle: &Path, members: &[i32]) {
    let end = Instant::now() + LEAVE_LIMIT;
    loop {
        let victims = victims(&processes(), bundle, members);
        if victims.is_empty() || Instant::now() >= end {
            return;
        }
        for pid in victims {
            // Gone already is as good.
            let _ = send(Pid::from_raw(pid), Signal::SIGKILL);
        }
        sleep(LOOK_PAUSE);
    }
}

/// What matters of a process in `/proc`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Process {
    pid: i32,
    parent: i32,
    name: String,
}

fn victims(processes: &[Process], bundle: &Path, members: &[i32]) -> Vec<i32> {
    let log = bundle.join("log.json");
    let mut victims: Vec<i32> = processes
        .iter()
        .map(|process| process.pid)
        .filter(|pid| logs_to(&read(*pid, "cmdline"), &log))
        .collect();
    let tracers: Vec<i32> = members
        .iter()
        .filter_map(|pid| tracer(&read(*pid, "status")))
        .collect();
    let is_criu = |process: &&Process| process.name == "criu";
    let works = |pid: i32| tracers.contains(&pid) || works_for(pid, bundle);
    victims.extend(
        processes
            .iter()
            .filter(is_criu)
            .map(|process| process.pid)
            .filter(|pid| works(*pid)),
    );
    with_children(processes, victims)
}

/// The processes and all below them. Zombies are left out: they are as dead as can be.
fn with_children(processes: &[Process], mut family: Vec<i32>) -> Vec<i32> {
    let mut seen = 0;
    while seen < family.len() {
        let parents = family.get(seen..).unwrap_or_default().to_vec();
        seen = family.len();
        let is_new = |process: &&Process| parents.contains(&process.parent) && !family.contains(&process.pid);
        let children: Vec<i32> = processes
            .iter()
            .filter(is_new)
            .map(|process| process.pid)
            .collect();
        family.extend(children);
    }
    family
}

/// All processes that are not dead.
fn processes() -> Vec<Process> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    let pids = entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter_map(|pid: i32| parse_stat(pid, &read(pid, "stat")))
        .collect()
}

/// A line of `/proc/PID/stat`: pid, name in parentheses (it may hold some itself), state, parent. None for a dead process.
fn parse_stat(pid: i32, stat: &[u8]) -> Option<Process> {
    let stat = String::from_utf8_lossy(stat);
    let (start, rest) = stat.rsplit_once(')')?;
    let mut rest = rest.split_whitespace();
    let is_alive = !matches!(rest.next()?, "Z" | "X");
    let parent = rest.next()?.parse().ok()?;
    let name = start.split_once('(')?.1.to_owned();
    is_alive.then_some(Process { pid, parent, name })
}

/// Whether a command line has `--log` with this file, as our runc's do. Others may have the file as an argument: whoever
/// reads it, say.
fn logs_to(cmdline: &[u8], log: &Path) -> bool {
    let words: Vec<&[u8]> = cmdline.split(|byte| *byte == 0).collect();
    words
        .windows(2)
        .any(|pair| pair == [b"--log", log.as_os_str().as_bytes()])
}

/// Whether its environment or one of its open files leads to the bundle; its work directory and its configuration file do.
fn works_for(pid: i32, bundle: &Path) -> bool {
    let leads_in = |value: &[u8]| Path::new(std::ffi::OsStr::from_bytes(value)).starts_with(bundle);
    let value_leads_in = |entry: &[u8]| entry.splitn(2, |byte| *byte == b'=').nth(1).is_some_and(leads_in);
    read(pid, "environ").split(|byte| *byte == 0).any(value_leads_in) || has_open(pid, bundle)
}

fn has_open(pid: i32, bundle: &Path) -> bool {
    let Ok(files) = fs::read_dir(format!("/proc/{pid}/fd")) else {
        return false;
    };
    files
        .flatten()
        .filter_map(|file| fs::read_link(file.path()).ok())
        .any(|target| target.starts_with(bundle))
}

/// Who traces the process, from its `status`.
fn tracer(status: &[u8]) -> Option<i32> {
    let status = String::from_utf8_lossy(status);
    let line = status.lines().find_map(|line| line.strip_prefix("TracerPid:"))?;
    line.trim().parse().ok().filter(|pid| *pid > 0)
}

/// A file of a process; empty if the process is gone.
fn read(pid: i32, file: &str) -> Vec<u8> {
    let mut content = Vec::new();
    if let Ok(file) = File::open(format!("/proc/{pid}/{file}")) {
        // What was read until an error still counts.
        let _ = file.take(STRINGS_BYTES_MAX).read_to_end(&mut content);
    }
    content
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::CommandExt;
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn tracers_are_read_from_the_status() {
        let cases = [
            ("Name:\tx\nTracerPid:\t0\nUid:\t0", None),
            ("Name:\tx\nTracerPid:\t4711\nUid:\t0", Some(4711)),
            ("TracerPid:\tx", None),
            ("", None),
        ];
        for (status, want) in cases {
            assert_eq!(tracer(status.as_bytes()), want, "{status}");
        }
    }

    #[test]
    fn processes_are_read_from_their_stat() {
        let process = |parent, name: &str| {
            Some(Process {
                pid: 7,
                parent,
                name: name.into(),
            })
        };
        let cases = [
            ("7 (criu) S 1 7 7 0", process(1, "criu")),
            ("7 (a) b) (c) R 12 7", process(12, "a) b) (c")),
            ("7 (gone) Z 1 7", None),
            ("7 (short) S", None),
            ("", None),
        ];
        for (stat, want) in cases {
            assert_eq!(parse_stat(7, stat.as_bytes()), want, "{stat}");
        }
    }

    #[test]
    fn only_who_logs_there_is_a_runc_of_the_bundle() {
        let cases = [
            ("runc\0--root\0/r\0--log\0/b/log.json\0--log-format\0json\0", true),
            ("tail\0-f\0/b/log.json\0", false),
            ("runc\0/b/log.json\0--log\0/c/log.json\0", false),
            ("runc\0--log", false),
            ("", false),
        ];
        for (cmdline, want) in cases {
            assert_eq!(
                logs_to(cmdline.as_bytes(), Path::new("/b/log.json")),
                want,
                "{cmdline:?}"
            );
        }
    }

    #[test]
    fn a_family_is_complete_and_holds_nobody_else() {
        let process = |(pid, parent)| Process {
            pid,
            parent,
            name: String::new(),
        };
        let processes: Vec<_> = [(2, 1), (3, 2), (4, 3), (5, 1), (6, 5), (7, 4)]
            .map(process)
            .into();
        assert_eq!(with_children(&processes, vec![3]), [3, 4, 7]);
        assert_eq!(with_children(&processes, vec![]), [0; 0]);
    }

    #[test]
    fn a_process_works_for_a_bundle_if_a_file_of_it_is_open() {
        let bundle = tempfile::tempdir().unwrap();
        let ours = i32::try_from(std::process::id()).unwrap();
        assert!(!works_for(ours, bundle.path()));
        let _file = File::create(bundle.path().join("dump.log")).unwrap();
        assert!(works_for(ours, bundle.path()));
        assert!(
            !victims(&processes(), bundle.path(), &[]).contains(&ours),
            "and yet it is not CRIU"
        );
    }

    #[test]
    fn a_runc_of_the_bundle_is_killed_with_its_child_and_waited_for() {
        let bundle = tempfile::tempdir().unwrap();
        let spawn = |log: &str| {
            let mut shell = Command::new("/bin/sh");
            let _ = shell.args(["-c", "sleep 1000 >&- 2>&- & echo; wait", "runc", "--log"]);
            let _ = shell
                .arg(bundle.path().join(log))
                .stdout(Stdio::piped())
                .process_group(0);
            let mut shell = shell.spawn().unwrap();
            // It has its child when it says something.
            assert_eq!(shell.stdout.take().unwrap().read(&mut [0]).unwrap(), 1);
            shell
        };
        let (mut ours, mut other) = (spawn("log.json"), spawn("other.json"));
        kill(bundle.path(), &[]);
        assert!(!ours.wait().unwrap().success());
        assert!(other.try_wait().unwrap().is_none(), "not of this bundle");
        let group = nix::unistd::Pid::from_raw(-i32::try_from(other.id()).unwrap());
        send(group, Signal::SIGKILL).unwrap();
        let _ = other.wait().unwrap();
    }
}
