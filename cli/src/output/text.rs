//! Foreign text made safe to print.
//!
//! Names, paths and messages come from containers and clients. One with an escape sequence could clear the screen of whoever
//! lists it, or forge a row.

use std::borrow::Cow;

/// On one line: every control character is shown as an escape.
pub fn line(text: &str) -> Cow<'_, str> {
    escaped(text, |c| c.is_control())
}

/// The same, but ends of lines and tabs stay: an error may bring the last lines of a log.
pub fn lines(text: &str) -> Cow<'_, str> {
    escaped(text, |c| c.is_control() && c != '\n' && c != '\t')
}

fn escaped(text: &str, bad: impl Fn(char) -> bool) -> Cow<'_, str> {
    if !text.contains(&bad) {
        return Cow::Borrowed(text);
    }
    let mut safe = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        if bad(c) {
            safe.extend(c.escape_default());
        } else {
            safe.push(c);
        }
    }
    Cow::Owned(safe)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_printed_moves_the_cursor() {
        for (given, on_one, on_many) in [
            ("plain", "plain", "plain"),
            ("é✔", "é✔", "é✔"),
            ("\x1b[2Jgone", "\\u{1b}[2Jgone", "\\u{1b}[2Jgone"),
            ("a\nb\tc\r", "a\\nb\\tc\\r", "a\nb\tc\\r"),
            ("\u{9b}31m", "\\u{9b}31m", "\\u{9b}31m"),
            ("", "", ""),
        ] {
            assert_eq!(line(given), on_one);
            assert_eq!(lines(given), on_many);
        }
    }
}
