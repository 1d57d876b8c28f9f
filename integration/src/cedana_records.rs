//! Records as shims publish them, made by hand: for states of a machine that a test cannot bring about, such as a pid
//! that was used again.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// A registry of the test's own: its database, and the spool beside it.
#[derive(Debug)]
pub struct Records {
    database: PathBuf,
    spool: PathBuf,
}

/// What is said of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its pid.
    pub pid: u32,
    /// When it started, in clock ticks since the boot.
    pub started: u64,
    /// Which boot.
    pub boot: String,
}

impl Process {
    /// This one, which lives.
    ///
    /// # Errors
    /// `/proc` is not as it should be.
    pub fn own() -> Result<Self> {
        let stat = fs::read_to_string("/proc/self/stat").context("read /proc/self/stat")?;
        // The name, in parentheses, may hold anything; what follows it is the third field.
        let after = stat.rsplit_once(')').context("a name in stat")?.1;
        let started = after.split_whitespace().nth(19).context("a start in stat")?;
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").context("read the boot id")?;
        Ok(Self {
            pid: std::process::id(),
            started: started.parse()?,
            boot: boot.trim().to_owned(),
        })
    }

    fn json(&self) -> Value {
        json!({"pid": self.pid, "started": self.started, "boot": self.boot})
    }
}

impl Records {
    /// In a directory of the test's.
    ///
    /// # Errors
    /// It cannot be written to.
    pub fn within(dir: &Path) -> Result<Self> {
        let records = Self {
            database: dir.join("jobs.db"),
            spool: dir.join("jobs.d"),
        };
        fs::create_dir_all(&records.spool).context("make the spool")?;
        Ok(records)
    }

    /// The database.
    pub fn database(&self) -> &Path {
        &self.database
    }

    /// The directory of the records.
    pub fn spool(&self) -> &Path {
        &self.spool
    }

    /// Publishes a record of a running container, with some fields replaced or added.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn publish(&self, namespace: &str, id: &str, init: &Process, changes: Value) -> Result<()> {
        let engine = "/run/containerd/containerd.sock";
        let mut record = json!({
            "schema": 1,
            "key": {"engine": engine, "namespace": namespace, "id": id},
            "bundle": format!("/run/containerd/io.containerd.runtime.v2.task/{namespace}/{id}"),
            "init": init.json(),
            "status": "running",
            "created": 1_700_000_000_000_u64,
            "changed": 1_700_000_000_000_u64,
        });
        if let (Some(all), Value::Object(changes)) = (record.as_object_mut(), changes) {
            all.extend(changes);
        }
        let digest = Sha256::digest(engine.as_bytes());
        let short: String = digest.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
        let path = self.spool.join(format!("{namespace}@{id}@{short}.json"));
        fs::write(&path, record.to_string()).with_context(|| format!("write {}", path.display()))
    }
}
