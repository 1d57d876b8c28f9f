//! The names a setting goes by: its own, those users of the Go Cedana know, and those that only look like one.

use crate::key::{self, KEYS, Key};

/// Other spellings: short ones that people write by hand, and those of the Go Cedana.
const ALIASES: [(&str, &str); 2] = [
    ("leave-running", "dump.leave-running"),
    ("criu.leave-running", "dump.leave-running"),
];

/// What the Go Cedana has and nothing here needs: the beginning of a name, up to a dot or whole, and what to do about it.
/// The first that fits is the answer.
const OF_GO: &[(&str, &str)] = &[
    ("address", "there is no daemon to reach: remove it"),
    ("protocol", "there is no daemon to reach: remove it"),
    ("client", "there is no daemon to wait for: remove it"),
    ("connection", "nothing here needs it: remove it"),
    ("metrics", "nothing here needs it: remove it"),
    ("profiling", "nothing here needs it: remove it"),
    ("plugins", "there are no plugins: remove it"),
    ("slurm", "nothing here needs it: remove it"),
    ("gpu", "nothing here needs it: remove it"),
    ("aws", "nothing here needs it: remove it"),
    (
        "log-level",
        "the shim logs what containerd's own [debug] level asks for: remove it",
    ),
    (
        "log-level-no-server",
        "the shim logs what containerd's own [debug] level asks for: remove it",
    ),
    ("checkpoint.streams", "nothing here needs it: remove it"),
    (
        "checkpoint.stream-memory-limit",
        "nothing here needs it: remove it",
    ),
    ("checkpoint.async", "nothing here needs it: remove it"),
    ("db.remote", "the registry is always this machine's: remove it"),
    (
        "criu.binary-path",
        "runc takes CRIU from the PATH of containerd: put it there and remove this",
    ),
    (
        "criu.manage-cgroups",
        "the container's cgroup is kept as containerd made it: remove it",
    ),
    (
        "criu.log-level",
        "CRIU's whole log is kept when an operation fails: remove it",
    ),
];

/// What a name stands for.
#[derive(Debug)]
pub(crate) enum Meaning {
    /// A setting.
    Setting(&'static Key),
    /// A setting of the Go Cedana, and what to do about it.
    OfGo(&'static str),
    /// Nothing; and the name that may have been meant.
    Nothing(Option<&'static str>),
}

/// What a written name stands for. Underscores and capital letters do not matter.
pub(crate) fn meaning(written: &str) -> Meaning {
    let name = written.replace('_', "-").to_ascii_lowercase();
    let long = ALIASES.iter().find(|(short, _)| *short == name);
    let name = long.map_or(name.as_str(), |(_, long)| long);
    if let Some(key) = key::find(name) {
        return Meaning::Setting(key);
    }
    let fits = |start: &str| {
        let rest = name.strip_prefix(start);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    };
    match OF_GO.iter().find(|(start, _)| fits(start)) {
        Some((_, advice)) => Meaning::OfGo(advice),
        None => Meaning::Nothing(nearest(name)),
    }
}

/// The setting that a variable of the environment stands for; its name comes without `CEDANA_`. There a dot, a dash and
/// an underscore are one, so the names are compared as they would be spelt there.
pub(crate) fn meaning_in_environment(written: &str) -> Meaning {
    let same = |name: &str| variable(name) == written;
    if let Some(key) = KEYS.iter().find(|key| same(key.name)) {
        return Meaning::Setting(key);
    }
    let alias = ALIASES.iter().find(|(short, _)| same(short));
    if let Some(key) = alias.and_then(|(_, long)| key::find(long)) {
        return Meaning::Setting(key);
    }
    let starts = |start: &str| written.starts_with(&variable(start));
    match OF_GO.iter().find(|(start, _)| starts(start)) {
        Some((_, advice)) => Meaning::OfGo(advice),
        None => {
            // The first underscore stands for the dot in every name but those without one.
            Meaning::Nothing(nearest(
                &written
                    .replacen('_', ".", 1)
                    .replace('_', "-")
                    .to_ascii_lowercase(),
            ))
        }
    }
}

/// A dotted name as the environment spells it, without `CEDANA_`.
pub fn variable(name: &str) -> String {
    name.replace(['.', '-'], "_").to_ascii_uppercase()
}

/// The setting whose name is nearest to a mistyped one, if any is near enough to be meant.
fn nearest(name: &str) -> Option<&'static str> {
    // More than a third of the letters wrong is another word, not a typo.
    let limit = name.chars().count() / 3;
    KEYS.iter()
        .map(|key| (distance(name, key.name), key.name))
        .filter(|(d, _)| *d <= limit)
        .min()
        .map(|(_, n)| n)
}

/// Levenshtein's distance, one row at a time.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut next = vec![i + 1];
        for ((to, above), left_above) in b.iter().zip(row.iter().skip(1)).zip(row.iter()) {
            let left = next.last().copied().unwrap_or(i + 1);
            next.push(
                (above + 1)
                    .min(left + 1)
                    .min(left_above + usize::from(from != *to)),
            );
        }
        row = next;
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(meaning: &Meaning) -> String {
        match meaning {
            Meaning::Setting(key) => key.name.to_owned(),
            Meaning::OfGo(_) => "go".to_owned(),
            Meaning::Nothing(near) => format!("{}?", near.unwrap_or_default()),
        }
    }

    #[test]
    fn a_name_is_known_in_every_spelling_and_a_typo_is_answered_with_what_was_meant() {
        for (written, means) in [
            ("dump.ghost-limit", "dump.ghost-limit"),
            ("dump.ghost_limit", "dump.ghost-limit"),
            ("criu.leave_running", "dump.leave-running"),
            ("leave-running", "dump.leave-running"),
            ("checkpoint.dir", "checkpoint.dir"),
            ("checkpoint.streams", "go"),
            ("connection.auth_token", "go"),
            ("log_level", "go"),
            ("gpu.pool_size", "go"),
            ("gpus.pool_size", "?"),
            ("dump.ghost-limits", "dump.ghost-limit?"),
            ("restore.tpc", "restore.tcp?"),
            ("dump.leaverunning", "dump.leave-running?"),
            ("db.pth", "db.path?"),
            ("nonsense", "?"),
            ("", "?"),
        ] {
            assert_eq!(told(&meaning(written)), means, "{written}");
        }
    }

    #[test]
    fn the_environment_spells_every_name_with_underscores() {
        for (written, means) in [
            ("DUMP_GHOST_LIMIT", "dump.ghost-limit"),
            ("CHECKPOINT_DIR", "checkpoint.dir"),
            ("DB_PATH", "db.path"),
            ("CRIU_LEAVE_RUNNING", "dump.leave-running"),
            ("LEAVE_RUNNING", "dump.leave-running"),
            ("CHECKPOINT_STREAMS", "go"),
            ("DUMP_GOST_LIMIT", "dump.ghost-limit?"),
        ] {
            assert_eq!(told(&meaning_in_environment(written)), means, "{written}");
        }
    }

    #[test]
    fn no_two_settings_are_one_variable() {
        for (index, key) in KEYS.iter().enumerate() {
            let twin = KEYS[..index]
                .iter()
                .find(|other| variable(other.name) == variable(key.name));
            assert!(twin.is_none(), "{}", key.name);
        }
    }

    #[test]
    fn an_alias_leads_to_a_setting() {
        for (short, long) in ALIASES {
            assert!(key::find(long).is_some() && key::find(short).is_none(), "{short}");
        }
    }
}
