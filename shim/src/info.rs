//! `-info` and `-v`: what this runtime is, and what it can do.
//!
//! containerd asks `-info` before the first container of a runtime that is not runc's own (2.2 and later), CRI at its start;
//! both want what runc can do, too, which runc says itself.

use std::env;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use containerd_shim_protos::types::introspection::{RuntimeInfo, RuntimeVersion};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use protobuf::well_known_types::any::Any;
use protobuf::{Message, MessageField};
use serde::de::IgnoredAny;

use crate::bootstrap;

/// Our runtime's name, when the program's file has no name that says another.
const RUNTIME_NAME: &str = "io.containerd.cedana.v1";

/// Type of the answer's features, which are JSON.
const FEATURES_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/features/Features";

/// How long the OCI runtime may take to say what it can do; runc takes 20 ms. containerd waits ten seconds for us.
const FEATURES_LIMIT: Duration = Duration::from_secs(3);

/// The longest description of features that is taken, in bytes; runc's has 10 000.
const FEATURES_BYTES_MAX: u64 = 1 << 20;

/// The encoded answer to `-info`. `stdin` may hold the options of the runtime, as an `Any`.
///
/// An OCI runtime that cannot say what it can do (crun before 1.8, runc before 1.1) is left out of the answer.
///
/// # Errors
/// Only if the answer cannot be encoded.
pub fn info(stdin: &[u8]) -> protobuf::Result<Vec<u8>> {
    let options = Any::parse_from_bytes(stdin)
        .ok()
        .filter(|any| !any.type_url.is_empty());
    let binary = bootstrap::any_options(stdin).binary();
    let features = features(&binary)
        .ok()
        .filter(|json| serde_json::from_slice::<IgnoredAny>(json).is_ok());
    let features = features.map(|value| Any {
        type_url: FEATURES_TYPE.to_owned(),
        value,
        ..Any::default()
    });
    RuntimeInfo {
        name: runtime_name(&env::args().next().unwrap_or_default()),
        version: MessageField::some(RuntimeVersion {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..RuntimeVersion::default()
        }),
        options: options.into(),
        features: features.into(),
        ..RuntimeInfo::default()
    }
    .write_to_bytes()
}

/// Name and version, as `-v` prints them.
pub fn version() -> String {
    format!(
        "containerd-shim-cedana-v1:\n  Version:  {}\n",
        env!("CARGO_PKG_VERSION")
    )
}

/// The runtime's name for a program: containerd makes `containerd-shim-X-vN` of `io.containerd.X.vN`, and knows us as
/// `containerd-shim-runc-v2` where we stand in for runc's shim.
fn runtime_name(program: &str) -> String {
    let file = Path::new(program).file_name().and_then(|name| name.to_str());
    let name = file
        .and_then(|file| file.strip_prefix("containerd-shim-"))
        .and_then(|rest| rest.rsplit_once('-'));
    name.map_or(RUNTIME_NAME.to_owned(), |(kind, version)| {
        format!("io.containerd.{kind}.{version}")
    })
}

/// What `BINARY features` prints.
fn features(binary: &Path) -> io::Result<Vec<u8>> {
    let mut command = Command::new(binary);
    let _ = command
        .arg("features")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let mut runtime = command.spawn()?;
    let printed = match runtime.stdout.take() {
        Some(output) => read_until(output, Instant::now() + FEATURES_LIMIT),
        None => Err(io::ErrorKind::BrokenPipe.into()),
    };
    // At the end of its output it has nothing left to do, and before that it has had its time.
    let _ = runtime.kill();
    let _ = runtime.wait();
    printed
}

/// Reads to the end, which must come in time and within the size.
fn read_until(mut output: impl Read + AsFd, end: Instant) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let left = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
        let is_ready = poll(&mut [PollFd::new(output.as_fd(), PollFlags::POLLIN)], left)? > 0;
        if !is_ready {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let length = output.read(&mut chunk)?;
        text.extend(chunk.iter().take(length));
        match length {
            0 => return Ok(text),
            _ if text.len() as u64 > FEATURES_BYTES_MAX => return Err(io::ErrorKind::FileTooLarge.into()),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::io::Write;
    use std::os::unix::fs::PermissionsExt;

    use containerd_shim_protos::shim::oci;

    use super::*;

    /// An OCI runtime that runs a line of shell.
    fn runtime(directory: &Path, line: &str) -> Vec<u8> {
        let path = directory.join("runtime");
        fs::write(&path, format!("#!/bin/sh\n{line}\n")).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
        let binary_name = path.to_str().unwrap().to_owned();
        let value = oci::Options {
            binary_name,
            ..oci::Options::default()
        }
        .write_to_bytes()
        .unwrap();
        let any = Any {
            type_url: "containerd.runc.v1.Options".into(),
            value,
            ..Any::default()
        };
        any.write_to_bytes().unwrap()
    }

    fn answer(stdin: &[u8]) -> RuntimeInfo {
        RuntimeInfo::parse_from_bytes(&info(stdin).unwrap()).unwrap()
    }

    #[test]
    fn features_are_those_of_the_runtime_that_the_options_name() {
        let directory = tempfile::tempdir().unwrap();
        let options = runtime(
            directory.path(),
            "test $1 = features && echo '{\"ociVersionMin\":\"1.0.0\"}'",
        );
        let answer = answer(&options);
        assert_eq!(answer.options.type_url, "containerd.runc.v1.Options");
        assert_eq!(answer.features.type_url, FEATURES_TYPE);
        assert_eq!(answer.features.value, b"{\"ociVersionMin\":\"1.0.0\"}\n");
        assert_eq!(answer.version.version, env!("CARGO_PKG_VERSION"));
    }

    #[test]
    fn a_runtime_that_does_not_know_its_features_is_no_error() {
        let directory = tempfile::tempdir().unwrap();
        for line in ["exit 1", "echo unknown command", "exec 2>&1; exec yes"] {
            let answer = answer(&runtime(directory.path(), line));
            assert!(answer.features.is_none(), "{line}");
        }
        let missing = oci::Options {
            binary_name: "/nonexistent".into(),
            ..oci::Options::default()
        };
        let value = missing.write_to_bytes().unwrap();
        let any = Any {
            type_url: "containerd.runc.v1.Options".into(),
            value,
            ..Any::default()
        };
        assert!(answer(&any.write_to_bytes().unwrap()).features.is_none());
    }

    #[test]
    fn what_does_not_end_in_time_is_not_waited_for() {
        let (reader, mut writer) = io::pipe().unwrap();
        writer.write_all(b"{").unwrap();
        assert_eq!(
            read_until(reader, Instant::now()).unwrap_err().kind(),
            io::ErrorKind::TimedOut
        );
    }

    #[test]
    fn names_follow_the_program() {
        let cases = [
            ("/usr/bin/containerd-shim-cedana-v1", "io.containerd.cedana.v1"),
            ("containerd-shim-runc-v2", "io.containerd.runc.v2"),
            ("containerd-shim-kata-fc-v2", "io.containerd.kata-fc.v2"),
            ("something", RUNTIME_NAME),
            ("", RUNTIME_NAME),
        ];
        for (program, want) in cases {
            assert_eq!(runtime_name(program), want, "{program}");
        }
    }
}
