//! The configuration file: where it is, its bytes, and what its text says.

use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::path::{Path, PathBuf};

use crate::environment::Environment;
use crate::layer::Written;
use crate::source::{ConfigError, Source};
use crate::value::{Problem, Value};

/// The host's directory.
pub const CONFIG_DIR: &str = "/etc/cedana";

/// Its file, by either name; only one may be there.
const JSON: &str = "config.json";
const TOML: &str = "config.toml";

/// The file is read into memory in one piece by every shim; all settings together need under 2 KiB.
const FILE_SIZE_MAX: u64 = 64 * 1024;

/// A file of settings to be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The file.
    pub path: PathBuf,
    /// Somebody asked for exactly this one, so it has to be there.
    pub asked_for: bool,
}

/// Which file counts: the one that `CEDANA_CONFIG` names; else the one in the directory that was given by a flag or by
/// `CEDANA_CONFIG_DIR`; else, for a user, the one below XDG's directory if there is one; else the host's. A host
/// without a file is normal.
///
/// # Errors
/// `TwoFiles`, and `Read` for a directory that was asked for and is not there.
pub fn locate(
    environment: &Environment,
    dir: Option<&Path>,
    is_root: bool,
) -> Result<Option<Place>, ConfigError> {
    let named = environment.path("CEDANA_CONFIG").filter(|_| dir.is_none());
    if let Some(path) = named {
        return Ok(Some(Place {
            path,
            asked_for: true,
        }));
    }
    let asked = dir
        .map(Path::to_owned)
        .or_else(|| environment.path("CEDANA_CONFIG_DIR"));
    if let Some(dir) = asked {
        if !dir.is_dir() {
            let source = io::Error::from(ErrorKind::NotADirectory);
            return Err(ConfigError::Read { path: dir, source });
        }
        return in_directory(&dir);
    }
    let users = environment
        .path("XDG_CONFIG_HOME")
        .or_else(|| Some(environment.path("HOME")?.join(".config")))
        .filter(|_| !is_root);
    if let Some(dir) = users
        && let Some(found) = in_directory(&dir.join("cedana"))?
    {
        return Ok(Some(found));
    }
    in_directory(Path::new(CONFIG_DIR))
}

fn in_directory(dir: &Path) -> Result<Option<Place>, ConfigError> {
    let (json, toml) = (dir.join(JSON), dir.join(TOML));
    let path = match (json.exists(), toml.exists()) {
        (true, true) => return Err(ConfigError::TwoFiles { json, toml }),
        (true, false) => json,
        (false, true) => toml,
        (false, false) => return Ok(None),
    };
    Ok(Some(Place {
        path,
        asked_for: false,
    }))
}

impl Place {
    /// The settings it says; none if there is no such file and nobody asked for it.
    ///
    /// # Errors
    /// As [`crate::resolve_layers`] for the file.
    pub(crate) fn settings(&self) -> Result<Vec<Written>, ConfigError> {
        let Some(text) = self.text()? else {
            return Ok(Vec::new());
        };
        let origin = Source::File(self.path.clone());
        let malformed = |problem| ConfigError::Malformed {
            origin: origin.clone(),
            problem,
        };
        let is_toml = self.path.extension().is_some_and(|extension| extension == "toml");
        let values = if is_toml {
            crate::toml::parse(&text)
        } else {
            parse_json(&text)
        }
        .map_err(malformed)?;
        let written = |(name, value)| Written::new(name, value, origin.clone());
        values.into_iter().map(written).collect()
    }

    fn text(&self) -> Result<Option<String>, ConfigError> {
        let failed = |source| ConfigError::Read {
            path: self.path.clone(),
            source,
        };
        let file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound && !self.asked_for => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        let mut text = String::new();
        let length = file
            .take(FILE_SIZE_MAX + 1)
            .read_to_string(&mut text)
            .map_err(failed)?;
        if u64::try_from(length).is_ok_and(|length| length > FILE_SIZE_MAX) {
            let problem = format!("larger than {FILE_SIZE_MAX} bytes");
            return Err(failed(io::Error::new(ErrorKind::FileTooLarge, problem)));
        }
        Ok(Some(text))
    }
}

/// Dotted names, each with what is written there or why that can be no value.
pub(crate) type Values = Vec<(String, Result<Value, Problem>)>;

/// The dotted names and values of a JSON text, in the order of their names.
pub(crate) fn parse_json(text: &str) -> Result<Values, String> {
    let json: serde_json::Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let serde_json::Value::Object(sections) = json else {
        return Err("not a JSON object".to_owned());
    };
    let mut values = Vec::new();
    for (section, content) in &sections {
        match content {
            serde_json::Value::Object(content) => {
                let dotted = |(name, value)| (format!("{section}.{name}"), Value::from_json(value));
                values.extend(content.iter().map(dotted));
            }
            other => values.push((section.clone(), Value::from_json(other))),
        }
    }
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(variables: &[(&str, &Path)]) -> Environment {
        Environment::of(
            variables
                .iter()
                .map(|(name, value)| ((*name).into(), value.into())),
        )
    }

    fn place(path: PathBuf, asked_for: bool) -> Option<Place> {
        Some(Place { path, asked_for })
    }

    #[test]
    fn the_nearest_place_wins() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (given, home) = (dir.path().join("given"), dir.path().join("home"));
        let users = home.join(".config/cedana");
        std::fs::create_dir(&given).expect("a directory");
        std::fs::create_dir_all(&users).expect("a directory");
        std::fs::write(users.join(TOML), "").expect("a file");
        let at_home = environment(&[("HOME", &home)]);
        let look =
            |environment: &Environment, dir, is_root| locate(environment, dir, is_root).expect("a place");

        assert_eq!(look(&at_home, None, false), place(users.join(TOML), false));
        assert_ne!(
            look(&at_home, None, true),
            place(users.join(TOML), false),
            "root takes the host's"
        );
        assert_eq!(
            look(&at_home, Some(&given), false),
            None,
            "an empty directory that was asked for"
        );

        std::fs::write(given.join(JSON), "{}").expect("a file");
        let by_variable = environment(&[("HOME", &home), ("CEDANA_CONFIG_DIR", &given)]);
        assert_eq!(look(&by_variable, None, false), place(given.join(JSON), false));
        let named = environment(&[("CEDANA_CONFIG", &home), ("CEDANA_CONFIG_DIR", &given)]);
        assert_eq!(look(&named, None, true), place(home.clone(), true));
        assert_eq!(
            look(&named, Some(&given), true),
            place(given.join(JSON), false),
            "a flag wins"
        );

        let xdg = environment(&[("HOME", &given), ("XDG_CONFIG_HOME", &home.join(".config"))]);
        assert_eq!(look(&xdg, None, false), place(users.join(TOML), false));
    }

    #[test]
    fn what_was_asked_for_has_to_be_there_and_only_once() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let missing = dir.path().join("missing");
        assert!(matches!(
            locate(&Environment::default(), Some(&missing), true),
            Err(ConfigError::Read { .. })
        ));
        let file = Place {
            path: missing.clone(),
            asked_for: true,
        };
        assert!(matches!(file.settings(), Err(ConfigError::Read { .. })));
        let file = Place {
            path: missing,
            asked_for: false,
        };
        assert!(file.settings().is_ok_and(|settings| settings.is_empty()));

        for name in [JSON, TOML] {
            std::fs::write(dir.path().join(name), "").expect("a file");
        }
        let refused = locate(&Environment::default(), Some(dir.path()), true);
        assert!(
            matches!(refused, Err(ConfigError::TwoFiles { .. })),
            "{refused:?}"
        );
    }

    #[test]
    fn a_file_that_never_ends_is_not_read_to_its_end() {
        let endless = Place {
            path: "/dev/zero".into(),
            asked_for: true,
        };
        let error = endless.settings().expect_err("no end").to_string();
        assert!(error.contains("larger than"), "{error}");
    }
}
