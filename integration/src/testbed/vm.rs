//! The suite `vm`: Debian 13 as it comes, with its kernel, systemd and cgroup v2, in QEMU without KVM.
//!
//! ```text
//!  host                                            guest
//!  run ─ image     built once, cached: disk, kernel, and the memory of the machine after its first boot
//!      ─ machine   one QEMU, resumed from that; the disk is never written
//!      ─ session ═══ frames on a virtio-serial port ═══ agent ─ the command
//!                ═══ 9p: the checkout, target, … ══════ mounted at the same paths
//! ```
//!
//! Emulated, a boot takes half a minute and a resume one second, so a run resumes the machine that the first boot left:
//! systemd settled, containerd and dockerd up, test images loaded. Only what differs from run to run comes after that:
//! the clock, the shared directories, our programs, the command.
//!
//! Invariants: nothing but the cached image and one process, QEMU, exists on the host, and the kernel ends QEMU when the
//! testbed dies, however it dies. The guest has no network but its own.

pub mod agent;
pub mod image;
pub mod launcher;
pub mod machine;
pub mod monitor;
pub mod session;
pub mod wire;
pub mod workspace;

use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use anyhow::Result;

use super::command::RunArgs;
use super::instance;
use machine::{Boot, Machine};
use wire::Request;
use workspace::Workspace;

/// The argument that makes this program the one that runs the command inside.
pub const AGENT_ARGUMENT: &str = "--agent-of-machine";

/// The argument that makes it configure and start the engines inside, before the machine's memory is saved.
pub const PREPARE_ARGUMENT: &str = "--prepare-machine";

/// Runs the command in a machine of its own; returns its exit status, as a shell would tell it.
pub fn run(args: &RunArgs) -> Result<u8> {
    let workspace = Workspace::make()?;
    let image = image::ensure(&workspace)?;
    // Before the first thread and the first child, so that a Ctrl-C at any time finds the machine taken down.
    let signals = session::block_signals()?;
    let machine = Machine::start(&image, Boot::Saved, workspace.path())?;
    session::run(&machine, signals, &workspace.copy_program()?, &request(args)?)
}

/// What the guest is told: everything it needs to look like the host to the command, but for the engines.
fn request(args: &RunArgs) -> Result<Request> {
    let bytes = |path: PathBuf| path.into_os_string().into_vec();
    Ok(Request {
        command: args.command.iter().cloned().map(OsStringExt::into_vec).collect(),
        environment: std::env::vars_os()
            .map(|(name, value)| (name.into_vec(), value.into_vec()))
            .collect(),
        directory: bytes(args.directory.clone()),
        shared: instance::shared(&args.directory)?
            .into_iter()
            .map(bytes)
            .collect(),
        programs: instance::programs()?.into_iter().map(bytes).collect(),
        suite: args.suite.name().to_owned(),
        terminal: session::terminal_size(),
    })
}
