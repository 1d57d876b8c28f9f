//! nerdctl's containers by our shim.
#![expect(
    unused_results,
    reason = "a test acts through calls, and compares only the answers it is about"
)]

use std::time::Duration;

use anyhow::Result;
use integration::engine::{Said, run};
use integration::host::Host;
use integration::need;
use integration::stdio::eventually;
use integration::workload::FOREVER;

const SHORT: Duration = Duration::from_secs(15);

fn nerdctl(host: &Host, args: &[&str]) -> Result<Said> {
    run("nerdctl", &[&["--namespace", host.namespace()], args].concat())
}

fn run_flags<'host>(host: &'host Host, more: &[&'host str]) -> Vec<&'host str> {
    [&["run", "--network", "none", "--runtime", host.runtime()], more].concat()
}

#[test]
fn the_code_and_the_output_of_a_run() -> Result<()> {
    need!(Nerdctl, "runs containers by nerdctl");
    let host = Host::new()?;
    let image = host.load_image()?;
    let flags = run_flags(&host, &["--rm", image, "sh", "-c", "echo out; exit 7"]);
    let said = nerdctl(&host, &flags)?;
    assert_eq!((said.code, said.stdout.as_str()), (7, "out\n"), "{}", said.stderr);
    host.assert_clean()
}

/// The logs of a detached container come from nerdctl as `binary://` logger.
#[test]
fn a_detached_container_has_logs_and_execs() -> Result<()> {
    need!(Nerdctl, "runs containers by nerdctl");
    let host = Host::new()?;
    let image = host.load_image()?;
    nerdctl(
        &host,
        &run_flags(&host, &["--detach", "--name", "box", image, "sh", "-c", FOREVER]),
    )?
    .ok()?;
    let logs = || {
        nerdctl(&host, &["logs", "box"])
            .and_then(Said::ok)
            .unwrap_or_default()
    };
    eventually("it says ready", SHORT, || logs().contains("ready"))?;
    let said = nerdctl(&host, &["exec", "box", "sh", "-c", "echo in; exit 5"])?;
    // nerdctl 2.3 ends with 1 and names the status of the exec.
    assert_eq!(
        said.stdout,
        "in
"
    );
    assert!(
        said.code == 5 || said.stderr.contains("exit code 5"),
        "{}",
        said.stderr
    );
    nerdctl(&host, &["pause", "box"])?.ok()?;
    nerdctl(&host, &["unpause", "box"])?.ok()?;
    nerdctl(&host, &["stop", "box"])?.ok()?;
    assert_eq!(
        nerdctl(&host, &["inspect", "--format", "{{.State.ExitCode}}", "box"])?.ok()?,
        "143"
    );
    nerdctl(&host, &["rm", "--force", "box"])?.ok()?;
    host.assert_clean()
}
