//! The outside of a command in a machine: its input, output, terminal and signals, until its exit status comes.

use std::io::{self, ErrorKind, IsTerminal, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};

use super::launcher;
use super::machine::{Machine, Switch};
use super::wire::{CHUNK_BYTES, Frame, Request, Size};
use crate::testbed::report::say;

/// A resume takes a second; beside a busy compiler, and with a cold cache of half a GiB, it may take many times that.
const READY_MAX: Duration = Duration::from_secs(180);

/// Those that end the testbed, and that which tells of a terminal's new size.
const SIGNALS: [Signal; 5] = [
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGTERM,
    Signal::SIGHUP,
    Signal::SIGWINCH,
];

/// Has the signals come by a descriptor. Threads made later inherit it.
pub fn block_signals() -> Result<SignalFd> {
    let signals: SigSet = SIGNALS.into_iter().collect();
    signals.thread_block().context("block signals")?;
    SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC).context("make a signal descriptor")
}

/// The size of the terminal that a person sits at; nothing if the command is not one of a person's.
pub fn terminal_size() -> Option<Size> {
    if !io::stdin().is_terminal() || !io::stdout().is_terminal() {
        return None;
    }
    let said = Command::new("stty")
        .arg("size")
        .stdin(Stdio::inherit())
        .output()
        .ok()?;
    parse_size(&String::from_utf8_lossy(&said.stdout))
}

fn parse_size(said: &str) -> Option<Size> {
    let (rows, columns) = said.trim().split_once(' ')?;
    Some(Size {
        rows: rows.parse().ok()?,
        columns: columns.parse().ok()?,
    })
}

/// Runs the request in the machine by the agent in `program`, and returns its exit status. The machine is of no use
/// afterwards.
pub fn run(machine: &Machine, signals: SignalFd, program: &Path, request: &Request) -> Result<u8> {
    let speaker = Speaker(Arc::new(Mutex::new(machine.agent.try_clone()?)));
    let ended_by = Arc::new(AtomicI32::new(0));
    watch_signals(signals, machine.switch(), speaker.clone(), Arc::clone(&ended_by));
    let status = converse(machine, &speaker, program, request);
    match (ended_by.load(Ordering::Acquire), status) {
        // A shell tells of its own end by a signal in this way, too.
        (signal, _) if signal != 0 => Ok(128 + signal as u8),
        (_, status) => status.context("run the command in the machine"),
    }
}

fn converse(machine: &Machine, speaker: &Speaker, program: &Path, request: &Request) -> Result<u8> {
    wake(machine, program).with_context(|| {
        let image = machine.image().display();
        format!("resume the machine; if it fails again, remove {image} to have it made anew")
    })?;
    let mut agent = &machine.agent;
    // No deadline: how long the command may take is for whoever started it to say.
    agent.set_read_timeout(None)?;
    speaker.say(&Frame::Request(request.clone()))?;
    let _raw = request.terminal.map(|_| Raw::enter()).transpose()?;
    pass_input_on(speaker.clone());
    loop {
        let frame = Frame::read(&mut agent).context("hear from the agent")?;
        match frame {
            Some(Frame::Output(bytes)) => pass_output_on(&mut io::stdout().lock(), &bytes)?,
            Some(Frame::Errors(bytes)) => pass_output_on(&mut io::stderr().lock(), &bytes)?,
            Some(Frame::Exit(status)) => return Ok(status),
            Some(Frame::Failed(why)) => bail!("{why}"),
            Some(frame) => bail!("understand the agent: {frame:?} came"),
            None => bail!(
                "wait for the command: the machine has ended; {}",
                machine.last_words()
            ),
        }
    }
}

/// Has the resumed guest start the agent.
fn wake(machine: &Machine, program: &Path) -> Result<()> {
    machine.tell(&launcher::become_agent(program, SystemTime::now()))?;
    let mut agent = &machine.agent;
    agent.set_read_timeout(Some(READY_MAX))?;
    match Frame::read(&mut agent) {
        Ok(Some(Frame::Ready)) => Ok(()),
        Ok(other) => bail!("start the agent: {other:?} came; {}", machine.last_words()),
        Err(error) => Err(error).with_context(|| format!("start the agent; {}", machine.last_words())),
    }
}

/// A reader that has gone is told to the command as the end of the testbed, by an error here.
fn pass_output_on(to: &mut impl Write, bytes: &[u8]) -> Result<()> {
    to.write_all(bytes)
        .and_then(|()| to.flush())
        .context("pass on what the command wrote")
}

/// Until standard input ends, or the process does: nothing waits for this thread.
fn pass_input_on(speaker: Speaker) {
    let _detached = std::thread::spawn(move || {
        let mut chunk = vec![0; CHUNK_BYTES];
        loop {
            let frame = match io::stdin().lock().read(&mut chunk) {
                Ok(0) => Frame::InputEnd,
                Ok(length) => Frame::Input(chunk.get(..length).unwrap_or_default().to_vec()),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                // As when a process in the background reads its terminal.
                Err(_) => Frame::InputEnd,
            };
            // It fails when the machine has ended, which the other side of the conversation notices.
            if speaker.say(&frame).is_err() || frame == Frame::InputEnd {
                return;
            }
        }
    });
}

/// As long as the process lives: nothing waits for this thread.
fn watch_signals(signals: SignalFd, switch: Switch, speaker: Speaker, ended_by: Arc<AtomicI32>) {
    let _detached = std::thread::spawn(move || {
        while let Ok(Some(signal)) = signals.read_signal() {
            let number = signal.ssi_signo.cast_signed();
            if number == Signal::SIGWINCH as i32 {
                if let Some(size) = terminal_size() {
                    // It fails when the machine has ended; there is nobody to resize for.
                    let _ = speaker.say(&Frame::Resize(size));
                }
                continue;
            }
            say(&format!("signal {number}: taking the machine down"));
            ended_by.store(number, Ordering::Release);
            switch.off();
        }
    });
}

/// The sending half, for several threads.
#[derive(Debug, Clone)]
struct Speaker(Arc<Mutex<UnixStream>>);

impl Speaker {
    fn say(&self, frame: &Frame) -> io::Result<()> {
        let mut stream = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        frame.write(&mut *stream)
    }
}

/// The person's terminal, given through to the guest's; as it was when this is dropped.
struct Raw(Termios);

impl Raw {
    fn enter() -> Result<Self> {
        let before = tcgetattr(io::stdin()).context("read the terminal's settings")?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        tcsetattr(io::stdin(), SetArg::TCSADRAIN, &raw).context("set the terminal")?;
        Ok(Self(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // A terminal that has gone needs no settings.
        let _ = tcsetattr(io::stdin(), SetArg::TCSADRAIN, &self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_stty_says_them() {
        let cases = [
            (
                "24 80\n",
                Some(Size {
                    rows: 24,
                    columns: 80,
                }),
            ),
            ("", None),
            ("24\n", None),
            ("24 x\n", None),
        ];
        for (said, size) in cases {
            assert_eq!(parse_size(said), size, "{said:?}");
        }
    }
}
