//! The table of settings: each under its dotted name, with what it is and how it is set.

use crate::settings::{NetworkLock, Settings, Tcp};
use crate::value::{Problem, Value};

/// One setting.
#[derive(Debug)]
pub struct Key {
    /// Its dotted name: `dump.tcp`. An annotation puts `cedana.` in front, the file nests at the dot.
    pub name: &'static str,
    /// One line for a user, values included.
    pub what: &'static str,
    /// Puts a value in its place.
    pub set: fn(&mut Settings, &Value) -> Result<(), Problem>,
}

const TCP: &[(&str, Tcp)] = &[
    ("default", Tcp::Default),
    ("established", Tcp::Established),
    ("close", Tcp::Close),
];

const LOCKS: &[(&str, NetworkLock)] = &[
    ("auto", NetworkLock::Auto),
    ("skip", NetworkLock::Skip),
    ("iptables", NetworkLock::Iptables),
    ("nftables", NetworkLock::Nftables),
];

/// Settings of the host alone. Whoever may write a container's annotations must not choose where root writes.
pub const HOST_ONLY: [&str; 2] = ["dump.log-dir", "restore.log-dir"];

/// Every setting there is.
pub const KEYS: &[Key] = &[
    Key {
        name: "dump.leave-running",
        what: "the container goes on after a dump whose client does not say (true|false)",
        set: |settings, value| value.boolean().map(|v| settings.dump.leave_running = v),
    },
    Key {
        name: "dump.tcp",
        what: "established TCP connections: default (refuse), established (save), close (come back closed)",
        set: |settings, value| value.one_of(TCP).map(|v| settings.dump.tcp = v),
    },
    Key {
        name: "dump.skip-in-flight",
        what: "leave out connections nobody has accepted yet (true|false)",
        set: |settings, value| value.boolean().map(|v| settings.dump.skip_in_flight = v),
    },
    Key {
        name: "dump.external-unix-sockets",
        what: "leave out datagram sockets connected to the host (true|false)",
        set: |settings, value| value.boolean().map(|v| settings.dump.external_unix_sockets = v),
    },
    Key {
        name: "dump.file-locks",
        what: "save file locks (true|false)",
        set: |settings, value| value.boolean().map(|v| settings.dump.file_locks = v),
    },
    Key {
        name: "dump.link-remap",
        what: "save deleted files that still have another name (true|false)",
        set: |settings, value| value.boolean().map(|v| settings.dump.link_remap = v),
    },
    Key {
        name: "dump.ghost-limit",
        what: "the largest deleted but open file that is saved (bytes, or with K, M, G)",
        set: |settings, value| value.bytes().map(|v| settings.dump.ghost_limit = v),
    },
    Key {
        name: "dump.network-lock",
        what: "how packets are kept away during a dump: auto, skip, iptables, nftables",
        set: |settings, value| value.one_of(LOCKS).map(|v| settings.dump.network_lock = v),
    },
    Key {
        name: "dump.timeout",
        what: "when a dump is given up (seconds, or with ms, s, m; 0: by size)",
        set: |settings, value| value.duration().map(|v| settings.dump.timeout = v),
    },
    Key {
        name: "dump.log-dir",
        what: "where logs of failed dumps are kept (absolute path)",
        set: |settings, value| value.absolute_path().map(|v| settings.dump.log_dir = v),
    },
    Key {
        name: "restore.tcp",
        what: "established TCP connections: default (as dumped), established, close",
        set: |settings, value| value.one_of(TCP).map(|v| settings.restore.tcp = v),
    },
    Key {
        name: "restore.network-lock",
        what: "how packets are kept away during a restore: auto, skip, iptables, nftables",
        set: |settings, value| value.one_of(LOCKS).map(|v| settings.restore.network_lock = v),
    },
    Key {
        name: "restore.timeout",
        what: "when a restore is given up (seconds, or with ms, s, m; 0: by size)",
        set: |settings, value| value.duration().map(|v| settings.restore.timeout = v),
    },
    Key {
        name: "restore.skip-file-check",
        what: "do not compare the permissions of files with what they were at the dump (true|false)",
        set: |settings, value| value.boolean().map(|v| settings.restore.skip_file_check = v),
    },
    Key {
        name: "restore.log-dir",
        what: "where logs of failed restores are kept (absolute path)",
        set: |settings, value| value.absolute_path().map(|v| settings.restore.log_dir = v),
    },
];

/// The setting of that name.
pub fn find(name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.name == name)
}

/// The setting whose name is nearest to a mistyped one, if any is near enough to be meant.
pub fn nearest(name: &str) -> Option<&'static str> {
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

    #[test]
    fn a_typo_is_answered_with_the_name_that_was_meant() {
        for (typed, meant) in [
            ("dump.ghost-limits", Some("dump.ghost-limit")),
            ("dump.ghost_limit", Some("dump.ghost-limit")),
            ("restore.tpc", Some("restore.tcp")),
            ("dump.leaverunning", Some("dump.leave-running")),
            ("nonsense", None),
            ("", None),
        ] {
            assert_eq!(nearest(typed), meant, "{typed}");
        }
    }

    #[test]
    fn names_are_unique_and_nest_exactly_once() {
        for (index, key) in KEYS.iter().enumerate() {
            assert_eq!(key.name.matches('.').count(), 1, "{}", key.name);
            assert!(
                KEYS[..index].iter().all(|other| other.name != key.name),
                "{} twice",
                key.name
            );
        }
    }
}
