//! What the fuzzer feeds here: the parsers of what somebody else wrote. In no build that ships.
//!
//! A target takes any bytes, and an empty directory of its own. It panics where something is wrong.
#![expect(
    clippy::expect_used,
    reason = "a panic is how a target tells of what is wrong"
)]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use crate::key::{KEYS, Scope};
use crate::value::Value;
use crate::{Layers, Place, Settings, resolve_layers};

/// A parser under its name.
pub type Target = (&'static str, fn(&[u8], &Path));

/// All of them here.
pub const TARGETS: &[Target] = &[
    ("annotations", annotations),
    ("settings_json", |text, dir| file(text, dir, "config.json")),
    ("settings_toml", |text, dir| file(text, dir, "config.toml")),
    ("runtime_options", runtime_options),
];

/// Lines `NAME=VALUE`, the names without their prefix.
fn annotations(lines: &[u8], _: &Path) {
    let lines = String::from_utf8_lossy(lines);
    let pairs = lines.lines().filter_map(|line| line.split_once('='));
    let annotations: BTreeMap<String, String> = pairs
        .map(|(name, value)| (format!("cedana.{name}"), value.to_owned()))
        .collect();
    let layers = Layers {
        annotations: Some(&annotations),
        ..Layers::default()
    };
    let Ok(settings) = resolve_layers(&layers) else {
        return;
    };
    can_be_set_again(&settings);
    for key in KEYS.iter().filter(|key| key.scope == Scope::Host) {
        let default = (key.get)(&Settings::default());
        assert_eq!((key.get)(&settings), default, "{} by an annotation", key.name);
    }
}

fn file(text: &[u8], dir: &Path, name: &str) {
    let path = dir.join(name);
    fs::write(&path, text).expect("write the file");
    let layers = Layers {
        file: Some(Place {
            path,
            asked_for: true,
        }),
        ..Layers::default()
    };
    resolve_layers(&layers).iter().for_each(can_be_set_again);
}

fn runtime_options(table: &[u8], _: &Path) {
    let table = String::from_utf8_lossy(table);
    let layers = Layers {
        runtime_options: Some(&table),
        ..Layers::default()
    };
    resolve_layers(&layers).iter().for_each(can_be_set_again);
}

/// What was taken is shown so that it is taken again, and as the same.
fn can_be_set_again(settings: &Settings) {
    for key in KEYS {
        let shown = (key.get)(settings);
        let mut again = Settings::default();
        let set = (key.set)(&mut again, &Value::Text(shown.clone()));
        assert_eq!(set, Ok(()), "{} from {shown:?}", key.name);
        assert_eq!((key.get)(&again), shown, "{}", key.name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the fuzzer once found, and what it begins with.
    #[test]
    fn every_input_that_is_kept_is_got_over() {
        for (name, target) in TARGETS {
            let inputs = Path::new("../integration/fuzz/inputs").join(name);
            let inputs =
                fs::read_dir(&inputs).unwrap_or_else(|error| panic!("{}: {error}", inputs.display()));
            for input in inputs {
                let dir = tempfile::tempdir().expect("a directory");
                target(
                    &fs::read(input.expect("an input").path()).expect("read"),
                    dir.path(),
                );
            }
        }
    }
}
