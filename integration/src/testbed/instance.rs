//! The process outside an instance: makes its cgroups, starts its init, passes signals on, and cleans up.

use std::ffi::OsString;
use std::fs;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

use anyhow::{Context, Result, bail};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use serde::{Deserialize, Serialize};

use super::cgroups::Cgroups;
use super::command::RunArgs;
use super::report::say;
use super::suite::Suite;
use super::tools::{self, Tools};
use super::{cache, host, rootfs, vm};

/// The argument that makes this program the process inside.
pub const INIT_ARGUMENT: &str = "--init-of-instance";

/// The variable that holds its [`Plan`]. Not an argument, so that a test that looks for a process by its command
/// line does not find init; not passed on to anything.
pub const PLAN_VARIABLE: &str = "CEDANA_TESTBED_PLAN";

/// How often a dying instance is thawed, see [`Cgroups::thaw`].
const THAW_STEP_MS: u16 = 50;

/// What init is told by the process outside. File names and arguments are bytes, since they need not be text.
#[derive(Debug, Serialize, Deserialize)]
pub struct Plan {
    /// The process outside, by its id on the host.
    pub testbed_pid: u32,
    /// Name of the suite.
    pub suite: String,
    /// The cached root file system.
    pub root: PathBuf,
    /// The test images, where the root file system does not hold them.
    pub images: Option<PathBuf>,
    /// A directory to mount things on.
    pub workspace: PathBuf,
    /// Host directories that are there inside as well.
    pub shared: Vec<PathBuf>,
    /// Our programs, copied to `/usr/local/bin`.
    pub programs: Vec<PathBuf>,
    /// Cached programs in a shared directory, linked to from `/usr/local/bin`.
    pub tools: Vec<PathBuf>,
    /// The instance's cgroups.
    pub cgroups: Cgroups,
    /// Where the command starts.
    pub directory: PathBuf,
    /// The command and its arguments.
    pub command: Vec<Vec<u8>>,
}

/// What an instance stands on.
struct Ground {
    name: &'static str,
    root: PathBuf,
    images: Option<PathBuf>,
    tools: Option<Tools>,
}

fn ground(suite: Suite) -> Result<Ground> {
    if host::asked() {
        host::check()?;
        return Ok(Ground {
            name: host::NAME,
            root: "/".into(),
            images: Some(host::images()?),
            tools: None,
        });
    }
    let root = rootfs::ensure(&suite.recipe())?;
    Ok(Ground {
        name: suite.name(),
        root,
        images: None,
        tools: tools::for_suite(suite, &checkout()?)?,
    })
}

/// Runs the command in a fresh instance; returns its exit status, as a shell would tell it.
pub fn run(args: &RunArgs) -> Result<u8> {
    if args.suite == Suite::Vm {
        return vm::run(args);
    }
    let ground = ground(args.suite)?;
    let mut shared = shared(&args.directory)?;
    shared.extend(ground.tools.iter().map(|tools| tools.directory.clone()));
    let workspace = cache::directory()?.join("workspace");
    fs::create_dir_all(&workspace).with_context(|| format!("make {}", workspace.display()))?;
    let plan = Plan {
        testbed_pid: std::process::id(),
        suite: ground.name.to_owned(),
        root: ground.root,
        images: ground.images,
        workspace,
        shared,
        programs: programs()?,
        tools: ground.tools.iter().flat_map(Tools::paths).collect(),
        cgroups: Cgroups::create(std::process::id())?,
        directory: args.directory.clone(),
        command: args.command.iter().cloned().map(OsString::into_vec).collect(),
    };
    let ended = supervise(&plan);
    let cleaned = plan
        .cgroups
        .remove()
        .and_then(|()| nothing_mounted(&plan.workspace));
    let status = ended?;
    cleaned.context("clean up after the instance")?;
    Ok(status)
}

/// Starts init as process 1 of a new pid namespace and waits for its end, which is the end of everything inside.
fn supervise(plan: &Plan) -> Result<u8> {
    let mut signals = SigSet::empty();
    for signal in [
        Signal::SIGINT,
        Signal::SIGQUIT,
        Signal::SIGTERM,
        Signal::SIGHUP,
        Signal::SIGCHLD,
    ] {
        signals.add(signal);
    }
    signals.thread_block().context("block signals")?;
    let signal_fd = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
        .context("make a signal descriptor")?;
    // Only children born after this are inside. From here on this process can neither have threads nor other children.
    unshare(CloneFlags::CLONE_NEWPID).context("make a pid namespace")?;
    let mut init = Command::new("/proc/self/exe")
        .arg(INIT_ARGUMENT)
        .env(PLAN_VARIABLE, serde_json::to_string(plan)?)
        .spawn()
        .context("start the instance's init")?;
    let mut told_to_end = None;
    loop {
        if let Some(status) = init.try_wait()? {
            // A shell tells of its own end by a signal in this way, too.
            return Ok(told_to_end.map_or_else(|| exit_code(status), |signal| 128 + signal as u8));
        }
        // No deadline: how long the command may take is for whoever started it to say.
        let patience = if told_to_end.is_some() {
            PollTimeout::from(THAW_STEP_MS)
        } else {
            PollTimeout::NONE
        };
        let _ = poll(&mut [PollFd::new(signal_fd.as_fd(), PollFlags::POLLIN)], patience)?;
        while let Some(signal) = signal_fd.read_signal()? {
            if let Some(signal) = asks_to_end(signal.ssi_signo, signal.ssi_code) {
                say(&format!("{signal}: taking the instance down"));
                init.kill().context("kill the instance's init")?;
                told_to_end = Some(signal);
            }
        }
        if told_to_end.is_some() {
            plan.cgroups.thaw();
        }
    }
}

fn exit_code(status: ExitStatus) -> u8 {
    status
        .code()
        .or(status.signal().map(|signal| 128 + signal))
        .unwrap_or(1) as u8
}

/// The signal, if it asks the testbed to end. One from the terminal has reached the command, too, which decides.
fn asks_to_end(number: u32, code: i32) -> Option<Signal> {
    let signal = Signal::try_from(number.cast_signed()).ok()?;
    let from_terminal = code == SI_KERNEL && matches!(signal, Signal::SIGINT | Signal::SIGQUIT);
    (signal != Signal::SIGCHLD && !from_terminal).then_some(signal)
}

/// Of the kernel's `asm-generic/siginfo.h`, which nix does not have: sent by the kernel, here for the terminal.
const SI_KERNEL: i32 = 0x80;

/// The checkout, the directory for build results where that is elsewhere, a person's Rust, and where the command starts.
pub(super) fn shared(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut paths = vec![checkout()?, target()?];
    if let Some(home) = std::env::var_os("HOME").map(PathBuf::from) {
        paths.extend(
            [".cargo", ".rustup"]
                .map(|name| home.join(name))
                .into_iter()
                .filter(|path| path.is_dir()),
        );
    }
    // A directory that every system has is the instance's own there.
    let everywhere = [
        "/", "/root", "/home", "/tmp", "/var", "/usr", "/etc", "/run", "/dev", "/proc", "/sys", "/opt",
    ];
    if !everywhere.iter().any(|common| directory == Path::new(common)) {
        paths.push(directory.to_owned());
    }
    paths.sort();
    // A path below another that is shared comes with it.
    paths.dedup_by(|later, earlier| later.starts_with(earlier));
    Ok(paths)
}

/// Release builds of what containerd and a person run.
pub(super) fn programs() -> Result<Vec<PathBuf>> {
    let release = target()?.join("release");
    let found: Vec<PathBuf> = ["containerd-shim-cedana-v1", "cedana"]
        .map(|name| release.join(name))
        .into_iter()
        .filter(|path| path.is_file())
        .collect();
    if !found
        .iter()
        .any(|path| path.ends_with("containerd-shim-cedana-v1"))
    {
        say(&format!(
            "no shim in {}: build it with cargo build --release -p shim",
            release.display()
        ));
    }
    Ok(found)
}

/// The checkout this program was built from.
fn checkout() -> Result<PathBuf> {
    let integration = Path::new(env!("CARGO_MANIFEST_DIR"));
    integration
        .parent()
        .map(Path::to_owned)
        .context("find the checkout")
}

/// Cargo's target directory: this program is two levels below it.
fn target() -> Result<PathBuf> {
    let program = std::env::current_exe().context("find this program")?;
    program
        .ancestors()
        .nth(2)
        .map(Path::to_owned)
        .context("find the target directory")
}

fn nothing_mounted(workspace: &Path) -> Result<()> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("read /proc/self/mounts")?;
    let workspace = workspace.display().to_string();
    match mounts.lines().find(|line| line.contains(&workspace)) {
        Some(left) => bail!("unmount everything: left is {left}"),
        None => Ok(()),
    }
}
