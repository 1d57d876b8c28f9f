//! CRIU, as runc drives it: which one is there, what it may be told, and what its log means.
//!
//! runc executes the `criu` it finds in `PATH` and hands it a request; the request's log level and log names are fixed.
//! What runc has no flag for reaches CRIU in two files ([`conf`]). Nothing here starts CRIU to dump or restore.

pub mod choices;
pub mod conf;
pub mod connections;
pub mod culprits;
pub(crate) mod file;
pub mod images;
mod kernel;
pub mod lock;
pub mod logs;
pub mod manifest;
pub mod proc;
pub mod programs;
pub mod stray;
pub mod telling;
pub(crate) mod tools;
mod version;
pub mod work;

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::time::timeout;

use crate::reap::Reaper;
pub use conf::path as conf_path;
pub use version::Version;

/// What was learned of CRIU, kept until the next boot: asking costs 5 to 15 ms, reading this 50 µs.
const CACHE_PATH: &str = "/run/cedana/criu.json";

/// `criu --version` prints two lines.
const OUTPUT_BYTES_MAX: u64 = 4096;

/// CRIU prints its version without touching anything, and looks at a kernel in a tenth of a second; a machine that needs
/// longer is not able to dump either.
const PROBE_DEADLINE: Duration = Duration::from_secs(10);

/// Why CRIU cannot be used.
#[derive(Debug, Error)]
pub enum CriuError {
    /// It is not installed where runc would find it.
    #[error("find criu in PATH: checkpoint and restore need CRIU; install the package criu, 4.2 or later")]
    Missing,
    /// It is there and does not run.
    #[error("run {} --version: {problem}", path.display())]
    Broken {
        /// The binary.
        path: PathBuf,
        /// What happened.
        problem: String,
    },
}

/// The CRIU that runc will use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Criu {
    /// The binary.
    pub path: PathBuf,
    /// Its version.
    pub version: Version,
    /// Inode, size and modification time of the binary: an upgrade makes what was learned void.
    identity: (u64, u64, i64),
}

impl Criu {
    /// The CRIU in `PATH`, asked once per boot and binary.
    ///
    /// # Errors
    /// [`CriuError`] when there is none or it does not run.
    pub async fn probe(reaper: &Arc<Reaper>) -> Result<Self, CriuError> {
        let (path, identity) = find().ok_or(CriuError::Missing)?;
        if let Some(known) = cached(Path::new(CACHE_PATH))
            && known.path == path
            && known.identity == identity
        {
            return Ok(known);
        }
        let version = ask(reaper, &path).await?;
        let criu = Self {
            path,
            version,
            identity,
        };
        if let Err(error) = criu.remember(Path::new(CACHE_PATH)) {
            tracing::debug!(%error, "failed to keep the version of criu for the next dump");
        }
        Ok(criu)
    }

    fn remember(&self, cache: &Path) -> io::Result<()> {
        if let Some(parent) = cache.parent() {
            fs::create_dir_all(parent)?;
        }
        // Shims of many containers may do this at once: each writes a file of its own, and any of them may win.
        let temporary = cache.with_extension(std::process::id().to_string());
        fs::write(&temporary, serde_json::to_vec(self)?)?;
        fs::rename(&temporary, cache)
    }
}

fn cached(cache: &Path) -> Option<Criu> {
    let size = fs::metadata(cache).ok()?.len();
    if size > OUTPUT_BYTES_MAX {
        return None;
    }
    serde_json::from_slice(&fs::read(cache).ok()?).ok()
}

/// The first executable `criu` in `PATH`, as runc looks it up, and its identity.
fn find() -> Option<(PathBuf, (u64, u64, i64))> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).find_map(|dir| {
        let candidate = dir.join("criu");
        let metadata = fs::metadata(&candidate).ok()?;
        let executable = metadata.is_file() && metadata.permissions().mode() & 0o111 != 0;
        executable.then(|| (candidate, (metadata.ino(), metadata.size(), metadata.mtime())))
    })
}

async fn ask(reaper: &Arc<Reaper>, path: &Path) -> Result<Version, CriuError> {
    let broken = |problem: String| CriuError::Broken {
        path: path.to_owned(),
        problem,
    };
    let mut command = Command::new(path);
    let _ = command.arg("--version").stdout(Stdio::piped());
    let (status, stdout) = run(reaper, command).await.map_err(broken)?;
    // Two lines fit into the pipe, and their writer is gone: the read ends at once.
    let mut output = String::new();
    if let Some(stdout) = stdout {
        let _ = io::Read::read_to_string(&mut io::Read::take(stdout, OUTPUT_BYTES_MAX), &mut output)
            .map_err(|error| broken(error.to_string()))?;
    }
    match Version::parse(&output) {
        Some(version) if status == 0 => Ok(version),
        _ => Err(broken(format!("status {status}, output {:?}", output.trim()))),
    }
}

/// Runs a short CRIU to its end. Returns its status, and its output if that was to be piped.
async fn run(reaper: &Arc<Reaper>, mut command: Command) -> Result<(u32, Option<ChildStdout>), String> {
    let _ = command.stdin(Stdio::null()).stderr(Stdio::null());
    let child = reaper.spawn(&mut command).map_err(|error| error.to_string())?;
    let Ok(exit) = timeout(PROBE_DEADLINE, child.exit.wait()).await else {
        stray::kill(child.pid);
        return Err(format!("no end within {} s", PROBE_DEADLINE.as_secs()));
    };
    Ok((exit.status, child.stdout))
}
