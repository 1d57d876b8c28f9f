//! One QEMU: its command line, its start, its two sockets, its end.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// Names in an image's directory: QEMU is started there, and gets no path.
pub const DISK: &str = "disk.img";
/// The kernel.
pub const KERNEL: &str = "vmlinuz";
/// The initial memory file system, Debian's own.
pub const INITRD: &str = "initrd.img";
/// The machine after its first boot.
pub const SAVED: &str = "saved";

/// Raised when [`arguments`] changes, since a saved machine can be resumed only by one like itself.
pub const MACHINE_VERSION: u32 = 1;

/// Name of the 9p share that holds the host's files.
pub const SHARE: &str = "host";

/// The serial console's lines, for when something goes wrong.
const CONSOLE: &str = "console.log";

/// What QEMU itself complains of.
const COMPLAINTS: &str = "qemu.log";

/// As many lines of each as a person reads.
const LOG_LINES: usize = 15;

/// A line from the guest's launcher is a word or an error message.
const LINE_BYTES_MAX: usize = 4096;

/// QEMU ends at once when it is told to; this is for a loaded machine.
const END_MAX: Duration = Duration::from_secs(60);

/// How often it is looked at.
const END_STEP: Duration = Duration::from_millis(50);

/// How it starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Boot {
    /// From its kernel, writing its disk: only while an image is built.
    Cold,
    /// From the saved memory; what it writes to its disk is forgotten.
    Saved,
}

/// A machine that runs. Dropping it ends it.
#[derive(Debug)]
pub struct Machine {
    process: Arc<Mutex<Child>>,
    /// The guest's port.
    pub agent: UnixStream,
    /// QEMU's control socket.
    pub monitor: UnixStream,
    image: PathBuf,
    logs: PathBuf,
}

impl Machine {
    /// Starts the image in that directory; its logs are written to `logs`. It may take a while until the guest answers.
    pub fn start(image: &Path, boot: Boot, logs: &Path) -> Result<Self> {
        let complaints = File::create(logs.join(COMPLAINTS)).context("make a log for QEMU")?;
        let (agent, agent_inside) = UnixStream::pair().context("make a socket pair")?;
        let (monitor, monitor_inside) = UnixStream::pair().context("make a socket pair")?;
        // setpriv has the kernel kill QEMU when this thread, which is the testbed's first, dies.
        let process = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "qemu-system-x86_64"])
            .args(arguments(boot, &logs.join(CONSOLE)))
            .current_dir(image)
            .stdin(OwnedFd::from(agent_inside))
            .stdout(OwnedFd::from(monitor_inside))
            .stderr(Stdio::from(complaints))
            // Out of the terminal's foreground: Ctrl-C is for the testbed.
            .process_group(0)
            .spawn()
            .context("run qemu-system-x86_64")?;
        Ok(Self {
            process: Arc::new(Mutex::new(process)),
            agent,
            monitor,
            image: image.to_owned(),
            logs: logs.to_owned(),
        })
    }

    /// The directory of the image it was started from.
    pub fn image(&self) -> &Path {
        &self.image
    }

    /// A handle that can end it from another thread.
    pub fn switch(&self) -> Switch {
        Switch(Arc::clone(&self.process))
    }

    /// Reads one line of the guest's launcher, waiting that long for each of its bytes.
    pub fn line(&self, patience: Duration) -> Result<String> {
        self.agent.set_read_timeout(Some(patience))?;
        let mut line = Vec::new();
        // Byte by byte: what follows the line is not for this reader.
        let mut bytes = BufReader::with_capacity(1, &self.agent);
        while line.last() != Some(&b'\n') && line.len() < LINE_BYTES_MAX {
            let byte = match bytes.fill_buf() {
                Ok([byte, ..]) => *byte,
                Ok([]) => bail!("hear from the machine: it has ended; {}", self.last_words()),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => {
                    return Err(error)
                        .with_context(|| format!("hear from the machine; {}", self.last_words()));
                }
            };
            bytes.consume(1);
            line.push(byte);
        }
        Ok(String::from_utf8_lossy(&line).trim_end().to_owned())
    }

    /// Gives the guest's launcher a shell command to run.
    pub fn tell(&self, command: &str) -> Result<()> {
        (&self.agent)
            .write_all(format!("{command}\n").as_bytes())
            .with_context(|| format!("speak to the machine; {}", self.last_words()))
    }

    /// What it and QEMU said last, for an error message.
    pub fn last_words(&self) -> String {
        let end = |name: &str| last_lines(&fs::read(self.logs.join(name)).unwrap_or_default());
        format!("QEMU said:\n{}\nits console:\n{}", end(COMPLAINTS), end(CONSOLE))
    }

    /// Waits for QEMU to end by itself.
    pub fn wait(&self) -> Result<()> {
        let mut process = self.process.lock().unwrap_or_else(PoisonError::into_inner);
        let deadline = Instant::now() + END_MAX;
        let status = loop {
            if let Some(status) = process.try_wait().context("wait for QEMU")? {
                break status;
            }
            if Instant::now() > deadline {
                bail!("end the machine in {END_MAX:?}; {}", self.last_words());
            }
            std::thread::sleep(END_STEP);
        };
        if !status.success() {
            bail!(
                "run the machine to its end: QEMU ended with {status}; {}",
                self.last_words()
            );
        }
        Ok(())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.switch().off();
    }
}

/// Ends a machine.
#[derive(Debug, Clone)]
pub struct Switch(Arc<Mutex<Child>>);

impl Switch {
    /// Ends it at once. There is nothing in it that has to be kept.
    pub fn off(&self) {
        let mut process = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // It fails for one that has ended, which is as good.
        let _ = process.kill();
        let _ = process.wait();
    }
}

/// QEMU's arguments. Two emulated processors crash the guest's kernel, so there is one. Memory is touched only as the
/// guest does, so 2 GiB cost a run about half of one.
fn arguments(boot: Boot, console: &Path) -> Vec<String> {
    let mut words: Vec<String> = [
        "-machine q35 -accel tcg -cpu max -smp 1 -m 2048",
        "-nodefaults -no-user-config -display none -no-reboot",
        // 0 and 1 are the sockets that take the place of standard input and output.
        "-chardev socket,id=agent,fd=0 -chardev socket,id=monitor,fd=1",
        "-mon chardev=monitor,mode=control",
        "-device virtio-serial-pci -device virtserialport,chardev=agent,name=agent",
        "-device virtio-rng-pci",
        // What the testbed shares is at the same path on both sides, so the share is all there is, and the guest binds
        // from it what it was told to and lets go of the rest. Both sides are the same person, and root.
        "-fsdev local,id=host,path=/,security_model=none,multidevs=remap",
    ]
    .iter()
    .flat_map(|line| line.split(' '))
    .map(str::to_owned)
    .collect();
    let drive = format!(
        "file={DISK},if=virtio,format=raw,cache=unsafe,snapshot={}",
        if boot == Boot::Saved { "on" } else { "off" }
    );
    let cmdline = "console=ttyS0 root=/dev/vda rw mitigations=off net.ifnames=0 systemd.show_status=1";
    words.extend([
        "-device".to_owned(),
        format!("virtio-9p-pci,fsdev=host,mount_tag={SHARE}"),
    ]);
    words.extend(["-drive".to_owned(), drive]);
    words.extend(["-serial".to_owned(), format!("file:{}", console.display())]);
    words.extend(["-kernel", KERNEL, "-initrd", INITRD, "-append", cmdline].map(str::to_owned));
    if boot == Boot::Saved {
        words.extend(["-incoming".to_owned(), format!("exec:cat {SAVED}")]);
    }
    words
}

fn last_lines(log: &[u8]) -> String {
    let text = String::from_utf8_lossy(log);
    let lines: Vec<&str> = text.lines().collect();
    lines
        .get(lines.len().saturating_sub(LOG_LINES)..)
        .unwrap_or_default()
        .join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_saved_machine_is_the_one_that_was_booted_but_for_where_it_starts() {
        let cold = arguments(Boot::Cold, Path::new("/c"));
        let saved = arguments(Boot::Saved, Path::new("/c"));
        let differs: Vec<&String> = saved.iter().filter(|word| !cold.contains(word)).collect();
        assert_eq!(differs.len(), 3, "{differs:?}");
        assert!(differs.iter().any(|word| word.contains("snapshot=on")));
        assert!(cold.iter().any(|word| word.contains("snapshot=off")));
    }
}
