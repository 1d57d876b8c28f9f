//! Network sockets: which kinds CRIU saves, and what connections do to a dump.

use std::collections::BTreeMap;
use std::ffi::CStr;

use jobs::preflight::Severity;

use super::descriptors::Sockets;
use super::findings::{Findings, shown};
use super::tree::Tree;
use crate::criu::choices::{Choices, Seen};
use crate::criu::{connections, proc};

/// The kernel's attribute of a socket that names its protocol; what `lsof` shows.
const PROTOCOL_ATTRIBUTE: &str = "system.sockprotoname";

/// Longer than any protocol's name (the kernel allows 32 bytes).
const PROTOCOL_BYTES_MAX: usize = 64;

/// What a protocol is to CRIU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Saved, and a reason for an old CRIU to fail on a new kernel.
    Network,
    /// Saved.
    Local,
    /// Not saved, with what to do.
    Unsavable(&'static str),
}

/// Looks at the sockets that the container holds. Returns how many of them are network sockets.
pub(super) fn look(
    init: i32,
    tree: &Tree,
    held: &Sockets,
    settings: &config::Dump,
    findings: &mut Findings,
) -> usize {
    let mut network = 0;
    let mut unsavable: BTreeMap<(i32, String), Vec<i32>> = BTreeMap::new();
    for place in held.values() {
        let Some(protocol) = protocol(place.process.pid, place.descriptor) else {
            continue;
        };
        match kind(&protocol) {
            Kind::Network => network += 1,
            Kind::Local => {}
            Kind::Unsavable(_) => unsavable
                .entry((place.process.pid, protocol))
                .or_default()
                .push(place.descriptor),
        }
    }
    for ((pid, protocol), descriptors) in unsavable {
        let process = tree.processes.iter().find(|process| process.pid == pid);
        if let (Some(process), Kind::Unsavable(remedy)) = (process, kind(&protocol)) {
            let what = format!(
                "has a socket of the kind {} open, which CRIU cannot save (descriptor {})",
                spoken(&protocol),
                shown(&descriptors)
            );
            findings.add_of(process, "socket", Severity::Blocks, &what, remedy);
        }
    }
    if network > 0 {
        look_at_connections(init, tree, settings, findings);
    }
    network
}

fn look_at_connections(init: i32, tree: &Tree, settings: &config::Dump, findings: &mut Findings) {
    let pids: Vec<i32> = tree.processes.iter().map(|process| process.pid).collect();
    let (established, waiting) = match connections::held_and_waiting(&pids) {
        Ok(found) => found,
        Err(error) => {
            findings.unseen(format!("TCP connections: {error}"));
            return;
        }
    };
    let seen = Seen {
        connections: established,
        waiting,
        own_network: !proc::shares_network(init),
        ..Seen::default()
    };
    let choices = Choices::of(&seen, settings);
    for chosen in &choices.own {
        findings.add_chosen(chosen);
    }
    let (out, waiting) = (seen.leading_out(), &seen.waiting);
    if !out.is_empty() && choices.tcp == config::Tcp::Default {
        findings.add(
            "tcp-established",
            Severity::NeedsSetting,
            format!("{} established TCP connection(s): {}", out.len(), shown(&out)),
            "set dump.tcp to established (save them) or close (let them come back closed), or close them",
        );
    }
    if !waiting.is_empty() && !choices.skip_in_flight {
        findings.add(
            "tcp-in-flight",
            Severity::NeedsSetting,
            format!("TCP connections wait to be accepted at {}", shown(waiting)),
            "try again in a moment, or set dump.skip-in-flight to true",
        );
    }
}

/// The protocol of a socket. None if it is closed meanwhile, or the kernel does not say.
fn protocol(pid: i32, descriptor: i32) -> Option<String> {
    let mut name = [0; PROTOCOL_BYTES_MAX];
    let path = format!("/proc/{pid}/fd/{descriptor}");
    let length = rustix::fs::getxattr(path.as_str(), PROTOCOL_ATTRIBUTE, &mut name).ok()?;
    let bytes = name.get(..length)?;
    let text = CStr::from_bytes_until_nul(bytes).map_or(bytes, CStr::to_bytes);
    Some(String::from_utf8_lossy(text).into_owned())
}

/// By the kernel's name (`struct proto`), the families that CRIU 4.2 collects. MPTCP is none of them
/// (checkpoint-restore/criu#2655), and what Go programs listen on by default since Go 1.24.
fn kind(protocol: &str) -> Kind {
    match protocol {
        "TCP" | "TCPv6" | "UDP" | "UDPv6" | "UDP-Lite" | "UDPLITEv6" | "RAW" | "RAWv6" | "PACKET" => {
            Kind::Network
        }
        "UNIX" | "UNIX-STREAM" | "NETLINK" => Kind::Local,
        "MPTCP" | "MPTCPv6" => Kind::Unsavable(
            "start the program with GODEBUG=multipathtcp=0 if it is written in Go; else switch MPTCP off in it",
        ),
        _ => Kind::Unsavable("close it before the dump"),
    }
}

fn spoken(protocol: &str) -> &str {
    protocol.strip_prefix("AF_").unwrap_or(protocol)
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, UdpSocket};
    use std::os::fd::AsRawFd;
    use std::os::unix::net::{UnixDatagram, UnixStream};

    use super::*;

    #[test]
    fn the_kernel_names_the_protocol_of_a_socket() {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let (stream, _other) = UnixStream::pair().unwrap();
        let datagram = UnixDatagram::unbound().unwrap();
        for (descriptor, expected) in [
            (tcp.as_raw_fd(), Kind::Network),
            (udp.as_raw_fd(), Kind::Network),
            (stream.as_raw_fd(), Kind::Local),
            (datagram.as_raw_fd(), Kind::Local),
        ] {
            let name = protocol(std::process::id().cast_signed(), descriptor).unwrap();
            assert_eq!(kind(&name), expected, "{name}");
        }
        assert_eq!(protocol(std::process::id().cast_signed(), i32::MAX), None);
    }

    #[test]
    fn what_criu_does_not_collect_it_cannot_save() {
        for (name, savable) in [
            ("PACKET", true),
            ("NETLINK", true),
            ("AF_VSOCK", false),
            ("MPTCP", false),
            ("PING", false),
            ("SCTP", false),
            ("XDP", false),
            ("ALG", false),
        ] {
            assert_eq!(!matches!(kind(name), Kind::Unsavable(_)), savable, "{name}");
        }
        assert_eq!(spoken("AF_VSOCK"), "VSOCK");
    }
}
