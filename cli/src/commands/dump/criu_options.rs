//! `--criu-opts`: CRIU's own options, by the names of its RPC, as far as they are settings here.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::error::Error;

/// A few dozen options; nobody types more.
const BYTES_MAX: usize = 16 << 10;

/// What they say.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// The container goes on after the dump.
    pub leave_running: Option<bool>,
    /// A client's terminal is taken along.
    pub shell_job: Option<bool>,
    /// Settings by their dotted names.
    pub settings: BTreeMap<String, String>,
}

/// Reads the JSON object. Names are taken in any of their spellings: `tcp_established`, `TcpEstablished`.
///
/// # Errors
/// It is no object, or has an option or a value that is no setting here.
pub fn parse(text: &str) -> Result<Options, Error> {
    if text.len() > BYTES_MAX {
        return Err(Error::usage(format!(
            "failed to read --criu-opts: more than {BYTES_MAX} bytes"
        )));
    }
    let object: Map<String, Value> = serde_json::from_str(text)
        .map_err(|source| Error::usage(format!("failed to read --criu-opts: {source}")))?;
    let mut options = Options::default();
    for (name, value) in &object {
        take(&mut options, name, value)
            .map_err(|problem| Error::usage(format!("failed to use {name:?} of --criu-opts: {problem}")))?;
    }
    Ok(options)
}

fn take(options: &mut Options, name: &str, value: &Value) -> Result<(), String> {
    let known: String = name
        .chars()
        .filter(|c| *c != '_' && *c != '-')
        .map(|c| c.to_ascii_lowercase())
        .collect();
    let (setting, value) = match known.as_str() {
        "leaverunning" => {
            options.leave_running = Some(boolean(value)?);
            return Ok(());
        }
        "shelljob" => {
            options.shell_job = Some(boolean(value)?);
            return Ok(());
        }
        "tcpestablished" => (
            "dump.tcp",
            if boolean(value)? { "established" } else { "default" }.to_owned(),
        ),
        "tcpclose" => (
            "dump.tcp",
            if boolean(value)? { "close" } else { "default" }.to_owned(),
        ),
        "tcpskipinflight" | "skipinflight" => ("dump.skip-in-flight", boolean(value)?.to_string()),
        "extunixsk" => ("dump.external-unix-sockets", boolean(value)?.to_string()),
        "filelocks" => ("dump.file-locks", boolean(value)?.to_string()),
        "linkremap" => ("dump.link-remap", boolean(value)?.to_string()),
        "ghostlimit" => ("dump.ghost-limit", number(value)?.to_string()),
        "timeout" => ("dump.timeout", number(value)?.to_string()),
        "networklock" => ("dump.network-lock", network_lock(value)?.to_owned()),
        "external" => ("dump.external", list(value)?),
        _ => return Err("it is no setting of a dump here".to_owned()),
    };
    let _before = options.settings.insert(setting.to_owned(), value);
    Ok(())
}

fn boolean(value: &Value) -> Result<bool, String> {
    value
        .as_bool()
        .ok_or_else(|| format!("{value} is neither true nor false"))
}

fn number(value: &Value) -> Result<u64, String> {
    value
        .as_u64()
        .ok_or_else(|| format!("{value} is no whole number"))
}

fn list(value: &Value) -> Result<String, String> {
    let wrong = || format!("{value} is no list of words");
    let words: Vec<String> = value
        .as_array()
        .ok_or_else(wrong)?
        .iter()
        .map(|word| word.as_str().map(str::to_owned).ok_or_else(wrong))
        .collect::<Result<_, _>>()?;
    Ok(config::text_of_list(&words))
}

/// By its name, or by its number in CRIU's `rpc.proto` (`criu_network_lock_method`).
fn network_lock(value: &Value) -> Result<&'static str, String> {
    let name = value.as_str().map(str::to_ascii_lowercase);
    match (name.as_deref(), value.as_u64()) {
        (Some("iptables"), _) | (_, Some(1)) => Ok("iptables"),
        (Some("nftables"), _) | (_, Some(2)) => Ok("nftables"),
        (Some("skip"), _) | (_, Some(3)) => Ok("skip"),
        _ => Err(format!("{value} is none of iptables, nftables, skip")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(text: &str) -> Vec<(String, String)> {
        parse(text).expect("options").settings.into_iter().collect()
    }

    #[test]
    fn options_are_taken_in_all_their_spellings() {
        for (text, name, value) in [
            (r#"{"tcp_established": true}"#, "dump.tcp", "established"),
            (r#"{"TcpEstablished": true}"#, "dump.tcp", "established"),
            (r#"{"tcp-close": true}"#, "dump.tcp", "close"),
            (r#"{"FileLocks": false}"#, "dump.file-locks", "false"),
            (r#"{"ghost_limit": 1048576}"#, "dump.ghost-limit", "1048576"),
            (r#"{"ext_unix_sk": true}"#, "dump.external-unix-sockets", "true"),
            (r#"{"NetworkLock": "SKIP"}"#, "dump.network-lock", "skip"),
            (r#"{"network_lock": 2}"#, "dump.network-lock", "nftables"),
            (
                r#"{"external": ["mnt[a]:b", "tty[1:2]"]}"#,
                "dump.external",
                "mnt[a]:b,tty[1:2]",
            ),
        ] {
            assert_eq!(settings(text), [(name.to_owned(), value.to_owned())], "{text}");
        }
        let options = parse(r#"{"LeaveRunning": true, "shell_job": true}"#).expect("options");
        assert_eq!(
            (options.leave_running, options.shell_job),
            (Some(true), Some(true))
        );
    }

    #[test]
    fn what_is_no_setting_is_refused_by_name() {
        for (text, part) in [
            ("nonsense", "--criu-opts"),
            ("[]", "--criu-opts"),
            (r#"{"Nonsense": 1}"#, "\"Nonsense\""),
            (r#"{"tcp_established": "yes"}"#, "neither true nor false"),
            (r#"{"ghost_limit": -1}"#, "no whole number"),
            (r#"{"network_lock": 7}"#, "none of iptables"),
            (r#"{"external": [1]}"#, "no list of words"),
        ] {
            let error = parse(text).expect_err("an error");
            assert!(error.message.contains(part), "{text}: {error}");
        }
        assert!(parse(&format!("{{\"a\": \"{}\"}}", "x".repeat(BYTES_MAX))).is_err());
    }
}
