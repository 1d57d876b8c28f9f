//! containerd's messages to ours and back. Nothing further in ever sees a protobuf.

use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use containerd_shim_protos::api;
use containerd_shim_protos::shim::oci;
use oci_bundles::layout::Shape;
use oci_bundles::mounts::Mount;
use protobuf::well_known_types::any::Any;
use protobuf::well_known_types::timestamp::Timestamp;
use protobuf::{EnumOrUnknown, Message, MessageField, UnknownValueRef};
use ttrpc::Code;

use crate::cgroup::Metrics;
use crate::container::View;
use crate::container::create::Request;
use crate::dump::CheckpointOptions;
use crate::error::{Error, Result, chain};
use crate::options::Options;
use crate::state::Status;
use crate::stdio::StdioRequest;

/// containerd refuses checkpoint options of any other type itself.
const CHECKPOINT_OPTIONS: &str = "containerd.runc.v1.CheckpointOptions";
/// The parent image directory: in containerd's message since 1.7, not in the crate's.
const PARENT_PATH_FIELD: u32 = 10;
/// What an exec of a pid is told by; containerd looks types up by their bare name.
const PROCESS_DETAILS: &str = "containerd.runc.v1.ProcessDetails";

/// Our error as containerd wants it: clients act on the code, people read the message.
pub fn status(error: Error) -> ttrpc::Error {
    let code = match &error {
        Error::NotFound(_) => Code::NOT_FOUND,
        Error::AlreadyExists(_) => Code::ALREADY_EXISTS,
        Error::FailedPrecondition(_) => Code::FAILED_PRECONDITION,
        Error::InvalidArgument(_) => Code::INVALID_ARGUMENT,
        Error::Unavailable(_) => Code::UNAVAILABLE,
        Error::Unimplemented(_) => Code::UNIMPLEMENTED,
        Error::Cancelled(_) => Code::CANCELLED,
        // What containerd's own shim answers for a failed runc; Docker's texts match on the message.
        Error::Internal(_) => Code::UNKNOWN,
    };
    ttrpc::Error::RpcStatus(ttrpc::get_status(code, error))
}

/// An exec id of the wire: empty means the init.
pub fn exec(id: String) -> Option<String> {
    (!id.is_empty()).then_some(id)
}

/// A `Create`.
///
/// # Errors
/// [`Error::InvalidArgument`] for options that cannot be read.
pub fn create(request: api::CreateTaskRequest, namespace: &str) -> Result<Request> {
    let options = match request.options.into_option() {
        Some(any) => Options::from_any(&any.type_url, &any.value).map_err(|error| {
            Error::InvalidArgument(format!("read the runtime options: {}", chain(&error)))
        })?,
        None => Options::default(),
    };
    Ok(Request {
        namespace: namespace.to_owned(),
        id: request.id,
        bundle: PathBuf::from(request.bundle),
        rootfs: request.rootfs.into_iter().map(mount).collect(),
        stdio: StdioRequest {
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
            terminal: request.terminal,
        },
        checkpoint: request.checkpoint,
        options,
    })
}

fn mount(mount: api::Mount) -> Mount {
    Mount {
        kind: mount.type_,
        source: mount.source,
        target: mount.target,
        options: mount.options,
    }
}

/// A `Checkpoint`. Under a runtime name of ours most clients send no options, which is not the same as defaults.
///
/// # Errors
/// [`Error::InvalidArgument`] for options that cannot be read.
pub fn checkpoint(request: api::CheckpointTaskRequest) -> Result<CheckpointOptions> {
    let image_path = PathBuf::from(request.path);
    let any = request
        .options
        .into_option()
        .filter(|any| !any.type_url.is_empty());
    let Some(any) = any else {
        return Ok(CheckpointOptions {
            image_path,
            ..CheckpointOptions::default()
        });
    };
    if any.type_url.rsplit('/').next() != Some(CHECKPOINT_OPTIONS) {
        return Err(Error::InvalidArgument(format!(
            "checkpoint options of type {} are not known",
            any.type_url
        )));
    }
    let said = oci::CheckpointOptions::parse_from_bytes(&any.value)
        .map_err(|error| Error::InvalidArgument(format!("read the checkpoint options: {error}")))?;
    let parent_path = match said.special_fields.unknown_fields().get(PARENT_PATH_FIELD) {
        Some(UnknownValueRef::LengthDelimited(path)) => String::from_utf8_lossy(path).into_owned(),
        _ => String::new(),
    };
    Ok(CheckpointOptions {
        said: true,
        exit: said.exit,
        open_tcp: said.open_tcp,
        external_unix_sockets: said.external_unix_sockets,
        terminal: said.terminal,
        file_locks: said.file_locks,
        empty_namespaces: said.empty_namespaces,
        cgroups_mode: said.cgroups_mode,
        // The request's own path wins: containerd has filled it from here.
        image_path: if image_path.as_os_str().is_empty() {
            PathBuf::from(said.image_path)
        } else {
            image_path
        },
        work_path: said.work_path,
        parent_path,
        archive: None,
        new_directory: false,
        shape: Shape::Flat,
        name: None,
        image: None,
    })
}

/// The answer to `State`.
///
/// # Errors
/// [`Error::NotFound`] for an unknown exec.
pub fn state(id: String, exec: Option<String>, bundle: String, view: &View) -> Result<api::StateResponse> {
    let process = view.process(exec.as_deref())?;
    let exit = process.exit();
    Ok(api::StateResponse {
        id,
        bundle,
        pid: process.pid.unsigned_abs(),
        status: EnumOrUnknown::new(wire_status(view.status(process))),
        stdin: process.stdio.stdin.clone(),
        stdout: process.stdio.stdout.clone(),
        stderr: process.stdio.stderr.clone(),
        terminal: process.stdio.terminal,
        exit_status: exit.map_or(0, |exit| exit.status),
        exited_at: exit.map(|exit| timestamp(exit.at)).into(),
        exec_id: exec.unwrap_or_default(),
        ..Default::default()
    })
}

fn wire_status(status: Status) -> api::Status {
    match status {
        Status::Created => api::Status::CREATED,
        Status::Running => api::Status::RUNNING,
        Status::Pausing => api::Status::PAUSING,
        Status::Paused => api::Status::PAUSED,
        Status::Stopped => api::Status::STOPPED,
    }
}

/// The answer to `Pids`.
pub fn pids(pids: Vec<(i32, Option<String>)>) -> api::PidsResponse {
    let processes = pids.into_iter().map(|(pid, exec)| api::ProcessInfo {
        pid: pid.unsigned_abs(),
        info: exec.and_then(process_details).into(),
        ..Default::default()
    });
    api::PidsResponse {
        processes: processes.collect(),
        ..Default::default()
    }
}

fn process_details(exec_id: String) -> Option<Any> {
    let details = oci::ProcessDetails {
        exec_id,
        ..Default::default()
    };
    // Fails only for messages over 2 GiB.
    let value = details.write_to_bytes().ok()?;
    Some(Any {
        type_url: PROCESS_DETAILS.to_owned(),
        value,
        ..Default::default()
    })
}

/// The answer to `Stats`.
pub fn stats(metrics: Metrics) -> api::StatsResponse {
    let any = Any {
        type_url: metrics.type_url.to_owned(),
        value: metrics.value,
        ..Default::default()
    };
    api::StatsResponse {
        stats: MessageField::some(any),
        ..Default::default()
    }
}

/// A point in time on the wire.
pub fn timestamp(at: SystemTime) -> Timestamp {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp {
        seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(since.subsec_nanos()).unwrap_or(0),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_error_has_its_code_and_a_clean_message() {
        let text = || "why".to_owned();
        let table = [
            (Error::NotFound(text()), Code::NOT_FOUND),
            (Error::AlreadyExists(text()), Code::ALREADY_EXISTS),
            (Error::FailedPrecondition(text()), Code::FAILED_PRECONDITION),
            (Error::InvalidArgument(text()), Code::INVALID_ARGUMENT),
            (Error::Unavailable(text()), Code::UNAVAILABLE),
            (Error::Unimplemented(text()), Code::UNIMPLEMENTED),
            (Error::Cancelled(text()), Code::CANCELLED),
            (Error::Internal(text()), Code::UNKNOWN),
        ];
        for (error, code) in table {
            let ttrpc::Error::RpcStatus(status) = status(error.clone()) else {
                panic!("{error:?}")
            };
            assert_eq!(
                (status.code(), status.message.as_str()),
                (code, "why"),
                "{error:?}"
            );
        }
    }

    #[test]
    fn checkpoint_options_of_another_type_are_refused_and_none_are_defaults() {
        let request = |type_url: &str| api::CheckpointTaskRequest {
            path: "/p".to_owned(),
            options: Some(Any {
                type_url: type_url.to_owned(),
                ..Default::default()
            })
            .into(),
            ..Default::default()
        };
        assert!(matches!(
            checkpoint(request("containerd.runc.v1.Options")),
            Err(Error::InvalidArgument(_))
        ));
        assert_eq!(checkpoint(request("")).map(|options| options.said), Ok(false));
        let said = checkpoint(request(
            "type.googleapis.com/containerd.runc.v1.CheckpointOptions",
        ));
        assert_eq!(
            said.map(|options| (options.said, options.exit)),
            Ok((true, false))
        );
    }

    #[test]
    fn the_parent_path_of_newer_messages_is_understood() {
        // Field 10, length-delimited, "pp".
        let value = vec![10 << 3 | 2, 2, b'p', b'p'];
        let any = Any {
            type_url: CHECKPOINT_OPTIONS.to_owned(),
            value,
            ..Default::default()
        };
        let request = api::CheckpointTaskRequest {
            options: Some(any).into(),
            ..Default::default()
        };
        assert_eq!(
            checkpoint(request).map(|options| options.parent_path),
            Ok("pp".to_owned())
        );
    }
}
