//! Where a value came from, and what can be wrong with where it came from.

use std::fmt;
use std::io;
use std::path::PathBuf;

use thiserror::Error;

use crate::value::Problem;

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// The configuration file.
    File(PathBuf),
    /// The options that containerd's configuration has for the runtime.
    RuntimeOptions,
    /// A variable of the environment, by its name.
    Environment(String),
    /// An annotation of the container, by its name.
    Annotation(String),
    /// An option on the command line, by the setting's name.
    Flag(String),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::RuntimeOptions => f.write_str("containerd's runtime options"),
            Self::Environment(name) => write!(f, "environment variable {name}"),
            Self::Annotation(name) => write!(f, "annotation {name}"),
            Self::Flag(_) => f.write_str("the command line"),
        }
    }
}

/// Why there are no settings.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file is there and cannot be read, or was asked for by name and is not there.
    #[error("read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// The file, or the table of runtime options, is not what it should be.
    #[error("read {origin}: {problem}")]
    Malformed {
        /// Which it is.
        origin: Source,
        /// What is wrong.
        problem: String,
    },
    /// A JSON file and a TOML file in one directory.
    #[error("choose between {} and {}: only one of them may be there", json.display(), toml.display())]
    TwoFiles {
        /// The one.
        json: PathBuf,
        /// The other.
        toml: PathBuf,
    },
    /// No such setting.
    #[error("find a setting for {}", unknown(name, origin, *suggestion))]
    Unknown {
        /// The name as it was written.
        name: String,
        /// Who wrote it.
        origin: Source,
        /// The nearest real name.
        suggestion: Option<&'static str>,
    },
    /// A setting that only the Go Cedana has.
    #[error("use setting {name:?} from {origin}: it is a setting of the Go Cedana; {advice}")]
    OfGo {
        /// The name as it was written.
        name: String,
        /// Who wrote it.
        origin: Source,
        /// What is there instead, or that nothing is needed.
        advice: &'static str,
    },
    /// One setting twice in one place, under two of its names.
    #[error("use setting {name:?} from {origin}: it is there twice, as {first:?} too")]
    Twice {
        /// The name as it was written the second time.
        name: String,
        /// Who wrote it.
        origin: Source,
        /// The name as it was written the first time.
        first: String,
    },
    /// A setting that only the host may have.
    #[error("take setting {name:?} from {origin}: only the host's configuration may have it")]
    HostOnly {
        /// The dotted name.
        name: String,
        /// Who wrote it.
        origin: Source,
    },
    /// A setting has a value it cannot have.
    #[error("use setting {name:?} from {origin}: the value is {problem}")]
    Value {
        /// The name as it was written.
        name: String,
        /// Who wrote it.
        origin: Source,
        /// What is wrong.
        problem: Problem,
    },
}

/// Who wrote what, and what was meant, in the spelling of the place where it was written.
fn unknown(name: &str, origin: &Source, suggestion: Option<&str>) -> String {
    let (written, spelt): (String, fn(&str) -> String) = match origin {
        Source::Environment(_) => (origin.to_string(), |name| {
            format!("{}{}", crate::environment::PREFIX, crate::name::variable(name))
        }),
        Source::Annotation(_) => (origin.to_string(), |name| {
            format!("{}{name}", crate::layer::ANNOTATION_PREFIX)
        }),
        _ => (format!("{name:?} from {origin}"), str::to_owned),
    };
    let meant = suggestion.map(|name| format!(": did you mean {:?}?", spelt(name)));
    written + &meant.unwrap_or_default()
}
