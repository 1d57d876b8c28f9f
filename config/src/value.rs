//! A value as it was written, and what it can be read as.

use std::path::PathBuf;
use std::time::Duration;

/// The longest text a value may have: a path at most.
const TEXT_LENGTH_MAX: usize = 4096;

/// What is wrong with a value: a fragment that fits after "the value is".
pub type Problem = String;

/// A value as the file or an annotation has it. Annotations know only text, so every type can be read from text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// `true` or `false` in the file.
    Boolean(bool),
    /// A whole number in the file.
    Number(u64),
    /// Text.
    Text(String),
}

impl Value {
    /// A JSON value that a setting may have.
    ///
    /// # Errors
    /// What it is instead.
    pub fn from_json(json: &serde_json::Value) -> Result<Self, Problem> {
        match json {
            serde_json::Value::Bool(value) => Ok(Self::Boolean(*value)),
            serde_json::Value::String(value) if value.len() <= TEXT_LENGTH_MAX => {
                Ok(Self::Text(value.clone()))
            }
            serde_json::Value::Number(value) => value
                .as_u64()
                .map(Self::Number)
                .ok_or_else(|| format!("{value}, not a whole number")),
            other => Err(format!(
                "{}, not a boolean, a number or a short text",
                name_of(other)
            )),
        }
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
            Self::Boolean(_) => Err(wrong()),
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
            Self::Boolean(_) => Err(wrong()),
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
        }
    }
}

fn split_unit(text: &str) -> (&str, &str) {
    text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()))
}

fn name_of(json: &serde_json::Value) -> &'static str {
    match json {
        serde_json::Value::Null => "null",
        serde_json::Value::Array(_) => "a list",
        serde_json::Value::Object(_) => "an object",
        _ => "too long",
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
    fn booleans_and_paths() {
        assert_eq!(text("true").boolean(), Ok(true));
        assert_eq!(Value::Boolean(false).boolean(), Ok(false));
        assert!(
            text("yes")
                .boolean()
                .is_err_and(|problem| problem == "\"yes\", not true or false")
        );
        assert_eq!(text("/var/log").absolute_path(), Ok(PathBuf::from("/var/log")));
        assert!(text("log").absolute_path().is_err());
    }
}
