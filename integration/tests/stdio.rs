//! Standard streams: fifos, terminals, loggers, files and nothing; slow, dead and second clients.
#![expect(
    unused_results,
    reason = "a test acts through calls, and compares only the answers it is about"
)]

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::time::Duration;

use anyhow::{Context, Result};
use integration::container::Container;
use integration::host::Host;
use integration::messages::Status;
use integration::need;
use integration::stdio::{Fifos, Output, StreamNames, eventually, idle_reader, write};
use integration::workload::Workload;

const TERM: u32 = 15;
const SHORT: Duration = Duration::from_secs(10);

/// Enough to fill every buffer on the way a thousand times.
const LARGE_MIB: usize = 64;

/// Creates and starts container `c` with fifos.
fn run(host: &Host, workload: Workload, terminal: bool) -> Result<(Container, Fifos, Output, Output)> {
    let container = host.container("c", workload)?;
    let fifos = container.fifos("init")?;
    let (stdout, stderr) = fifos.read();
    container.create_with(&fifos.names(terminal), None)?;
    container.start()?;
    Ok((container, fifos, stdout, stderr))
}

fn text(output: &Output) -> Result<String> {
    Ok(String::from_utf8(output.to_end()?)?)
}

#[test]
fn the_three_streams_are_three() -> Result<()> {
    let host = Host::new()?;
    let script = "read line; echo out $line; echo err $line >&2";
    let (container, fifos, stdout, stderr) = run(&host, Workload::shell(script), false)?;
    write(&mut fifos.stdin()?, "hello\n")?;
    assert_eq!(container.wait()?, 0);
    container.delete()?;
    assert_eq!(
        (text(&stdout)?.as_str(), text(&stderr)?.as_str()),
        ("out hello\n", "err hello\n")
    );
    Ok(())
}

#[test]
fn large_output_is_neither_lost_nor_reordered() -> Result<()> {
    let host = Host::new()?;
    let script = format!("seq 1 100000000 | head -c {}", LARGE_MIB << 20);
    let (container, _fifos, stdout, _stderr) = run(&host, Workload::shell(&script), false)?;
    container.wait()?;
    container.delete()?;
    let bytes = stdout.to_end()?;
    assert_eq!(bytes.len(), LARGE_MIB << 20);
    let complete = bytes.rsplitn(2, |byte| *byte == b'\n').last().unwrap_or_default();
    let numbers = complete.split(|byte| *byte == b'\n').zip(1_u64..);
    let wrong = numbers
        .filter(|(line, number)| *line != number.to_string().as_bytes())
        .count();
    assert_eq!(wrong, 0, "lines out of place");
    Ok(())
}

#[test]
fn output_written_just_before_the_exit_arrives() -> Result<()> {
    let host = Host::new()?;
    let container = host.run(Workload::forever())?;
    for round in 0..20 {
        let (text, code) = container.run_exec(&format!("e{round}"), "seq 1 5000; exit 3")?;
        assert_eq!((text.lines().count(), code), (5000, 3), "round {round}");
    }
    Ok(())
}

#[test]
fn large_input_arrives_whole_and_ends_when_stdin_is_closed() -> Result<()> {
    let host = Host::new()?;
    let (container, fifos, stdout, _stderr) = run(&host, Workload::shell("md5sum; echo end"), false)?;
    let mut stdin = fifos.stdin()?;
    write(&mut stdin, &"0123456789abcde\n".repeat(1 << 20))?;
    container.api().close_io("c", "")?;
    drop(stdin);
    assert_eq!(container.wait()?, 0);
    container.delete()?;
    let told = text(&stdout)?;
    assert!(
        told.starts_with("6d1c3825629e0bc4f39b95b5f204afe9") && told.ends_with("end\n"),
        "{told}"
    );
    Ok(())
}

#[test]
fn what_was_written_before_close_io_still_arrives() -> Result<()> {
    let host = Host::new()?;
    let container = host.run(Workload::forever())?;
    for round in 0..20 {
        let fifos = container.fifos(&format!("e{round}"))?;
        let (stdout, _stderr) = fifos.read();
        let exec = container.add_exec_with(&format!("e{round}"), &["cat"], &fifos.names(false), false)?;
        exec.start()?;
        let mut stdin = fifos.stdin()?;
        write(&mut stdin, "first\nlast\n")?;
        drop(stdin);
        exec.close_io()?;
        assert_eq!(exec.wait()?, 0, "cat ends with its input");
        exec.delete()?;
        assert_eq!(text(&stdout)?, "first\nlast\n", "round {round}");
    }
    Ok(())
}

#[test]
fn a_client_that_leaves_does_not_close_stdin() -> Result<()> {
    let host = Host::new()?;
    let script = "while read line; do echo got $line; done; echo end";
    let (container, fifos, stdout, _stderr) = run(&host, Workload::shell(script), false)?;
    for word in ["one", "two"] {
        write(&mut fifos.stdin()?, &format!("{word}\n"))?;
        stdout.wait_for(&format!("got {word}\n"))?;
    }
    assert_eq!(container.status()?, Status::Running);
    container.api().close_io("c", "")?;
    assert_eq!(container.wait()?, 0);
    Ok(())
}

/// The client's death must not reach the container: no broken pipe, and no block once the pipes are full.
#[test]
fn a_client_that_died_neither_kills_nor_blocks_the_container() -> Result<()> {
    let host = Host::new()?;
    let container = host.container(
        "c",
        Workload::shell("read go; seq 1 200000; touch /wrote; exit 9"),
    )?;
    let fifos = container.fifos("init")?;
    let client = (
        idle_reader(&fifos.path("stdout"))?,
        idle_reader(&fifos.path("stderr"))?,
    );
    container.create_with(&fifos.names(false), None)?;
    container.start()?;
    write(&mut fifos.stdin()?, "go\n")?;
    // The shim has both ends open (it holds one so that a client may come back), so nobody sees the reader go; what
    // must then hold is only that a second client finds the rest.
    drop(client);
    let (stdout, _stderr) = fifos.read();
    assert_eq!(container.wait()?, 9);
    container.delete()?;
    assert!(container.path_in_upper("/wrote").exists());
    assert!(
        text(&stdout)?.ends_with("200000\n"),
        "the second client reads on to the end"
    );
    Ok(())
}

#[test]
fn a_container_that_a_dead_client_blocks_can_be_killed_and_deleted() -> Result<()> {
    let host = Host::new()?;
    let container = host.container("c", Workload::shell("echo ready; touch /begun; seq 1 100000000"))?;
    let fifos = container.fifos("init")?;
    let client = (
        idle_reader(&fifos.path("stdout"))?,
        idle_reader(&fifos.path("stderr"))?,
    );
    container.create_with(&fifos.names(false), None)?;
    container.start()?;
    drop(client);
    let begun = container.path_in_upper("/begun");
    eventually("it has begun to write", SHORT, || begun.exists())?;
    assert_eq!(
        container.status()?,
        Status::Running,
        "a broken pipe would have ended it"
    );
    assert_eq!(container.kill_and_delete()?, 137);
    host.assert_clean()
}

#[test]
fn a_second_client_reads_on_where_the_first_left() -> Result<()> {
    let host = Host::new()?;
    let container = host.container("c", Workload::shell("while read line; do echo got $line; done"))?;
    let fifos = container.fifos("init")?;
    let first = (
        idle_reader(&fifos.path("stdout"))?,
        idle_reader(&fifos.path("stderr"))?,
    );
    container.create_with(&fifos.names(false), None)?;
    container.start()?;
    let mut stdin = fifos.stdin()?;
    write(&mut stdin, "one\n")?;
    drop(first);
    let (second, _stderr) = fifos.read();
    write(&mut stdin, "two\n")?;
    second.wait_for("got two\n")?;
    container.kill_and_delete()?;
    Ok(())
}

#[test]
fn without_streams_the_container_reads_and_writes_nothing() -> Result<()> {
    let host = Host::new()?;
    let container = host.run(Workload::shell(
        "cat; echo out; echo err >&2; ls -l /proc/self/fd >/seen; exit 8",
    ))?;
    assert_eq!(container.wait()?, 8);
    container.delete()?;
    Ok(())
}

#[test]
fn a_container_without_streams_may_write_much() -> Result<()> {
    let host = Host::new()?;
    let container = host.run(Workload::shell("seq 1 300000; seq 1 300000 >&2; exit 6"))?;
    assert_eq!(container.wait()?, 6);
    Ok(())
}

/// Anything else than pipes of nobody else's, and CRIU could not dump the container.
#[test]
fn the_container_s_own_streams_are_anonymous_pipes() -> Result<()> {
    need!(
        OurShim,
        "containerd's shim gives a container without streams /dev/null of the host"
    );
    let host = Host::new()?;
    let (container, _fifos, stdout, _stderr) = run(&host, Workload::forever(), false)?;
    stdout.wait_for("ready")?;
    let pid = container.state()?.pid;
    for fd in 0..3 {
        let link = fs::read_link(format!("/proc/{pid}/fd/{fd}"))?;
        assert!(
            link.to_string_lossy().starts_with("pipe:["),
            "descriptor {fd} is {}",
            link.display()
        );
    }
    Ok(())
}

#[test]
fn a_terminal_is_one_and_echoes() -> Result<()> {
    let host = Host::new()?;
    let script = "tty; test -t 0 && test -t 1 && test -t 2 && echo ready; read line; echo got $line; exit 4";
    let (container, fifos, stdout, _stderr) = run(&host, Workload::shell(script).terminal(), true)?;
    stdout.wait_for("ready")?;
    write(&mut fifos.stdin()?, "hello\n")?;
    assert_eq!(container.wait()?, 4);
    container.delete()?;
    let told = text(&stdout)?;
    assert!(
        told.contains("/dev/pts/0\r\n") && told.contains("hello\r\ngot hello\r\n"),
        "{told:?}"
    );
    Ok(())
}

/// The path of a socket has 107 bytes, and a bundle's path with docker's ids of 64 digits has more.
#[test]
fn a_terminal_works_whatever_the_length_of_the_id() -> Result<()> {
    let host = Host::new()?;
    let id = "0123456789abcdef".repeat(4);
    let container = host.container(&id, Workload::forever().terminal())?;
    let fifos = container.fifos("init")?;
    let (stdout, _stderr) = fifos.read();
    container.create_with(&fifos.names(true), None)?;
    container.start()?;
    stdout.wait_for("ready\r\n")?;
    let fifos = container.fifos("exec")?;
    let (stdout, _stderr) = fifos.read();
    let exec = container.add_exec_with(&"f".repeat(64), &["tty"], &fifos.names(true), true)?;
    exec.start()?;
    assert_eq!(exec.wait()?, 0);
    exec.delete()?;
    assert_eq!(text(&stdout)?, "/dev/pts/1\r\n");
    Ok(())
}

#[test]
fn output_of_a_terminal_is_not_lost_when_the_process_exits_at_once() -> Result<()> {
    let host = Host::new()?;
    for _ in 0..10 {
        let (container, _fifos, stdout, _stderr) =
            run(&host, Workload::shell("seq 1 3000").terminal(), true)?;
        container.wait()?;
        container.delete()?;
        assert_eq!(text(&stdout)?.lines().count(), 3000);
        container.remove()?;
    }
    Ok(())
}

#[test]
fn a_terminal_is_resized_and_the_container_told() -> Result<()> {
    let host = Host::new()?;
    let script = "trap 'stty size' WINCH; echo ready; while true; do sleep 3600 & wait $!; done";
    let (container, _fifos, stdout, _stderr) = run(&host, Workload::shell(script).terminal(), true)?;
    stdout.wait_for("ready")?;
    container.api().resize("c", "", 123, 45)?;
    stdout.wait_for("45 123\r\n")?;
    container.kill_and_delete()?;
    Ok(())
}

#[test]
fn an_exec_has_a_terminal_of_its_own() -> Result<()> {
    let host = Host::new()?;
    let container = host.run(Workload::forever())?;
    let fifos = container.fifos("e1")?;
    let (stdout, _stderr) = fifos.read();
    let exec = container.add_exec_with(
        "e1",
        &["sh", "-c", "echo ready; read go; stty size; exit 2"],
        &fifos.names(true),
        true,
    )?;
    exec.start()?;
    stdout.wait_for("ready")?;
    exec.resize(90, 30)?;
    write(&mut fifos.stdin()?, "go\n")?;
    assert_eq!(exec.wait()?, 2);
    exec.delete()?;
    assert!(text(&stdout)?.ends_with("30 90\r\n"));
    Ok(())
}

#[test]
fn end_of_transmission_ends_a_terminal_s_reader() -> Result<()> {
    let host = Host::new()?;
    let (container, fifos, stdout, _stderr) =
        run(&host, Workload::shell("echo ready; cat; exit 3").terminal(), true)?;
    stdout.wait_for("ready")?;
    write(&mut fifos.stdin()?, "\u{4}")?;
    assert_eq!(container.wait()?, 3);
    Ok(())
}

#[test]
fn a_file_takes_both_outputs() -> Result<()> {
    let host = Host::new()?;
    let container = host.container("c", Workload::shell("seq 1 50000; echo err >&2; exit 1"))?;
    let file = container.scratch("log/out.txt");
    let uri = format!("file://{}", file.display());
    let names = StreamNames {
        stdout: uri.clone(),
        stderr: uri,
        ..StreamNames::default()
    };
    container.create_with(&names, None)?;
    container.start()?;
    assert_eq!(container.wait()?, 1);
    container.delete()?;
    let told = fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
    assert!(
        told.contains("err\n") && told.contains("50000\n"),
        "{} bytes",
        told.len()
    );
    Ok(())
}

/// A logger as containerd documents it: streams on descriptors 3 and 4, readiness told by closing 5.
fn logger(container: &Container, script: &str) -> Result<String> {
    let program = container.scratch("logger");
    fs::write(&program, format!("#!/bin/sh\n{script}"))?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
    Ok(format!(
        "binary://{}?to={}",
        program.display(),
        container.scratch("logged").display()
    ))
}

/// The shim may tell a logger to end as soon as the container is deleted; this one reads on.
const LOGGER: &str = r#"
[ "$1" = to ] || exit 1
trap '' TERM
exec 5>&-
cat <&3 >"$2" & cat <&4 >"$2.err" & wait
echo "$CONTAINER_NAMESPACE $CONTAINER_ID" >"$2.done"
"#;

#[test]
fn a_logger_gets_everything_and_sees_the_end() -> Result<()> {
    let host = Host::new()?;
    let container = host.container("c", Workload::shell("seq 1 100000; echo err >&2; exit 5"))?;
    let uri = logger(&container, LOGGER)?;
    let names = StreamNames {
        stdout: uri.clone(),
        stderr: uri,
        ..StreamNames::default()
    };
    container.create_with(&names, None)?;
    container.start()?;
    assert_eq!(container.wait()?, 5);
    container.delete()?;
    let done = container.scratch("logged.done");
    eventually("the logger ends with the container", SHORT, || {
        fs::metadata(&done).is_ok_and(|it| it.size() > 0)
    })?;
    assert_eq!(fs::read_to_string(&done)?, format!("{} c\n", host.namespace()));
    let told = fs::read_to_string(container.scratch("logged"))?;
    assert_eq!(
        (told.lines().count(), told.lines().last()),
        (100_000, Some("100000"))
    );
    assert_eq!(fs::read_to_string(container.scratch("logged.err"))?, "err\n");
    Ok(())
}

#[test]
fn a_logger_has_time_to_read_everything() -> Result<()> {
    need!(
        OurShim,
        "containerd's shim tells the logger to end while there is still something in the pipe"
    );
    let host = Host::new()?;
    let container = host.container("c", Workload::shell("seq 1 10000; exit 5"))?;
    let uri = logger(
        &container,
        "exec 5>&-\nsleep 1; cat <&3 >\"$2\"; echo done >\"$2.done\"\n",
    )?;
    let names = StreamNames {
        stdout: uri.clone(),
        stderr: uri,
        ..StreamNames::default()
    };
    container.create_with(&names, None)?;
    container.start()?;
    assert_eq!(container.wait()?, 5);
    container.delete()?;
    let done = container.scratch("logged.done");
    eventually("the logger ends with the container", SHORT, || {
        fs::metadata(&done).is_ok_and(|it| it.size() > 0)
    })?;
    assert_eq!(
        fs::read_to_string(container.scratch("logged"))?.lines().count(),
        10_000
    );
    Ok(())
}

#[test]
fn a_logger_that_is_not_there_fails_create_and_leaves_nothing() -> Result<()> {
    let host = Host::new()?;
    let container = host.container("c", Workload::forever())?;
    let uri = "binary:///no/such/logger".to_owned();
    let names = StreamNames {
        stdout: uri.clone(),
        stderr: uri,
        ..StreamNames::default()
    };
    assert!(container.create_with(&names, None).is_err());
    host.assert_clean()?;
    container.create()?;
    container.start()?;
    assert_eq!(
        container.status()?,
        Status::Running,
        "the next create with the same id works"
    );
    Ok(())
}

#[test]
fn a_logger_that_dies_does_not_take_the_container_with_it() -> Result<()> {
    let host = Host::new()?;
    let script =
        "trap 'exit 143' TERM; trap '' PIPE; while true; do echo tick || touch /broken; sleep 0.05; done";
    let container = host.container("c", Workload::shell(script))?;
    let uri = logger(&container, "exec 5>&-\nhead -n 1 <&3 >\"$2\"\n")?;
    let names = StreamNames {
        stdout: uri.clone(),
        stderr: uri,
        ..StreamNames::default()
    };
    container.create_with(&names, None)?;
    container.start()?;
    let logged = container.scratch("logged");
    eventually("the logger has read a line", SHORT, || {
        fs::metadata(&logged).is_ok_and(|it| it.size() > 0)
    })?;
    assert_eq!(container.status()?, Status::Running);
    container.kill(TERM)?;
    assert_eq!(container.wait()?, 143);
    Ok(())
}
