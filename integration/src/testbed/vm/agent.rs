//! The inside: takes one request, makes the guest look as it asks, runs the command, and tells how it ended.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::pty::{Winsize, openpty};
use nix::unistd::syncfs;

use super::launcher::HOST_FILES;
use super::wire::{CHUNK_BYTES, Frame, Request, Size};
use crate::testbed::engines;

/// A process that the command left may hold its output for ever; what it wrote before comes within this.
const QUIET: Duration = Duration::from_millis(500);

/// How often the output is looked at for its end.
const QUIET_STEP: Duration = Duration::from_millis(10);

/// What the end of input is to a terminal: Ctrl-D.
const END_OF_TRANSMISSION: u8 = 4;

/// Does all that. Standard input and output are the port. The testbed switches the machine off when it has heard the
/// last word; if it cannot hear, [`take_input`] does.
pub fn run() -> Result<u8> {
    let (from, port) = port()?;
    port.say(&Frame::Ready)?;
    let last = match serve(from, &port) {
        Ok(status) => Frame::Exit(status),
        Err(error) => Frame::Failed(format!("{error:#}")),
    };
    port.say(&last)?;
    Ok(0)
}

fn port() -> Result<(File, Port)> {
    let from = io::stdin()
        .as_fd()
        .try_clone_to_owned()
        .context("take the port")?;
    let to = io::stdout()
        .as_fd()
        .try_clone_to_owned()
        .context("take the port")?;
    Ok((File::from(from), Port(Arc::new(Mutex::new(File::from(to))))))
}

fn serve(mut from: File, port: &Port) -> Result<u8> {
    let Some(Frame::Request(request)) = Frame::read(&mut from).context("read the request")? else {
        bail!("read the request: it is missing");
    };
    let shared: Vec<PathBuf> = request.shared.iter().cloned().map(path).collect();
    for program in request.programs.iter().cloned().map(path) {
        install(&program)?;
    }
    share(&shared)?;
    let running = Running::start(&request, port)?;
    let Running {
        mut child,
        input,
        outputs,
        written,
    } = running;
    let terminal = request.terminal.is_some();
    let _detached = std::thread::spawn(move || take_input(from, input, terminal));
    let status = child.wait().context("wait for the command")?;
    drain(&outputs, &written);
    for directory in &shared {
        // The machine is switched off as it stands, and what was written to the host's files must be there.
        let file = File::open(directory).with_context(|| format!("open {}", directory.display()))?;
        syncfs(file).with_context(|| format!("write out {}", directory.display()))?;
    }
    Ok(status
        .code()
        .or(status.signal().map(|signal| 128 + signal))
        .unwrap_or(1) as u8)
}

/// Copies one of our programs to where containerd looks.
fn install(program: &Path) -> Result<()> {
    let name = program.file_name().context("find a program's name")?;
    let to = Path::new("/usr/local/bin").join(name);
    let _ = fs::copy(at_host(program), &to).with_context(|| format!("copy {}", program.display()))?;
    fs::set_permissions(&to, fs::Permissions::from_mode(0o755)).context("make it executable")
}

/// Binds the host's directories to the same paths, and lets go of the rest of the host.
fn share(directories: &[PathBuf]) -> Result<()> {
    for directory in directories {
        fs::create_dir_all(directory).with_context(|| format!("make {}", directory.display()))?;
        let no_name: Option<&str> = None;
        mount(
            Some(&at_host(directory)),
            directory,
            no_name,
            MsFlags::MS_BIND,
            no_name,
        )
        .with_context(|| format!("mount {}", directory.display()))?;
    }
    // This program itself is on it, so it goes when this ends; but nobody can find it any more.
    umount2(HOST_FILES, MntFlags::MNT_DETACH).with_context(|| format!("unmount {HOST_FILES}"))
}

fn at_host(path: &Path) -> PathBuf {
    let mut at = OsString::from(HOST_FILES);
    at.push(path);
    at.into()
}

fn path(bytes: Vec<u8>) -> PathBuf {
    OsString::from_vec(bytes).into()
}

/// The command, and where its streams end.
struct Running {
    child: Child,
    input: Option<File>,
    outputs: Vec<JoinHandle<()>>,
    written: Arc<AtomicU64>,
}

impl Running {
    fn start(request: &Request, port: &Port) -> Result<Self> {
        let written = Arc::new(AtomicU64::new(0));
        let pass = |from: File, frame: fn(Vec<u8>) -> Frame| {
            let (port, written) = (port.clone(), Arc::clone(&written));
            std::thread::spawn(move || pass_output_on(from, frame, &port, &written))
        };
        let (child, input, outputs) = match request.terminal {
            Some(size) => {
                let (child, terminal) = at_terminal(request, size)?;
                (child, terminal.try_clone()?, vec![pass(terminal, Frame::Output)])
            }
            None => {
                let mut child = command(request, &[])?
                    .stdin(Stdio::piped())
                    .stdout(Stdio::piped())
                    .stderr(Stdio::piped())
                    .spawn()
                    .with_context(|| format!("run {}", name(request)))?;
                let pipes = (child.stdin.take(), child.stdout.take(), child.stderr.take());
                let (Some(input), Some(output), Some(errors)) = pipes else {
                    bail!("find the command's pipes");
                };
                let outputs = vec![
                    pass(File::from(OwnedFd::from(output)), Frame::Output),
                    pass(File::from(OwnedFd::from(errors)), Frame::Errors),
                ];
                (child, File::from(OwnedFd::from(input)), outputs)
            }
        };
        Ok(Self {
            child,
            input: Some(input),
            outputs,
            written,
        })
    }
}

/// Starts it as the leader of a session at a new terminal, whose other end is returned.
fn at_terminal(request: &Request, size: Size) -> Result<(Child, File)> {
    let size = Winsize {
        ws_row: size.rows,
        ws_col: size.columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    let terminal = openpty(Some(&size), None).context("make a terminal")?;
    let slave = || terminal.slave.try_clone().context("open the terminal");
    let child = command(request, &["setsid", "--ctty", "--wait"])?
        .stdin(slave()?)
        .stdout(slave()?)
        .stderr(slave()?)
        .spawn()
        .with_context(|| format!("run {}", name(request)))?;
    Ok((child, File::from(terminal.master)))
}

/// The command, started by `by`, in the environment it has in every suite.
fn command(request: &Request, by: &[&str]) -> Result<Command> {
    let words = request.command.iter().map(|word| OsStr::from_bytes(word));
    let mut words = by.iter().map(OsStr::new).chain(words);
    let mut command = Command::new(words.next().context("find a command")?);
    let directory = path(request.directory.clone());
    let environment = request.environment.iter();
    let _ = command
        .args(words)
        .env_clear()
        .envs(environment.map(|(name, value)| (OsStr::from_bytes(name), OsStr::from_bytes(value))))
        .env("PATH", engines::PATH)
        .env("TESTBED_SUITE", &request.suite)
        .current_dir(if directory.is_dir() {
            &directory
        } else {
            Path::new("/")
        });
    Ok(command)
}

fn name(request: &Request) -> String {
    String::from_utf8_lossy(request.command.first().map_or(&[], Vec::as_slice)).into_owned()
}

/// Until the testbed says that input has ended; and if the testbed has gone, until the machine is off.
fn take_input(mut from: File, mut input: Option<File>, terminal: bool) {
    loop {
        match Frame::read(&mut from) {
            Ok(Some(Frame::Input(bytes))) => {
                // A command that reads no more is no error.
                let _ = input.as_mut().map(|input| input.write_all(&bytes));
            }
            Ok(Some(Frame::InputEnd)) if terminal => {
                let _ = input
                    .as_mut()
                    .map(|input| input.write_all(&[END_OF_TRANSMISSION]));
            }
            Ok(Some(Frame::InputEnd)) => input = None,
            Ok(Some(Frame::Resize(size))) => resize(input.as_ref(), size),
            // No frame, or none that has a place here: nobody is there to talk to.
            _ => {
                let _ = fs::write("/proc/sysrq-trigger", "o");
                return;
            }
        }
    }
}

fn resize(terminal: Option<&File>, size: Size) {
    let Some(terminal) = terminal.and_then(|terminal| terminal.try_clone().ok()) else {
        return;
    };
    let arguments = [
        "rows".to_owned(),
        size.rows.to_string(),
        "columns".to_owned(),
        size.columns.to_string(),
    ];
    // A shell in a window of the wrong size is still a shell.
    let _ = Command::new("stty").args(arguments).stdin(terminal).status();
}

fn pass_output_on(mut from: File, frame: fn(Vec<u8>) -> Frame, port: &Port, written: &AtomicU64) {
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        match from.read(&mut chunk) {
            Ok(length) if length > 0 => {
                let bytes = chunk.get(..length).unwrap_or_default().to_vec();
                if port.say(&frame(bytes)).is_err() {
                    return;
                }
                let _ = written.fetch_add(length as u64, Ordering::AcqRel);
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            // A terminal whose processes have all gone reads as an input/output error.
            Ok(_) | Err(_) => return,
        }
    }
}

/// Waits until all output has been passed on, or nothing more comes from whoever holds it.
fn drain(outputs: &[JoinHandle<()>], written: &AtomicU64) {
    let mut quiet = Duration::ZERO;
    let mut before = written.load(Ordering::Acquire);
    while quiet < QUIET && !outputs.iter().all(JoinHandle::is_finished) {
        std::thread::sleep(QUIET_STEP);
        let now = written.load(Ordering::Acquire);
        quiet = if now == before {
            quiet + QUIET_STEP
        } else {
            Duration::ZERO
        };
        before = now;
    }
}

/// The port's sending half, for several threads.
#[derive(Debug, Clone)]
struct Port(Arc<Mutex<File>>);

impl Port {
    fn say(&self, frame: &Frame) -> Result<()> {
        let mut port = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        frame.write(&mut *port).context("speak to the testbed")
    }
}
