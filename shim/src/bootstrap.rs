//! How containerd and `start` talk: what stands on stdin, and what is expected on stdout.
//!
//! | containerd | stdin | stdout |
//! |---|---|---|
//! | 1.x, 2.0 to 2.2 | nothing, or the runtime options as an `Any` | the address as text (Task API v2) |
//! | 2.3 and later | `BootstrapParams` | `BootstrapResult` (Task API v3) |
//!
//! Nothing else tells them apart: the command line and environment are alike, and each side understands only its own
//! form (tried on 1.6, 1.7, 2.1 and 2.4). containerd reads stdout and stderr together, so a reply is all that is printed.

use std::io::{self, IsTerminal, Read};
use std::path::PathBuf;

use containerd_shim_protos::bootstrap_api::{BootstrapParams, BootstrapResult, LogLevel};
use protobuf::Message;
use protobuf::well_known_types::any::Any;

use crate::options::Options;

/// The most that is read from stdin, in bytes; containerd's own limit for the message.
const STDIN_BYTES_MAX: u64 = 10 << 20;

/// How containerd wants to be answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Dialect {
    /// The bare address.
    #[default]
    Address,
    /// A `BootstrapResult`.
    Protobuf,
}

/// What containerd said on stdin.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Said {
    /// How to answer.
    pub dialect: Dialect,
    /// The runtime options; the default if there were none, or none we know (Create then says so to a client).
    pub options: Options,
    /// Whether containerd logs for developers.
    pub debug: bool,
    /// containerd's event service; empty if it was not named here.
    pub ttrpc_address: String,
    /// Where the socket is to be made; none leaves it to the shim.
    pub socket_dir: Option<PathBuf>,
}

/// Reads stdin to its end. Nothing is read from a terminal: nobody would end it.
///
/// # Errors
/// What the kernel says; `FileTooLarge` above 10 MiB.
pub fn read_stdin() -> io::Result<Vec<u8>> {
    let stdin = io::stdin().lock();
    let mut bytes = Vec::new();
    if stdin.is_terminal() {
        return Ok(bytes);
    }
    let length = stdin.take(STDIN_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if length as u64 > STDIN_BYTES_MAX {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    Ok(bytes)
}

/// Understands stdin of a `start` for container `id` of `namespace`.
///
/// An `Any` with options also parses as `BootstrapParams` (their first fields agree in type), so the message counts as one
/// only if it names this very container.
pub fn parse(bytes: &[u8], namespace: &str, id: &str) -> Said {
    match BootstrapParams::parse_from_bytes(bytes) {
        Ok(params) if params.instance_id == id && params.namespace == namespace => from_params(params),
        _ => Said {
            options: any_options(bytes),
            ..Said::default()
        },
    }
}

/// The answer for `start`'s stdout.
///
/// # Errors
/// Only if protobuf cannot encode the message, which has no case here.
pub fn reply(dialect: Dialect, address: &str) -> protobuf::Result<Vec<u8>> {
    match dialect {
        Dialect::Address => Ok(address.as_bytes().to_vec()),
        Dialect::Protobuf => BootstrapResult {
            version: containerd_shim_protos::TASK_API_VERSION,
            address: address.to_owned(),
            protocol: "ttrpc".to_owned(),
            ..BootstrapResult::default()
        }
        .write_to_bytes(),
    }
}

/// The options in an encoded `Any`; the default for anything else.
pub fn any_options(bytes: &[u8]) -> Options {
    Any::parse_from_bytes(bytes)
        .ok()
        .as_ref()
        .and_then(known_options)
        .unwrap_or_default()
}

fn from_params(params: BootstrapParams) -> Said {
    // The level is an open enumeration: lower is more talkative, and unknown values stand for the nearest known one.
    let debug = params.log_level.value() <= LogLevel::LOG_LEVEL_DEBUG as i32;
    let options = params
        .extensions
        .iter()
        .filter_map(|extension| extension.value.as_ref())
        .find_map(known_options);
    Said {
        dialect: Dialect::Protobuf,
        options: options.unwrap_or_default(),
        debug,
        socket_dir: params
            .socket_dir
            .filter(|directory| !directory.is_empty())
            .map(PathBuf::from),
        ttrpc_address: params.containerd_ttrpc_address,
    }
}

fn known_options(any: &Any) -> Option<Options> {
    if any.type_url.is_empty() {
        return None;
    }
    Options::from_any(&any.type_url, &any.value).ok()
}

#[cfg(test)]
mod tests {
    use containerd_shim_protos::bootstrap_api::Extension;
    use containerd_shim_protos::shim::oci;
    use protobuf::EnumOrUnknown;

    use super::*;

    fn crun() -> Any {
        let options = oci::Options {
            binary_name: "crun".into(),
            ..oci::Options::default()
        };
        Any {
            type_url: "containerd.runc.v1.Options".into(),
            value: options.write_to_bytes().unwrap(),
            ..Any::default()
        }
    }

    fn extension(any: Any) -> Extension {
        Extension {
            value: Some(any).into(),
            ..Extension::default()
        }
    }

    #[test]
    fn an_old_containerd_says_options_or_nothing() {
        assert_eq!(parse(b"", "ns", "c"), Said::default());
        assert_eq!(parse(b"no protobuf", "ns", "c"), Said::default());
        let said = parse(&crun().write_to_bytes().unwrap(), "ns", "c");
        assert_eq!(
            (said.dialect, said.options.binary_name.as_str()),
            (Dialect::Address, "crun")
        );
        // The same bytes as BootstrapParams name a container that is not ours.
        assert!(BootstrapParams::parse_from_bytes(&crun().write_to_bytes().unwrap()).is_ok());
    }

    #[test]
    fn a_new_containerd_says_everything_at_once() {
        let other = Any {
            type_url: "containerd.io/cri.v1.PodSandboxConfig".into(),
            ..Any::default()
        };
        let params = BootstrapParams {
            instance_id: "c".into(),
            namespace: "ns".into(),
            log_level: EnumOrUnknown::from_i32(-5),
            containerd_ttrpc_address: "/run/c.ttrpc".into(),
            extensions: vec![extension(other), Extension::default(), extension(crun())],
            socket_dir: Some("/s".into()),
            ..BootstrapParams::default()
        };
        let bytes = params.write_to_bytes().unwrap();
        let said = parse(&bytes, "ns", "c");
        assert_eq!(said.dialect, Dialect::Protobuf);
        assert_eq!(said.options.binary_name, "crun");
        assert!(said.debug, "between debug and trace");
        assert_eq!(
            (said.ttrpc_address.as_str(), said.socket_dir),
            ("/run/c.ttrpc", Some("/s".into()))
        );
        assert_eq!(
            parse(&bytes, "ns", "other").dialect,
            Dialect::Address,
            "not about this container"
        );
    }

    #[test]
    fn levels_above_debug_are_not_debug() {
        for (level, debug) in [
            (-8, true),
            (-4, true),
            (-3, false),
            (0, false),
            (4, false),
            (99, false),
        ] {
            let log_level = EnumOrUnknown::from_i32(level);
            let params = BootstrapParams {
                instance_id: "c".into(),
                log_level,
                ..BootstrapParams::default()
            };
            assert_eq!(
                parse(&params.write_to_bytes().unwrap(), "", "c").debug,
                debug,
                "{level}"
            );
        }
    }

    #[test]
    fn replies_are_in_the_dialect_of_the_question() {
        assert_eq!(reply(Dialect::Address, "unix:///a").unwrap(), b"unix:///a");
        let result =
            BootstrapResult::parse_from_bytes(&reply(Dialect::Protobuf, "unix:///a").unwrap()).unwrap();
        assert_eq!(
            (result.version, result.address.as_str(), result.protocol.as_str()),
            (3, "unix:///a", "ttrpc")
        );
    }
}
