//! What can go wrong, by what its reader can do about it, and the exit code that a script sees.

use std::fmt;

/// The kinds of failure. Scripts rely on their exit codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It did not work.
    Failed,
    /// The command line, or a file it names, is not right. clap's own code too.
    Usage,
    /// There is no such job, checkpoint, container or image.
    NotFound,
    /// It is there, and not in a state for this.
    WrongState,
    /// This host, this build or this container cannot do it.
    Unsupported,
    /// An outside tool failed or does not answer: containerd, docker, runc, CRIU.
    Tool,
    /// Ctrl+C ended it, and everything is as it was.
    Interrupted,
    /// A container in the foreground ended so. Nothing is printed: what there is to say, it has said itself.
    Exit(u8),
}

impl Kind {
    /// The exit code.
    pub fn code(self) -> u8 {
        match self {
            Self::Failed => 1,
            Self::Usage => 2,
            Self::NotFound => 3,
            Self::WrongState => 4,
            Self::Unsupported => 5,
            Self::Tool => 6,
            Self::Interrupted => 130,
            Self::Exit(code) => code,
        }
    }
}

/// A failure, in words for a person.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    /// Its kind.
    pub kind: Kind,
    /// What failed and why: a lowercase fragment that stands after `cedana: `.
    pub message: String,
    /// What could be done now, each a sentence of its own.
    pub hints: Vec<String>,
}

impl Error {
    /// A failure of that kind.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            hints: Vec::new(),
        }
    }

    /// [`Kind::Failed`].
    pub fn failed(message: impl Into<String>) -> Self {
        Self::new(Kind::Failed, message)
    }

    /// [`Kind::Usage`].
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(Kind::Usage, message)
    }

    /// [`Kind::NotFound`].
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(Kind::NotFound, message)
    }

    /// [`Kind::WrongState`].
    pub fn wrong_state(message: impl Into<String>) -> Self {
        Self::new(Kind::WrongState, message)
    }

    /// [`Kind::Unsupported`].
    pub fn unsupported(message: impl Into<String>) -> Self {
        Self::new(Kind::Unsupported, message)
    }

    /// [`Kind::Tool`].
    pub fn tool(message: impl Into<String>) -> Self {
        Self::new(Kind::Tool, message)
    }

    /// The end of a container that ran in the foreground: its exit code is ours.
    pub fn exit(code: u8) -> Self {
        Self::new(Kind::Exit(code), String::new())
    }

    /// The same with one more thing to try.
    #[must_use]
    pub fn hint(mut self, text: impl Into<String>) -> Self {
        self.hints.push(text.into());
        self
    }

    /// The same failure, said to have happened while doing this: `failed to WHAT: …`.
    #[must_use]
    pub fn while_trying_to(mut self, what: &str) -> Self {
        self.message = format!("failed to {what}: {}", self.message);
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

impl From<config::ConfigError> for Error {
    fn from(error: config::ConfigError) -> Self {
        Self::usage(format!("failed to {error}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_has_the_exit_code_that_scripts_rely_on() {
        for (kind, code) in [
            (Kind::Failed, 1),
            (Kind::Usage, 2),
            (Kind::NotFound, 3),
            (Kind::WrongState, 4),
            (Kind::Unsupported, 5),
            (Kind::Tool, 6),
            (Kind::Interrupted, 130),
            (Kind::Exit(7), 7),
        ] {
            assert_eq!(kind.code(), code, "{kind:?}");
        }
    }
}
