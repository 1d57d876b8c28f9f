//! Process 1 of an instance: makes its world, starts the engines, runs the command, ends with its status.

use std::ffi::OsString;
use std::fs;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, wait, waitpid};
use nix::unistd::{Pid, sethostname};

use super::instance::{PLAN_VARIABLE, Plan};
use super::{engines, mounts, rootfs};

/// What is killed is gone at once, unless it waits for a disk.
const END_MAX: Duration = Duration::from_secs(20);

/// A child that ended between the look and the wait is noticed this late.
const END_STEP_MS: u16 = 20;

/// Exit status when the command was not run, as of docker and timeout.
pub const NOT_RUN: u8 = 125;

/// Does all that, and returns the command's exit status as a shell would tell it.
pub fn run() -> Result<u8> {
    // Blocked by the testbed outside, inherited, and not to be passed on to the command.
    SigSet::all().thread_unblock().context("unblock signals")?;
    let plan = std::env::var(PLAN_VARIABLE).context("read the plan")?;
    let plan: Plan = serde_json::from_str(&plan).context("read the plan")?;
    die_with(plan.testbed_pid)?;
    plan.cgroups.join()?;
    // The cgroup namespace has the cgroup as its root that its maker is in at that moment, so joining comes first.
    let private = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWCGROUP;
    unshare(private).context("make private namespaces")?;
    let images = plan
        .images
        .as_ref()
        .map(fs::read)
        .transpose()
        .context("read the test images")?;
    mounts::enter(&plan.root, &plan.workspace, &plan.cgroups, &plan.shared)?;
    for program in &plan.programs {
        install(program)?;
    }
    if let Some(images) = images {
        write(&Path::new("/").join(rootfs::IMAGES), &images)?;
    }
    for tool in &plan.tools {
        let link = Path::new("/usr/local/bin").join(tool.file_name().unwrap_or_default());
        symlink(tool, &link).with_context(|| format!("link {}", link.display()))?;
    }
    sethostname("testbed").context("set the host name")?;
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).context("raise the limit of open files")?;
    let up = engines::program("ip").args(["link", "set", "lo", "up"]).status();
    if !up.context("run ip")?.success() {
        bail!("bring up the loopback interface");
    }
    start_engines()?;
    let status = command(&plan)?;
    end_all(&plan)?;
    Ok(status)
}

/// Has the kernel kill this process, and with it the whole namespace, when the testbed outside dies.
fn die_with(testbed_pid: u32) -> Result<()> {
    set_pdeathsig(Signal::SIGKILL).context("tie init to the testbed")?;
    // It may have died before that; /proc is still the host's here.
    if !Path::new("/proc").join(testbed_pid.to_string()).exists() {
        bail!("find the testbed outside: it is gone");
    }
    Ok(())
}

/// Puts one of our programs where the engines look for it. Not as a copy: the instance's own files are in memory, and a
/// program there has its pages counted as shared memory, which would spoil every figure of the shim's size.
fn install(program: &Path) -> Result<()> {
    let name = program.file_name().context("find a program's name")?;
    let target = Path::new("/usr/local/bin").join(name);
    let _ = fs::File::create(&target).with_context(|| format!("make {}", target.display()))?;
    mount(
        Some(program),
        &target,
        None::<&str>,
        MsFlags::MS_BIND,
        None::<&str>,
    )
    .with_context(|| format!("bind {} to {}", program.display(), target.display()))
}

fn write(path: &Path, content: &[u8]) -> Result<()> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory).with_context(|| format!("make {}", directory.display()))?;
    }
    fs::write(path, content).with_context(|| format!("write {}", path.display()))
}

fn start_engines() -> Result<()> {
    engines::configure()?;
    engines::CONTAINERD.start()?;
    if !engines::installed(engines::DOCKERD.name) {
        return engines::load_images_containerd();
    }
    // The two halves touch nothing in common, and a run that takes half the time is run twice as often.
    std::thread::scope(|scope| {
        let docker = scope.spawn(|| {
            engines::DOCKERD
                .start()
                .and_then(|()| engines::load_images_docker())
        });
        let containerd = engines::load_images_containerd();
        let docker = docker
            .join()
            .unwrap_or_else(|_| bail!("start dockerd: its thread panicked"));
        containerd.and(docker)
    })
}

/// Kills everything else in the namespace and waits until it is gone: after that nothing can freeze anything again.
fn end_all(plan: &Plan) -> Result<()> {
    match kill(Pid::from_raw(-1), Signal::SIGKILL) {
        Ok(()) | Err(Errno::ESRCH) => {}
        Err(error) => return Err(error).context("kill what the command left"),
    }
    plan.cgroups.thaw_inside();
    let deadline = Instant::now() + END_MAX;
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Err(Errno::ECHILD) => return Ok(()),
            Err(error) => return Err(error).context("wait for what the command left"),
            Ok(WaitStatus::StillAlive) if Instant::now() > deadline => {
                bail!("end what the command left: it lives on {END_MAX:?} after being killed");
            }
            Ok(WaitStatus::StillAlive) => wait_for_child()?,
            Ok(_) => {}
        }
    }
}

/// Until a child has ended, or long enough to look at the clock again.
fn wait_for_child() -> Result<()> {
    let mut child = SigSet::empty();
    child.add(Signal::SIGCHLD);
    child.thread_block().context("block a signal")?;
    let signal_fd =
        SignalFd::with_flags(&child, SfdFlags::SFD_CLOEXEC).context("make a signal descriptor")?;
    let _ = poll(
        &mut [PollFd::new(signal_fd.as_fd(), PollFlags::POLLIN)],
        PollTimeout::from(END_STEP_MS),
    )?;
    Ok(())
}

/// Runs the command and reaps whatever is orphaned meanwhile, as any process 1 must.
fn command(plan: &Plan) -> Result<u8> {
    let mut words = plan.command.iter().cloned().map(OsString::from_vec);
    let program = words.next().context("find a command")?;
    let child = engines::program(&program)
        .args(words)
        .current_dir(if plan.directory.is_dir() {
            &plan.directory
        } else {
            Path::new("/")
        })
        .env("TESTBED_SUITE", &plan.suite)
        .spawn()
        .with_context(|| format!("run {}", Path::new(&program).display()))?;
    let command = Pid::from_raw(child.id().cast_signed());
    loop {
        match wait() {
            Ok(WaitStatus::Exited(pid, code)) if pid == command => return Ok(code as u8),
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == command => {
                return Ok((128 + signal as i32) as u8);
            }
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error).context("wait for the command"),
        }
    }
}
