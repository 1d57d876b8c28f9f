//! containerd's own client, with an image and a snapshot: what a person types.
#![expect(
    unused_results,
    reason = "a test acts through calls, and compares only the answers it is about"
)]

use std::time::Duration;

use anyhow::Result;
use integration::engine::Said;
use integration::host::Host;
use integration::stdio::eventually;
use integration::workload::FOREVER;

const SHORT: Duration = Duration::from_secs(10);

fn ctr_run(host: &Host, flags: &[&str], id: &str, command: &[&str], input: &str) -> Result<Said> {
    let image = host.load_image()?;
    let args = [
        &["run", "--runtime", host.runtime()],
        flags,
        &[image, id],
        command,
    ]
    .concat();
    host.ctr_with_input(&args, input)
}

#[test]
fn a_run_passes_input_output_and_code_through() -> Result<()> {
    let host = Host::new()?;
    let script = "read line; echo got $line; echo err >&2; exit 7";
    let said = ctr_run(&host, &["--rm"], "c", &["sh", "-c", script], "hello\n")?;
    assert_eq!((said.code, said.stdout.as_str()), (7, "got hello\n"));
    assert!(said.stderr.lines().any(|line| line == "err"), "{}", said.stderr);
    host.assert_clean()
}

#[test]
fn a_run_of_what_is_not_there_fails_and_the_id_is_free_again() -> Result<()> {
    let host = Host::new()?;
    let said = ctr_run(&host, &["--rm"], "c", &["/no/such/program"], "")?;
    assert!(
        said.code != 0 && said.stderr.contains("no such file or directory"),
        "{}",
        said.stderr
    );
    assert_eq!(ctr_run(&host, &["--rm"], "c", &["true"], "")?.code, 0);
    host.assert_clean()
}

#[test]
fn a_container_in_the_background_is_listed_entered_killed_and_removed() -> Result<()> {
    let host = Host::new()?;
    ctr_run(&host, &["--detach"], "c", &["sh", "-c", FOREVER], "")?.ok()?;
    assert!(host.ctr(&["tasks", "ls"])?.ok()?.contains("RUNNING"));
    let exec = [
        "tasks",
        "exec",
        "--exec-id",
        "e",
        "c",
        "sh",
        "-c",
        "cat /proc/1/comm; exit 5",
    ];
    let said = host.ctr(&exec)?;
    assert_eq!((said.code, said.stdout.as_str()), (5, "sh\n"));
    assert_eq!(
        host.ctr(&["tasks", "ps", "c"])?.ok()?.lines().count(),
        3,
        "a title and two processes"
    );
    host.ctr(&["tasks", "pause", "c"])?.ok()?;
    assert!(host.ctr(&["tasks", "ls"])?.ok()?.contains("PAUSED"));
    host.ctr(&["tasks", "resume", "c"])?.ok()?;
    assert!(host.ctr(&["tasks", "metrics", "c"])?.ok()?.contains("memory"));
    host.ctr(&["tasks", "kill", "--signal", "SIGKILL", "c"])?.ok()?;
    let is_stopped = || {
        host.ctr(&["tasks", "ls"])
            .and_then(Said::ok)
            .is_ok_and(|told| told.contains("STOPPED"))
    };
    eventually("the task stops", SHORT, is_stopped)?;
    host.ctr(&["tasks", "rm", "c"])?.ok()?;
    host.ctr(&["containers", "rm", "c"])?.ok()?;
    host.assert_clean()
}
