//! What the layers make of each other.

use super::*;
use crate::key::KEYS;
use crate::settings::Tcp;

fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect()
}

fn environment(pairs: &[(&str, &str)]) -> Environment {
    Environment::of(pairs.iter().map(|(name, value)| (name.into(), value.into())))
}

fn with(file: Option<&str>, annotations: &[(&str, &str)]) -> Result<Settings, ConfigError> {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("config.json");
    if let Some(text) = file {
        std::fs::write(&path, text).expect("write the file");
    }
    resolve_layers(&Layers {
        file: Some(Place {
            path,
            asked_for: false,
        }),
        annotations: Some(&map(annotations)),
        ..Layers::default()
    })
}

#[test]
fn nothing_said_is_the_defaults() {
    assert_eq!(
        with(None, &[("io.kubernetes.cri", "x")]).expect("defaults"),
        Settings::default()
    );
}

#[test]
fn each_layer_wins_over_those_below_it_and_each_value_remembers_where_it_came_from() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("config.json");
    std::fs::write(&path, r#"{"dump": {"ghost-limit": 1, "timeout": "30s"}}"#).expect("write the file");
    let name = "dump.ghost-limit";
    let (annotations, flags) = (map(&[("cedana.dump.ghost-limit", "4")]), map(&[(name, "5")]));
    let mut layers = Layers {
        file: Some(Place {
            path: path.clone(),
            asked_for: true,
        }),
        ..Layers::default()
    };
    let check = |layers: &Layers<'_>, limit: u64, source: Source| {
        let settings = resolve_layers(layers).expect("settings");
        assert_eq!(
            (settings.dump.ghost_limit, &settings.sources[name]),
            (limit, &source)
        );
        assert_eq!(settings.sources["dump.timeout"], Source::File(path.clone()));
        assert!(!settings.sources.contains_key("dump.file-locks"));
    };
    check(&layers, 1, Source::File(path.clone()));
    layers.runtime_options = Some("\"cedana.dump.ghost-limit\" = 2\n");
    check(&layers, 2, Source::RuntimeOptions);
    layers.environment = environment(&[("CEDANA_DUMP_GHOST_LIMIT", "3")]);
    check(
        &layers,
        3,
        Source::Environment("CEDANA_DUMP_GHOST_LIMIT".to_owned()),
    );
    layers.annotations = Some(&annotations);
    check(
        &layers,
        4,
        Source::Annotation("cedana.dump.ghost-limit".to_owned()),
    );
    layers.flags = Some(&flags);
    check(&layers, 5, Source::Flag(name.to_owned()));
}

#[test]
fn flags_are_laid_over_settings_that_are_there() {
    let settings = with(Some(r#"{"dump": {"tcp": "close"}}"#), &[]).expect("settings");
    let flags = map(&[
        ("dump.ghost-limit", "1M"),
        ("dump.external", r#"["mnt[/a,b]:x"]"#),
    ]);
    let over = settings.with_flags(&flags).expect("settings");
    assert_eq!((over.dump.tcp, over.dump.ghost_limit), (Tcp::Close, 1 << 20));
    assert_eq!(
        over.dump.external,
        ["mnt[/a,b]:x"],
        "what only the host may set, root's flags may"
    );
    assert!(settings.with_flags(&map(&[("dump.tpc", "close")])).is_err());
}

#[test]
fn an_annotation_sets_nothing_that_is_the_hosts() {
    for key in KEYS.iter().filter(|key| key.scope == Scope::Host) {
        for name in [key.name.to_owned(), key.name.replace('-', "_")] {
            let annotation = format!("{ANNOTATION_PREFIX}{name}");
            let refused = for_container(&map(&[(&annotation, "/tmp/x")]), "");
            assert!(matches!(refused, Err(ConfigError::HostOnly { .. })), "{name}");
        }
    }
}

#[test]
fn what_is_wrong_with_the_host_keeps_no_container_from_starting() {
    let annotations = map(&[("cedana.dump.tcp", "close")]);
    let (settings, problems) = for_container(&annotations, "cedana.dump.tpc = 'close'").expect("settings");
    assert_eq!(settings.dump.tcp, Tcp::Close);
    assert!(
        matches!(problems.as_slice(), [ConfigError::Unknown { .. }]),
        "{problems:?}"
    );
    let half = "cedana.dump.file-locks = false\ncedana.dump.tcp = 3";
    let (settings, problems) = for_container(&BTreeMap::new(), half).expect("settings");
    assert_eq!(
        (settings, problems.len()),
        (Settings::default(), 1),
        "a wrong layer is left out as a whole"
    );
}

#[test]
fn names_that_users_know_are_understood() {
    let file = r#"{"criu": {"leave_running": false}, "checkpoint": {"dir": "/a"}, "db": {"path": ""}}"#;
    let settings = with(Some(file), &[]).expect("settings");
    assert!(!settings.dump.leave_running);
    assert_eq!(
        (settings.checkpoint.dir.as_path(), settings.db.path),
        (Path::new("/a"), None)
    );
    let settings = with(None, &[("cedana.leave-running", "false")]).expect("settings");
    assert!(!settings.dump.leave_running);
}

#[test]
fn annotations_that_are_not_settings_are_left_alone() {
    let others = [
        ("cedana.job", "x"),
        ("cedana.restore", "y"),
        ("other.dump.tcp", "z"),
    ];
    assert_eq!(with(None, &others).expect("settings"), Settings::default());
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
        (
            Some(r#"{"dump": {"external": [3]}}"#),
            None,
            "a list of something else",
        ),
        (
            Some(r#"{"speed": 3}"#),
            None,
            "find a setting for \"speed\" from /",
        ),
        (
            Some(r#"{"plugins": {"bin_dir": "/x"}}"#),
            None,
            "\"plugins.bin_dir\" from ",
        ),
        (
            Some(r#"{"gpu": {"pool_size": 1}}"#),
            None,
            "is a setting of the Go Cedana",
        ),
        (
            Some(r#"{"criu": {"leave_running": true}, "dump": {"leave-running": false}}"#),
            None,
            "it is there twice, as \"criu.leave_running\" too",
        ),
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
            "find a setting for annotation cedana.restore.lock",
        ),
    ] {
        let error = with(file, annotation.as_slice()).expect_err(expected).to_string();
        assert!(error.contains(expected), "{error:?} lacks {expected:?}");
    }
}
