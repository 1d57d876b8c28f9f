//! A shim, its fake runc, and the list of events.

use std::fs::{self, File, OpenOptions};
use std::future::Future;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use nix::sys::stat::Mode;
use shim::container::create::{Request, Surroundings};
use shim::container::{Command, Container, NewExec};
use shim::error::{Error, Result};
use shim::events::{Event, EventSink};
use shim::options::Options;
use shim::reap::Reaper;
use shim::shim::Shim;
use shim::stdio::StdioRequest;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::unix::pipe;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Far more than any step takes on a loaded machine; a test that waits for nothing fails instead of hanging.
const LIMIT: Duration = Duration::from_secs(20);

/// The container of every test.
pub const BOX: &str = "box";

/// The execs a test may have.
pub const EXECS: [&str; 3] = ["one", "two", "three"];

const FAKE_RUNC: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/owner/fake-runc.sh");

/// A private pid namespace: nothing outlives the init, so nobody looks for leftovers in the cgroup, which is the test's.
const CONFIG: &str = r#"{"linux":{"namespaces":[{"type":"pid"}]}}"#;

/// One reaper for all tests of this process: each would take the others' children.
static REAPER: LazyLock<Arc<Reaper>> = LazyLock::new(|| {
    // The processes of the containers lose their parent, the fake runc, at once.
    nix::sys::prctl::set_child_subreaper(true).unwrap();
    let reaper = Reaper::new();
    let reaping = Arc::clone(&reaper);
    let (sender, receiver) = std::sync::mpsc::channel();
    let _ = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let mut child_ended = signal(SignalKind::child()).unwrap();
            sender.send(()).unwrap();
            while child_ended.recv().await.is_some() {
                reaping.reap();
            }
        });
    });
    receiver.recv().unwrap();
    reaper
});

/// Waits for what has to happen.
pub async fn within<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(LIMIT, what)
        .await
        .expect("it does not happen")
}

/// What containerd would have been told.
#[derive(Debug)]
struct Told(watch::Sender<Vec<Event>>);

impl EventSink for Told {
    fn publish(&self, event: Event) {
        self.0.send_modify(|events| events.push(event));
    }
}

/// Where a test happens.
pub struct Bed {
    pub shim: Arc<Shim>,
    directory: TempDir,
    events: watch::Receiver<Vec<Event>>,
    calls: watch::Receiver<Vec<String>>,
    /// The fifos by which processes are ended; open as long as the bed is there.
    ends: Vec<(&'static str, File)>,
}

impl Bed {
    pub fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("runc/tests");
        fs::create_dir_all(&root).unwrap();
        let calls = watch_lines(open_fifo(&root.join("calls")));
        let names = EXECS.into_iter().chain(["init"]);
        let ends = names
            .map(|name| (name, open_fifo(&root.join(format!("end.{name}")))))
            .collect();
        let (sender, events) = watch::channel(Vec::new());
        let shim = Shim::new(Surroundings {
            namespace: "tests".to_owned(),
            reaper: Arc::clone(&REAPER),
            events: Arc::new(Told(sender)),
            registry: Arc::default(),
        });
        let bed = Self {
            shim,
            directory,
            events,
            calls,
            ends,
        };
        fs::create_dir(bed.bundle()).unwrap();
        fs::write(bed.bundle().join("config.json"), CONFIG).unwrap();
        bed
    }

    /// A bed with a container that has been created.
    pub async fn created() -> (Self, Container) {
        let bed = Self::new();
        let container = bed.create().await.unwrap();
        (bed, container)
    }

    /// A bed with a container that runs.
    pub async fn running() -> (Self, Container) {
        let (bed, container) = Self::created().await;
        let _ = start(&container, None).await.unwrap();
        (bed, container)
    }

    pub fn bundle(&self) -> PathBuf {
        self.directory.path().join("bundle")
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A file by which the fake runc is told something, or tells.
    pub fn runc(&self, name: &str) -> PathBuf {
        self.directory.path().join("runc/tests").join(name)
    }

    pub fn request(&self) -> Request {
        let options = Options {
            binary_name: FAKE_RUNC.to_owned(),
            root: self.path("runc").display().to_string(),
            ..Options::default()
        };
        Request {
            namespace: "tests".to_owned(),
            id: BOX.to_owned(),
            bundle: self.bundle(),
            rootfs: Vec::new(),
            stdio: StdioRequest::default(),
            checkpoint: String::new(),
            options,
        }
    }

    pub async fn create(&self) -> Result<Container> {
        within(self.shim.create(self.request())).await
    }

    /// A create that goes on by itself, as the service has it.
    pub fn creating(&self) -> JoinHandle<Result<Container>> {
        let (shim, request) = (Arc::clone(&self.shim), self.request());
        tokio::spawn(async move { shim.create(request).await })
    }

    pub async fn delete(&self) -> Result<u32> {
        within(self.shim.delete(BOX, None))
            .await
            .map(|deleted| deleted.exit.status)
    }

    pub async fn delete_exec(&self, exec: &str) -> Result<u32> {
        within(self.shim.delete(BOX, Some(exec.to_owned())))
            .await
            .map(|deleted| deleted.exit.status)
    }

    /// Makes a verb fail with these words from now on.
    pub fn fail(&self, verb: &str, words: &str) {
        fs::write(self.runc(&format!("fail.{verb}")), words).unwrap();
    }

    pub fn mend(&self, verb: &str) {
        fs::remove_file(self.runc(&format!("fail.{verb}"))).unwrap();
    }

    /// Makes a verb wait until it is released.
    pub fn hold(&self, verb: &str) -> Held {
        let path = self.runc(&format!("hold.{verb}"));
        Held {
            fifo: open_fifo(&path),
            path,
        }
    }

    /// Ends a process of the container with a status.
    pub fn end(&self, name: &str, status: u32) {
        let (_, fifo) = self.ends.iter().find(|(known, _)| *known == name).unwrap();
        writeln!(&*fifo, "{status}").unwrap();
    }

    /// Ends a process, and returns when the reaper has taken its exit, whoever else has been told yet.
    pub async fn end_and_reap(&self, name: &str, pid: i32, status: u32) {
        let exit = REAPER.watch(pid);
        self.end(name, status);
        assert_eq!(within(exit.wait()).await.status, status);
    }

    /// How often runc was called so.
    pub fn calls(&self, call: &str) -> usize {
        // From the file: what the fifo has brought may not have been read yet.
        let called = fs::read_to_string(self.runc("called")).unwrap_or_default();
        called.lines().filter(|known| *known == call).count()
    }

    /// Waits until runc has been called so for the `times`th time.
    pub async fn called(&self, call: &str, times: usize) {
        let mut calls = self.calls.clone();
        let _ = within(calls.wait_for(|calls| count(calls, call) >= times))
            .await
            .unwrap();
    }

    /// What containerd has been told, in order.
    pub fn story(&self) -> Vec<String> {
        self.events.borrow().iter().map(tell).collect()
    }

    /// Waits until containerd has been told this.
    pub async fn told(&self, told: &str) {
        let mut events = self.events.clone();
        let is_told = events.wait_for(|events| events.iter().any(|event| tell(event) == told));
        if tokio::time::timeout(LIMIT, is_told).await.is_err() {
            panic!("{told:?} is not among {:?}", self.story());
        }
    }
}

/// A verb that waits.
pub struct Held {
    fifo: File,
    path: PathBuf,
}

impl Held {
    /// Lets so many waiting calls go, and none of those that come later wait.
    pub fn release(mut self, calls: usize) {
        fs::remove_file(&self.path).unwrap();
        // A line is one byte: whoever reads it takes nothing from the next.
        // Who has it open reads on when it is closed here.
        self.fifo.write_all(&vec![b'\n'; calls]).unwrap();
    }
}

fn open_fifo(path: &Path) -> File {
    nix::unistd::mkfifo(path, Mode::S_IRWXU).unwrap();
    // Open at both ends: whoever opens one of them does not wait.
    let flags = nix::libc::O_NONBLOCK | nix::libc::O_CLOEXEC;
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(flags)
        .open(path)
        .unwrap()
}

/// The lines that come out of a fifo, as they come.
fn watch_lines(fifo: File) -> watch::Receiver<Vec<String>> {
    let (sender, receiver) = watch::channel(Vec::new());
    let fifo = pipe::Receiver::from_file_unchecked(fifo).unwrap();
    drop(tokio::spawn(async move {
        let mut lines = BufReader::new(fifo).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            sender.send_modify(|all: &mut Vec<String>| all.push(line));
        }
    }));
    receiver
}

fn count(calls: &[String], call: &str) -> usize {
    calls.iter().filter(|known| *known == call).count()
}

/// An event in as few words as a test needs.
fn tell(event: &Event) -> String {
    match event {
        Event::Create { .. } => "create".to_owned(),
        Event::Start { .. } => "start".to_owned(),
        Event::Exit { id, exit_status, .. } => format!("exit {id} {exit_status}"),
        Event::ExecAdded { exec_id, .. } => format!("exec added {exec_id}"),
        Event::ExecStarted { exec_id, .. } => format!("exec started {exec_id}"),
        Event::Oom { .. } => "oom".to_owned(),
        Event::Paused { .. } => "paused".to_owned(),
        Event::Resumed { .. } => "resumed".to_owned(),
        Event::Checkpointed { .. } => "checkpointed".to_owned(),
        Event::Delete { exit_status, .. } => format!("delete {exit_status}"),
    }
}

pub async fn start(container: &Container, exec: Option<&str>) -> Result<i32> {
    let exec = exec.map(str::to_owned);
    within(container.ask(|reply| Command::Start { exec, reply })).await
}

/// A start that goes on by itself.
pub fn starting(container: &Container, exec: Option<&'static str>) -> JoinHandle<Result<i32>> {
    let container = container.clone();
    tokio::spawn(async move { start(&container, exec).await })
}

/// A pause that goes on by itself.
pub fn pausing(container: &Container) -> JoinHandle<Result<()>> {
    let container = container.clone();
    tokio::spawn(async move { pause(&container).await })
}

pub async fn add_exec(container: &Container, id: &str) -> Result<()> {
    let exec = NewExec {
        id: id.to_owned(),
        spec: b"{}".to_vec(),
        stdio: StdioRequest::default(),
    };
    within(container.ask(|reply| Command::Exec { exec, reply })).await
}

/// Adds an exec and starts it.
pub async fn run_exec(container: &Container, id: &str) -> i32 {
    add_exec(container, id).await.unwrap();
    start(container, Some(id)).await.unwrap()
}

pub async fn kill(container: &Container, exec: Option<&str>, signal: i32) -> Result<()> {
    let exec = exec.map(str::to_owned);
    within(container.ask(|reply| Command::Kill {
        exec,
        signal,
        all: false,
        reply,
    }))
    .await
}

pub async fn pause(container: &Container) -> Result<()> {
    within(container.ask(|reply| Command::Pause { reply })).await
}

pub async fn resume(container: &Container) -> Result<()> {
    within(container.ask(|reply| Command::Resume { reply })).await
}

/// Polls an act until something else has happened, by which time it must not have come to its end. An act that is not
/// only lent is dropped then, as that of a client that goes away.
pub async fn meanwhile<T: std::fmt::Debug>(act: impl Future<Output = T>, happens: impl Future<Output = ()>) {
    let mut act = pin!(act);
    tokio::select! {
        biased;
        early = &mut act => panic!("it did not wait: {early:?}"),
        () = happens => {}
    }
}

/// Whether a result is the refusal of what is illegal now.
pub fn is_refused<T>(result: &Result<T>) -> bool {
    matches!(result, Err(Error::FailedPrecondition(_)))
}
