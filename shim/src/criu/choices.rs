//! What a dump does about what it may do in more than one way: as somebody said, or as it is safe by what is seen of the container.
//!
//! Safe is what neither the application nor whoever speaks with it can tell from an ordinary pause, or has to be ready for at any
//! time: a connection from outside that is reset before the server has taken it, a log that has to be opened again.
//! Everything else is refused, with the setting that allows it.

use std::net::{IpAddr, SocketAddr};

use config::{Choice, Tcp};
use oci_bundles::manifest::Chosen;

use super::connections::Connection;

/// Where the host's log listens: who logs there opens it again when it is gone, as it is whenever the log is restarted.
const LOGS: [&str; 4] = [
    "/dev/log",
    "/run/systemd/journal/dev-log",
    "/run/systemd/journal/socket",
    "/run/systemd/journal/syslog",
];

/// What was seen of a container that stands.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// The TCP connections that it holds.
    pub connections: Vec<Connection>,
    /// Where it listens and connections wait that it has not accepted.
    pub waiting: Vec<SocketAddr>,
    /// Its network is not the host's.
    pub own_network: bool,
    /// The container ends with the dump.
    pub ends: bool,
    /// Sockets of the host that its datagram sockets are connected to, by name.
    pub datagrams: Vec<String>,
}

impl Seen {
    /// The connections that lead out of the container, or may: over its own loopback both ends are its own, and saved together.
    pub fn leading_out(&self) -> Vec<Connection> {
        let has_both = |one: &Connection| {
            let (local, remote) = ends(one);
            let is_other = |other: &Connection| ends(other) == (remote, local);
            self.own_network && local.ip().is_loopback() && self.connections.iter().any(is_other)
        };
        let leads_out = |one: &&Connection| !has_both(one);
        self.connections.iter().filter(leads_out).copied().collect()
    }

    /// Whether a connection that waits is one that the container has made itself: left out, its other end would hang.
    fn waits_for_itself(&self) -> bool {
        let ports: Vec<u16> = self.waiting.iter().map(SocketAddr::port).collect();
        let is_lone = |one: &Connection| ports.contains(&one.remote.port());
        self.leading_out().iter().any(is_lone)
    }
}

/// Both addresses, an IPv4 one that a socket of IPv6 has as what it is.
fn ends(connection: &Connection) -> (SocketAddr, SocketAddr) {
    let plain = |address: SocketAddr| {
        let ip: IpAddr = address.ip().to_canonical();
        SocketAddr::new(ip, address.port())
    };
    (plain(connection.local), plain(connection.remote))
}

/// What is done in this dump.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Choices {
    /// About established connections.
    pub tcp: Tcp,
    /// Connections that nobody has accepted are left out.
    pub skip_in_flight: bool,
    /// Deleted files that have another name get one more. Where the container goes on, CRIU removes that again at the end of the dump,
    /// and no restore would find it (seen with 4.2).
    pub link_remap: bool,
    /// Datagram sockets that are connected to the host are left out.
    pub external_unix_sockets: bool,
    /// Those of these that nobody asked for.
    pub own: Vec<Chosen>,
}

impl Choices {
    /// What is safe, and what the settings say. Whether connections that are left are refused is the caller's to say.
    pub fn of(seen: &Seen, settings: &config::Dump) -> Self {
        let mut choices = Self {
            tcp: settings.tcp,
            skip_in_flight: settings.skip_in_flight == Choice::Yes,
            link_remap: settings.link_remap == Choice::Yes
                || settings.link_remap == Choice::Auto && seen.ends,
            external_unix_sockets: settings.external_unix_sockets == Choice::Yes,
            own: Vec::new(),
        };
        let count = seen.connections.len();
        if settings.tcp == Tcp::Default && count > 0 && seen.leading_out().is_empty() {
            choices.tcp = Tcp::Established;
            choices.chose(
                "tcp",
                "established",
                format!("both ends of the {count} connection ends are in the container"),
            );
        }
        if settings.skip_in_flight == Choice::Auto && !seen.waiting.is_empty() && !seen.waits_for_itself() {
            choices.skip_in_flight = true;
            choices.chose(
                "skip-in-flight",
                "true",
                format!(
                    "connections wait that nobody has accepted, at {}",
                    listed(&seen.waiting)
                ),
            );
        }
        let is_log = |name: &String| LOGS.contains(&name.as_str());
        if settings.external_unix_sockets == Choice::Auto
            && !seen.datagrams.is_empty()
            && seen.datagrams.iter().all(is_log)
        {
            choices.external_unix_sockets = true;
            choices.chose(
                "external-unix-sockets",
                "true",
                format!(
                    "sockets are connected to the host's log, {}",
                    listed(&seen.datagrams)
                ),
            );
        }
        choices
    }

    fn chose(&mut self, option: &str, value: &str, why: String) {
        self.own.push(Chosen {
            option: option.to_owned(),
            value: value.to_owned(),
            why,
        });
    }
}

/// The first few.
fn listed<T: ToString>(all: &[T]) -> String {
    let words: Vec<String> = all.iter().take(3).map(ToString::to_string).collect();
    words.join(", ") + if all.len() > words.len() { ", …" } else { "" }
}

/// Everything that CRIU is told: what was chosen, what was set, and what holds by default.
pub fn all(choices: &Choices, settings: &config::Dump, of_client: &[&str]) -> Vec<Chosen> {
    let default = config::Dump::default();
    let now = config::Settings {
        dump: config::Dump {
            tcp: choices.tcp,
            ..settings.clone()
        },
        ..config::Settings::default()
    };
    let switch = |on: bool| on.to_string();
    let values = [
        ("tcp", shown(&now, "dump.tcp"), settings.tcp != default.tcp),
        (
            "skip-in-flight",
            switch(choices.skip_in_flight),
            settings.skip_in_flight != default.skip_in_flight,
        ),
        (
            "external-unix-sockets",
            switch(choices.external_unix_sockets),
            settings.external_unix_sockets != default.external_unix_sockets,
        ),
        (
            "file-locks",
            switch(settings.file_locks),
            settings.file_locks != default.file_locks,
        ),
        (
            "link-remap",
            switch(choices.link_remap),
            settings.link_remap != default.link_remap,
        ),
        (
            "ghost-limit",
            shown(&now, "dump.ghost-limit"),
            settings.ghost_limit != default.ghost_limit,
        ),
        (
            "shell-job",
            switch(settings.shell_job),
            settings.shell_job != default.shell_job,
        ),
        (
            "network-lock",
            shown(&now, "dump.network-lock"),
            settings.network_lock != default.network_lock,
        ),
        (
            "external",
            shown(&now, "dump.external"),
            settings.external != default.external,
        ),
    ];
    let chosen = |(option, value, is_set): (&str, String, bool)| {
        let own = choices.own.iter().find(|one| one.option == option);
        own.cloned().unwrap_or_else(|| Chosen {
            option: option.to_owned(),
            value: if of_client.contains(&option) && value == "false" {
                switch(true)
            } else {
                value
            },
            why: why(of_client.contains(&option), is_set).to_owned(),
        })
    };
    values
        .into_iter()
        .filter(|(_, value, _)| !value.is_empty())
        .map(chosen)
        .collect()
}

fn why(of_client: bool, is_set: bool) -> &'static str {
    match (of_client, is_set) {
        (true, _) => "the client asked for it",
        (false, true) => "set",
        (false, false) => "by default",
    }
}

fn shown(settings: &config::Settings, name: &str) -> String {
    config::key::find(name)
        .map(|key| (key.get)(settings))
        .unwrap_or_default()
}

/// What is not as it is by default, for the log: `tcp=established (set), …`.
pub fn summary(options: &[Chosen]) -> String {
    let told = options.iter().filter(|one| one.why != why(false, false));
    let told: Vec<String> = told
        .map(|one| format!("{}={} ({})", one.option, one.value, one.why))
        .collect();
    told.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connection(local: &str, remote: &str) -> Connection {
        Connection::between(
            local.parse().expect("an address"),
            remote.parse().expect("an address"),
        )
    }

    fn seen(connections: &[(&str, &str)], waiting: &[&str]) -> Seen {
        Seen {
            connections: connections
                .iter()
                .map(|(local, remote)| connection(local, remote))
                .collect(),
            waiting: waiting
                .iter()
                .map(|address| address.parse().expect("an address"))
                .collect(),
            own_network: true,
            ..Seen::default()
        }
    }

    #[test]
    fn only_what_stays_in_the_container_is_saved_unasked() {
        let within = [("127.0.0.1:80", "127.0.0.1:9"), ("127.0.0.1:9", "127.0.0.1:80")];
        let mixed = [
            ("[::ffff:127.0.0.1]:80", "[::ffff:127.0.0.1]:9"),
            ("127.0.0.1:9", "127.0.0.1:80"),
        ];
        let own_address = [("10.0.0.2:80", "10.0.0.2:9"), ("10.0.0.2:9", "10.0.0.2:80")];
        for (connections, out, tcp) in [
            (&[][..], 0, Tcp::Default),
            (&within, 0, Tcp::Established),
            (&mixed, 0, Tcp::Established),
            (&within[..1], 1, Tcp::Default),
            (&own_address, 2, Tcp::Default),
            (
                &[within[0], within[1], ("10.0.0.2:80", "10.0.0.3:9")],
                1,
                Tcp::Default,
            ),
        ] {
            let seen = seen(connections, &[]);
            assert_eq!(seen.leading_out().len(), out, "{connections:?}");
            let choices = Choices::of(&seen, &config::Dump::default());
            assert_eq!(
                (choices.tcp, choices.own.len()),
                (tcp, usize::from(tcp != Tcp::Default)),
                "{connections:?}"
            );
        }
        let on_the_host = Seen {
            own_network: false,
            ..seen(&within, &[])
        };
        assert_eq!(
            on_the_host.leading_out().len(),
            2,
            "somebody else may be there when it is restored"
        );
    }

    #[test]
    fn who_waits_is_left_out_unless_it_is_the_container() {
        let from_itself = [("127.0.0.1:9", "127.0.0.1:80")];
        for (said, connections, expected) in [
            (Choice::Auto, &[][..], true),
            (Choice::Auto, &from_itself, false),
            (Choice::Yes, &from_itself, true),
            (Choice::No, &[], false),
        ] {
            let settings = config::Dump {
                skip_in_flight: said,
                ..config::Dump::default()
            };
            let choices = Choices::of(&seen(connections, &["0.0.0.0:80"]), &settings);
            assert_eq!(choices.skip_in_flight, expected, "{said:?} {connections:?}");
        }
        assert!(!Choices::of(&Seen::default(), &config::Dump::default()).skip_in_flight);
    }

    #[test]
    fn the_log_is_left_out_and_nothing_else() {
        for (names, expected) in [
            (&["/run/systemd/journal/dev-log"][..], true),
            (&["/dev/log", "/run/app.sock"], false),
            (&[], false),
        ] {
            let seen = Seen {
                datagrams: names.iter().map(|name| (*name).to_owned()).collect(),
                ..Seen::default()
            };
            let choices = Choices::of(&seen, &config::Dump::default());
            assert_eq!(choices.external_unix_sockets, expected, "{names:?}");
        }
    }

    #[test]
    fn every_option_is_told_with_who_said_so() {
        let settings = config::Dump {
            ghost_limit: 1 << 20,
            ..config::Dump::default()
        };
        let seen = seen(&[("127.0.0.1:1", "127.0.0.1:1")], &[]);
        let options = all(&Choices::of(&seen, &settings), &settings, &["shell-job"]);
        let of = |name: &str| options.iter().find(|one| one.option == name).expect(name);
        assert_eq!(
            (of("tcp").value.as_str(), of("file-locks").why.as_str()),
            ("established", "by default")
        );
        assert_eq!(
            (of("ghost-limit").value.as_str(), of("ghost-limit").why.as_str()),
            ("1M", "set")
        );
        assert_eq!(
            (of("shell-job").value.as_str(), of("shell-job").why.as_str()),
            ("true", "the client asked for it")
        );
        let told = summary(&options);
        assert!(
            told.contains("ghost-limit=1M (set)") && !told.contains("file-locks"),
            "{told}"
        );
    }
}
