//! QEMU's control socket: saving a machine. One JSON object a line, both ways.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::machine::SAVED;

/// QEMU answers at once, unless the machine is under load.
const ANSWER_MAX: Duration = Duration::from_secs(60);

/// Half a GiB is written in a second; a slow disk gets this long.
const SAVE_MAX: Duration = Duration::from_secs(300);

/// How often a save under way is looked at.
const SAVE_STEP: Duration = Duration::from_millis(100);

/// An answer is some hundred bytes; statistics may be more.
const ANSWER_BYTES_MAX: u64 = 1 << 20;

/// Without a limit that is out of reach, QEMU takes its time as for a network.
const SAVE_BYTES_PER_SECOND_MAX: u64 = 10 << 30;

/// Writes the machine's memory and devices to [`SAVED`] in its directory, and ends QEMU. Its disk is complete then.
pub fn save(socket: &UnixStream) -> Result<()> {
    socket.set_read_timeout(Some(ANSWER_MAX))?;
    let mut monitor = Monitor {
        answers: BufReader::new(socket),
    };
    let _greeting = monitor.line()?;
    let _ = monitor.ask("qmp_capabilities", json!({}))?;
    let limit = json!({ "max-bandwidth": SAVE_BYTES_PER_SECOND_MAX });
    let _ = monitor.ask("migrate-set-parameters", limit)?;
    let to = json!({ "uri": format!("exec:cat > {SAVED}") });
    let _ = monitor.ask("migrate", to)?;
    let deadline = Instant::now() + SAVE_MAX;
    loop {
        let state = monitor.ask("query-migrate", json!({}))?;
        match state.get("status").and_then(Value::as_str) {
            Some("completed") => break,
            Some("failed" | "cancelled") => bail!("save the machine: QEMU says {state}"),
            _ if Instant::now() > deadline => bail!("save the machine in {SAVE_MAX:?}: QEMU says {state}"),
            _ => std::thread::sleep(SAVE_STEP),
        }
    }
    let _ = monitor.ask("quit", json!({}))?;
    Ok(())
}

#[derive(Debug)]
struct Monitor<'a> {
    answers: BufReader<&'a UnixStream>,
}

impl Monitor<'_> {
    /// One command; its result.
    fn ask(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let line = json!({ "execute": command, "arguments": arguments });
        writeln!(self.answers.get_mut(), "{line}").with_context(|| format!("tell QEMU to {command}"))?;
        loop {
            if let Some(answer) = answer(&self.line()?).with_context(|| format!("have QEMU {command}"))? {
                return Ok(answer);
            }
        }
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        let _ = (&mut self.answers)
            .take(ANSWER_BYTES_MAX)
            .read_line(&mut line)
            .context("hear from QEMU")?;
        if !line.ends_with('\n') {
            bail!("hear from QEMU: it has ended");
        }
        Ok(line)
    }
}

/// The result that a line holds; nothing when it tells of an event.
fn answer(line: &str) -> Result<Option<Value>> {
    let mut message: Value = serde_json::from_str(line).context("understand QEMU")?;
    if let Some(error) = message.get("error") {
        bail!("it says {error}");
    }
    Ok(message.get_mut("return").map(Value::take))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_not_answers_and_errors_are_told() {
        assert_eq!(answer(r#"{"return": {"a": 1}}"#).unwrap(), Some(json!({"a": 1})));
        assert_eq!(answer(r#"{"event": "STOP"}"#).unwrap(), None);
        assert!(answer(r#"{"error": {"desc": "no"}}"#).is_err());
        assert!(answer("garbage").is_err());
    }
}
