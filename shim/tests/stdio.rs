//! Standard streams with real fifos, files, terminals and logging binaries. A shell stands for runc and its container;
//! no root needed.

#![cfg(test)]

use std::fs::{self, File, OpenOptions};
use std::future::Future;
use std::io::{self, IoSlice, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use nix::sys::stat::Mode;
use shim::reap::{Child, Reaper};
use shim::stdio::{Context, Prepared, StdioError, StdioRequest, Streams, prepare};
use tempfile::TempDir;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

/// Far more than any step here takes; a test that waits for nothing fails instead of hanging.
const LIMIT: Duration = Duration::from_secs(20);

/// One reaper for all tests of this process: each would take the others' children.
static REAPER: LazyLock<Arc<Reaper>> = LazyLock::new(|| {
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

/// A client's directory, with a fifo for each stream.
struct Client {
    directory: TempDir,
    request: StdioRequest,
}

impl Client {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut paths = ["stdin", "stdout", "stderr"].map(|name| {
            let path = directory.path().join(name);
            nix::unistd::mkfifo(&path, Mode::S_IRWXU).unwrap();
            path.to_str().unwrap().to_owned()
        });
        let [stdin, stdout, stderr] = &mut paths;
        let request = StdioRequest {
            stdin: std::mem::take(stdin),
            stdout: std::mem::take(stdout),
            stderr: std::mem::take(stderr),
            terminal: false,
        };
        Self { directory, request }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn prepare(&self) -> Result<Prepared, StdioError> {
        self.prepare_in(self.directory.path(), None)
    }

    fn prepare_in(&self, socket_dir: &Path, owner: Option<(u32, u32)>) -> Result<Prepared, StdioError> {
        let context = Context {
            namespace: "test-space",
            id: "box",
            socket_dir,
            owner,
            reaper: &REAPER,
        };
        prepare(&self.request, &context)
    }

    async fn run(&self, script: &str) -> (Child, Streams) {
        let mut prepared = self.prepare().unwrap();
        let child = start(&mut prepared, script);
        (child, prepared.attach(LIMIT).await.unwrap())
    }

    /// Opens a fifo for reading, as clients do: before they ask for the task, and without waiting.
    fn reader(&self, name: &str) -> File {
        self.open(name, OpenOptions::new().read(true))
    }

    /// Opens a fifo for writing; fails unless the shim has it open.
    fn writer(&self, name: &str) -> File {
        self.open(name, OpenOptions::new().write(true))
    }

    fn open(&self, name: &str, options: &mut OpenOptions) -> File {
        let file = options
            .custom_flags(nix::libc::O_NONBLOCK)
            .open(self.path(name))
            .unwrap();
        let _ = fcntl(&file, FcntlArg::F_SETFL(OFlag::empty())).unwrap();
        file
    }
}

fn start(prepared: &mut Prepared, script: &str) -> Child {
    let [stdin, stdout, stderr] = prepared.child_stdio();
    let mut command = Command::new("/bin/sh");
    let _ = command
        .args(["-c", script])
        .stdin(stdin)
        .stdout(stdout)
        .stderr(stderr);
    REAPER.spawn(&mut command).unwrap()
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(LIMIT, future).await.expect("in time")
}

/// Runs blocking work of the client beside the runtime, on a thread that a failed test does not wait for.
async fn aside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, receiver) = oneshot::channel();
    let _ = std::thread::spawn(move || drop(sender.send(work())));
    within(receiver).await.unwrap()
}

/// Everything up to the end of the stream.
async fn rest_of(mut file: File) -> String {
    aside(move || {
        let mut text = String::new();
        let _ = file.read_to_string(&mut text).unwrap();
        text
    })
    .await
}

async fn read_line(mut file: File) -> (String, File) {
    aside(move || {
        let (mut line, mut byte) = (Vec::new(), [0]);
        while file.read(&mut byte).unwrap() == 1 && byte != *b"\n" {
            line.extend(byte);
        }
        (String::from_utf8(line).unwrap(), file)
    })
    .await
}

/// Until a process sleeps in the write of a full pipe.
async fn until_blocked(pid: i32) {
    let blocked = async {
        // The kernel announces this to nobody, so look again.
        while !fs::read_to_string(format!("/proc/{pid}/wchan"))
            .unwrap()
            .contains("pipe_write")
        {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    within(blocked).await;
}

/// Until a child has made a file; it tells nobody else.
async fn until_exists(path: &Path) {
    let exists = async {
        while !path.exists() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    within(exists).await;
}

#[tokio::test]
async fn both_outputs_reach_their_fifos_and_end_with_the_process() {
    let client = Client::new();
    let (out, err) = (client.reader("stdout"), client.reader("stderr"));
    let (child, streams) = client.run("echo to out; echo to err >&2").await;
    assert_eq!(within(child.exit.wait()).await.status, 0);
    assert!(streams.drained(LIMIT).await);
    assert_eq!(rest_of(out).await, "to out\n");
    assert_eq!(rest_of(err).await, "to err\n");
}

#[tokio::test]
async fn input_survives_its_client_and_ends_with_close_stdin() {
    let client = Client::new();
    let out = client.reader("stdout");
    let (child, streams) = client.run("cat").await;
    client.writer("stdin").write_all(b"first client\n").unwrap();
    let (line, out) = read_line(out).await;
    assert_eq!(line, "first client");
    client.writer("stdin").write_all(b"second client\n").unwrap();
    let (line, out) = read_line(out).await;
    assert_eq!(line, "second client");
    assert_eq!(child.exit.now(), None);
    streams.close_stdin();
    assert_eq!(within(child.exit.wait()).await.status, 0);
    assert!(streams.drained(LIMIT).await);
    assert_eq!(rest_of(out).await, "");
}

#[tokio::test]
async fn input_written_before_close_stdin_arrives_whole() {
    let client = Client::new();
    let out = client.reader("stdout");
    let mut prepared = client.prepare().unwrap();
    // As much as a fifo holds, all of it unread when its writer leaves and the holder goes.
    client.writer("stdin").write_all(&[b'x'; 65_536]).unwrap();
    let child = start(&mut prepared, "wc -c");
    let streams = prepared.attach(LIMIT).await.unwrap();
    streams.close_stdin();
    assert_eq!(within(child.exit.wait()).await.status, 0);
    assert!(streams.drained(LIMIT).await);
    assert_eq!(rest_of(out).await.trim(), "65536");
}

#[tokio::test]
async fn a_client_that_still_writes_after_close_stdin_is_heard_to_its_end() {
    let client = Client::new();
    let out = client.reader("stdout");
    let (child, streams) = client.run("cat").await;
    let mut writer = client.writer("stdin");
    streams.close_stdin();
    writer.write_all(b"late\n").unwrap();
    let (line, _out) = read_line(out).await;
    assert_eq!(line, "late");
    assert_eq!(child.exit.now(), None);
    drop(writer);
    assert_eq!(within(child.exit.wait()).await.status, 0);
}

#[tokio::test]
async fn a_client_learns_that_the_process_closed_its_input() {
    let client = Client::new();
    let out = client.reader("stdout");
    let (_child, streams) = client.run("exec <&-; echo closed; read x <&1").await;
    let (_, _out) = read_line(out).await;
    let mut writer = client.writer("stdin");
    let refused = aside(move || {
        loop {
            if let Err(error) = writer.write_all(&[0; 4096]) {
                return error.kind();
            }
        }
    });
    assert_eq!(refused.await, io::ErrorKind::BrokenPipe);
    streams.close();
}

#[tokio::test]
async fn a_second_reader_gets_what_follows_the_first() {
    let client = Client::new();
    let out = client.reader("stdout");
    let (child, streams) = client.run("echo one; read x; echo two; read x; echo three").await;
    let mut writer = client.writer("stdin");
    let (line, out) = read_line(out).await;
    assert_eq!(line, "one");
    drop(out);
    writer.write_all(b"\n").unwrap();
    let out = client.reader("stdout");
    let (line, out) = read_line(out).await;
    assert_eq!(line, "two");
    writer.write_all(b"\n").unwrap();
    assert_eq!(within(child.exit.wait()).await.status, 0);
    assert!(streams.drained(LIMIT).await);
    assert_eq!(rest_of(out).await, "three\n");
}

#[tokio::test]
async fn output_that_nobody_reads_blocks_the_process_until_somebody_does() {
    let client = Client::new();
    drop(client.reader("stdout"));
    let (child, streams) = client.run("exec head -c 1000000 /dev/zero").await;
    until_blocked(child.pid).await;
    let out = client.reader("stdout");
    let length = aside(move || io::copy(&mut &out, &mut io::sink()).unwrap());
    let drain = async {
        let exit = child.exit.wait().await;
        assert!(streams.drained(LIMIT).await);
        exit.status
    };
    let ended = within(async { tokio::join!(drain, length) }).await;
    assert_eq!(ended, (0, 1_000_000));
}

#[tokio::test]
async fn a_killed_process_whose_output_nobody_reads_does_not_hold_up_its_removal() {
    let client = Client::new();
    let out = client.reader("stdout");
    let (child, streams) = client.run("exec head -c 1000000 /dev/zero").await;
    drop(out);
    until_blocked(child.pid).await;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.pid), nix::sys::signal::SIGKILL).unwrap();
    assert_eq!(within(child.exit.wait()).await.status, 137);
    let before = Instant::now();
    assert!(streams.drained(LIMIT).await);
    assert!(before.elapsed() < LIMIT / 4, "{:?}", before.elapsed());
}

#[tokio::test]
async fn output_waits_a_moment_for_a_reader_that_comes_after_the_end() {
    let client = Client::new();
    let (child, streams) = client.run("echo quick").await;
    assert_eq!(within(child.exit.wait()).await.status, 0);
    let drained = tokio::spawn(async move { streams.drained(LIMIT).await });
    // Let the copier find the end of the output before the reader is there.
    tokio::time::sleep(Duration::from_millis(50)).await;
    let out = client.reader("stdout");
    assert_eq!(rest_of(out).await, "quick\n");
    assert!(within(drained).await.unwrap());
}

#[tokio::test]
async fn a_reader_that_comes_late_to_a_process_that_never_wrote_gets_the_end() {
    let client = Client::new();
    let (child, streams) = client.run("true").await;
    let _ = within(child.exit.wait()).await;
    // Let the copier find the end of the output before the reader is there.
    tokio::time::sleep(Duration::from_millis(50)).await;
    let out = client.reader("stdout");
    assert_eq!(rest_of(out).await, "");
    drop(streams);
}

#[tokio::test]
async fn a_process_that_never_wrote_is_drained_at_once_without_any_reader() {
    let client = Client::new();
    let (child, streams) = client.run("true").await;
    let _ = within(child.exit.wait()).await;
    assert!(streams.drained(Duration::from_millis(500)).await);
}

#[tokio::test]
async fn a_survivor_that_keeps_the_output_open_is_given_up_at_the_limit() {
    let client = Client::new();
    let _out = client.reader("stdout");
    let (child, streams) = client.run("sleep 1000 & echo $!; exit").await;
    let (line, _out) = read_line(client.reader("stdout")).await;
    assert_eq!(within(child.exit.wait()).await.status, 0);
    assert!(!streams.drained(Duration::from_millis(50)).await);
    streams.close();
    let survivor = nix::unistd::Pid::from_raw(line.parse().unwrap());
    nix::sys::signal::kill(survivor, nix::sys::signal::SIGKILL).unwrap();
}

#[tokio::test]
async fn large_output_arrives_whole_and_fast() {
    const BYTES: u64 = 256 << 20;
    let client = Client::new();
    let out = client.reader("stdout");
    let before = Instant::now();
    let (child, streams) = client.run(&format!("exec head -c {BYTES} /dev/zero")).await;
    let length = aside(move || io::copy(&mut &out, &mut io::sink()).unwrap());
    let drain = async {
        let _ = child.exit.wait().await;
        assert!(streams.drained(LIMIT).await);
    };
    let (length, ()) = within(async { tokio::join!(length, drain) }).await;
    assert_eq!(length, BYTES);
    // A tenth of what a slow machine does: this is to find a wait in the wrong place, not to measure.
    assert!(
        before.elapsed() < Duration::from_secs(10),
        "{:?}",
        before.elapsed()
    );
}

#[tokio::test]
async fn bulk_output_keeps_its_order() {
    let client = Client::new();
    let out = client.reader("stdout");
    let (child, streams) = client.run("exec seq 1 2000000").await;
    let drain = async {
        let _ = child.exit.wait().await;
        assert!(streams.drained(LIMIT).await);
    };
    let (text, ()) = within(async { tokio::join!(rest_of(out), drain) }).await;
    let expected = (1..=2_000_000).fold(String::new(), |text, number| text + &number.to_string() + "\n");
    assert!(text == expected, "{} bytes of {}", text.len(), expected.len());
}

#[tokio::test]
async fn where_nothing_is_asked_for_the_process_has_dev_null() {
    let mut client = Client::new();
    let report = client.path("report");
    client.request = StdioRequest::default();
    let script = format!(
        "seen=$(readlink /proc/$$/fd/0 /proc/$$/fd/1 /proc/$$/fd/2); echo \"$seen\" >{}",
        report.display()
    );
    let (child, streams) = client.run(&script).await;
    let _ = within(child.exit.wait()).await;
    assert!(streams.drained(LIMIT).await);
    let seen = fs::read_to_string(report).unwrap();
    assert_eq!(
        seen.lines().filter(|line| *line == "/dev/null").count(),
        3,
        "{seen}"
    );
}

#[tokio::test]
async fn the_process_holds_anonymous_pipes_and_nothing_else_of_the_host() {
    let client = Client::new();
    let out = client.reader("stdout");
    let _err = client.reader("stderr");
    let script = "readlink /proc/$$/fd/0 /proc/$$/fd/1 /proc/$$/fd/2; ls -l /proc/$$/fd";
    let (child, streams) = client.run(script).await;
    let _ = within(child.exit.wait()).await;
    assert!(streams.drained(LIMIT).await);
    let seen = rest_of(out).await;
    assert_eq!(
        seen.lines()
            .take(3)
            .filter(|line| line.starts_with("pipe:"))
            .count(),
        3,
        "{seen}"
    );
    assert!(
        !seen.contains(client.directory.path().to_str().unwrap()),
        "{seen}"
    );
}

#[tokio::test]
async fn a_file_is_made_with_its_parents_and_appended_to_by_both_streams() {
    let mut client = Client::new();
    let log = client.path("not/yet/here.log");
    client.request = StdioRequest {
        stdout: format!("file://{}", log.display()),
        stderr: format!("file://{}", log.display()),
        ..StdioRequest::default()
    };
    for _ in 0..2 {
        let (child, streams) = client.run("echo out; echo err >&2").await;
        let _ = within(child.exit.wait()).await;
        assert!(streams.drained(LIMIT).await);
    }
    let text = fs::read_to_string(log).unwrap();
    assert_eq!(text.matches("out\n").count(), 2, "{text}");
    assert_eq!(text.matches("err\n").count(), 2, "{text}");
}

#[tokio::test]
async fn a_full_disk_loses_output_but_not_the_process() {
    let mut client = Client::new();
    client.request = StdioRequest {
        stdout: "/dev/full".to_owned(),
        ..StdioRequest::default()
    };
    let (child, streams) = client.run("exec head -c 300000 /dev/zero").await;
    assert_eq!(within(child.exit.wait()).await.status, 0);
    assert!(streams.drained(LIMIT).await);
}

#[tokio::test]
async fn what_cannot_be_opened_is_refused_by_name() {
    let mut client = Client::new();
    let missing = client.path("missing").to_str().unwrap().to_owned();
    fs::write(client.path("file"), "").unwrap();
    let file = client.path("file").to_str().unwrap().to_owned();
    for (stdin, stdout) in [
        (missing.as_str(), ""),
        ("", missing.as_str()),
        (file.as_str(), ""),
    ] {
        client.request = StdioRequest {
            stdin: stdin.into(),
            stdout: stdout.into(),
            ..StdioRequest::default()
        };
        let error = client.prepare().unwrap_err();
        assert!(
            matches!(&error, StdioError::Open { path, .. } if *path == Path::new(stdin).join(stdout)),
            "{error:?}"
        );
    }
    client.request.stdout = "npipe:///x".to_owned();
    client.request.stdin = String::new();
    assert!(matches!(
        client.prepare().unwrap_err(),
        StdioError::Invalid { .. }
    ));
}

#[tokio::test]
async fn pipes_belong_to_the_owner_asked_for() {
    // Giving a pipe away needs root; anybody may keep his own.
    let (uid, gid) = match nix::unistd::geteuid() {
        user if user.is_root() => (1234, 5678),
        user => (user.as_raw(), nix::unistd::getegid().as_raw()),
    };
    let client = Client::new();
    let out = client.reader("stdout");
    let mut prepared = client
        .prepare_in(client.directory.path(), Some((uid, gid)))
        .unwrap();
    let child = start(
        &mut prepared,
        "stat -L -c %u:%g /proc/$$/fd/0 /proc/$$/fd/1 /proc/$$/fd/2",
    );
    let streams = prepared.attach(LIMIT).await.unwrap();
    let _ = within(child.exit.wait()).await;
    assert!(streams.drained(LIMIT).await);
    assert_eq!(rest_of(out).await, format!("{uid}:{gid}\n").repeat(3));
}

/// Writes a logging binary.
fn logger(client: &Client, script: &str) -> String {
    let path = client.path("logger");
    fs::write(
        &path,
        format!("#!/bin/sh\ncd {}\n{script}\n", client.directory.path().display()),
    )
    .unwrap();
    fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
    path.to_str().unwrap().to_owned()
}

fn request_logger(client: &mut Client, scheme: &str, script: &str) {
    let uri = format!(
        "{scheme}://{}?driver=test&note=a%20b&env.LEVEL=high",
        logger(client, script)
    );
    client.request = StdioRequest {
        stdout: uri.clone(),
        stderr: uri,
        ..StdioRequest::default()
    };
}

#[tokio::test]
async fn a_logging_binary_gets_both_streams_and_is_waited_for() {
    let mut client = Client::new();
    let script = r#"exec 5>&-
cat <&3 >out & cat <&4 >err; wait
echo "$CONTAINER_NAMESPACE/$CONTAINER_ID $LEVEL $HOME; $*" >done"#;
    request_logger(&mut client, "binary", script);
    let (child, streams) = client.run("echo to out; echo to err >&2").await;
    assert_eq!(within(child.exit.wait()).await.status, 0);
    assert!(streams.drained(LIMIT).await);
    assert_eq!(fs::read_to_string(client.path("out")).unwrap(), "to out\n");
    assert_eq!(fs::read_to_string(client.path("err")).unwrap(), "to err\n");
    let told = fs::read_to_string(client.path("done")).unwrap();
    assert_eq!(told, "test-space/box high ; driver test note a b\n");
}

#[tokio::test]
async fn a_logging_binary_gets_the_output_of_a_terminal() {
    let mut client = Client::new();
    request_logger(&mut client, "binary", "exec 5>&-; cat <&3 >out");
    client.request.terminal = true;
    let prepared = client.prepare().unwrap();
    let mut slave = send_terminal(&prepared);
    let streams = prepared.attach(LIMIT).await.unwrap();
    slave.write_all(b"screen\n").unwrap();
    drop(slave);
    assert!(streams.drained(LIMIT).await);
    assert_eq!(fs::read_to_string(client.path("out")).unwrap(), "screen\r\n");
}

#[tokio::test]
async fn a_logging_binary_that_ends_without_being_ready_is_told_apart_in_version_two_only() {
    let mut client = Client::new();
    request_logger(&mut client, "binary-v2", "exit 1");
    let error = client.prepare().unwrap().attach(LIMIT).await.unwrap_err();
    assert!(matches!(error, StdioError::Logger { .. }), "{error:?}");
    request_logger(&mut client, "binary-v2", "printf x >&5; cat <&3");
    assert!(client.prepare().unwrap().attach(LIMIT).await.is_ok());
    request_logger(&mut client, "binary", "exit 1");
    assert!(client.prepare().unwrap().attach(LIMIT).await.is_ok());
}

#[tokio::test]
async fn a_logging_binary_that_is_never_ready_is_late_and_asked_to_end() {
    let mut client = Client::new();
    request_logger(
        &mut client,
        "binary",
        "trap 'echo asked >asked; exit' TERM; echo up >up; while :; do sleep 0.05; done",
    );
    let prepared = client.prepare().unwrap();
    until_exists(&client.path("up")).await;
    let error = prepared.attach(Duration::from_millis(50)).await.unwrap_err();
    assert!(matches!(error, StdioError::Late { .. }), "{error:?}");
    until_exists(&client.path("asked")).await;
}

#[tokio::test]
async fn a_logging_binary_that_ignores_the_end_of_the_output_is_asked_to_end() {
    let mut client = Client::new();
    let script = "trap 'echo asked >asked; exit' TERM; exec 5>&-; cat <&3 >out; while :; do sleep 0.05; done";
    request_logger(&mut client, "binary", script);
    let (child, streams) = client.run("echo text").await;
    let _ = within(child.exit.wait()).await;
    assert!(streams.drained(LIMIT).await);
    assert_eq!(fs::read_to_string(client.path("out")).unwrap(), "text\n");
    assert_eq!(fs::read_to_string(client.path("asked")).unwrap(), "asked\n");
}

/// Does runc's part: opens a terminal, sends the master away, keeps the slave.
fn send_terminal(prepared: &Prepared) -> File {
    let pty = nix::pty::openpty(None, None).unwrap();
    let socket = UnixStream::connect(prepared.console_socket().unwrap()).unwrap();
    let fds = [pty.master.as_raw_fd()];
    let control = [ControlMessage::ScmRights(&fds)];
    let name = [IoSlice::new(b"/dev/pts/0")];
    let _ = sendmsg::<()>(socket.as_raw_fd(), &name, &control, MsgFlags::empty(), None).unwrap();
    File::from(pty.slave)
}

fn terminal_client() -> Client {
    let mut client = Client::new();
    client.request.terminal = true;
    client.request.stderr = String::new();
    client
}

#[tokio::test]
async fn a_terminal_is_copied_both_ways_and_ends_with_its_last_user() {
    let client = terminal_client();
    let out = client.reader("stdout");
    let prepared = client.prepare().unwrap();
    let slave = send_terminal(&prepared);
    let streams = prepared.attach(LIMIT).await.unwrap();
    streams.resize(132, 43).unwrap();
    let input = slave.try_clone().unwrap();
    let mut command = Command::new("/bin/sh");
    let _ = command.args(["-c", "stty size; read x; echo got $x"]);
    let _ = command
        .stdin(input)
        .stdout(slave.try_clone().unwrap())
        .stderr(Stdio::null());
    let child = REAPER.spawn(&mut command).unwrap();
    drop((command, slave));
    let (size, out) = read_line(out).await;
    assert_eq!(size, "43 132\r");
    client.writer("stdin").write_all(b"typed\n").unwrap();
    assert_eq!(within(child.exit.wait()).await.status, 0);
    assert!(streams.drained(LIMIT).await);
    assert_eq!(rest_of(out).await, "typed\r\ngot typed\r\n");
    streams.resize(80, 25).unwrap();
}

#[tokio::test]
async fn what_is_typed_arrives_although_nobody_takes_the_output() {
    let client = terminal_client();
    drop(client.reader("stdout"));
    let prepared = client.prepare().unwrap();
    let slave = send_terminal(&prepared);
    let streams = prepared.attach(LIMIT).await.unwrap();
    let mut printing = slave.try_clone().unwrap();
    let flags = FcntlArg::F_SETFL(OFlag::O_NONBLOCK);
    let _ = fcntl(&printing, flags).unwrap();
    let full = async {
        let mut refusals = 0;
        // A terminal takes more once its other side has been read, so only a row of refusals means that all is full.
        while refusals < 50 {
            refusals = printing.write(&[b'x'; 4096]).map_or(refusals + 1, |_| 0);
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    within(full).await;
    let _ = fcntl(&slave, FcntlArg::F_SETFL(OFlag::empty())).unwrap();
    client.writer("stdin").write_all(b"interrupt\n").unwrap();
    let (line, _slave) = read_line(slave).await;
    assert_eq!(line, "interrupt");
    streams.close();
}

#[tokio::test]
async fn closing_the_input_of_a_terminal_hangs_up_after_what_was_printed() {
    let client = terminal_client();
    let out = client.reader("stdout");
    let prepared = client.prepare().unwrap();
    let mut slave = send_terminal(&prepared);
    let streams = prepared.attach(LIMIT).await.unwrap();
    slave.write_all(b"printed\n").unwrap();
    streams.close_stdin();
    let (read, text) = tokio::join!(aside(move || slave.read(&mut [0; 10])), rest_of(out));
    assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
    assert_eq!(text, "printed\r\n");
    assert!(streams.drained(LIMIT).await);
}

#[tokio::test]
async fn a_terminal_without_any_client_is_read_and_forgotten() {
    let mut client = terminal_client();
    client.request = StdioRequest {
        terminal: true,
        ..StdioRequest::default()
    };
    let prepared = client.prepare().unwrap();
    let mut slave = send_terminal(&prepared);
    let streams = prepared.attach(LIMIT).await.unwrap();
    aside(move || slave.write_all(&[b'x'; 300_000]).unwrap()).await;
    assert!(streams.drained(LIMIT).await);
}

#[tokio::test]
async fn a_terminal_that_does_not_come_is_late_and_its_socket_goes() {
    let client = terminal_client();
    let prepared = client.prepare().unwrap();
    let socket = prepared.console_socket().unwrap().to_owned();
    assert!(socket.exists());
    let error = prepared.attach(Duration::from_millis(50)).await.unwrap_err();
    assert!(matches!(error, StdioError::Late { .. }), "{error:?}");
    assert!(!socket.exists());
}

#[tokio::test]
async fn a_terminal_arrives_in_a_directory_whose_path_is_too_long_for_a_socket() {
    let client = terminal_client();
    let out = client.reader("stdout");
    let bundle = client.path(&"a".repeat(64)).join("b".repeat(64));
    fs::create_dir_all(&bundle).unwrap();
    let prepared = client.prepare_in(&bundle, None).unwrap();
    assert_eq!(fs::read_dir(&bundle).unwrap().count(), 1);
    let mut slave = send_terminal(&prepared);
    let streams = prepared.attach(LIMIT).await.unwrap();
    assert_eq!(fs::read_dir(&bundle).unwrap().count(), 0);
    slave.write_all(b"printed\n").unwrap();
    drop(slave);
    assert!(streams.drained(LIMIT).await);
    assert_eq!(rest_of(out).await, "printed\r\n");
}

#[tokio::test]
async fn a_message_without_a_terminal_is_an_error() {
    let client = terminal_client();
    let prepared = client.prepare().unwrap();
    let mut socket = UnixStream::connect(prepared.console_socket().unwrap()).unwrap();
    socket.write_all(b"no descriptor").unwrap();
    let error = prepared.attach(LIMIT).await.unwrap_err();
    assert!(matches!(error, StdioError::Terminal(_)), "{error:?}");
}

#[tokio::test]
async fn dropping_the_last_handle_closes_everything() {
    let client = Client::new();
    let out = client.reader("stdout");
    let (child, streams) = client.run("while echo x 2>&-; do sleep 0.01; done; exit 7").await;
    let (_, out) = read_line(out).await;
    drop(streams);
    assert_eq!(rest_of(out).await.trim_matches(['x', '\n']), "");
    // Its output is closed, so it gets SIGPIPE.
    assert_eq!(within(child.exit.wait()).await.status, 141);
}

#[test]
fn the_types_of_a_client_are_what_the_service_can_share() {
    fn shareable<T: Send + Sync>() {}
    shareable::<Streams>();
    shareable::<Prepared>();
    shareable::<OwnedFd>();
}
