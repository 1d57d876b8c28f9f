//! Whether a process that was written down is still the one that has its pid.

use std::fs::File;
use std::io::{self, Read};
use std::sync::OnceLock;

use crate::record::Process;

/// `/proc/PID/stat` is one line of some 50 numbers and a name of at most 64 bytes.
const STAT_BYTES_MAX: usize = 4096;

/// What became of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Liveness {
    /// It is there; its state as `/proc/PID/stat` has it: `R S D Z T t I` …
    Alive(char),
    /// Another process has its pid.
    Reused,
    /// No process has its pid, or it belonged to an earlier boot.
    Gone,
    /// `/proc` did not tell.
    Unknown,
}

/// The calling process.
///
/// # Errors
/// `/proc` is not there, or is not Linux's.
pub fn own() -> io::Result<Process> {
    of(i32::try_from(std::process::id()).map_err(io::Error::other)?)
}

/// The process that has this pid now.
///
/// # Errors
/// `NotFound` if there is none; others if `/proc` is not there, or is not Linux's.
pub fn of(pid: i32) -> io::Result<Process> {
    let (_, started) = stat(pid)?;
    Ok(Process {
        pid,
        started,
        boot: boot()?.to_owned(),
    })
}

/// Whether it is there and can act: neither gone nor waiting for its parent to take note of its end.
pub fn is_alive(process: &Process) -> bool {
    matches!(look(process), Liveness::Alive(state) if !matches!(state, 'Z' | 'X' | 'x'))
}

/// What became of a process.
pub fn look(process: &Process) -> Liveness {
    if process.pid <= 0 {
        return Liveness::Gone;
    }
    if !process.boot.is_empty() {
        match boot() {
            Ok(boot) if boot == process.boot => {}
            Ok(_) => return Liveness::Gone,
            Err(_) => return Liveness::Unknown,
        }
    }
    match stat(process.pid) {
        Ok((state, started)) if started == process.started => Liveness::Alive(state),
        Ok(_) => Liveness::Reused,
        Err(e) if e.kind() == io::ErrorKind::NotFound => Liveness::Gone,
        Err(_) => Liveness::Unknown,
    }
}

/// The id of this boot.
///
/// # Errors
/// `/proc` is not there.
pub fn boot() -> io::Result<&'static str> {
    static BOOT: OnceLock<String> = OnceLock::new();
    if let Some(boot) = BOOT.get() {
        return Ok(boot);
    }
    let read = read("/proc/sys/kernel/random/boot_id")?;
    Ok(BOOT.get_or_init(|| read.trim().to_owned()))
}

fn stat(pid: i32) -> io::Result<(char, u64)> {
    let line = read(&format!("/proc/{pid}/stat")).map_err(|e| match e.raw_os_error() {
        // A process that ends between the open and the read.
        Some(code) if code == nix::errno::Errno::ESRCH as i32 => io::ErrorKind::NotFound.into(),
        _ => e,
    })?;
    parse_stat(&line)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("/proc/{pid}/stat is strange")))
}

/// State and start (field 22) of a line of `/proc/PID/stat`. The name is the process's own choice, parentheses included.
fn parse_stat(line: &str) -> Option<(char, u64)> {
    let (_, fields) = line.rsplit_once(')')?;
    let mut fields = fields.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    // Field 3 is taken; 22 is the 19th after it.
    let started = fields.nth(18)?.parse().ok()?;
    Some((state, started))
}

fn read(path: &str) -> io::Result<String> {
    // One read: `/proc` writes such a file as a whole, and `cedana ps` reads a thousand of them.
    let mut bytes = [0; STAT_BYTES_MAX];
    let length = File::open(path)?.read(&mut bytes)?;
    // The name of a process need not be UTF-8.
    Ok(String::from_utf8_lossy(bytes.get(..length).unwrap_or_default()).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_stat_is_read_past_any_name() {
        let rest = "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4242 20 21";
        for (line, expected) in [
            (format!("7 (sh) S {rest}"), Some(('S', 4242))),
            (format!("7 (a) R (b) Z {rest}"), Some(('Z', 4242))),
            (format!("7 () t {rest}\n"), Some(('t', 4242))),
            ("7 (sh) S 1 2 3".to_owned(), None),
            ("7 sh S".to_owned(), None),
            (String::new(), None),
            (format!("7 (sh) S {}", rest.replace("4242", "x")), None),
            (format!("7 (sh) S {}", rest.replace("4242", "-1")), None),
        ] {
            assert_eq!(parse_stat(&line), expected, "{line}");
        }
    }

    #[test]
    fn a_process_is_told_from_others() {
        let own = own().unwrap();
        assert!(is_alive(&own));
        for (what, process, expected) in [
            (
                "another start",
                Process {
                    started: own.started + 1,
                    ..own.clone()
                },
                Liveness::Reused,
            ),
            (
                "another boot",
                Process {
                    boot: "another".to_owned(),
                    ..own.clone()
                },
                Liveness::Gone,
            ),
            (
                "no pid",
                Process {
                    pid: 0,
                    ..own.clone()
                },
                Liveness::Gone,
            ),
            (
                "a negative pid",
                Process {
                    pid: -1,
                    ..own.clone()
                },
                Liveness::Gone,
            ),
            (
                "a pid that nobody has",
                Process {
                    pid: i32::MAX,
                    ..own.clone()
                },
                Liveness::Gone,
            ),
        ] {
            assert_eq!(look(&process), expected, "{what}");
            assert!(!is_alive(&process), "{what}");
        }
        assert!(
            matches!(
                look(&Process {
                    boot: String::new(),
                    ..own
                }),
                Liveness::Alive(_)
            ),
            "an unknown boot"
        );
    }

    #[test]
    fn a_zombie_is_seen_and_does_not_count_as_alive() {
        let mut child = std::process::Command::new("true")
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        // The pipe closes as it ends; the kernel makes it a zombie soon after.
        let _ = child.stdout.take().unwrap().read_to_end(&mut Vec::new()).unwrap();
        let process = of(i32::try_from(child.id()).unwrap()).unwrap();
        while look(&process) != Liveness::Alive('Z') {
            std::thread::yield_now();
        }
        assert!(!is_alive(&process));
        let _ = child.wait().unwrap();
        assert_eq!(look(&process), Liveness::Gone);
    }
}
