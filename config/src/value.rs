//! A value as it was written, and what it can be read as.

use std::path::PathBuf;
use std::time::Duration;

use crate::settings::Choice;

/// The longest text a value may have: a path at most.
const TEXT_LENGTH_MAX: usize = 4096;

/// The most entries a list may have; each is an argument for CRIU.
const LIST_LENGTH_MAX: usize = 64;

/// What is wrong with a value: a fragment that fits after "the value is".
pub type Problem = String;

/// A value as somebody wrote it. Annotations and the environment know only text, so every type can be read from text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// `true` or `false` in the file.
    Boolean(bool),
    /// A whole number in the file.
    Number(u64),
    /// Text.
    Text(String),
    /// A list of texts in the file.
    List(Vec<String>),
}

impl Value {
    /// A JSON value that a setting may have.
    ///
    /// # Errors
    /// What it is instead.
    pub fn from_json(json: &serde_json::Value) -> Result<Self, Problem> {
        match json {
            serde_json::Value::Bool(value) => Ok(Self::Boolean(*value)),
            serde_json::Value::String(value) => Self::text(value),
            serde_json::Value::Number(value) => value
                .as_u64()
                .map(Self::Number)
                .ok_or_else(|| format!("{value}, not a whole number")),
            serde_json::Value::Array(entries) => {
                let text = |entry: &serde_json::Value| Self::text(entry.as_str()?).ok();
                Self::texts(entries.iter().map(text))
            }
            other => Err(format!(
                "{}, not a boolean, a number, a short text or a list of them",
                name_of(other)
            )),
        }
    }

    /// A text, if it is short enough.
    pub(crate) fn text(text: &str) -> Result<Self, Problem> {
        if text.len() > TEXT_LENGTH_MAX {
            return Err(format!(
                "a text of {} bytes, more than {TEXT_LENGTH_MAX}",
                text.len()
            ));
        }
        Ok(Self::Text(text.to_owned()))
    }

    /// A list, if all its entries are texts.
    pub(crate) fn texts(entries: impl Iterator<Item = Option<Self>>) -> Result<Self, Problem> {
        let text = |entry| match entry {
            Some(Self::Text(text)) => Some(text),
            _ => None,
        };
        let entries: Option<Vec<String>> = entries.map(text).collect();
        entries
            .map(Self::List)
            .ok_or_else(|| "a list of something else than short texts".to_owned())
    }

    /// Whether nothing was written: the word for "none".
    pub fn is_empty(&self) -> bool {
        matches!(self, Self::Text(text) if text.is_empty())
    }

    /// A list of texts; as text separated by commas, or as a JSON list if an entry has a comma.
    ///
    /// # Errors
    /// What it is instead.
    pub fn list(&self) -> Result<Vec<String>, Problem> {
        let entries = match self {
            Self::List(entries) => entries.clone(),
            Self::Text(text) if text.starts_with('[') => {
                serde_json::from_str(text).map_err(|error| format!("no list of texts: {error}"))?
            }
            Self::Text(text) => text
                .split(',')
                .map(|entry| entry.trim().to_owned())
                .filter(|entry| !entry.is_empty())
                .collect(),
            other => return Err(format!("{}, not a list of texts", other.shown())),
        };
        if entries.len() > LIST_LENGTH_MAX {
            return Err(format!(
                "a list of {} entries, more than {LIST_LENGTH_MAX}",
                entries.len()
            ));
        }
        // They go into CRIU's configuration, where a line is an option.
        if entries.iter().any(|entry| entry.contains(['\n', '"'])) {
            return Err("a list with a line break or a quotation mark in an entry".to_owned());
        }
        Ok(entries)
    }

    /// `true` or `false`.
    ///
    /// # Errors
    /// What it is instead.
    pub fn boolean(&self) -> Result<bool, Problem> {
        match self {
            Self::Boolean(value) => Ok(*value),
            Self::Text(text) if text == "true" || text == "1" => Ok(true),
            Self::Text(text) if text == "false" || text == "0" => Ok(false),
            other => Err(format!("{}, not true or false", other.shown())),
        }
    }

    /// `true`, `false`, or `auto`.
    ///
    /// # Errors
    /// What it is instead.
    pub fn choice(&self) -> Result<Choice, Problem> {
        match (self, self.boolean()) {
            (_, Ok(true)) => Ok(Choice::Yes),
            (_, Ok(false)) => Ok(Choice::No),
            (Self::Text(text), _) if text == "auto" => Ok(Choice::Auto),
            (other, _) => Err(format!("{}, not auto, true or false", other.shown())),
        }
    }

    /// One of a few words.
    ///
    /// # Errors
    /// What it is instead, and the words.
    pub fn one_of<T: Copy>(&self, words: &[(&str, T)]) -> Result<T, Problem> {
        let found = match self {
            Self::Text(text) => words.iter().find(|(word, _)| word == text),
            _ => None,
        };
        found.map(|(_, value)| *value).ok_or_else(|| {
            let words: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
            format!("{}, not one of {}", self.shown(), words.join(", "))
        })
    }

    /// A size in bytes: a number, or one followed by K, M or G (powers of 1024).
    ///
    /// # Errors
    /// What it is instead.
    pub fn bytes(&self) -> Result<u64, Problem> {
        let wrong = || format!("{}, not a size such as 4096, 100M or 1G", self.shown());
        match self {
            Self::Number(bytes) => Ok(*bytes),
            Self::Text(text) => {
                let (digits, unit) = split_unit(text);
                let shift = match unit {
                    "" => 0,
                    "K" | "k" => 10,
                    "M" | "m" => 20,
                    "G" | "g" => 30,
                    _ => return Err(wrong()),
                };
                digits
                    .parse::<u64>()
                    .ok()
                    .and_then(|n| n.checked_mul(1 << shift))
                    .ok_or_else(wrong)
            }
            Self::Boolean(_) | Self::List(_) => Err(wrong()),
        }
    }

    /// A time: seconds, or a number followed by `ms`, `s` or `m`.
    ///
    /// # Errors
    /// What it is instead.
    pub fn duration(&self) -> Result<Duration, Problem> {
        let wrong = || format!("{}, not a time such as 30, 500ms, 30s or 5m", self.shown());
        match self {
            Self::Number(seconds) => Ok(Duration::from_secs(*seconds)),
            Self::Text(text) => {
                let (digits, unit) = split_unit(text);
                let number: u64 = digits.parse().map_err(|_| wrong())?;
                match unit {
                    "ms" => Ok(Duration::from_millis(number)),
                    "" | "s" => Ok(Duration::from_secs(number)),
                    "m" => number.checked_mul(60).map(Duration::from_secs).ok_or_else(wrong),
                    _ => Err(wrong()),
                }
            }
            Self::Boolean(_) | Self::List(_) => Err(wrong()),
        }
    }

    /// A path from the root: the shim's own directory means nothing to a user.
    ///
    /// # Errors
    /// What it is instead.
    pub fn absolute_path(&self) -> Result<PathBuf, Problem> {
        match self {
            Self::Text(text) if text.starts_with('/') => Ok(PathBuf::from(text)),
            other => Err(format!("{}, not an absolute path", other.shown())),
        }
    }

    fn shown(&self) -> String {
        match self {
            Self::Boolean(value) => value.to_string(),
            Self::Number(value) => value.to_string(),
            Self::Text(text) => format!("{text:?}"),
            Self::List(_) => "a list".to_owned(),
        }
    }
}

/// A list as text that [`Value::list`] reads.
pub fn text_of_list(entries: &[String]) -> String {
    let plain = |entry: &String| !entry.is_empty() && !entry.contains(',') && entry.trim() == entry;
    let first_is_plain = entries.first().is_none_or(|entry| !entry.starts_with('['));
    if first_is_plain && entries.iter().all(plain) {
        return entries.join(",");
    }
    serde_json::Value::from(entries).to_string()
}

/// The word of a value in its table; empty if it has none there.
pub(crate) fn word_of<T: PartialEq>(value: T, words: &[(&str, T)]) -> String {
    let found = words.iter().find(|(_, meant)| *meant == value);
    found.map(|(word, _)| (*word).to_owned()).unwrap_or_default()
}

/// As [`Value::choice`] takes it.
pub(crate) fn text_of_choice(choice: Choice) -> String {
    let word = match choice {
        Choice::Auto => "auto",
        Choice::Yes => "true",
        Choice::No => "false",
    };
    word.to_owned()
}

/// A size in the largest unit that says it exactly.
pub(crate) fn text_of_bytes(bytes: u64) -> String {
    let units = [(30, "G"), (20, "M"), (10, "K")];
    let exact = units
        .into_iter()
        .find(|(shift, _)| bytes > 0 && bytes.trailing_zeros() >= *shift);
    exact.map_or_else(
        || bytes.to_string(),
        |(shift, unit)| format!("{}{unit}", bytes >> shift),
    )
}

/// A time in the largest unit that says it exactly.
pub(crate) fn text_of_duration(time: Duration) -> String {
    match (time.as_secs(), time.subsec_millis()) {
        (0, 0) => "0".to_owned(),
        (seconds, 0) if seconds % 60 == 0 => format!("{}m", seconds / 60),
        (seconds, 0) => format!("{seconds}s"),
        _ => format!("{}ms", time.as_millis()),
    }
}

fn split_unit(text: &str) -> (&str, &str) {
    text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()))
}

/// What a value is called that can be none.
fn name_of(json: &serde_json::Value) -> &'static str {
    match json {
        serde_json::Value::Null => "null",
        _ => "an object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Value {
        Value::Text(text.to_owned())
    }

    #[test]
    fn sizes() {
        for (value, expected) in [
            (Value::Number(7), Ok(7)),
            (text("4096"), Ok(4096)),
            (text("100M"), Ok(100 << 20)),
            (text("1G"), Ok(1 << 30)),
            (text("1T"), Err(())),
            (text("M"), Err(())),
            (text("-1"), Err(())),
            (text("99999999999999G"), Err(())),
            (Value::Boolean(true), Err(())),
        ] {
            assert_eq!(value.bytes().map_err(drop), expected, "{value:?}");
        }
    }

    #[test]
    fn times() {
        for (value, expected) in [
            (Value::Number(7), Ok(Duration::from_secs(7))),
            (text("30"), Ok(Duration::from_secs(30))),
            (text("500ms"), Ok(Duration::from_millis(500))),
            (text("5m"), Ok(Duration::from_secs(300))),
            (text("5h"), Err(())),
            (text(""), Err(())),
        ] {
            assert_eq!(value.duration().map_err(drop), expected, "{value:?}");
        }
    }

    #[test]
    fn lists() {
        let list = |entries: &[&str]| {
            Ok(entries
                .iter()
                .map(|entry| (*entry).to_owned())
                .collect::<Vec<_>>())
        };
        for (value, expected) in [
            (text(""), list(&[])),
            (text("mnt[/a]:a, mnt[/b]:b"), list(&["mnt[/a]:a", "mnt[/b]:b"])),
            (text(r#"["mnt[/a,b]:a"]"#), list(&["mnt[/a,b]:a"])),
            (Value::List(vec!["x".to_owned()]), list(&["x"])),
            (text("[1]"), Err(())),
            (text("a\nleave-running"), Err(())),
            (Value::List(vec!["a\"b".to_owned()]), Err(())),
            (text(&"x,".repeat(LIST_LENGTH_MAX + 1)), Err(())),
            (Value::Number(3), Err(())),
        ] {
            let read = value.list();
            assert_eq!(read.clone().map_err(drop), expected, "{value:?}");
            if let Ok(entries) = read {
                assert_eq!(
                    text(&text_of_list(&entries)).list(),
                    Ok(entries),
                    "there and back"
                );
            }
        }
    }

    #[test]
    fn booleans_and_paths() {
        assert_eq!(text("true").boolean(), Ok(true));
        assert_eq!(Value::Boolean(false).boolean(), Ok(false));
        assert!(
            text("yes")
                .boolean()
                .is_err_and(|problem| problem == "\"yes\", not true or false")
        );
        assert_eq!(Value::Boolean(true).choice(), Ok(Choice::Yes));
        assert_eq!(text("0").choice(), Ok(Choice::No));
        assert_eq!(text("auto").choice(), Ok(Choice::Auto));
        assert!(text("perhaps").choice().is_err());
        assert_eq!(text("/var/log").absolute_path(), Ok(PathBuf::from("/var/log")));
        assert!(text("log").absolute_path().is_err());
    }
}
