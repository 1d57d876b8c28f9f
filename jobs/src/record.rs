//! What a shim publishes of a container: all that is known of a job without asking anybody.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Written into every record. A reader leaves newer ones alone.
pub const SCHEMA: u32 = 1;

/// Checkpoints a record remembers, the newest last. The database remembers all that it has seen.
pub const CHECKPOINTS_MAX: usize = 32;

/// The annotation that names a job.
pub const NAME_ANNOTATION: &str = "cedana.job";

/// Bytes of a job's name: it is shown in tables and typed in commands.
pub const NAME_BYTES_MAX: usize = 128;

/// What [`is_name`] allows, in words that follow on "a name has".
pub const NAME_RULE: &str = "letters, digits and . _ -, 128 at most";

/// What makes a job unique on a machine.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Key {
    /// The socket of the containerd that has the container: two of them may use the same names.
    pub engine: PathBuf,
    /// containerd's namespace.
    pub namespace: String,
    /// The container's id.
    pub id: String,
}

/// How far a container is in its life, by its shim's own books.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// It has its processes, and waits for its start.
    Created,
    /// It runs.
    Running,
    /// It is frozen.
    Paused,
    /// It has ended; its task is still there.
    Stopped,
    /// Its task is deleted, and its shim gone.
    Deleted,
}

/// A process that a later look can tell from another one of the same pid.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Process {
    /// Its pid; zero if there is none.
    pub pid: i32,
    /// Field 22 of `/proc/PID/stat`: clock ticks from the boot to its start.
    pub started: u64,
    /// `/proc/sys/kernel/random/boot_id`.
    pub boot: String,
}

/// The server of a container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Shim {
    /// Its process.
    pub process: Process,
    /// Its socket.
    pub socket: PathBuf,
    /// Its version.
    pub version: String,
}

/// Where the streams of the init go, as the client said it: paths of fifos, or URIs (`file://`, `binary://`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Stdio {
    /// Standard input.
    pub stdin: String,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    /// They are a terminal.
    pub terminal: bool,
}

/// How the init ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// Its code, or 128 and the signal.
    pub status: u32,
    /// When, in milliseconds since 1970.
    pub at: u64,
}

/// A checkpoint of a job. It exists as long as its path does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// Unique; a random UUID.
    pub id: String,
    /// Where it is.
    pub path: PathBuf,
    /// When it was complete, in milliseconds since 1970.
    pub at: u64,
    /// Bytes it takes.
    pub size: u64,
    /// The container went on after it.
    pub left_running: bool,
}

/// What a checkpoint says of where it comes from: the field `origin` of its `cedana.json`. By it the registry can be made again
/// from the checkpoints on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// Of which job.
    pub key: Key,
    /// What the annotation `cedana.job` called it.
    #[serde(default)]
    pub name: Option<String>,
    /// The checkpoint's own id.
    pub checkpoint: String,
    /// When it was made, in milliseconds since 1970.
    pub at: u64,
    /// The container went on after it.
    #[serde(default)]
    pub left_running: bool,
}

/// The last thing done to a job.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Act {
    /// What: `dump` or `restore`.
    pub verb: String,
    /// The phase it came to, or failed in.
    pub phase: String,
    /// Why it failed; empty if it did not.
    pub error: String,
    /// When, in milliseconds since 1970.
    pub at: u64,
}

/// A job as its shim knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// [`SCHEMA`] of the shim.
    pub schema: u32,
    /// Which job.
    pub key: Key,
    /// What the annotation `cedana.job` calls it.
    #[serde(default)]
    pub name: Option<String>,
    /// It is the pause container of a pod.
    #[serde(default)]
    pub sandbox: bool,
    /// Its image, if an annotation tells it (Kubernetes).
    #[serde(default)]
    pub image: Option<String>,
    /// Its bundle.
    pub bundle: PathBuf,
    /// Its shim.
    #[serde(default)]
    pub shim: Shim,
    /// Its init.
    #[serde(default)]
    pub init: Process,
    /// How far it is.
    pub status: Status,
    /// How it ended.
    #[serde(default)]
    pub exit: Option<Exit>,
    /// Its streams.
    #[serde(default)]
    pub stdio: Stdio,
    /// When it was created, in milliseconds since 1970.
    pub created: u64,
    /// When this was written, in milliseconds since 1970.
    pub changed: u64,
    /// What was saved of it, the newest last: [`CHECKPOINTS_MAX`] at most.
    #[serde(default)]
    pub checkpoints: Vec<Checkpoint>,
    /// The last dump or restore.
    #[serde(default)]
    pub last: Option<Act>,
    /// The checkpoint it was restored from.
    #[serde(default)]
    pub restored_from: Option<PathBuf>,
}

/// Whether a job can be called so: a table and a command line can bear it.
pub fn is_name(name: &str) -> bool {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    !name.is_empty() && name.len() <= NAME_BYTES_MAX && name.chars().all(is_plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_words() {
        for (name, ok) in [
            ("web-1", true),
            ("a.b_c", true),
            ("", false),
            ("a b", false),
            ("a/b", false),
            ("\u{1b}[31m", false),
        ] {
            assert_eq!(is_name(name), ok, "{name:?}");
        }
        assert!(is_name(&"x".repeat(NAME_BYTES_MAX)));
        assert!(!is_name(&"x".repeat(NAME_BYTES_MAX + 1)));
        assert!(NAME_RULE.contains(&NAME_BYTES_MAX.to_string()));
    }
}
