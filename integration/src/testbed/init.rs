//! Process 1 of an instance: makes its world, starts the engines, runs the command, ends with its status.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, wait};
use nix::unistd::{Pid, sethostname};

use super::instance::Plan;
use super::{engines, mounts};

/// Exit status when the command was not run, as of docker and timeout.
pub const NOT_RUN: u8 = 125;

/// Does all that, and returns the command's exit status as a shell would tell it.
pub fn run(plan: &str) -> Result<u8> {
    let plan: Plan = serde_json::from_str(plan).context("read the plan")?;
    die_with(plan.testbed_pid)?;
    plan.cgroups.join()?;
    // The cgroup namespace has the cgroup as its root that its maker is in at that moment, so joining comes first.
    let private = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWCGROUP;
    unshare(private).context("make private namespaces")?;
    let programs = read_programs(&plan)?;
    mounts::enter(&plan.root, &plan.workspace, &plan.cgroups, &plan.shared)?;
    for (name, content) in programs {
        install(&Path::new("/usr/local/bin").join(name), &content)?;
    }
    sethostname("testbed").context("set the host name")?;
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).context("raise the limit of open files")?;
    let up = Command::new("ip")
        .env("PATH", engines::PATH)
        .args(["link", "set", "lo", "up"])
        .status();
    if !up.context("run ip")?.success() {
        bail!("bring up the loopback interface");
    }
    start_engines()?;
    command(&plan)
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

fn read_programs(plan: &Plan) -> Result<Vec<(OsString, Vec<u8>)>> {
    let mut programs = Vec::new();
    for path in &plan.programs {
        let name = path.file_name().unwrap_or_default().to_owned();
        programs.push((
            name,
            fs::read(path).with_context(|| format!("read {}", path.display()))?,
        ));
    }
    Ok(programs)
}

fn install(path: &Path, content: &[u8]) -> Result<()> {
    fs::write(path, content).with_context(|| format!("write {}", path.display()))?;
    fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .context("make it executable")
}

fn start_engines() -> Result<()> {
    engines::configure()?;
    engines::CONTAINERD.start()?;
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

/// Runs the command and reaps whatever is orphaned meanwhile, as any process 1 must.
fn command(plan: &Plan) -> Result<u8> {
    let mut words = plan.command.iter().cloned().map(OsString::from_vec);
    let program = words.next().context("find a command")?;
    let child = Command::new(&program)
        .args(words)
        .current_dir(if plan.directory.is_dir() {
            &plan.directory
        } else {
            Path::new("/")
        })
        .env("PATH", engines::PATH)
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
