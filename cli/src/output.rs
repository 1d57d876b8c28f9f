//! The only printing. Standard output is for what was asked, standard error for the rest.

pub mod outline;
pub mod progress;
pub mod size;
pub mod table;
pub mod text;
pub mod time;

use std::io::{self, ErrorKind, IsTerminal, Write};

use serde::Serialize;

use crate::error::{Error, Kind};

/// One line of what was asked for, on standard output.
///
/// # Errors
/// It cannot be written. A reader that went away (`| head`) is none: it has what it wanted.
pub fn line(text: &str) -> Result<(), Error> {
    stdout(&format!("{text}\n"))
}

/// The same for text of several lines, which ends with one.
///
/// # Errors
/// As [`line`].
pub fn stdout(text: &str) -> Result<(), Error> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(source) if source.kind() != ErrorKind::BrokenPipe => Err(Error::failed(format!(
            "failed to write to standard output: {source}"
        ))),
        _ => Ok(()),
    }
}

/// The one JSON document of a call.
///
/// # Errors
/// As [`line`].
pub fn json<T: Serialize>(document: &T) -> Result<(), Error> {
    let text = serde_json::to_string_pretty(document)
        .map_err(|source| Error::failed(format!("failed to write as JSON: {source}")))?;
    line(&text)
}

/// What ended the call, once, at its end.
pub fn error(error: &Error) {
    if matches!(error.kind, Kind::Exit(_)) {
        return;
    }
    stderr(&format!("cedana: {}", text::lines(&error.message)));
    for hint in &error.hints {
        stderr(&format!("hint: {}", text::lines(hint)));
    }
}

/// Something odd that harms nothing.
pub fn warning(message: &str) {
    stderr(&format!("cedana: warning: {}", text::lines(message)));
}

/// Something worth knowing that is not what was asked for.
pub fn note(message: &str) {
    stderr(&text::lines(message));
}

fn stderr(message: &str) {
    // There is nobody left to tell if this fails.
    let _ = writeln!(io::stderr(), "{message}");
}

/// Whether standard output takes colours.
pub fn colours() -> bool {
    io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|word| word.is_empty())
}

/// Whether there is somebody to ask before something is done to many, however many they are.
///
/// # Errors
/// Nobody: [`Kind::Usage`].
pub fn can_ask() -> Result<(), Error> {
    if io::stdin().is_terminal() {
        return Ok(());
    }
    let message = "failed to ask whether this is meant: standard input is no terminal";
    Err(Error::usage(message).hint("say -y to mean it"))
}

/// Asks on the terminal, and takes anything but a yes as no.
///
/// # Errors
/// Nobody can be asked: [`Kind::Usage`].
pub fn confirm(question: &str) -> Result<bool, Error> {
    can_ask()?;
    let mut err = io::stderr().lock();
    let asked = write!(err, "{} [y/N] ", text::line(question)).and_then(|()| err.flush());
    let mut answer = String::new();
    let _bytes = asked
        .and_then(|()| io::stdin().read_line(&mut answer))
        .map_err(|source| Error::failed(format!("failed to ask: {source}")))?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes" | "Yes"))
}

/// A number of things, as people say it: `1 job`, `2 jobs`.
pub fn counted(number: usize, thing: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {thing}{plural}")
}
