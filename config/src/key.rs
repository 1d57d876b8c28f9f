//! The table of settings: each under its dotted name, with what it is and how it is set.

use crate::settings::{Compression, Files, NetworkLock, Settings, Tcp};
use crate::value::{self, Problem, Value};

/// One setting.
#[derive(Debug)]
pub struct Key {
    /// Its dotted name: `dump.tcp`. An annotation puts `cedana.` in front, the file nests at the dot.
    pub name: &'static str,
    /// One line for a user, values included.
    pub what: &'static str,
    /// Who may set it.
    pub scope: Scope,
    /// Its value as a user would write it; empty for "none".
    pub get: fn(&Settings) -> String,
    /// Puts a value in its place.
    pub set: fn(&mut Settings, &Value) -> Result<(), Problem>,
}

/// Who may set a setting. The file, the environment, the runtime options and flags are root's; annotations are not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Whoever starts the container, too, by an annotation.
    Container,
    /// The host alone: whoever may write a container's annotations must not choose where root writes, or what of the
    /// host a dump leaves out.
    Host,
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

const FILES: &[(&str, Files)] = &[
    ("auto", Files::Auto),
    ("always", Files::Always),
    ("never", Files::Never),
];

const COMPRESSIONS: &[(&str, Compression)] = &[
    ("none", Compression::None),
    ("tar", Compression::Tar),
    ("gzip", Compression::Gzip),
    ("lz4", Compression::Lz4),
    ("zlib", Compression::Zlib),
    ("zstd", Compression::Zstd),
];

/// Every setting there is.
pub const KEYS: &[Key] = &[
    Key {
        name: "dump.leave-running",
        what: "the container goes on after a dump whose client does not say (true|false)",
        scope: Scope::Container,
        get: |s| s.dump.leave_running.to_string(),
        set: |settings, value| value.boolean().map(|v| settings.dump.leave_running = v),
    },
    Key {
        name: "dump.tcp",
        what: "established TCP connections: default (save those within the container, refuse others), established (save), close (come back closed)",
        scope: Scope::Container,
        get: |s| value::word_of(s.dump.tcp, TCP),
        set: |settings, value| value.one_of(TCP).map(|v| settings.dump.tcp = v),
    },
    Key {
        name: "dump.skip-in-flight",
        what: "leave out connections nobody has accepted yet: auto (those from outside), true, false",
        scope: Scope::Container,
        get: |s| value::text_of_choice(s.dump.skip_in_flight),
        set: |settings, value| value.choice().map(|v| settings.dump.skip_in_flight = v),
    },
    Key {
        name: "dump.external-unix-sockets",
        what: "leave out datagram sockets connected to the host: auto (those to its log), true, false",
        scope: Scope::Container,
        get: |s| value::text_of_choice(s.dump.external_unix_sockets),
        set: |settings, value| value.choice().map(|v| settings.dump.external_unix_sockets = v),
    },
    Key {
        name: "dump.shell-job",
        what: "take a terminal along that is not the container's (true|false)",
        scope: Scope::Container,
        get: |s| s.dump.shell_job.to_string(),
        set: |settings, value| value.boolean().map(|v| settings.dump.shell_job = v),
    },
    Key {
        name: "dump.file-locks",
        what: "save file locks (true|false)",
        scope: Scope::Container,
        get: |s| s.dump.file_locks.to_string(),
        set: |settings, value| value.boolean().map(|v| settings.dump.file_locks = v),
    },
    Key {
        name: "dump.link-remap",
        what: "save deleted files that still have another name: auto (if the container ends with the dump), true, false",
        scope: Scope::Container,
        get: |s| value::text_of_choice(s.dump.link_remap),
        set: |settings, value| value.choice().map(|v| settings.dump.link_remap = v),
    },
    Key {
        name: "dump.files",
        what: "save the files that the container has written: auto (when `cedana` dumps), always, never",
        scope: Scope::Container,
        get: |s| value::word_of(s.dump.files, FILES),
        set: |settings, value| value.one_of(FILES).map(|v| settings.dump.files = v),
    },
    Key {
        name: "dump.ghost-limit",
        what: "the largest deleted but open file that is saved (bytes, or with K, M, G)",
        scope: Scope::Container,
        get: |s| value::text_of_bytes(s.dump.ghost_limit),
        set: |settings, value| value.bytes().map(|v| settings.dump.ghost_limit = v),
    },
    Key {
        name: "dump.buffer",
        what: "the most memory a dump takes to hold pages in (bytes, or with K, M, G; 0: as needed, half of what is free)",
        scope: Scope::Host,
        get: |s| value::text_of_bytes(s.dump.buffer),
        set: |settings, value| value.bytes().map(|v| settings.dump.buffer = v),
    },
    Key {
        name: "dump.network-lock",
        what: "how packets are kept away during a dump: auto, skip, iptables, nftables",
        scope: Scope::Container,
        get: |s| value::word_of(s.dump.network_lock, LOCKS),
        set: |settings, value| value.one_of(LOCKS).map(|v| settings.dump.network_lock = v),
    },
    Key {
        name: "dump.timeout",
        what: "when a dump is given up (seconds, or with ms, s, m; 0: by size)",
        scope: Scope::Container,
        get: |s| value::text_of_duration(s.dump.timeout),
        set: |settings, value| value.duration().map(|v| settings.dump.timeout = v),
    },
    Key {
        name: "dump.log-dir",
        what: "where logs of failed dumps are kept (absolute path)",
        scope: Scope::Host,
        get: |s| s.dump.log_dir.display().to_string(),
        set: |settings, value| value.absolute_path().map(|v| settings.dump.log_dir = v),
    },
    Key {
        name: "dump.external",
        what: "what of the host CRIU leaves out of a dump, as its --external names it (list: mnt[/data]:data, …)",
        scope: Scope::Host,
        get: |s| value::text_of_list(&s.dump.external),
        set: |settings, value| value.list().map(|v| settings.dump.external = v),
    },
    Key {
        name: "restore.tcp",
        what: "established TCP connections: default (as dumped), established, close",
        scope: Scope::Container,
        get: |s| value::word_of(s.restore.tcp, TCP),
        set: |settings, value| value.one_of(TCP).map(|v| settings.restore.tcp = v),
    },
    Key {
        name: "restore.network-lock",
        what: "how packets are kept away during a restore: auto, skip, iptables, nftables",
        scope: Scope::Container,
        get: |s| value::word_of(s.restore.network_lock, LOCKS),
        set: |settings, value| value.one_of(LOCKS).map(|v| settings.restore.network_lock = v),
    },
    Key {
        name: "restore.timeout",
        what: "when a restore is given up (seconds, or with ms, s, m; 0: by size)",
        scope: Scope::Container,
        get: |s| value::text_of_duration(s.restore.timeout),
        set: |settings, value| value.duration().map(|v| settings.restore.timeout = v),
    },
    Key {
        name: "restore.skip-file-check",
        what: "do not compare the permissions of files with what they were at the dump (true|false)",
        scope: Scope::Container,
        get: |s| s.restore.skip_file_check.to_string(),
        set: |settings, value| value.boolean().map(|v| settings.restore.skip_file_check = v),
    },
    Key {
        name: "restore.skip-cpu-check",
        what: "restore though this processor lacks instructions that the one of the dump had (true|false)",
        scope: Scope::Container,
        get: |s| s.restore.skip_cpu_check.to_string(),
        set: |settings, value| value.boolean().map(|v| settings.restore.skip_cpu_check = v),
    },
    Key {
        name: "restore.lazy",
        what: "let processes run before their memory is there, and bring it behind them (true|false)",
        scope: Scope::Container,
        get: |s| s.restore.lazy.to_string(),
        set: |settings, value| value.boolean().map(|v| settings.restore.lazy = v),
    },
    Key {
        name: "restore.fill-rate",
        what: "how much memory a second is brought behind running processes, unasked (bytes, or with K, M, G; 0: all that goes)",
        scope: Scope::Container,
        get: |s| value::text_of_bytes(s.restore.fill_rate),
        set: |settings, value| value.bytes().map(|v| settings.restore.fill_rate = v),
    },
    Key {
        name: "restore.external",
        what: "what stands where a dump left something out, as CRIU's --external names it (list: mnt[data]:/data, …)",
        scope: Scope::Host,
        get: |s| value::text_of_list(&s.restore.external),
        set: |settings, value| value.list().map(|v| settings.restore.external = v),
    },
    Key {
        name: "restore.log-dir",
        what: "where logs of failed restores are kept (absolute path)",
        scope: Scope::Host,
        get: |s| s.restore.log_dir.display().to_string(),
        set: |settings, value| value.absolute_path().map(|v| settings.restore.log_dir = v),
    },
    Key {
        name: "checkpoint.dir",
        what: "where `cedana` puts checkpoints (absolute path)",
        scope: Scope::Host,
        get: |s| s.checkpoint.dir.display().to_string(),
        set: |settings, value| value.absolute_path().map(|v| settings.checkpoint.dir = v),
    },
    Key {
        name: "checkpoint.compression",
        what: "how `cedana` packs a checkpoint: none (a directory), tar, gzip, lz4, zlib, zstd",
        scope: Scope::Host,
        get: |s| value::word_of(s.checkpoint.compression, COMPRESSIONS),
        set: |settings, value| {
            value
                .one_of(COMPRESSIONS)
                .map(|v| settings.checkpoint.compression = v)
        },
    },
    Key {
        name: "db.path",
        what: "the registry of jobs (absolute path; empty: none is kept)",
        scope: Scope::Host,
        get: |s| {
            s.db.path
                .as_ref()
                .map(|path| path.display().to_string())
                .unwrap_or_default()
        },
        set: |settings, value| {
            let path = if value.is_empty() {
                None
            } else {
                Some(value.absolute_path()?)
            };
            settings.db.path = path;
            Ok(())
        },
    },
];

/// The setting of exactly that name.
pub fn find(name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn what_a_setting_shows_can_be_set_again() {
        for key in KEYS {
            let mut settings = Settings::default();
            let shown = (key.get)(&settings);
            (key.set)(&mut settings, &Value::Text(shown.clone())).expect(key.name);
            assert_eq!(settings, Settings::default(), "{} from {shown:?}", key.name);
        }
    }

    #[test]
    fn what_is_set_is_what_is_shown() {
        for (name, written, shown) in [
            ("dump.ghost-limit", "1536K", "1536K"),
            ("dump.ghost-limit", "1024M", "1G"),
            ("dump.timeout", "90", "90s"),
            ("dump.timeout", "2m", "2m"),
            ("restore.timeout", "1500ms", "1500ms"),
            ("dump.external", "mnt[/a]:a, mnt[/b]:b", "mnt[/a]:a,mnt[/b]:b"),
            ("db.path", "", ""),
            ("checkpoint.compression", "zstd", "zstd"),
        ] {
            let mut settings = Settings::default();
            let key = find(name).expect(name);
            (key.set)(&mut settings, &Value::Text(written.to_owned())).expect(written);
            assert_eq!((key.get)(&settings), shown, "{name} = {written}");
        }
    }

    /// A setting nobody can look up does not exist.
    #[test]
    fn the_manual_has_every_setting_with_its_default() {
        let manual = include_str!("../../docs/settings.md");
        for key in KEYS {
            let default = (key.get)(&Settings::default());
            let row = format!(
                "| `{}` | {} |",
                key.name,
                if default.is_empty() {
                    String::new()
                } else {
                    format!("`{default}`")
                }
            );
            assert!(
                manual.contains(&row.replace("|  |", "| |")),
                "docs/settings.md lacks {row}"
            );
        }
    }
}
