//! What containerd asks of a shim without any client asking for it: connect, shutdown, and the command line.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use integration::container::{Container, refused};
use integration::host::Host;
use integration::messages::{Empty, IdRequest, Status};
use integration::need;
use integration::shim_api::{
    BootstrapParams, BootstrapResult, Connected, Deleted, OUR_SHIM, RuntimeInfo, TASK_V2, TASK_V3, action,
    call, socket_path,
};
use integration::stdio::{eventually, within};
use integration::workload::Workload;
use prost::Message;
use tonic::Code;

const SHORT: Duration = Duration::from_secs(10);

fn id(id: &str) -> IdRequest {
    IdRequest {
        container_id: id.to_owned(),
    }
}

fn socket(container: &Container) -> Result<PathBuf> {
    container
        .shim_socket()
        .context("find the shim's socket in the bundle")
}

#[test]
fn connect_tells_the_pids_under_both_names_of_the_service() -> Result<()> {
    need!(
        OurShim,
        "containerd's shim serves only the version that its containerd speaks"
    );
    let host = Host::new()?;
    let container = host.run(Workload::forever())?;
    for service in [TASK_V2, TASK_V3] {
        let connected: Connected = call(&socket(&container)?, service, "Connect", &id("c"))?;
        assert_eq!(connected.task_pid, container.state()?.pid);
        assert_eq!(i32::try_from(connected.shim_pid)?, container.shim_pid()?);
    }
    Ok(())
}

#[test]
fn a_method_that_is_not_there_is_unimplemented() -> Result<()> {
    need!(OurShim, "talks to the shim itself");
    let host = Host::new()?;
    let container = host.run(Workload::forever())?;
    let answer = call::<Empty>(&socket(&container)?, TASK_V3, "NoSuchMethod", &id("c"));
    assert_eq!(refused(answer)?, Code::Unimplemented);
    Ok(())
}

#[test]
fn shutdown_does_nothing_while_there_is_a_container() -> Result<()> {
    need!(OurShim, "talks to the shim itself");
    let host = Host::new()?;
    let container = host.run(Workload::forever())?;
    let _answer = call::<Empty>(&socket(&container)?, TASK_V3, "Shutdown", &id("c"));
    assert_eq!(container.status()?, Status::Running);
    assert_eq!(container.kill_and_delete()?, 137);
    host.assert_clean()
}

#[test]
fn nobody_but_the_owner_may_use_the_socket() -> Result<()> {
    let host = Host::new()?;
    let container = host.run(Workload::forever())?;
    assert_eq!(
        fs::metadata(socket(&container)?)?.permissions().mode() & 0o777,
        0o600
    );
    Ok(())
}

/// A bundle that containerd does not know of.
fn bundle(host: &Host, id: &str) -> Result<PathBuf> {
    let bundle = host.dir().join("bundles").join(id);
    fs::create_dir_all(bundle.join("rootfs"))?;
    fs::write(
        bundle.join("config.json"),
        r#"{"ociVersion": "1.0.2", "annotations": {}}"#,
    )?;
    Ok(bundle)
}

fn finish(mut command: Command, input: &[u8]) -> Result<Output> {
    let file = tempfile::NamedTempFile::new()?;
    fs::write(file.path(), input)?;
    let _command = command
        .stdin(file.reopen()?)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let child = command.spawn().context("run the shim")?;
    within(SHORT, move || child.wait_with_output())
        .context("wait for the shim and the end of its output")?
        .context("read it")
}

/// Stops the shim that `start` has left behind for a bundle without a container.
fn stop(address: &str) -> Result<()> {
    let socket = socket_path(address)?;
    let _answer = call::<Empty>(&socket, TASK_V3, "Shutdown", &id(""));
    eventually("the shim ends and takes its socket with it", SHORT, || {
        !socket.exists()
    })
}

#[test]
fn start_answers_with_a_bare_address_to_those_who_send_nothing() -> Result<()> {
    need!(OurShim, "runs our binary");
    let host = Host::new()?;
    let output = finish(action(&bundle(&host, "s")?, host.namespace(), "s", "start"), b"")?;
    let address = String::from_utf8(output.stdout)?;
    ensure!(
        output.status.success() && output.stderr.is_empty(),
        "{:?}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(
        address.starts_with("unix:///") && !address.contains(char::is_whitespace),
        "{address:?}"
    );
    let again = finish(action(&bundle(&host, "s")?, host.namespace(), "s", "start"), b"")?;
    assert_eq!(
        String::from_utf8(again.stdout)?,
        address,
        "the shim that is there is used"
    );
    stop(&address)?;
    host.assert_clean()
}

#[test]
fn start_answers_with_a_message_to_those_who_send_one() -> Result<()> {
    need!(OurShim, "runs our binary");
    let host = Host::new()?;
    let params = BootstrapParams {
        instance_id: "s".to_owned(),
        namespace: host.namespace().to_owned(),
        ttrpc_address: "/run/containerd/containerd.sock.ttrpc".to_owned(),
        grpc_address: "/run/containerd/containerd.sock".to_owned(),
    };
    let output = finish(
        action(&bundle(&host, "s")?, host.namespace(), "s", "start"),
        &params.encode_to_vec(),
    )?;
    ensure!(
        output.status.success() && output.stderr.is_empty(),
        "{:?}",
        String::from_utf8_lossy(&output.stderr)
    );
    let result = BootstrapResult::decode(output.stdout.as_slice())?;
    assert_eq!((result.version, result.protocol.as_str()), (3, "ttrpc"));
    stop(&result.address)?;
    host.assert_clean()
}

#[test]
fn delete_of_what_was_never_there_succeeds() -> Result<()> {
    need!(OurShim, "runs our binary");
    let host = Host::new()?;
    let output = finish(action(&bundle(&host, "s")?, host.namespace(), "s", "delete"), b"")?;
    ensure!(
        output.status.success() && output.stderr.is_empty(),
        "{:?}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(
        Deleted::decode(output.stdout.as_slice())?.exit_status,
        137,
        "what containerd reports for the dead"
    );
    host.assert_clean()
}

#[test]
fn info_and_version_are_told() -> Result<()> {
    need!(OurShim, "runs our binary");
    let asked = |flag: &str| {
        let mut command = Command::new(OUR_SHIM);
        let _command = command.arg(flag);
        finish(command, b"")
    };
    let info = RuntimeInfo::decode(asked("-info")?.stdout.as_slice())?;
    assert_eq!(info.name, "io.containerd.cedana.v1");
    let features = info.features.context("find runc's features")?;
    assert!(
        serde_json::from_slice::<serde_json::Value>(&features.value)?
            .get("ociVersionMax")
            .is_some()
    );
    let version = asked("-v")?;
    assert!(version.status.success() && String::from_utf8(version.stdout)?.contains(char::is_numeric));
    Ok(())
}
