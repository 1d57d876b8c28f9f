//! An OCI bundle on disk: what its `config.json` says, and the mounts its root file system is made of.
//!
//! ```text
//!  <bundle>/config.json --spec--> SpecView          (a few fields, never the whole specification)
//!           config.json <--spec-- inject_annotations (everything else stays byte for byte)
//!  Create.rootfs -------mounts--> <bundle>/rootfs    (undone when one of them fails)
//!  overlay's upper <----rootfs--> rootfs-diff.tar     (the same)
//!  <checkpoint>/ <----archive---> <checkpoint>.tar.zst (feature `archive`)
//!  <checkpoint>/* <---layout----> where each part lies
//!  .cedana-partial/ ---staged----> <checkpoint>/       (what a dump that was killed has left)
//!  config.dump, spec.dump <-podman-> what other tools read of a checkpoint, and write
//!  <any of them> --checkpoint--> manifest, verdict    (the same)
//! ```
//!
//! Invariants:
//! - a `config.json` is foreign input: it is read up to a limit and nothing in it is followed;
//! - reading never changes a bundle, and a rewrite is seen whole or not at all;
//! - no mount of a failed `mount_all` remains, and unmounting goes on to its end and returns every error;
//! - nothing here knows of containerd, runc or CRIU, waits for the network, or starts a thread that outlives
//!   the call.

pub mod spec;

pub mod mounts;

pub mod layout;
pub mod manifest;
pub mod podman;
pub mod staged;

#[cfg(feature = "files")]
pub mod archive;
#[cfg(feature = "archive")]
pub mod checkpoint;
#[cfg(feature = "files")]
pub mod memory;
#[cfg(feature = "files")]
pub mod rootfs;

#[cfg(all(any(test, fuzzing), feature = "archive"))]
pub mod fuzzing;
