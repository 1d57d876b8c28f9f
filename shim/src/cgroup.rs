//! The cgroup a container lives in, read and written through its files: cgroup v2, v1, and the hybrid of both.
//!
//! ```text
//!  /proc/PID/cgroup + /proc/self/mountinfo --paths--> Cgroup
//!        Cgroup --freeze--> cgroup.freeze + cgroup.events | freezer.state
//!               --kill----> cgroup.kill | SIGKILL to each, and rmdir
//!               --oom-----> memory.events + inotify | memory.oom_control + eventfd
//!               --stats---> stats_v2 | stats_v1, as containerd's metrics messages
//! ```
//!
//! Limits are never set here: runc does that. What would hit the shim itself is refused ([`CgroupError::Shared`]):
//! a process that has just died is listed under the root on cgroup v1, and nothing may freeze or kill that.

mod events;
mod files;
mod freeze;
mod kill;
pub mod moves;
mod oom;
mod paths;
mod stats;
mod stats_v1;
mod stats_v2;

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use oom::OomWatch;

/// Why something could not be done with a cgroup.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// The process or its cgroup is gone: there is nothing left to act on.
    #[error("{0} does not exist")]
    Gone(String),
    /// The cgroup holds the shim itself, so acting on it would act on us.
    #[error("cgroup {} holds the shim as well", .0.display())]
    Shared(PathBuf),
    /// The kernel or the host's cgroup mounts lack what is needed.
    #[error("{0}")]
    Unsupported(String),
    /// The kernel did not get there in time; trying again can help.
    #[error("{action} cgroup {} within {limit:?}", dir.display())]
    Deadline {
        /// What was waited for: "freeze", "thaw", "empty" or "remove".
        action: &'static str,
        /// The cgroup's directory.
        dir: PathBuf,
        /// How long.
        limit: Duration,
    },
    /// A file could not be read or written.
    #[error("{action} {}: {source}", path.display())]
    Io {
        /// "read", "write", "watch" or "remove".
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the kernel answered.
        source: io::Error,
    },
}

/// Metrics in the form the Stats call returns them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Metrics {
    /// `io.containerd.cgroups.v1.Metrics` or `io.containerd.cgroups.v2.Metrics`.
    pub type_url: &'static str,
    /// The message, encoded.
    pub value: Vec<u8>,
}

/// A cgroup by the directories that stand for it. It stays valid when the process it was found by is gone, so it
/// is looked up once, when the process is known to live.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cgroup {
    tree: Tree,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Tree {
    /// One directory for each mounted hierarchy, named ones and the unified one of a hybrid host included.
    V1(Vec<Hierarchy>),
    /// The directory in the unified hierarchy.
    V2(PathBuf),
}

/// A cgroup's directory in one hierarchy of cgroup v1.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Hierarchy {
    /// The hierarchy's controllers, or `name=…`; empty for the unified one.
    controllers: Vec<String>,
    dir: PathBuf,
}

impl Cgroup {
    /// The cgroup of a process, by its pid in our pid namespace.
    pub fn of_pid(pid: i32) -> Result<Self, CgroupError> {
        paths::of_process(&pid.to_string())
    }

    /// Metrics of the whole subtree, as containerd's own shim reports them.
    pub fn stats(&self) -> Result<Metrics, CgroupError> {
        match &self.tree {
            Tree::V1(_) => stats_v1::read(self),
            Tree::V2(dir) => stats_v2::read(dir),
        }
    }

    /// Whether the host uses the unified hierarchy for everything.
    pub fn is_unified(&self) -> bool {
        matches!(self.tree, Tree::V2(_))
    }

    /// Whether the cgroup's directory is there.
    pub fn exists(&self) -> bool {
        self.main_dir().is_some_and(Path::is_dir)
    }

    /// Pids of all processes in the subtree, ascending. Empty when the cgroup is gone.
    pub fn procs(&self) -> Vec<i32> {
        self.main_dir().map(kill::procs).unwrap_or_default()
    }

    /// Enables every controller the root has for the children of each ancestor, as containerd does after the
    /// start of a container: without it, stats are incomplete where nobody has asked for a controller before.
    /// Returns the last error; ancestors after a failed one are still tried. No-op on cgroup v1.
    pub fn enable_controllers(&self) -> Result<(), CgroupError> {
        match &self.tree {
            Tree::V1(_) => Ok(()),
            Tree::V2(dir) => paths::enable_controllers(dir),
        }
    }

    /// The directory that has the files of a controller; on cgroup v2 the same for all.
    fn dir(&self, controller: &str) -> Option<&Path> {
        match &self.tree {
            Tree::V2(dir) => Some(dir),
            Tree::V1(all) => all
                .iter()
                .find(|one| one.controllers.iter().any(|name| name == controller))
                .map(|one| one.dir.as_path()),
        }
    }

    /// The directory whose list of processes is the truth: on cgroup v1 the freezer's, which runc relies on.
    fn main_dir(&self) -> Option<&Path> {
        match &self.tree {
            Tree::V2(dir) => Some(dir),
            Tree::V1(all) => ["freezer", "devices", "memory"]
                .iter()
                .find_map(|name| self.dir(name))
                .or_else(|| all.first().map(|one| one.dir.as_path())),
        }
    }

    /// Every directory of the cgroup, each once.
    fn dirs(&self) -> Vec<&Path> {
        match &self.tree {
            Tree::V2(dir) => vec![dir],
            Tree::V1(all) => all.iter().map(|one| one.dir.as_path()).collect(),
        }
    }

    /// Whether the shim itself is in the subtree, or that cannot be told: then what is meant for the container must not
    /// be done to every process there.
    pub fn is_shared(&self) -> bool {
        self.main_dir()
            .is_none_or(|dir| self.check_not_shared(dir).is_err())
    }

    /// Refuses when the shim is in the subtree of a directory.
    fn check_not_shared(&self, dir: &Path) -> Result<(), CgroupError> {
        let own = paths::of_process("self")?;
        if own.dirs().iter().any(|own| own.starts_with(dir)) {
            return Err(CgroupError::Shared(dir.to_owned()));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
