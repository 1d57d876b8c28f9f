//! The testbed: a command, run in a fresh private instance of a suite of real engines.
//!
//! ```text
//! bin/testbed ── command ── suite ──┬── rootfs, tools   built once, cached: <cache>/<suite>-<hash>/
//!                                   │
//!                                   └── instance        the process outside: cgroups, signals, exit status
//!                                          │
//!                                        init           pid 1 inside: mounts, engines, images, the command
//! ```
//!
//! An instance is a pid namespace first of all: its init is killed by the kernel when the process outside dies, however
//! it dies, and everything inside goes with it; mounts, network and IPC objects are private and go as well. Only
//! cgroups outlive a namespace, so each instance has one of its own per hierarchy, removed afterwards.
//!
//! Invariants: a cached suite is never written after it is built (instances are overlays on it in memory);
//! nothing of an instance is ever on disk; the testbed knows no crate of ours, only files called
//! `containerd-shim-*` and `cedana` in the target directory.

pub mod apt;
pub mod cache;
pub mod cgroups;
pub mod command;
pub mod engines;
pub mod host;
pub mod image;
pub mod init;
pub mod instance;
pub mod mounts;
pub mod report;
pub mod rootfs;
pub mod suite;
pub mod tools;
pub mod vm;
