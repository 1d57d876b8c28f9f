//! The environment: which of its variables are settings.

use std::ffi::OsString;
use std::path::PathBuf;

use crate::layer::Written;
use crate::name::{self, Meaning};
use crate::source::{ConfigError, Source};
use crate::value::Value;

/// What our variables begin with.
pub const PREFIX: &str = "CEDANA_";

/// The beginnings of variables that can only be meant as settings of ours: a typo behind them is an error. Others that
/// begin with `CEDANA_` may be somebody else's: test programs have some, and so has a Go Cedana on the same machine.
const SECTIONS: [&str; 4] = ["DUMP_", "RESTORE_", "CHECKPOINT_", "DB_"];

/// Variables that are read elsewhere, as they say where the file is.
const PLACES: [&str; 2] = ["CONFIG", "CONFIG_DIR"];

/// The variables of a process that concern us, taken once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Environment(Vec<(String, OsString)>);

impl Environment {
    /// Those of this process.
    pub fn own() -> Self {
        Self::of(std::env::vars_os())
    }

    /// Those of somebody else, or made up.
    pub fn of(variables: impl IntoIterator<Item = (OsString, OsString)>) -> Self {
        let ours = |(name, value): (OsString, OsString)| {
            let name = name.into_string().ok()?;
            let concerns_us = name.starts_with(PREFIX) || matches!(name.as_str(), "XDG_CONFIG_HOME" | "HOME");
            concerns_us.then_some((name, value))
        };
        let mut kept: Vec<_> = variables.into_iter().filter_map(ours).collect();
        kept.sort();
        Self(kept)
    }

    /// A path that a variable holds; an empty one is as good as none.
    pub(crate) fn path(&self, name: &str) -> Option<PathBuf> {
        let (_, value) = self.0.iter().find(|(variable, _)| variable == name)?;
        (!value.is_empty()).then(|| PathBuf::from(value))
    }

    /// The settings among them.
    ///
    /// # Errors
    /// `Unknown` for a variable that can only be meant as a setting and is none, `Value` if it is no text.
    pub(crate) fn settings(&self) -> Result<Vec<Written>, ConfigError> {
        let mut written = Vec::new();
        for (variable, value) in &self.0 {
            let Some(rest) = variable
                .strip_prefix(PREFIX)
                .filter(|rest| !PLACES.contains(rest))
            else {
                continue;
            };
            let origin = Source::Environment(variable.clone());
            match name::meaning_in_environment(rest) {
                Meaning::Setting(key) => {
                    let text = value.to_str().ok_or_else(|| "not UTF-8".to_owned());
                    let value = text.map(|text| Value::Text(text.to_owned()));
                    written.push(Written::of(key, variable.clone(), value, origin));
                }
                Meaning::Nothing(suggestion) if SECTIONS.iter().any(|section| rest.starts_with(section)) => {
                    return Err(ConfigError::Unknown {
                        name: variable.clone(),
                        origin,
                        suggestion,
                    });
                }
                // The Go Cedana's, or somebody else's altogether.
                Meaning::OfGo(_) | Meaning::Nothing(_) => {}
            }
        }
        Ok(written)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(variables: &[(&str, &str)]) -> Environment {
        Environment::of(variables.iter().map(|(name, value)| (name.into(), value.into())))
    }

    #[test]
    fn only_what_is_a_setting_is_taken() {
        let environment = environment(&[
            ("CEDANA_DUMP_TCP", "close"),
            ("CEDANA_CONFIG", "/x.json"),
            ("CEDANA_CONFIG_DIR", "/x"),
            ("CEDANA_TEST_RUNTIME", "io.containerd.runc.v2"),
            ("CEDANA_URL", "https://example.org"),
            ("CEDANA_CHECKPOINT_STREAMS", "4"),
            ("DUMP_TCP", "established"),
            ("HOME", "/root"),
        ]);
        let names: Vec<_> = environment
            .settings()
            .expect("settings")
            .into_iter()
            .map(|one| one.setting())
            .collect();
        assert_eq!(names, ["dump.tcp"]);
        assert_eq!(environment.path("HOME"), Some(PathBuf::from("/root")));
        assert_eq!(environment.path("CEDANA_NOTHING"), None);
    }

    #[test]
    fn a_typo_in_a_section_of_ours_is_said() {
        let error = environment(&[("CEDANA_DUMP_TPC", "close")])
            .settings()
            .expect_err("a typo")
            .to_string();
        assert_eq!(
            error,
            r#"find a setting for environment variable CEDANA_DUMP_TPC: did you mean "CEDANA_DUMP_TCP"?"#
        );
    }
}
