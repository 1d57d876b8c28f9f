//! A document as people read it: YAML, in the small part of it that needs no library.

use serde::Serialize;
use serde_json::Value;

use super::text;
use crate::error::Error;

/// The document as lines of `name: value`, nested by two spaces. What is null is left out.
///
/// # Errors
/// It has something that JSON cannot have.
pub fn of<T: Serialize>(document: &T) -> Result<String, Error> {
    let value = serde_json::to_value(document)
        .map_err(|source| Error::failed(format!("failed to write as text: {source}")))?;
    let mut out = String::new();
    write(&mut out, &value, 0);
    Ok(out)
}

fn write(out: &mut String, value: &Value, depth: usize) {
    let space = "  ".repeat(depth);
    match value {
        Value::Object(fields) => {
            for (name, field) in fields.iter().filter(|(_, field)| !field.is_null()) {
                out.push_str(&format!("{space}{}:", text::line(name)));
                below(out, field, depth);
            }
        }
        Value::Array(items) => {
            for item in items {
                out.push_str(&format!("{space}-"));
                below(out, item, depth);
            }
        }
        plain => out.push_str(&format!("{space}{}\n", scalar(plain))),
    }
}

/// Behind a name or a dash.
fn below(out: &mut String, value: &Value, depth: usize) {
    match value {
        Value::Object(fields) if fields.is_empty() => out.push_str(" {}\n"),
        Value::Array(items) if items.is_empty() => out.push_str(" []\n"),
        Value::Object(_) | Value::Array(_) => {
            out.push('\n');
            write(out, value, depth + 1);
        }
        plain => out.push_str(&format!(" {}\n", scalar(plain))),
    }
}

/// A text that YAML could take for something else is quoted as JSON quotes it, which YAML reads too.
fn scalar(value: &Value) -> String {
    match value {
        Value::String(word) if is_plain(word) => word.clone(),
        other => text::line(&other.to_string()).into_owned(),
    }
}

fn is_plain(word: &str) -> bool {
    let first = word
        .chars()
        .next()
        .is_some_and(|c| c.is_ascii_alphabetic() || c == '/');
    let rest = word
        .chars()
        .all(|c| c.is_alphanumeric() || "/._-+@ ()".contains(c));
    let reserved = ["true", "false", "yes", "no", "null", "on", "off"];
    first && rest && !word.ends_with(' ') && !reserved.contains(&word.to_ascii_lowercase().as_str())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_document_is_yaml() {
        let text = of(&json!({
            "job": "web", "pid": 7, "image": null, "log": "/var/log/x y", "odd": "yes", "none": [],
            "last": {"error": "a: b\nc", "phase": "dump"}, "list": [{"id": "1f"}, {"id": "x"}], "evil": "\u{1b}[2J",
        }))
        .expect("text");
        assert_eq!(
            text,
            concat!(
                "evil: \"\\u001b[2J\"\n",
                "job: web\n",
                "last:\n",
                "  error: \"a: b\\nc\"\n",
                "  phase: dump\n",
                "list:\n",
                "  -\n",
                "    id: \"1f\"\n",
                "  -\n",
                "    id: x\n",
                "log: /var/log/x y\n",
                "none: []\n",
                "odd: \"yes\"\n",
                "pid: 7\n",
            )
        );
    }
}
