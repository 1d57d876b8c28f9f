//! The middle of the shim, driven as the service drives it, without containerd and without root: a script stands for
//! runc, and what containerd would be told is kept in a list.
//!
//! Nothing here waits for time to pass. A test holds the fake runc at a verb, acts, and lets it go; see `bed`.

#![cfg(test)]

mod bed;
mod create;
mod dump;
mod execs;
mod init;
mod queue;
