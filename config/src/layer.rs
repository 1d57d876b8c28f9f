//! Layers of settings: the file and the annotations, laid over the defaults.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::key;
use crate::settings::Settings;
use crate::value::{Problem, Value};

/// Where the file is, unless `CEDANA_CONFIG` names another.
pub const CONFIG_PATH: &str = "/etc/cedana/config.json";

/// What our annotations begin with.
pub const ANNOTATION_PREFIX: &str = "cedana.";

/// The sections that are settings. Other annotations of ours (`cedana.job`, `cedana.restore`) name things; they are not
/// settings and not looked at here.
const SECTIONS: [&str; 2] = ["dump.", "restore."];

/// Short spellings of annotations people write by hand.
const ALIASES: [(&str, &str); 1] = [("leave-running", "dump.leave-running")];

/// The file is read into memory in one piece by every shim; all settings together need under 1 KiB.
const FILE_SIZE_MAX: u64 = 64 * 1024;

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// The configuration file.
    File(PathBuf),
    /// An annotation of the container, by its name.
    Annotation(String),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Annotation(name) => write!(f, "annotation {name}"),
        }
    }
}

/// Why there are no settings.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file is there and cannot be read.
    #[error("read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// The file is not what it should be.
    #[error("read {}: {problem}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// No such setting.
    #[error("know setting {name:?} from {origin}{}", suggestion.map(|s| format!(": did you mean {s:?}?")).unwrap_or_default())]
    Unknown {
        /// The dotted name as it was written.
        name: String,
        /// Who wrote it.
        origin: Source,
        /// The nearest real name.
        suggestion: Option<&'static str>,
    },
    /// A setting that only the host's file may have.
    #[error("take setting {name:?} from {origin}: only the host's configuration file may have it")]
    HostOnly {
        /// The dotted name.
        name: String,
        /// Who wrote it.
        origin: Source,
    },
    /// A setting has a value it cannot have.
    #[error("use setting {name:?} from {origin}: the value is {problem}")]
    Value {
        /// The dotted name.
        name: String,
        /// Who wrote it.
        origin: Source,
        /// What is wrong.
        problem: Problem,
    },
}

/// The settings for a container with these annotations, from the file of this host. A host without the file is normal.
///
/// # Errors
/// The first thing wrong with the file or the annotations.
pub fn resolve(annotations: &BTreeMap<String, String>) -> Result<Settings, ConfigError> {
    let path = std::env::var_os("CEDANA_CONFIG").map_or_else(|| PathBuf::from(CONFIG_PATH), PathBuf::from);
    resolve_from(&path, annotations)
}

/// The same with the file's path given.
///
/// # Errors
/// As [`resolve`].
pub fn resolve_from(path: &Path, annotations: &BTreeMap<String, String>) -> Result<Settings, ConfigError> {
    let mut settings = Settings::default();
    if let Some(text) = read(path)? {
        let origin = Source::File(path.to_owned());
        let values = parse_file(&text).map_err(|problem| ConfigError::Malformed {
            path: path.to_owned(),
            problem,
        })?;
        for (name, value) in values {
            let value = value.map_err(|problem| bad_value(&name, &origin, problem))?;
            apply(&mut settings, &name, &value, &origin)?;
        }
    }
    annotate(&mut settings, annotations)?;
    Ok(settings)
}

/// The settings for a container with these annotations on a host whose file cannot be used.
///
/// # Errors
/// The first thing wrong with the annotations.
pub fn resolve_without_file(annotations: &BTreeMap<String, String>) -> Result<Settings, ConfigError> {
    let mut settings = Settings::default();
    annotate(&mut settings, annotations)?;
    Ok(settings)
}

fn annotate(settings: &mut Settings, annotations: &BTreeMap<String, String>) -> Result<(), ConfigError> {
    for (annotation, text) in annotations {
        if let Some(name) = setting_of(annotation) {
            let origin = Source::Annotation(annotation.clone());
            if key::HOST_ONLY.contains(&name) {
                return Err(ConfigError::HostOnly {
                    name: name.to_owned(),
                    origin,
                });
            }
            apply(settings, name, &Value::Text(text.clone()), &origin)?;
        }
    }
    Ok(())
}

fn read(path: &Path) -> Result<Option<String>, ConfigError> {
    let failed = |source| ConfigError::Read {
        path: path.to_owned(),
        source,
    };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let mut text = String::new();
    let length = file
        .take(FILE_SIZE_MAX + 1)
        .read_to_string(&mut text)
        .map_err(failed)?;
    if u64::try_from(length).is_ok_and(|length| length > FILE_SIZE_MAX) {
        return Err(failed(io::Error::new(
            ErrorKind::FileTooLarge,
            format!("larger than {FILE_SIZE_MAX} bytes"),
        )));
    }
    Ok(Some(text))
}

type Written = Vec<(String, Result<Value, Problem>)>;

/// The dotted names and values of the file's text, in the order of the file's names.
fn parse_file(text: &str) -> Result<Written, String> {
    let json: serde_json::Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let serde_json::Value::Object(sections) = json else {
        return Err("not a JSON object".to_owned());
    };
    let mut values = Vec::new();
    for (section, content) in &sections {
        match content {
            serde_json::Value::Object(content) => {
                values.extend(
                    content
                        .iter()
                        .map(|(name, value)| (format!("{section}.{name}"), Value::from_json(value))),
                );
            }
            other => values.push((section.clone(), Value::from_json(other))),
        }
    }
    Ok(values)
}

/// The setting an annotation names, if it is one of ours and a setting at all.
fn setting_of(annotation: &str) -> Option<&str> {
    let name = annotation.strip_prefix(ANNOTATION_PREFIX)?;
    if let Some((_, long)) = ALIASES.iter().find(|(short, _)| *short == name) {
        return Some(long);
    }
    SECTIONS
        .iter()
        .any(|section| name.starts_with(section))
        .then_some(name)
}

fn apply(settings: &mut Settings, name: &str, value: &Value, origin: &Source) -> Result<(), ConfigError> {
    let key = key::find(name).ok_or_else(|| ConfigError::Unknown {
        name: name.to_owned(),
        origin: origin.clone(),
        suggestion: key::nearest(name),
    })?;
    (key.set)(settings, value).map_err(|problem| bad_value(name, origin, problem))?;
    drop(settings.sources.insert(key.name, origin.clone()));
    Ok(())
}

fn bad_value(name: &str, origin: &Source, problem: Problem) -> ConfigError {
    ConfigError::Value {
        name: name.to_owned(),
        origin: origin.clone(),
        problem,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Tcp;

    #[test]
    fn an_annotation_cannot_say_where_root_writes() {
        for name in key::HOST_ONLY {
            let annotation = format!("{ANNOTATION_PREFIX}{name}");
            let refused = resolve_without_file(&BTreeMap::from([(annotation, "/tmp/x".to_owned())]));
            assert!(matches!(refused, Err(ConfigError::HostOnly { .. })), "{name}");
        }
    }

    fn with(file: Option<&str>, annotations: &[(&str, &str)]) -> Result<Settings, ConfigError> {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("config.json");
        if let Some(text) = file {
            std::fs::write(&path, text).expect("write the file");
        }
        let annotations = annotations
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect();
        resolve_from(&path, &annotations)
    }

    #[test]
    fn no_file_and_no_annotations_are_the_defaults() {
        assert_eq!(
            with(None, &[("io.kubernetes.cri", "x")]).expect("defaults"),
            Settings::default()
        );
    }

    #[test]
    fn an_annotation_wins_over_the_file_and_each_value_remembers_where_it_came_from() {
        let file = r#"{"dump": {"tcp": "close", "ghost-limit": 7, "timeout": "30s"}}"#;
        let settings = with(Some(file), &[("cedana.dump.tcp", "established")]).expect("settings");
        assert_eq!(settings.dump.tcp, Tcp::Established);
        assert_eq!(settings.dump.ghost_limit, 7);
        assert_eq!(
            settings.sources["dump.tcp"],
            Source::Annotation("cedana.dump.tcp".to_owned())
        );
        assert!(matches!(settings.sources["dump.timeout"], Source::File(_)));
        assert!(!settings.sources.contains_key("dump.file-locks"));
    }

    #[test]
    fn the_short_spelling_of_leave_running_is_understood() {
        assert!(
            !with(None, &[("cedana.leave-running", "false")])
                .expect("settings")
                .dump
                .leave_running
        );
    }

    #[test]
    fn annotations_that_are_not_settings_are_left_alone() {
        let _ = with(
            None,
            &[
                ("cedana.job", "x"),
                ("cedana.restore", "y"),
                ("other.dump.tcp", "z"),
            ],
        )
        .expect("settings");
    }

    #[test]
    fn what_is_wrong_is_said_with_its_place() {
        for (file, annotation, expected) in [
            (
                Some(r#"{"dump": {"tpc": "close"}}"#),
                None,
                "did you mean \"dump.tcp\"?",
            ),
            (
                Some(r#"{"dump": {"tcp": "often"}}"#),
                None,
                "\"often\", not one of default, established, close",
            ),
            (
                Some(r#"{"dump": {"tcp": ["close"]}}"#),
                None,
                "the value is a list",
            ),
            (Some(r#"{"speed": 3}"#), None, "know setting \"speed\""),
            (Some("[]"), None, "not a JSON object"),
            (Some("{"), None, "EOF while parsing"),
            (
                None,
                Some(("cedana.dump.ghost-limit", "big")),
                "annotation cedana.dump.ghost-limit",
            ),
            (
                None,
                Some(("cedana.restore.lock", "skip")),
                "know setting \"restore.lock\"",
            ),
        ] {
            let error = with(file, annotation.as_slice()).expect_err(expected).to_string();
            assert!(error.contains(expected), "{error:?} lacks {expected:?}");
        }
    }
}
