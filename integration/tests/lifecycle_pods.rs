//! Containers of a pod, told by CRI's annotation, share one shim.
#![expect(
    unused_results,
    reason = "a test acts through calls, and compares only the answers it is about"
)]

use anyhow::Result;
use integration::container::{Container, refused};
use integration::host::Host;
use integration::messages::Status;
use integration::workload::Workload;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tonic::Code;

const SANDBOX: &str = "io.kubernetes.cri.sandbox-id";

fn in_pod(host: &Host, id: &str) -> Result<Container> {
    host.run_with(
        id,
        Workload::forever().annotation(SANDBOX, "pod"),
        &Default::default(),
    )
}

#[test]
fn a_pod_has_one_shim() -> Result<()> {
    let host = Host::new()?;
    let containers = [
        in_pod(&host, "pod")?,
        in_pod(&host, "app")?,
        in_pod(&host, "sidecar")?,
    ];
    assert_eq!(host.places().shims().len(), 1);
    for container in &containers {
        assert_eq!(container.run_exec("e1", "exit 7")?.1, 7, "{}", container.id());
    }
    Ok(())
}

#[test]
fn containers_of_a_pod_come_and_go_alone() -> Result<()> {
    let host = Host::new()?;
    let events = host.events()?;
    let (pod, app) = (in_pod(&host, "pod")?, in_pod(&host, "app")?);
    let shims = host.places().shims();
    assert_eq!(app.kill_and_delete()?, 137);
    events.until("app", "delete")?;
    assert_eq!(refused(app.state())?, Code::NotFound);
    assert_eq!(pod.status()?, Status::Running);
    app.create()?;
    app.start()?;
    assert_eq!(
        (pod.kill_and_delete()?, app.status()?),
        (137, Status::Running),
        "the first may go first"
    );
    assert_eq!(host.places().shims(), shims);
    app.kill_and_delete()?;
    host.assert_clean()
}

#[test]
fn different_pods_have_different_shims() -> Result<()> {
    let host = Host::new()?;
    let _one = host.run_with(
        "one",
        Workload::forever().annotation(SANDBOX, "one"),
        &Default::default(),
    )?;
    let _two = host.run_with(
        "two",
        Workload::forever().annotation(SANDBOX, "two"),
        &Default::default(),
    )?;
    assert_eq!(host.places().shims().len(), 2);
    Ok(())
}

#[test]
fn the_death_of_the_shim_is_told_for_every_container() -> Result<()> {
    let host = Host::new()?.forgiving_sockets();
    let events = host.events()?;
    let containers = [in_pod(&host, "pod")?, in_pod(&host, "app")?];
    for shim in host.places().shims() {
        kill(Pid::from_raw(shim), Signal::SIGKILL)?;
    }
    for container in &containers {
        events.until(container.id(), "delete")?;
        assert_eq!(refused(container.state())?, Code::NotFound);
    }
    host.assert_clean()?;
    let again = in_pod(&host, "again")?;
    assert_eq!(again.status()?, Status::Running);
    Ok(())
}
