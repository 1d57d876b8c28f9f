//! The registry of jobs: which containers of this machine can be saved, and what was saved of them.
//!
//! ```text
//!  shim: publishes a record, one small file a container        cedana: takes the files in, and keeps what they forget
//!    /run/cedana/jobs.d/NAMESPACE@ID@xxxxxxxx.json  --------->  /var/lib/cedana/jobs.db (SQLite, WAL)
//!        in memory; written, renamed: no lock, no fsync         ^   |
//!    /var/lib/cedana/jobs.d/…: what was saved  -----------------+   |   outlives a reboot
//!                                                                   v
//!    /run/cedana/jobs.d/restore/…  <---- pending restores ---- ps | dump | restore | …
//!        ^                                                              |
//!        +---------- ttrpc, wire: dump, restore, freeze … --------------+
//! ```
//!
//! Shims write files and not the database because a shim is a tax on every container: the library and its page cache would cost
//! each of them memory, and a lock held by anybody would be one a container waits for.
//!
//! Invariants:
//! - it is an index, never the truth: a lost, locked, full or damaged registry costs a warning, never a container;
//! - liveness is asked of the process (pid and start time, and the boot it belongs to), never of the registry;
//! - records carry no secret: no environment, no arguments, no credential;
//! - whoever meets a record or database of a newer schema leaves it as it is.

pub mod record;

pub mod file;
pub mod id;
pub mod liveness;
pub mod pending;
pub mod preflight;
pub mod spool;
pub mod time;

pub mod wire;

#[cfg(feature = "registry")]
pub mod registry;
