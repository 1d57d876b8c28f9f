//! The program the dump tests run in a container: it holds the kinds of kernel state a checkpoint must carry, or
//! must refuse, and answers questions on stdin, one line each, so that a test can see that it goes on.
//!
//! ```text
//! workload tree            threads, pipes to child processes, a listening socket, a deleted open file
//! workload locks           a lock of either kind on a file
//! workload hold KIND       one thing (see `Held`) that CRIU cannot save, or only with an option
//! workload memory MIB      that much touched memory
//! ```
//! Every mode prints `ready` first. `ping` is answered by `pong N`, N being the answers so far; `check` by `ok N` or
//! `bad: REASON`, and so is `connect`, which goes to the tree's socket over the loopback device; `drop` lets go of what `hold` holds.
#![expect(clippy::print_stdout, reason = "stdout is how the program speaks to its test")]

mod held;

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use held::Held;
use nix::fcntl::{FcntlArg, Flock, FlockArg, fcntl};
use nix::libc;

/// How often a thread of the tree counts on; short, so that a check need not wait long for it.
const TICK: Duration = Duration::from_millis(1);
/// How long a check waits for the threads to count on; a loaded machine of two cores needs far less.
const THREADS_DEADLINE: Duration = Duration::from_secs(10);
/// How long a byte over a connection within the container may take; one that is lost is sent again within a second.
const CONNECTION_DEADLINE: Duration = Duration::from_secs(10);
/// Where the POSIX-locked file lies, in the container's own root.
const POSIX_LOCK: &str = "/posix.lock";
/// Where the flock-ed file lies.
const FLOCK: &str = "/flock.lock";
/// What the deleted file must still contain after a restore.
const DELETED_TEXT: &str = "still here";

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["tree"] => converse(&mut Tree::grow()?),
        ["locks"] => converse(&mut Locks::take()?),
        ["hold", kind] => converse(&mut Hold(Some(Held::take(kind)?))),
        ["memory", mib] => converse(&mut Memory::touch(mib.parse()?)),
        ["relay"] => relay(),
        ["echo"] => echo(),
        _ => bail!("usage: workload tree | locks | hold KIND | memory MIB"),
    }
}

/// What a mode answers to the lines it is sent.
trait Answer {
    fn check(&mut self) -> Result<()>;
    fn connect(&mut self) -> Result<()> {
        bail!("nothing listens")
    }
    fn drop_held(&mut self) {}
}

fn converse(mode: &mut dyn Answer) -> Result<()> {
    println!("ready");
    let mut answers = 0_u64;
    for line in std::io::stdin().lock().lines() {
        answers += 1;
        match line?.trim() {
            "check" => report(mode.check(), answers),
            "connect" => report(mode.connect(), answers),
            "drop" => {
                mode.drop_held();
                println!("dropped {answers}");
            }
            "exit" => return Ok(()),
            _ => println!("pong {answers}"),
        }
    }
    Ok(())
}

fn report(found: Result<()>, answers: u64) {
    match found {
        Ok(()) => println!("ok {answers}"),
        Err(error) => println!("bad: {error:#}"),
    }
}

/// Two generations of children over pipes, three counting threads, and the open files of a small server.
struct Tree {
    counters: Vec<Arc<AtomicU64>>,
    children: Relay,
    listener: TcpListener,
    deleted: File,
}

impl Tree {
    fn grow() -> Result<Self> {
        Ok(Self {
            counters: (0..3).map(|_| count()).collect(),
            children: Relay::spawn("relay")?,
            listener: TcpListener::bind("0.0.0.0:7000")?,
            deleted: deleted_file("/deleted")?,
        })
    }

    fn check_threads(&self) -> Result<()> {
        let before: Vec<u64> = self.counters.iter().map(|c| c.load(Ordering::Relaxed)).collect();
        let deadline = Instant::now() + THREADS_DEADLINE;
        while self
            .counters
            .iter()
            .zip(&before)
            .any(|(now, then)| now.load(Ordering::Relaxed) == *then)
        {
            ensure!(Instant::now() < deadline, "a thread stands still");
            std::thread::sleep(TICK);
        }
        Ok(())
    }

    fn check_listener(&self) -> Result<()> {
        self.listener.set_nonblocking(true)?;
        let accepted = self.listener.accept();
        self.listener.set_nonblocking(false)?;
        let idle = accepted.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock);
        ensure!(idle, "the socket does not listen");
        Ok(())
    }

    fn check_deleted(&mut self) -> Result<()> {
        let mut text = String::new();
        let _at = self.deleted.seek(SeekFrom::Start(0))?;
        let _read = self.deleted.read_to_string(&mut text)?;
        ensure!(text == DELETED_TEXT, "the deleted file reads {text:?}");
        Ok(())
    }
}

impl Answer for Tree {
    fn connect(&mut self) -> Result<()> {
        let mut client = TcpStream::connect(("127.0.0.1", 7000)).context("connect to the listener")?;
        let (mut server, _peer) = self.listener.accept().context("accept")?;
        client.write_all(b"x")?;
        server.read_exact(&mut [0]).context("read from the connection")?;
        Ok(())
    }

    fn check(&mut self) -> Result<()> {
        self.check_threads()?;
        ensure!(
            self.children.ask("hello")? == "hello",
            "the pipes to the children answer something else"
        );
        self.check_deleted()?;
        self.check_listener()
    }
}

/// A lock of the whole file, of the kind that belongs to the open file and of the kind that belongs to the process.
struct Locks {
    _flock: Flock<File>,
    _posix: File,
    other_process: Relay,
}

impl Locks {
    fn take() -> Result<Self> {
        let flock = Flock::lock(File::create(FLOCK)?, FlockArg::LockExclusive)
            .map_err(|(_, errno)| errno)
            .context("flock")?;
        let posix = File::create(POSIX_LOCK)?;
        let _done = fcntl(&posix, FcntlArg::F_SETLK(&whole_file_lock())).context("posix lock")?;
        Ok(Self {
            _flock: flock,
            _posix: posix,
            other_process: Relay::spawn("echo")?,
        })
    }
}

impl Answer for Locks {
    fn check(&mut self) -> Result<()> {
        ensure!(
            self.other_process.ask("posix-lock")? == "held",
            "the POSIX lock is gone"
        );
        let again = Flock::lock(File::open(FLOCK)?, FlockArg::LockExclusiveNonblock);
        ensure!(again.is_err(), "the flock is gone");
        Ok(())
    }
}

fn count() -> Arc<AtomicU64> {
    let counter = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&counter);
    let _thread = std::thread::spawn(move || {
        loop {
            let _before = counted.fetch_add(1, Ordering::Relaxed);
            std::thread::sleep(TICK);
        }
    });
    counter
}

fn deleted_file(path: &str) -> Result<File> {
    let mut file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(path)?;
    file.write_all(DELETED_TEXT.as_bytes())?;
    std::fs::remove_file(path)?;
    Ok(file)
}

fn whole_file_lock() -> libc::flock {
    libc::flock {
        l_type: libc::F_WRLCK as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    }
}

/// A child process that answers lines over a pair of pipes.
struct Relay {
    _child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

impl Relay {
    fn spawn(mode: &str) -> Result<Self> {
        let me = std::env::current_exe()?;
        let mut child = Command::new(me)
            .arg(mode)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let to = child.stdin.take().context("the child has no stdin")?;
        let from = BufReader::new(child.stdout.take().context("the child has no stdout")?);
        Ok(Self {
            _child: child,
            to,
            from,
        })
    }

    fn ask(&mut self, line: &str) -> Result<String> {
        writeln!(self.to, "{line}").context("write to the child")?;
        let mut answer = String::new();
        let _read = self.from.read_line(&mut answer).context("read from the child")?;
        Ok(answer.trim().to_owned())
    }
}

fn relay() -> Result<()> {
    let mut below = Relay::spawn("echo")?;
    for line in std::io::stdin().lock().lines() {
        println!("{}", below.ask(&line?)?);
    }
    Ok(())
}

fn echo() -> Result<()> {
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        if line == "posix-lock" {
            let file = File::options().write(true).open(POSIX_LOCK)?;
            let taken = fcntl(&file, FcntlArg::F_SETLK(&whole_file_lock())).is_ok();
            println!("{}", if taken { "free" } else { "held" });
        } else {
            println!("{line}");
        }
    }
    Ok(())
}

struct Hold(Option<Held>);

impl Answer for Hold {
    fn check(&mut self) -> Result<()> {
        let Some(Held::Connection(client, server)) = &self.0 else {
            return Ok(());
        };
        for (mut from, mut to) in [(client, server), (server, client)] {
            to.set_read_timeout(Some(CONNECTION_DEADLINE))?;
            from.write_all(b"!")?;
            to.read_exact(&mut [0])?;
        }
        Ok(())
    }

    fn drop_held(&mut self) {
        if let Some(held) = self.0.take() {
            held.let_go();
        }
    }
}

/// Memory that differs page by page, so that nothing can leave it out.
struct Memory(Vec<u8>);

impl Memory {
    fn touch(mib: usize) -> Self {
        let mut bytes = vec![0_u8; mib << 20];
        for (number, page) in bytes.chunks_mut(4096).enumerate() {
            page.iter_mut()
                .zip(number.to_le_bytes())
                .for_each(|(byte, mark)| *byte = mark | 1);
        }
        Self(bytes)
    }
}

impl Answer for Memory {
    fn check(&mut self) -> Result<()> {
        for (number, page) in self.0.chunks(4096).enumerate() {
            let marked = page
                .iter()
                .zip(number.to_le_bytes())
                .all(|(byte, mark)| *byte == mark | 1);
            ensure!(marked, "page {number} changed");
        }
        Ok(())
    }
}
