//! The shim's own service: what `cedana` asks a shim on its socket, beside containerd's Task service.
//!
//! ttrpc, with JSON messages: both ends are ours, fields that one of them does not know are passed over, and a shim does not
//! carry a second set of generated messages. Errors are ttrpc statuses with the codes of the Task service
//! (NOT_FOUND, FAILED_PRECONDITION, INVALID_ARGUMENT, UNIMPLEMENTED, CANCELLED, UNKNOWN), the text is for people.
//! Only the user of the shim may connect: the shim checks the peer's credentials.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::record::Record;

/// The service's name.
pub const SERVICE: &str = "cedana.job.v1.Job";

/// Its methods: [`Target`] to [`StatusAnswer`].
pub const STATUS: &str = "Status";
/// [`DumpRequest`] to [`DumpAnswer`]: the very act that containerd's `Checkpoint` does.
pub const DUMP: &str = "Dump";
/// [`RestoreRequest`] to [`RestoreAnswer`]: a container that has ended, and whose task is still there, runs again.
pub const RESTORE: &str = "Restore";
/// [`Target`] to [`Empty`]: as containerd's `Pause`.
pub const FREEZE: &str = "Freeze";
/// [`Target`] to [`Empty`]: as containerd's `Resume`.
pub const THAW: &str = "Thaw";
/// [`ProgressRequest`] to [`ProgressAnswer`]: answers when something moved, after a second at the latest.
pub const PROGRESS: &str = "Progress";
/// [`Target`] to [`Empty`]: the dump under way is taken back, unless it is past its commit.
pub const CANCEL: &str = "Cancel";

/// The largest message either end takes, in bytes.
pub const MESSAGE_BYTES_MAX: usize = 1 << 20;

/// The container that is meant; a pod's shim has several.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Target {
    /// Its id.
    pub id: String,
}

/// Nothing to say.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct Empty {}

/// What is known of a container now.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StatusAnswer {
    /// As it would be published.
    pub record: Record,
    /// The act under way that excludes others: `checkpoint`, `pause` …
    #[serde(default)]
    pub busy: Option<String>,
}

/// A container's image.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Image {
    /// The name it was asked for by.
    pub name: String,
    /// The digest of its manifest; empty if the engine does not tell.
    pub digest: String,
    /// The digest of its configuration: what Docker and podman call its id.
    pub id: String,
}

/// A dump.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DumpRequest {
    /// The container.
    pub id: String,
    /// Where the checkpoint goes: a directory that is made, in one that is there.
    pub path: PathBuf,
    /// One file that is wanted instead, if the shim can make it without writing the memory twice. It tells whether it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub archive: Option<Archive>,
    /// What its engine calls the container, for the checkpoint to remember: the shim knows only its id.
    #[serde(default)]
    pub name: Option<String>,
    /// Its image, which the shim does not know either.
    #[serde(default)]
    pub image: Option<Image>,
    /// The container goes on afterwards.
    pub leave_running: bool,
    /// A client's terminal is taken along (`--shell-job`).
    #[serde(default)]
    pub shell_job: bool,
    /// Settings for this dump by their dotted names (`dump.tcp`); they win over all others.
    #[serde(default)]
    pub settings: BTreeMap<String, String>,
}

/// A checkpoint as one file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Archive {
    /// Where it goes: a file that is made, in the directory that the directory would be in.
    pub path: PathBuf,
    /// Its form, by the word for it: `zstd`, …
    pub form: String,
}

/// A complete dump.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DumpAnswer {
    /// It is the archive that was asked for, and no directory is there.
    #[serde(default)]
    pub archived: bool,
    /// Bytes written.
    pub size: u64,
    /// Milliseconds by phase, in order.
    pub timings: Vec<(String, f64)>,
}

/// A restore in place.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RestoreRequest {
    /// The container.
    pub id: String,
    /// The checkpoint, a directory.
    pub path: PathBuf,
    /// What it was unpacked from, if it was: what the registry names.
    #[serde(default)]
    pub unpacked_from: Option<PathBuf>,
    /// The list of the memory that was left in that, if some was.
    #[serde(default)]
    pub left: Option<PathBuf>,
    /// Settings for this restore by their dotted names (`restore.tcp`); they win over all others.
    #[serde(default)]
    pub settings: BTreeMap<String, String>,
}

/// A complete restore.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RestoreAnswer {
    /// The init's pid.
    pub pid: i32,
    /// Milliseconds by phase, in order.
    pub timings: Vec<(String, f64)>,
}

/// How far is it?
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ProgressRequest {
    /// The container.
    pub id: String,
    /// The `step` of the last answer; zero at first.
    #[serde(default)]
    pub seen: u64,
}

/// How far a dump or restore is.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ProgressAnswer {
    /// Counts phases, over all acts of the container.
    pub step: u64,
    /// `dump` or `restore`; empty when neither is under way.
    pub verb: String,
    /// The phase.
    pub phase: String,
    /// Bytes written so far.
    pub bytes: u64,
    /// Bytes to be expected, by the memory in use; zero if unknown.
    pub total: u64,
}
