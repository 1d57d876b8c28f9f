//! What runc says when it fails: its JSON log, else the end of its output.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use serde::Deserialize;

/// How much of the log is read for the error: the reason is in the last lines.
const LOG_BYTES_MAX: u64 = 256 * 1024;
/// The most of a raw output that goes into an error text.
const TAIL_BYTES_MAX: usize = 2048;

#[derive(Deserialize)]
struct Line {
    #[serde(default)]
    level: String,
    #[serde(default)]
    msg: String,
}

/// The length of the log now; what a call adds lies behind it. Zero if there is none yet.
pub fn length(log: &Path) -> u64 {
    std::fs::metadata(log).map_or(0, |metadata| metadata.len())
}

/// The last error that was logged after `start`.
pub fn last_error(log: &Path, start: u64) -> Option<String> {
    let mut file = File::open(log).ok()?;
    let end = file.metadata().ok()?.len();
    let from = start.max(end.saturating_sub(LOG_BYTES_MAX));
    let _ = file.seek(SeekFrom::Start(from)).ok()?;
    let mut text = String::new();
    let _ = file.take(LOG_BYTES_MAX).read_to_string(&mut text).ok()?;
    last_error_in(&text)
}

/// The last message of level error in a log of one JSON object per line. What does not parse is passed over.
fn last_error_in(text: &str) -> Option<String> {
    text.lines()
        .rev()
        .filter_map(|line| serde_json::from_str::<Line>(line).ok())
        .find(|line| matches!(line.level.as_str(), "error" | "fatal") && !line.msg.is_empty())
        .map(|line| line.msg)
}

/// The end of a raw output as one line of text, if there is any.
pub fn tail(output: &[u8]) -> Option<String> {
    let start = output.len().saturating_sub(TAIL_BYTES_MAX);
    let text = String::from_utf8_lossy(output.get(start..)?);
    let text = text.trim().replace('\n', "; ");
    (!text.is_empty()).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_error_wins_and_noise_is_passed_over() {
        let table = [
            ("", None),
            ("not json\n{\"level\":\"info\",\"msg\":\"x\"}\n", None),
            (
                "{\"level\":\"error\",\"msg\":\"a\"}\n{\"level\":\"error\",\"msg\":\"b\"}\n{\"level\":\"warning\",\"msg\":\"c\"}\n",
                Some("b"),
            ),
            ("{\"level\":\"error\",\"msg\":\"a\"}\n{\"level\":\"err", Some("a")),
            (
                "{\"msg\":\"crun says no level\",\"level\":\"error\",\"time\":\"t\"}",
                Some("crun says no level"),
            ),
        ];
        for (text, expected) in table {
            assert_eq!(last_error_in(text).as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn a_raw_output_becomes_one_line() {
        assert_eq!(tail(b"  \n"), None);
        assert_eq!(tail(b"one\ntwo\n").as_deref(), Some("one; two"));
    }
}
