//! CRIU processes of a container whose server died in the middle of a dump or a restore.
//!
//! runc dies with the server, CRIU does not: a restore would go on making processes, and a dump holds the ones it
//! dumps by ptrace.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use nix::sys::signal::{Signal, kill as send};
use nix::unistd::Pid;

/// The largest environment that is searched, in bytes.
const ENVIRONMENT_BYTES_MAX: u64 = 1 << 20;

/// Kills every CRIU that traces one of `members`, or that works for the container with this bundle.
pub(super) fn kill(bundle: &Path, members: &[i32]) {
    let mut victims: Vec<i32> = members.iter().filter_map(|pid| tracer(&status(*pid)?)).collect();
    victims.extend(all_criu().into_iter().filter(|pid| works_for(*pid, bundle)));
    for pid in victims {
        if is_criu(pid) {
            // Gone already is as good.
            let _ = send(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

fn all_criu() -> Vec<i32> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    let pids = entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid| is_criu(*pid)).collect()
}

fn is_criu(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim_end() == "criu")
}

/// Whether its environment or one of its open files leads to the bundle (its work directory and its configuration file do).
fn works_for(pid: i32, bundle: &Path) -> bool {
    let mut environment = Vec::new();
    if let Ok(file) = File::open(format!("/proc/{pid}/environ")) {
        // What was read until an error still counts.
        let _ = file.take(ENVIRONMENT_BYTES_MAX).read_to_end(&mut environment);
    }
    let leads_in = |value: &[u8]| {
        Path::new(<std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(
            value,
        ))
        .starts_with(bundle)
    };
    let value_of = |entry: &[u8]| entry.split(|byte| *byte == b'=').nth(1).is_some_and(leads_in);
    environment.split(|byte| *byte == 0).any(value_of) || has_open(pid, bundle)
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

fn status(pid: i32) -> Option<String> {
    fs::read_to_string(format!("/proc/{pid}/status")).ok()
}

/// Who traces the process, from its `status`.
fn tracer(status: &str) -> Option<i32> {
    let line = status.lines().find_map(|line| line.strip_prefix("TracerPid:"))?;
    line.trim().parse().ok().filter(|pid| *pid > 0)
}

#[cfg(test)]
mod tests {
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
            assert_eq!(tracer(status), want, "{status}");
        }
    }

    #[test]
    fn a_process_works_for_a_bundle_if_a_file_of_it_is_open() {
        let bundle = tempfile::tempdir().unwrap();
        let ours = i32::try_from(std::process::id()).unwrap();
        assert!(!works_for(ours, bundle.path()));
        let _file = File::create(bundle.path().join("dump.log")).unwrap();
        assert!(works_for(ours, bundle.path()));
        assert!(!is_criu(ours), "and yet it is not killed");
    }
}
