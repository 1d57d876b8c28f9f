//! Who starts, stops and kills containers.

mod address;
pub mod containerd;
pub mod docker;
pub mod nerdctl;

use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

use crate::error::Error;

pub use address::Address;

/// The name of our runtime, which containerd makes the name of our shim's binary of.
pub const RUNTIME: &str = "io.containerd.cedana.v1";

/// How much of what a client says is passed on: the last lines say why it failed.
const SAID_LINES_MAX: usize = 8;

/// Our shim's binary.
const SHIM: &str = "containerd-shim-cedana-v1";

/// Where containerd is usually told to look, whatever the PATH of whoever calls.
const USUAL: &str = "/usr/local/bin";

/// The binary of our shim: beside this one, in a directory of the PATH, or where it is usually.
pub fn our_shim() -> Option<PathBuf> {
    let beside = std::env::current_exe()
        .ok()
        .and_then(|own| own.parent().map(Path::to_owned));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = beside
        .into_iter()
        .chain(std::env::split_paths(&path))
        .chain([PathBuf::from(USUAL)]);
    places
        .map(|place| place.join(SHIM))
        .find(|binary| binary.is_absolute() && binary.is_file())
}

/// Runs a client of an engine to its end, `limit` at most.
///
/// # Errors
/// It is not there, does not end in time (it is killed then), or fails: with what it said.
pub async fn client(command: std::process::Command, limit: Duration) -> Result<Output, Error> {
    let name = command.get_program().to_string_lossy().into_owned();
    let mut command = tokio::process::Command::from(command);
    // In a group of its own: a terminal sends Ctrl+C to all of ours, and what it means is decided here.
    let _ = command
        .kill_on_drop(true)
        .process_group(0)
        .stdin(std::process::Stdio::null());
    let output = match tokio::time::timeout(limit, command.output()).await {
        Ok(Ok(output)) => output,
        Ok(Err(source)) => return Err(absent(&name, &source)),
        Err(_) => {
            return Err(Error::tool(format!(
                "{name} did not end in {} s",
                limit.as_secs()
            )));
        }
    };
    if output.status.success() {
        return Ok(output);
    }
    let said = said(&output.stderr, &output.status.to_string());
    // Most begin what they say with their own name.
    let said = said.strip_prefix(&format!("{name}: ")).unwrap_or(&said);
    Err(Error::tool(format!("{name}: {said}")))
}

/// That a client is not there to be run.
pub fn absent(name: &str, source: &std::io::Error) -> Error {
    Error::tool(format!("failed to run {name}: {source}"))
        .hint(format!("{name} must be in a directory of the PATH"))
}

/// The last lines of what a failed client said; how it ended if it said nothing.
fn said(stderr: &[u8], status: &str) -> String {
    let text = String::from_utf8_lossy(stderr);
    let lines: Vec<&str> = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    if lines.is_empty() {
        return status.to_owned();
    }
    let first = lines.len().saturating_sub(SAID_LINES_MAX);
    lines.get(first..).unwrap_or_default().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_of_a_client_are_passed_on() {
        let many: String = (0..20).map(|n| format!("line {n}\n")).collect();
        for (stderr, said_so) in [
            ("", "exit status: 1"),
            ("\n \n", "exit status: 1"),
            ("ctr: no such image\n", "ctr: no such image"),
            (
                many.as_str(),
                "line 12; line 13; line 14; line 15; line 16; line 17; line 18; line 19",
            ),
        ] {
            assert_eq!(said(stderr.as_bytes(), "exit status: 1"), said_so);
        }
    }
}
