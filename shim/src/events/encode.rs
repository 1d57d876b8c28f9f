//! Events as containerd's messages.

use std::time::SystemTime;

use containerd_shim_protos::events::task as wire;
use containerd_shim_protos::shim::event::Envelope;
use containerd_shim_protos::topics;
use containerd_shim_protos::types::mount;
use oci_bundles::mounts::Mount;
use protobuf::well_known_types::any::Any;
use protobuf::well_known_types::timestamp::Timestamp;
use protobuf::{Message, MessageField};

use super::Event;
use crate::stdio::StdioRequest;

/// The event in the envelope containerd's forwarder takes. `at` is when it happened.
///
/// # Errors
/// Only if a message is larger than protobuf allows (2 GiB).
pub(super) fn envelope(event: Event, namespace: &str, at: SystemTime) -> protobuf::Result<Envelope> {
    let (topic, name, value) = message(event)?;
    Ok(Envelope {
        timestamp: Some(timestamp(at)).into(),
        namespace: namespace.to_owned(),
        topic: topic.to_owned(),
        // containerd looks event types up by their bare name: a host before it would make them unknown.
        event: MessageField::some(Any {
            type_url: format!("containerd.events.{name}"),
            value,
            ..Any::default()
        }),
        ..Envelope::default()
    })
}

/// Topic, name of the message, encoded message.
fn message(event: Event) -> protobuf::Result<(&'static str, &'static str, Vec<u8>)> {
    Ok(match event {
        Event::Create {
            container_id,
            bundle,
            rootfs,
            io,
            checkpoint,
            pid,
        } => {
            let rootfs = rootfs.into_iter().map(wire_mount).collect();
            let io = MessageField::some(wire_io(io));
            let body = wire::TaskCreate {
                container_id,
                bundle,
                rootfs,
                io,
                checkpoint,
                pid,
                ..Default::default()
            };
            (
                topics::TASK_CREATE_EVENT_TOPIC,
                "TaskCreate",
                body.write_to_bytes()?,
            )
        }
        Event::Start { container_id, pid } => {
            let body = wire::TaskStart {
                container_id,
                pid,
                ..Default::default()
            };
            (
                topics::TASK_START_EVENT_TOPIC,
                "TaskStart",
                body.write_to_bytes()?,
            )
        }
        Event::Exit {
            container_id,
            id,
            pid,
            exit_status,
            exited_at,
        } => {
            let exited_at = Some(timestamp(exited_at)).into();
            let body = wire::TaskExit {
                container_id,
                id,
                pid,
                exit_status,
                exited_at,
                ..Default::default()
            };
            (topics::TASK_EXIT_EVENT_TOPIC, "TaskExit", body.write_to_bytes()?)
        }
        Event::Delete {
            container_id,
            id,
            pid,
            exit_status,
            exited_at,
        } => {
            let exited_at = Some(timestamp(exited_at)).into();
            let body = wire::TaskDelete {
                container_id,
                id,
                pid,
                exit_status,
                exited_at,
                ..Default::default()
            };
            (
                topics::TASK_DELETE_EVENT_TOPIC,
                "TaskDelete",
                body.write_to_bytes()?,
            )
        }
        Event::ExecAdded {
            container_id,
            exec_id,
        } => {
            let body = wire::TaskExecAdded {
                container_id,
                exec_id,
                ..Default::default()
            };
            (
                topics::TASK_EXEC_ADDED_EVENT_TOPIC,
                "TaskExecAdded",
                body.write_to_bytes()?,
            )
        }
        Event::ExecStarted {
            container_id,
            exec_id,
            pid,
        } => {
            let body = wire::TaskExecStarted {
                container_id,
                exec_id,
                pid,
                ..Default::default()
            };
            (
                topics::TASK_EXEC_STARTED_EVENT_TOPIC,
                "TaskExecStarted",
                body.write_to_bytes()?,
            )
        }
        Event::Oom { container_id } => {
            let body = wire::TaskOOM {
                container_id,
                ..Default::default()
            };
            (topics::TASK_OOM_EVENT_TOPIC, "TaskOOM", body.write_to_bytes()?)
        }
        Event::Paused { container_id } => {
            let body = wire::TaskPaused {
                container_id,
                ..Default::default()
            };
            (
                topics::TASK_PAUSED_EVENT_TOPIC,
                "TaskPaused",
                body.write_to_bytes()?,
            )
        }
        Event::Resumed { container_id } => {
            let body = wire::TaskResumed {
                container_id,
                ..Default::default()
            };
            (
                topics::TASK_RESUMED_EVENT_TOPIC,
                "TaskResumed",
                body.write_to_bytes()?,
            )
        }
        Event::Checkpointed {
            container_id,
            checkpoint,
        } => {
            let body = wire::TaskCheckpointed {
                container_id,
                checkpoint,
                ..Default::default()
            };
            (
                topics::TASK_CHECKPOINTED_EVENT_TOPIC,
                "TaskCheckpointed",
                body.write_to_bytes()?,
            )
        }
    })
}

fn wire_mount(mount: Mount) -> mount::Mount {
    mount::Mount {
        type_: mount.kind,
        source: mount.source,
        target: mount.target,
        options: mount.options,
        ..Default::default()
    }
}

fn wire_io(io: StdioRequest) -> wire::TaskIO {
    wire::TaskIO {
        stdin: io.stdin,
        stdout: io.stdout,
        stderr: io.stderr,
        terminal: io.terminal,
        ..Default::default()
    }
}

/// A point in time as protobuf has it; the epoch for what lies before it.
fn timestamp(at: SystemTime) -> Timestamp {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Timestamp {
        seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(since.subsec_nanos()).unwrap_or(0),
        ..Timestamp::default()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn an_exit_arrives_with_all_its_fields() {
        let exited_at = SystemTime::UNIX_EPOCH + Duration::new(7, 9);
        let event = Event::Exit {
            container_id: "c".into(),
            id: "e".into(),
            pid: 5,
            exit_status: 137,
            exited_at,
        };
        let envelope = envelope(event, "ns", exited_at + Duration::from_secs(1)).unwrap();
        assert_eq!(
            (envelope.namespace.as_str(), envelope.topic.as_str()),
            ("ns", "/tasks/exit")
        );
        assert_eq!(envelope.timestamp.seconds, 8);
        assert_eq!(envelope.event.type_url, "containerd.events.TaskExit");
        let body = wire::TaskExit::parse_from_bytes(&envelope.event.value).unwrap();
        assert_eq!((body.container_id.as_str(), body.id.as_str()), ("c", "e"));
        assert_eq!((body.pid, body.exit_status), (5, 137));
        assert_eq!((body.exited_at.seconds, body.exited_at.nanos), (7, 9));
    }

    #[test]
    fn a_create_carries_mounts_and_stdio() {
        let mount = Mount {
            kind: "overlay".into(),
            source: "overlay".into(),
            target: String::new(),
            options: vec!["ro".into()],
        };
        let event = Event::Create {
            container_id: "c".into(),
            bundle: "/b".into(),
            rootfs: vec![mount],
            io: StdioRequest {
                stdin: "/in".into(),
                stdout: "/out".into(),
                stderr: String::new(),
                terminal: true,
            },
            checkpoint: "/ck".into(),
            pid: 5,
        };
        let envelope = envelope(event, "ns", SystemTime::UNIX_EPOCH).unwrap();
        let body = wire::TaskCreate::parse_from_bytes(&envelope.event.value).unwrap();
        assert_eq!(envelope.topic, "/tasks/create");
        assert_eq!(
            (body.rootfs[0].type_.as_str(), body.rootfs[0].options[0].as_str()),
            ("overlay", "ro")
        );
        assert_eq!(
            (
                body.io.stdout.as_str(),
                body.io.terminal,
                body.checkpoint.as_str()
            ),
            ("/out", true, "/ck")
        );
    }
}
