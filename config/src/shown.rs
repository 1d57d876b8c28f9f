//! The settings as they are told to a user.

use crate::key::KEYS;
use crate::settings::Settings;

/// One setting, told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    /// Its dotted name.
    pub name: &'static str,
    /// Its value, as the user would write it.
    pub value: String,
    /// Where the value came from: a path, a variable, an annotation, or `default`.
    pub source: String,
    /// One line about it, possible values included.
    pub what: &'static str,
}

/// Every setting, in the order of the manual.
pub fn shown(settings: &Settings) -> Vec<Shown> {
    let told = |key: &crate::key::Key| {
        let source = settings.sources.get(key.name);
        Shown {
            name: key.name,
            value: (key.get)(settings),
            source: source.map_or_else(|| "default".to_owned(), ToString::to_string),
            what: key.what,
        }
    };
    KEYS.iter().map(told).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_value_is_told_with_its_source() {
        let flags = [("dump.ghost-limit".to_owned(), "2048".to_owned())].into();
        let settings = Settings::default().with_flags(&flags).expect("settings");
        let told = shown(&settings);
        let find = |name| told.iter().find(|shown| shown.name == name).expect(name);
        let limit = find("dump.ghost-limit");
        assert_eq!(
            (limit.value.as_str(), limit.source.as_str()),
            ("2K", "the command line")
        );
        let tcp = find("dump.tcp");
        assert_eq!((tcp.value.as_str(), tcp.source.as_str()), ("default", "default"));
    }
}
