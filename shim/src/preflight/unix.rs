//! Unix sockets whose other end is outside of the container.
//!
//! `/proc/net/unix` does not tell which sockets belong together; the kernel's socket monitoring (`sock_diag(7)`) does, by
//! inode, for the network namespace it is asked in. CRIU asks the same way.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use jobs::preflight::Severity;
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, setsockopt, socket,
    sockopt,
};
use nix::sys::time::TimeVal;

use super::descriptors::{Place, Sockets};
use super::findings::Findings;
use crate::criu::choices::{Choices, Seen};
use crate::criu::{connections, proc};

/// Of `linux/sock_diag.h`.
const SOCK_DIAG_BY_FAMILY: u16 = 20;
/// Of `linux/netlink.h`: a request, for all there are.
const REQUEST_DUMP: u16 = 0x1 | 0x300;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NETLINK_HEADER: usize = 16;
const ATTRIBUTE_HEADER: usize = 4;
/// Of `linux/unix_diag.h`: sockets in every state, with name, peer, waiting connections.
const STATES_ALL: u32 = u32::MAX;
const SHOW: u32 = 0x1 | 0x4 | 0x8;
const DIAG_HEADER: usize = 16;
const ATTRIBUTE_NAME: u16 = 0;
const ATTRIBUTE_PEER: u16 = 2;
const ATTRIBUTE_ICONS: u16 = 3;
const ATTRIBUTE_SHUTDOWN: u16 = 6;
/// Shut down in both directions: the other end is closed.
const SHUT: u8 = 3;
/// The kernel's `TCP_ESTABLISHED`, which Unix sockets borrow.
const ESTABLISHED: u8 = 1;

/// The kernel answers in pieces of at most 32 KiB.
const PIECE_SIZE: usize = 64 * 1024;

/// A container on the host's network sees all of its sockets, 100 bytes each; more than this many pieces are not read.
const PIECES_MAX: usize = 1024;

/// The kernel answers at once or not at all.
const ANSWER_DEADLINE_SECONDS: i64 = 5;

/// One Unix socket, as the kernel describes it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Socket {
    kind: u8,
    state: u8,
    inode: u64,
    /// Inode of the other end; zero if that has none (not accepted yet, or closed), none if there is no other end.
    peer: Option<u64>,
    name: String,
    /// Inodes of connections that wait to be accepted.
    waiting: Vec<u64>,
    shut: bool,
}

/// Looks at the Unix sockets among what the container of `init` holds. This process is in its network namespace from then
/// on, so it is the last look.
pub(super) fn look(init: i32, held: &Sockets, settings: &config::Dump, findings: &mut Findings) {
    if held.is_empty() {
        return;
    }
    let own_network = !proc::shares_network(init);
    let sockets = enter(init).and_then(|()| ask());
    let sockets = match sockets {
        Ok(sockets) => sockets,
        Err(error) => {
            findings.unseen(format!("the other ends of Unix sockets: {error}"));
            return;
        }
    };
    let waiting: HashSet<u64> = sockets
        .iter()
        .filter(|socket| held.contains_key(&socket.inode))
        .flat_map(|socket| socket.waiting.iter().copied())
        .collect();
    let is_held = |inode: u64| held.contains_key(&inode);
    let choices = Choices::of(
        &Seen {
            datagrams: match own_network {
                true => Vec::new(),
                false => datagrams(&sockets, is_held),
            },
            ..Seen::default()
        },
        settings,
    );
    for chosen in &choices.own {
        findings.add_chosen(chosen);
    }
    for socket in &sockets {
        if let Some(place) = held.get(&socket.inode)
            && is_outside(socket, held, &waiting)
        {
            report(socket, place, &sockets, choices.external_unix_sockets, findings);
        }
    }
}

/// As [`super::datagrams_to_others`].
pub(super) fn datagrams_to_others(pids: &[i32]) -> io::Result<Vec<String>> {
    let held: HashSet<u64> = pids
        .iter()
        .flat_map(|pid| connections::sockets_of(*pid))
        .collect();
    match held.is_empty() {
        true => Ok(Vec::new()),
        false => Ok(datagrams(&ask()?, |inode| held.contains(&inode))),
    }
}

/// The names of those that datagram sockets which are held are connected to, and which are not. CRIU can leave such a socket out if
/// it sees the other end, which it does in the same network namespace only (tried with 4.2: else it says "without peer",
/// whatever is set).
fn datagrams(sockets: &[Socket], is_held: impl Fn(u64) -> bool) -> Vec<String> {
    let peers = sockets
        .iter()
        .filter(|socket| is_datagram(socket) && is_held(socket.inode));
    let peers = peers.filter_map(|socket| socket.peer.filter(|peer| *peer != 0 && !is_held(*peer)));
    peers
        .filter_map(|peer| sockets.iter().find(|other| other.inode == peer))
        .map(|other| other.name.clone())
        .collect()
}

fn is_datagram(socket: &Socket) -> bool {
    i32::from(socket.kind) == nix::libc::SOCK_DGRAM
}

/// Whether the other end of a socket is not the container's.
fn is_outside(socket: &Socket, held: &Sockets, waiting: &HashSet<u64>) -> bool {
    match socket.peer {
        Some(peer) if peer != 0 => !held.contains_key(&peer) && peer != socket.inode,
        _ => socket.state == ESTABLISHED && !socket.shut && !waiting.contains(&socket.inode),
    }
}

fn report(socket: &Socket, place: &Place, sockets: &[Socket], are_left_out: bool, findings: &mut Findings) {
    let other = sockets.iter().find(|other| Some(other.inode) == socket.peer);
    let can_be_left_out = is_datagram(socket) && other.is_some();
    if can_be_left_out && are_left_out {
        return;
    }
    let name = other.map(|other| other.name.as_str()).unwrap_or_default();
    let shown = if name.is_empty() {
        String::new()
    } else {
        format!(" {name}")
    };
    let what = format!(
        "is connected to a Unix socket{shown} outside of the container (descriptor {})",
        place.descriptor
    );
    let (severity, remedy) = if can_be_left_out {
        (
            Severity::NeedsSetting,
            "set dump.external-unix-sockets to true: it comes back unconnected",
        )
    } else {
        (
            Severity::Blocks,
            "close it before the dump: a connection out of the container cannot be saved",
        )
    };
    findings.add_of(&place.process, "outside-unix-socket", severity, &what, remedy);
}

/// Goes into the network namespace of a process, unless this is it.
fn enter(pid: i32) -> io::Result<()> {
    if proc::shares_network(pid) {
        return Ok(());
    }
    let namespace = File::open(format!("/proc/{pid}/ns/net"))?;
    Ok(setns(namespace, CloneFlags::CLONE_NEWNET)?)
}

/// All Unix sockets of this network namespace.
fn ask() -> io::Result<Vec<Socket>> {
    let monitor = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkSockDiag,
    )?;
    setsockopt(
        &monitor,
        sockopt::ReceiveTimeout,
        &TimeVal::new(ANSWER_DEADLINE_SECONDS, 0),
    )?;
    let _sent = sendto(
        monitor.as_raw_fd(),
        &request(),
        &NetlinkAddr::new(0, 0),
        MsgFlags::empty(),
    )?;
    receive(&monitor)
}

fn receive(monitor: &OwnedFd) -> io::Result<Vec<Socket>> {
    let mut sockets = Vec::new();
    let mut piece = vec![0; PIECE_SIZE];
    for _ in 0..PIECES_MAX {
        let length = recv(monitor.as_raw_fd(), &mut piece, MsgFlags::empty())?;
        let messages = piece.get(..length).unwrap_or_default();
        if parse(messages, &mut sockets)? {
            return Ok(sockets);
        }
    }
    Err(io::Error::other("there are too many"))
}

/// A netlink header, then `struct unix_diag_req`.
fn request() -> Vec<u8> {
    let length = (NETLINK_HEADER + 24) as u32;
    let mut bytes = Vec::new();
    bytes.extend(length.to_ne_bytes());
    bytes.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    bytes.extend(REQUEST_DUMP.to_ne_bytes());
    bytes.extend([0; 8]);
    bytes.extend([nix::libc::AF_UNIX as u8, 0, 0, 0]);
    for word in [STATES_ALL, 0, SHOW, 0, 0] {
        bytes.extend(word.to_ne_bytes());
    }
    bytes
}

/// Takes the sockets out of some messages. True at the end of the answer.
fn parse(mut messages: &[u8], sockets: &mut Vec<Socket>) -> io::Result<bool> {
    while let (Some(length), Some(kind)) = (u32_at(messages, 0), u16_at(messages, 4)) {
        let length = length as usize;
        let (Some(payload), true) = (messages.get(NETLINK_HEADER..length), length > 0) else {
            return Err(io::ErrorKind::InvalidData.into());
        };
        match kind {
            NLMSG_DONE => return Ok(true),
            NLMSG_ERROR => {
                let code = u32_at(payload, 0).unwrap_or_default().cast_signed();
                return Err(io::Error::from_raw_os_error(-code));
            }
            _ => sockets.extend(parse_socket(payload)),
        }
        messages = messages.get(aligned(length)..).unwrap_or_default();
    }
    Ok(false)
}

/// `struct unix_diag_msg` and its attributes.
fn parse_socket(payload: &[u8]) -> Option<Socket> {
    let mut socket = Socket {
        kind: *payload.get(1)?,
        state: *payload.get(2)?,
        inode: u32_at(payload, 4)?.into(),
        ..Socket::default()
    };
    let mut rest = payload.get(DIAG_HEADER..)?;
    while let (Some(length), Some(kind)) = (u16_at(rest, 0), u16_at(rest, 2)) {
        let value = rest.get(ATTRIBUTE_HEADER..length.into())?;
        match kind {
            ATTRIBUTE_NAME => socket.name = name(value),
            ATTRIBUTE_PEER => socket.peer = u32_at(value, 0).map(u64::from),
            ATTRIBUTE_ICONS => {
                let inodes = value.chunks_exact(4).filter_map(|word| u32_at(word, 0));
                socket.waiting = inodes.map(u64::from).collect();
            }
            ATTRIBUTE_SHUTDOWN => socket.shut = value.first() == Some(&SHUT),
            _ => {}
        }
        rest = rest.get(aligned(length.into())..).unwrap_or_default();
    }
    Some(socket)
}

/// A path, or a name in the abstract space, which begins with a null and is written with an `@`.
fn name(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    match text.strip_prefix('\0') {
        Some(name) => format!("@{name}"),
        None => text.trim_end_matches('\0').to_owned(),
    }
}

fn aligned(length: usize) -> usize {
    length.saturating_add(3) & !3
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

/// Any answer.
#[cfg(any(test, fuzzing))]
pub(super) fn read_any(answer: &[u8]) {
    let _ended = parse(answer, &mut Vec::new());
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};

    use super::*;
    use crate::preflight::tree::Process;

    fn inode(socket: &impl std::os::fd::AsRawFd) -> u64 {
        let link = std::fs::read_link(format!("/proc/self/fd/{}", socket.as_raw_fd())).unwrap();
        let link = link.to_str().unwrap();
        link.strip_prefix("socket:[")
            .unwrap()
            .strip_suffix(']')
            .unwrap()
            .parse()
            .unwrap()
    }

    fn held(inodes: &[u64]) -> Sockets {
        let place = Place {
            process: Process {
                pid: 1,
                inner_pid: 1,
                name: String::new(),
                namespaces: Default::default(),
            },
            descriptor: 3,
        };
        inodes.iter().map(|inode| (*inode, place.clone())).collect()
    }

    /// Whether each of the sockets is connected to something that is not among `held`.
    fn outside(of: u64, held_too: &[u64]) -> bool {
        let mut all = held_too.to_vec();
        all.push(of);
        let held = held(&all);
        let sockets = ask().unwrap();
        let waiting = sockets
            .iter()
            .filter(|socket| held.contains_key(&socket.inode))
            .flat_map(|socket| socket.waiting.iter().copied())
            .collect();
        let socket = sockets.iter().find(|socket| socket.inode == of).unwrap();
        is_outside(socket, &held, &waiting)
    }

    #[test]
    fn the_other_end_is_found_by_the_kernel() {
        let (one, other) = UnixStream::pair().unwrap();
        assert!(outside(inode(&one), &[]));
        assert!(!outside(inode(&one), &[inode(&other)]));
        drop(other);
        assert!(!outside(inode(&one), &[]), "the other end is closed");
        let lone = UnixDatagram::unbound().unwrap();
        assert!(!outside(inode(&lone), &[]), "nothing is connected");
    }

    #[test]
    fn a_connection_that_waits_is_the_listeners() {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("socket")).unwrap();
        let client = UnixStream::connect(dir.path().join("socket")).unwrap();
        assert!(outside(inode(&client), &[]));
        assert!(!outside(inode(&client), &[inode(&listener)]));
        assert!(!outside(inode(&listener), &[]));
    }

    #[test]
    fn names_are_paths_or_abstract() {
        for (bytes, expected) in [
            (&b"/run/x\0"[..], "/run/x"),
            (b"/run/x", "/run/x"),
            (b"\0abstract", "@abstract"),
            (b"", ""),
        ] {
            assert_eq!(name(bytes), expected);
        }
    }

    #[test]
    fn a_broken_answer_is_an_error() {
        let mut sockets = Vec::new();
        assert!(parse(&[255, 0, 0, 0, 20, 0], &mut sockets).is_err());
        assert!(parse(&[0, 0, 0, 0, 20, 0], &mut sockets).is_err());
        assert!(!parse(&[], &mut sockets).unwrap());
        assert!(sockets.is_empty());
    }
}
