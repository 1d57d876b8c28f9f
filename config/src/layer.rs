//! Layers of settings, laid over each other.

use std::collections::BTreeMap;
use std::path::Path;

use crate::environment::Environment;
use crate::file::{self, Place};
use crate::key::{Key, Scope};
use crate::name::{self, Meaning};
use crate::settings::Settings;
use crate::source::{ConfigError, Source};
use crate::value::{Problem, Value};

/// What our annotations begin with.
pub const ANNOTATION_PREFIX: &str = "cedana.";

/// The sections that are settings. Other annotations of ours (`cedana.job`, `cedana.restore`) name things; they are not
/// settings and not looked at here.
const SECTIONS: [&str; 5] = ["dump.", "restore.", "checkpoint.", "db.", "criu."];

/// An annotation that is a setting without being in a section.
const SHORT_ANNOTATION: &str = "leave-running";

/// What may be laid over the defaults, from the bottom up. What is empty changes nothing.
#[derive(Debug, Clone, Default)]
pub struct Layers<'a> {
    /// The configuration file.
    pub file: Option<Place>,
    /// The table of containerd's runtime options, as text; only its `cedana` part counts.
    pub runtime_options: Option<&'a str>,
    /// Variables.
    pub environment: Environment,
    /// Annotations of the container.
    pub annotations: Option<&'a BTreeMap<String, String>>,
    /// What the command line says, by dotted name.
    pub flags: Option<&'a BTreeMap<String, String>>,
}

impl Layers<'_> {
    /// File and environment of this process; `dir` is the directory that a flag names.
    ///
    /// # Errors
    /// As [`file::locate`].
    pub fn of_this_process(dir: Option<&Path>) -> Result<Self, ConfigError> {
        let environment = Environment::own();
        let file = file::locate(&environment, dir, is_root())?;
        Ok(Self {
            file,
            environment,
            ..Self::default()
        })
    }
}

/// The settings that these layers make.
///
/// # Errors
/// The first thing wrong in them, from the bottom up.
pub fn resolve_layers(layers: &Layers<'_>) -> Result<Settings, ConfigError> {
    let mut settings = Settings::default();
    if let Some(file) = &layers.file {
        lay(&mut settings, file.settings()?)?;
    }
    if let Some(table) = layers.runtime_options {
        lay(&mut settings, of_runtime_options(table)?)?;
    }
    lay(&mut settings, layers.environment.settings()?)?;
    if let Some(annotations) = layers.annotations {
        lay(&mut settings, of_annotations(annotations)?)?;
    }
    if let Some(flags) = layers.flags {
        lay(&mut settings, of_flags(flags)?)?;
    }
    Ok(settings)
}

/// The settings of a container with these annotations and this table of runtime options, and what is wrong with the
/// host's part of them. A layer of the host that is wrong is left out as a whole: it must not keep every container on
/// the host from starting.
///
/// # Errors
/// The first thing wrong with the annotations, which is their author's to mend.
pub fn for_container(
    annotations: &BTreeMap<String, String>,
    runtime_options: &str,
) -> Result<(Settings, Vec<ConfigError>), ConfigError> {
    let environment = Environment::own();
    let file = file::locate(&environment, None, is_root());
    let of_host = [
        file.and_then(|file| file.map_or_else(|| Ok(Vec::new()), |file| file.settings())),
        of_runtime_options(runtime_options),
        environment.settings(),
    ];
    let mut settings = Settings::default();
    let mut problems = Vec::new();
    for layer in of_host {
        let mut with_it = settings.clone();
        match layer.and_then(|layer| lay(&mut with_it, layer)) {
            Ok(()) => settings = with_it,
            Err(problem) => problems.push(problem),
        }
    }
    lay(&mut settings, of_annotations(annotations)?)?;
    Ok((settings, problems))
}

impl Settings {
    /// These settings, and over them what the command line says for one operation, by dotted name.
    ///
    /// # Errors
    /// The first thing wrong with what it says.
    pub fn with_flags(&self, flags: &BTreeMap<String, String>) -> Result<Self, ConfigError> {
        let mut settings = self.clone();
        lay(&mut settings, of_flags(flags)?)?;
        Ok(settings)
    }
}

/// One value, where it was found.
#[derive(Debug)]
pub(crate) struct Written {
    /// The setting.
    key: &'static Key,
    /// Its name as it was written.
    name: String,
    /// The value, or why it can be none.
    value: Result<Value, Problem>,
    /// Who wrote it.
    origin: Source,
}

impl Written {
    /// Finds the setting of a written name.
    pub(crate) fn new(
        name: String,
        value: Result<Value, Problem>,
        origin: Source,
    ) -> Result<Self, ConfigError> {
        match name::meaning(&name) {
            Meaning::Setting(key) => Ok(Self::of(key, name, value, origin)),
            Meaning::OfGo(advice) => Err(ConfigError::OfGo { name, origin, advice }),
            Meaning::Nothing(suggestion) => Err(ConfigError::Unknown {
                name,
                origin,
                suggestion,
            }),
        }
    }

    /// With the setting known already.
    pub(crate) fn of(key: &'static Key, name: String, value: Result<Value, Problem>, origin: Source) -> Self {
        Self {
            key,
            name,
            value,
            origin,
        }
    }

    /// The setting's own name.
    #[cfg(test)]
    pub(crate) fn setting(&self) -> &'static str {
        self.key.name
    }
}

/// Lays one layer over what there is.
fn lay(settings: &mut Settings, layer: Vec<Written>) -> Result<(), ConfigError> {
    let mut seen: BTreeMap<&str, (String, Value)> = BTreeMap::new();
    for Written {
        key,
        name,
        value,
        origin,
    } in layer
    {
        let wrong = |problem| ConfigError::Value {
            name: name.clone(),
            origin: origin.clone(),
            problem,
        };
        let value = value.map_err(wrong)?;
        (key.set)(settings, &value).map_err(wrong)?;
        // Two names of one setting that say the same do no harm.
        if let Some((first, said)) = seen.insert(key.name, (name.clone(), value.clone()))
            && said != value
        {
            return Err(ConfigError::Twice { name, origin, first });
        }
        drop(settings.sources.insert(key.name, origin));
    }
    Ok(())
}

fn of_runtime_options(table: &str) -> Result<Vec<Written>, ConfigError> {
    let origin = Source::RuntimeOptions;
    let malformed = |problem| ConfigError::Malformed {
        origin: origin.clone(),
        problem,
    };
    let values = crate::toml::parse_runtime_options(table).map_err(malformed)?;
    let written = |(name, value)| Written::new(name, value, origin.clone());
    values.into_iter().map(written).collect()
}

fn of_annotations(annotations: &BTreeMap<String, String>) -> Result<Vec<Written>, ConfigError> {
    let mut written = Vec::new();
    for (annotation, text) in annotations {
        let Some(name) = setting_of(annotation) else {
            continue;
        };
        let origin = Source::Annotation(annotation.clone());
        let one = Written::new(name.to_owned(), Ok(Value::Text(text.clone())), origin.clone())?;
        if one.key.scope == Scope::Host {
            return Err(ConfigError::HostOnly {
                name: one.key.name.to_owned(),
                origin,
            });
        }
        written.push(one);
    }
    Ok(written)
}

fn of_flags(flags: &BTreeMap<String, String>) -> Result<Vec<Written>, ConfigError> {
    let written = |(name, text): (&String, &String)| {
        Written::new(
            name.clone(),
            Ok(Value::Text(text.clone())),
            Source::Flag(name.clone()),
        )
    };
    flags.iter().map(written).collect()
}

/// The setting an annotation names, if it is one of ours and a setting at all.
fn setting_of(annotation: &str) -> Option<&str> {
    let name = annotation.strip_prefix(ANNOTATION_PREFIX)?;
    let is_setting = name == SHORT_ANNOTATION || SECTIONS.iter().any(|section| name.starts_with(section));
    is_setting.then_some(name)
}

/// Whether the host's files are this process's own. Asked of /proc, as the effective user decides what it may write.
fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0)
}

#[cfg(test)]
mod tests;
