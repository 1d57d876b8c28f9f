//! The things that CRIU refuses to save, as they are or without an option: `workload hold KIND`.

use std::fs::{self, File};
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::process::{Child, Command};

use anyhow::{Context, Result, bail};
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use nix::unistd::Pid;

use super::deleted_file;

/// More than CRIU's default limit for the content of a deleted file (1 MiB).
const GHOST_BYTES: usize = 2 << 20;

/// One of them.
#[expect(dead_code, reason = "what is in the variants is held, not read")]
pub enum Held {
    Connection(TcpStream, TcpStream),
    End(TcpStream),
    Ring(Box<io_uring::IoUring>),
    Open(File),
    Locked(Flock<File>),
    Stream(UnixStream),
    Datagram(UnixDatagram),
    Vsock(OwnedFd),
    Child(Child),
}

impl Held {
    /// Takes hold of it. `open:PATH` is a file of that name.
    pub fn take(kind: &str) -> Result<Self> {
        if let Some(path) = kind.strip_prefix("open:") {
            let file = File::options().read(true).write(true).open(path);
            return Ok(Self::Open(file.with_context(|| format!("open {path}"))?));
        }
        Ok(match kind {
            "connection" => {
                let (client, server) = connection()?;
                Self::Connection(client, server)
            }
            // The other end is nobody's any more.
            "half-connection" => Self::End(connection()?.0),
            "io-uring" => Self::Ring(Box::new(io_uring::IoUring::new(8)?)),
            "ghost" => {
                let mut file = deleted_file("/ghost")?;
                // What counts is what lies on the disk, so the file must not be sparse.
                file.write_all(&vec![1; GHOST_BYTES])?;
                Self::Open(file)
            }
            "deleted-link" => {
                fs::write("/first", "text")?;
                fs::hard_link("/first", "/second")?;
                let file = File::open("/first")?;
                fs::remove_file("/first")?;
                Self::Open(file)
            }
            "lock" => {
                let file = Flock::lock(File::create("/locked")?, FlockArg::LockExclusive);
                Self::Locked(file.map_err(|(_, errno)| errno)?)
            }
            "host-socket" => Self::Stream(UnixStream::connect("/host/socket")?),
            "host-datagram" => {
                let datagram = UnixDatagram::unbound()?;
                datagram.connect("/host/datagram")?;
                Self::Datagram(datagram)
            }
            "host-file" => Self::Open(File::open("/host/file")?),
            "detached-mount" => Self::Open(detached()?),
            "vsock" => Self::Vsock(socket(
                AddressFamily::Vsock,
                SockType::Stream,
                SockFlag::empty(),
                None,
            )?),
            "user-namespace" => unshare("-U")?,
            "network-namespace" => unshare("-n")?,
            "pid-namespace" => unshare("-pf")?,
            other => bail!("no such thing to hold: {other}"),
        })
    }

    /// Lets go of it.
    pub fn let_go(self) {
        if let Self::Child(mut child) = self {
            // What unshare has started goes first: it would stay without its parent.
            let id = child.id();
            let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap_or_default();
            for pid in children.split_whitespace().filter_map(|pid| pid.parse().ok()) {
                let _killed = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
            let _gone = child.kill().and_then(|()| child.wait());
        }
    }
}

fn connection() -> Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let client = TcpStream::connect(listener.local_addr()?)?;
    Ok((client, listener.accept()?.0))
}

/// A file on a mount that is in no namespace any more.
fn detached() -> Result<File> {
    fs::create_dir_all("/detached")?;
    mount(
        Some("tmpfs"),
        "/detached",
        Some("tmpfs"),
        MsFlags::empty(),
        None::<&str>,
    )
    .context("mount")?;
    let file = File::create("/detached/file")?;
    umount2("/detached", MntFlags::MNT_DETACH).context("unmount")?;
    Ok(file)
}

fn unshare(flags: &str) -> Result<Held> {
    let command = Command::new("/bin/unshare")
        .args([flags, "/bin/sleep", "1000"])
        .spawn();
    Ok(Held::Child(command.context("unshare")?))
}
