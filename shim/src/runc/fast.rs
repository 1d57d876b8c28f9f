//! `runc start` and `runc delete` without runc, for containers that ask for nothing unusual.
//!
//! What runc keeps for a container is read here, never written: `<root>/<id>/state.json` and, until the container is
//! started, the fifo `exec.fifo` that its init blocks on (runc 1.0 - 1.4, `libcontainer/container_linux.go`: `start`
//! opens that fifo, reads one byte and removes it; `delete` removes the cgroups named in `state.json`, then the
//! directory). Whatever is not exactly that shape (another runtime, a missing file, a hook that must run) is
//! answered with [`Fast::Unsure`], and the caller execs runc.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::libc;
use serde::Deserialize;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::time::timeout;

use crate::reap::ExitWatch;

/// How long the released init may take to answer. It is blocked in `open` on the other end already, so this only
/// matters on a machine that is hardly running.
const START_DEADLINE: Duration = Duration::from_secs(30);
/// `state.json` is some tens of KiB; more than this is not runc's.
const STATE_BYTES_MAX: u64 = 8 * 1024 * 1024;

/// Whether the short way was possible.
#[derive(Debug, PartialEq, Eq)]
pub enum Fast {
    /// It was done.
    Done,
    /// Nothing was done; runc has to do it.
    Unsure,
}

/// Lets a created init go on, as `runc start` does: its exec of the container's own program comes a moment later.
///
/// # Errors
/// The init ended, or did not answer in time.
pub async fn start(state_dir: &Path, init: &ExitWatch) -> io::Result<Fast> {
    let path = state_dir.join("exec.fifo");
    if !state_dir.join("state.json").is_file() || !is_fifo(&path) {
        return Ok(Fast::Unsure);
    }
    // Opening for reading lets the init's blocking open for writing return; non-blocking, so that an init that died
    // in between cannot hold the shim.
    let mut reader = pipe::OpenOptions::new().open_receiver(&path)?;
    let mut answer = [0; 1];
    let released = async {
        tokio::select! {
            biased;
            read = reader.read(&mut answer) => matches!(read, Ok(1..)),
            _ = init.wait() => false,
        }
    };
    match timeout(START_DEADLINE, released).await {
        Ok(true) => {
            fs::remove_file(&path)?;
            Ok(Fast::Done)
        }
        Ok(false) => Err(io::Error::other(
            "the container's init ended before it was started",
        )),
        Err(_) => Err(io::Error::other("the container's init did not answer")),
    }
}

fn is_fifo(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_fifo())
}

#[derive(Deserialize)]
struct State {
    cgroup_paths: BTreeMap<String, PathBuf>,
    #[serde(default)]
    intel_rdt_path: String,
}

/// The cgroup directories runc made for a container, or none if its state is not of the known shape.
pub fn cgroup_dirs(state_dir: &Path) -> Option<Vec<PathBuf>> {
    let file = open_nofollow(&state_dir.join("state.json")).ok()?;
    let mut text = Vec::new();
    let _ = file.take(STATE_BYTES_MAX).read_to_end(&mut text).ok()?;
    parse_state(&text)
}

fn parse_state(text: &[u8]) -> Option<Vec<PathBuf>> {
    let state: State = serde_json::from_slice(text).ok()?;
    let inside = |path: &PathBuf| path.starts_with("/sys/fs/cgroup") && path.components().count() > 4;
    let known = state.intel_rdt_path.is_empty() && state.cgroup_paths.values().all(inside);
    known.then(|| state.cgroup_paths.into_values().collect())
}

fn open_nofollow(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)
}

/// Removes what runc kept for a container whose processes are all gone, as `runc delete` does.
///
/// The cgroups go first and the state last, so that a failure in between leaves a container that runc can still delete.
///
/// # Errors
/// A cgroup that cannot be removed, or the state directory.
pub fn delete(state_dir: &Path) -> io::Result<Fast> {
    if !state_dir.exists() {
        return Ok(Fast::Done);
    }
    let Some(cgroups) = cgroup_dirs(state_dir) else {
        return Ok(Fast::Unsure);
    };
    for cgroup in &cgroups {
        match fs::remove_dir(cgroup) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            // Cgroups of its own making below, or a process that is still leaving: runc knows how to wait.
            Err(_) => return Ok(Fast::Unsure),
        }
    }
    fs::remove_dir_all(state_dir)?;
    Ok(Fast::Done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_cgroups_below_the_cgroup_mounts_are_believed() {
        let table: [(&str, Option<usize>); 6] = [
            (
                r#"{"cgroup_paths":{"":"/sys/fs/cgroup/system.slice/x.scope"},"intel_rdt_path":""}"#,
                Some(1),
            ),
            (
                r#"{"cgroup_paths":{"cpu":"/sys/fs/cgroup/cpu/default/x","memory":"/sys/fs/cgroup/memory/default/x"}}"#,
                Some(2),
            ),
            (r#"{"cgroup_paths":{"":"/home/someone"}}"#, None),
            (r#"{"cgroup_paths":{"":"/sys/fs/cgroup"}}"#, None),
            (
                r#"{"cgroup_paths":{},"intel_rdt_path":"/sys/fs/resctrl/x"}"#,
                None,
            ),
            ("{}", None),
        ];
        for (text, expected) in table {
            assert_eq!(
                parse_state(text.as_bytes()).map(|dirs| dirs.len()),
                expected,
                "{text}"
            );
        }
    }

    #[test]
    fn a_state_directory_of_another_shape_is_left_to_runc() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        assert_eq!(delete(dir.path())?, Fast::Unsure, "no state.json, as crun has it");
        assert!(dir.path().exists());
        fs::write(dir.path().join("state.json"), r#"{"cgroup_paths":{}}"#)?;
        assert_eq!(delete(dir.path())?, Fast::Done);
        assert!(!dir.path().exists());
        assert_eq!(delete(dir.path())?, Fast::Done, "gone already");
        Ok(())
    }
}
