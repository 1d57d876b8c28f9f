//! `containerd-shim-cedana-v1`: one process per container (or pod) between containerd and runc.
//!
//! ```text
//!  containerd --argv/stdin--> args, bootstrap, start | delete | info      (the short lives)
//!  containerd --ttrpc------> serve -> service, translate                  (the edge: decides nothing)
//!                               |
//!                               v one queue per container
//!                            container: the owner task; state is its table of what is legal
//!                               |
//!          +--------------------+---------------------+------------------+
//!          v                    v                     v                  v
//!       runc, reap       stdio, process      dump, restore, phases    cgroup
//!                                                     |
//!                                                     v
//!                                                   criu
//! ```
//!
//! Invariants:
//! - one task owns a container; handlers enqueue and wait, and a dropped connection interrupts nothing;
//! - no lock is held across an await or a run of runc (the reaper's is, for the instant of a spawn: an exit cannot be missed);
//! - unsafe code is in five small files: spawn, signals, stdio/descriptor, criu/lock, worker/pages/uffd;
//! - nothing here waits without a deadline except `Wait`, whose whole point it is;
//! - the shim's stdout is a protocol (the address), so nothing in this crate prints.

pub mod args;
pub mod bootstrap;
pub mod delete;
pub mod info;
pub mod options;
pub mod start;

pub mod job_service;
pub mod serve;
pub mod service;
pub mod translate;

pub mod container;
pub mod process;
pub mod shim;
pub mod state;

pub mod reap;
pub mod runc;
pub mod signals;
pub mod spawn;

pub mod cgroup;
pub mod events;
pub mod log;
pub mod registry;
pub mod stdio;

pub mod capture;
pub mod criu;
pub mod dump;
pub mod phases;
pub mod preflight;
pub mod progress;
pub mod restore;
pub mod worker;

pub mod error;

#[cfg(any(test, fuzzing))]
pub mod fuzzing;
