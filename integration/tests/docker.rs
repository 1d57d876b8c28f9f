//! Docker's containers by our shim: told by its runtime name, by an entry in `daemon.json`, and in the place of
//! containerd's own shim.
#![expect(
    unused_results,
    reason = "a test acts through calls, and compares only the answers it is about"
)]

use std::time::Duration;

use anyhow::{Context, Result};
use integration::docker::{Docker, runtime};
use integration::need;
use integration::stdio::eventually;
use integration::workload::FOREVER;

const SHORT: Duration = Duration::from_secs(15);

fn by_name() -> Result<Docker> {
    Docker::with_runtime(&runtime())
}

fn codes_and_output(docker: &Docker) -> Result<()> {
    let said = docker.run(&["--rm"], &["sh", "-c", "echo out; echo err >&2; exit 7"])?;
    assert_eq!(
        (said.code, said.stdout.as_str(), said.stderr.as_str()),
        (7, "out\n", "err\n")
    );
    let said = docker.run_with_input(&["--rm", "--interactive"], &["tr", "a-z", "A-Z"], "hello\n")?;
    assert_eq!((said.code, said.stdout.as_str()), (0, "HELLO\n"));
    let said = docker.run(&["--rm", "--tty"], &["sh", "-c", "test -t 1 && echo terminal"])?;
    assert_eq!(
        (said.code, said.stdout.as_str()),
        (0, "terminal\r\n"),
        "{}",
        said.stderr
    );
    Ok(())
}

fn a_life(docker: &Docker) -> Result<()> {
    let container = docker.start(&["--memory", "64m"], &["sh", "-c", FOREVER])?;
    eventually("it says ready", SHORT, || {
        container.call(&["logs"]).is_ok_and(|text| text.contains("ready"))
    })?;
    let said = container.exec(&["sh", "-c", "cat /proc/1/comm; exit 5"])?;
    assert_eq!((said.code, said.stdout.as_str()), (5, "sh\n"));
    container.call(&["pause"])?;
    assert_eq!(container.inspect("{{.State.Status}}")?, "paused");
    container.call(&["unpause"])?;
    assert!(container.call(&["top"])?.contains("sleep 3600"));
    let usage = container.call(&["stats", "--no-stream", "--format", "{{.MemUsage}} {{.PIDs}}"])?;
    assert!(usage.contains("/ 64MiB") && !usage.starts_with("0B"), "{usage}");
    container.call(&["update", "--pids-limit", "55"])?;
    container.call(&["restart", "--time", "5"])?;
    assert_eq!(container.inspect("{{.State.Status}}")?, "running");
    eventually("it says ready again", SHORT, || {
        container
            .call(&["logs"])
            .is_ok_and(|text| text.matches("ready").count() == 2)
    })?;
    container.call(&["stop", "--time", "10"])?;
    assert_eq!(
        container.inspect("{{.State.Status}} {{.State.ExitCode}}")?,
        "exited 143"
    );
    container.remove()
}

#[test]
fn codes_and_output_by_name() -> Result<()> {
    need!(Docker, "runs containers by docker");
    codes_and_output(&by_name()?)
}

#[test]
fn a_life_by_name() -> Result<()> {
    need!(Docker, "runs containers by docker");
    a_life(&by_name()?)
}

#[test]
fn a_life_by_an_entry_in_daemon_json() -> Result<()> {
    need!(Docker, "runs containers by docker");
    need!(OurShim, "the testbed's daemon.json has an entry for ours");
    let docker = Docker::with_runtime("cedana")?;
    codes_and_output(&docker)?;
    a_life(&docker)
}

#[test]
fn a_life_in_the_place_of_containerd_s_shim() -> Result<()> {
    need!(Docker, "runs containers by docker");
    need!(OurShim, "puts our binary under the name of containerd's");
    let docker = Docker::with_our_shim_as_runc_v2()?;
    codes_and_output(&docker)?;
    let container = docker.start(&[], &["sh", "-c", FOREVER])?;
    let parent = parent_of(&container.inspect("{{.State.Pid}}")?)?;
    let program = std::fs::read_link(format!("/proc/{parent}/exe")).context("see what the parent is")?;
    assert!(
        program.ends_with("containerd-shim-cedana-v1"),
        "the parent of the container is {}",
        program.display()
    );
    container.remove()?;
    a_life(&docker)
}

fn parent_of(pid: &str) -> Result<String> {
    let status =
        std::fs::read_to_string(format!("/proc/{pid}/status")).context("read the process's status")?;
    let parent = status
        .lines()
        .find_map(|line| line.strip_prefix("PPid:"))
        .context("find its parent")?;
    Ok(parent.trim().to_owned())
}

#[test]
fn what_cannot_be_run_gives_126_and_127() -> Result<()> {
    need!(Docker, "docker takes these codes from the text of the error");
    let docker = by_name()?;
    assert_eq!(docker.run(&["--rm"], &["/no/such/program"])?.code, 127);
    assert_eq!(docker.run(&["--rm"], &["no-such-program"])?.code, 127);
    assert_eq!(docker.run(&["--rm"], &["/etc"])?.code, 126);
    let container = docker.start(&[], &["sh", "-c", FOREVER])?;
    // Docker 26 has 126 for every exec that does not start.
    let said = container.exec(&["/no/such/program"])?;
    assert!(
        matches!(said.code, 126 | 127) && said.stdout.contains("no such file"),
        "{said:?}"
    );
    container.remove()
}

#[test]
fn running_out_of_memory_is_known() -> Result<()> {
    need!(Docker, "docker keeps it in its own books");
    let docker = by_name()?;
    let container = docker.start(
        &["--memory", "32m", "--memory-swap", "32m"],
        &["tail", "/dev/zero"],
    )?;
    assert_eq!(container.call(&["wait"])?, "137");
    eventually("docker knows why", SHORT, || {
        container
            .inspect("{{.State.OOMKilled}}")
            .is_ok_and(|told| told == "true")
    })?;
    container.remove()
}

#[test]
fn a_kill_of_any_signal_arrives() -> Result<()> {
    need!(Docker, "runs containers by docker");
    let docker = by_name()?;
    let script = "trap 'exit 42' 37; echo ready; while true; do sleep 3600 & wait $!; done";
    let container = docker.start(&["--stop-signal", "RTMIN+3"], &["sh", "-c", script])?;
    eventually("it says ready", SHORT, || {
        container.call(&["logs"]).is_ok_and(|text| text.contains("ready"))
    })?;
    container.call(&["stop", "--time", "10"])?;
    assert_eq!(container.inspect("{{.State.ExitCode}}")?, "42");
    container.remove()
}
