//! The TCP connections a container holds.
//!
//! They decide two things: whether CRIU would refuse the dump, which is better said before anything is touched; and
//! whether packets must be locked out meanwhile, which costs 60 to 70 ms (six execs of iptables) and is pointless
//! without a connection.
//!
//! The kernel's tables are the last place to look: reading one walks a hash that is shared by all namespaces, sized by
//! the memory of the host and nearly empty (2 ms for 262144 buckets). So the processes are asked first whether they
//! have sockets at all, then the counters of the namespace.

use std::collections::HashSet;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// A container on the host's network sees all of its sockets, 150 bytes each; more than this is not read.
const TABLE_SIZE_MAX: u64 = 32 * 1024 * 1024;

/// The kernel hands out at most a page or so at once, but never less than is asked for.
const PIECE_SIZE: usize = 64 * 1024;

/// The kernel's `TCP_LISTEN`.
const LISTEN: u8 = 0x0a;

/// `TCP_LISTEN` and the kernel's `TCP_CLOSE`: all other states are a connection to CRIU.
const UNCONNECTED: [u8; 2] = [LISTEN, 0x07];

/// One end of a TCP connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Connection {
    /// This side.
    pub local: SocketAddr,
    /// The other side.
    pub remote: SocketAddr,
    inode: u64,
}

impl Connection {
    /// One between these, which nobody holds.
    #[cfg(test)]
    pub(crate) fn between(local: SocketAddr, remote: SocketAddr) -> Self {
        let inode = 0;
        Self { local, remote, inode }
    }
}

impl fmt::Display for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} to {}", self.local, self.remote)
    }
}

/// The tables, and the counters that tell whether anything is in them.
const TABLES: [(&str, &str, &str); 2] = [("tcp", "sockstat", "TCP:"), ("tcp6", "sockstat6", "TCP6:")];

/// The connections these processes hold; all of them share the network namespace of the first one.
///
/// # Errors
/// The tables cannot be read: the first process is gone.
pub fn held(pids: &[i32]) -> io::Result<Vec<Connection>> {
    Ok(held_and_waiting(pids)?.0)
}

/// The connections these processes hold, and the addresses they listen on where connections wait that nobody has accepted
/// yet.
///
/// # Errors
/// As [`held`].
pub fn held_and_waiting(pids: &[i32]) -> io::Result<(Vec<Connection>, Vec<SocketAddr>)> {
    let sockets: HashSet<u64> = pids.iter().flat_map(|pid| sockets_of(*pid)).collect();
    let (Some(init), false) = (pids.first(), sockets.is_empty()) else {
        return Ok((Vec::new(), Vec::new()));
    };
    let (mut connections, mut waiting) = (Vec::new(), Vec::new());
    for (table, counters, line) in TABLES {
        match read(&format!("/proc/{init}/net/{counters}")) {
            Ok(text) if in_use(&text, line) == Some(0) => continue,
            Ok(_) => {}
            // A kernel without IPv6 has neither counters nor a table for it.
            Err(error) if error.kind() == io::ErrorKind::NotFound && table == "tcp6" => continue,
            Err(error) => return Err(error),
        }
        let text = read(&format!("/proc/{init}/net/{table}"))?;
        let rows = text.lines().skip(1).filter_map(parse);
        for row in rows.filter(|row| sockets.contains(&row.connection.inode)) {
            match row.state {
                LISTEN if row.queued > 0 => waiting.push(row.connection.local),
                state if !UNCONNECTED.contains(&state) => connections.push(row.connection),
                _ => {}
            }
        }
    }
    Ok((connections, waiting))
}

/// Reads a table in large pieces: each piece may walk the hash again, and the usual way begins with 32 bytes.
fn read(path: &str) -> io::Result<String> {
    let mut reader = BufReader::with_capacity(PIECE_SIZE, File::open(path)?.take(TABLE_SIZE_MAX));
    let mut bytes = Vec::new();
    loop {
        let piece = reader.fill_buf()?;
        if piece.is_empty() {
            return String::from_utf8(bytes).map_err(io::Error::other);
        }
        bytes.extend_from_slice(piece);
        let length = piece.len();
        reader.consume(length);
    }
}

/// A table, or its counters, of any text.
#[cfg(any(test, fuzzing))]
pub(crate) fn read_any(text: &str) {
    let _count = in_use(text, "TCP:");
    for row in text.lines().filter_map(parse) {
        assert_ne!(row.connection.inode, 0, "{}", row.connection);
    }
}

/// The number of sockets in `TCP: inuse 3 orphan 0 …`.
fn in_use(counters: &str, line: &str) -> Option<u64> {
    let rest = counters.lines().find_map(|text| text.strip_prefix(line))?;
    rest.trim_start()
        .strip_prefix("inuse ")?
        .split_ascii_whitespace()
        .next()?
        .parse()
        .ok()
}

/// The socket inodes a process has open. One that is just gone has none.
pub(crate) fn sockets_of(pid: i32) -> Vec<u64> {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fd")) else {
        return Vec::new();
    };
    let links = entries
        .flatten()
        .filter_map(|entry| fs::read_link(entry.path()).ok());
    links
        .filter_map(|link| {
            link.to_str()?
                .strip_prefix("socket:[")?
                .strip_suffix(']')?
                .parse()
                .ok()
        })
        .collect()
}

/// One line of `/proc/net/tcp` or `tcp6`.
struct Row {
    connection: Connection,
    state: u8,
    /// Bytes that wait to be read or, of a listening socket, connections that wait to be accepted.
    queued: u32,
}

/// One line of a table, if it is a socket that some process holds.
fn parse(line: &str) -> Option<Row> {
    let mut fields = line.split_ascii_whitespace().skip(1);
    let local = address(fields.next()?)?;
    let remote = address(fields.next()?)?;
    let state = u8::from_str_radix(fields.next()?, 16).ok()?;
    let (_, queued) = fields.next()?.split_once(':')?;
    let queued = u32::from_str_radix(queued, 16).ok()?;
    let inode: u64 = fields.nth(4)?.parse().ok()?;
    let connection = Connection { local, remote, inode };
    (inode != 0).then_some(Row {
        connection,
        state,
        queued,
    })
}

/// `0100007F:1F90`: the address as words in host order, then the port.
fn address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let words: Option<Vec<[u8; 4]>> = ip
        .as_bytes()
        .chunks(8)
        .map(|word| {
            Some(
                u32::from_str_radix(std::str::from_utf8(word).ok()?, 16)
                    .ok()?
                    .to_ne_bytes(),
            )
        })
        .collect();
    let bytes = words?.concat();
    let ip = match bytes.len() {
        4 => IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?)),
        16 => IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?)),
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    #[cfg(target_endian = "little")]
    fn only_sockets_that_a_process_holds_are_read() {
        let tail = "00000000:00000000 00:00000000 00000000     0        0";
        for (line, expected) in [
            (
                format!("   0: 0100007F:1F90 0200007F:D431 01 {tail} 77 1"),
                Some("127.0.0.1:8080 to 127.0.0.2:54321"),
            ),
            (
                format!("   0: 0100007F:1F90 0200007F:D431 08 {tail} 77 1"),
                Some("127.0.0.1:8080 to 127.0.0.2:54321"),
            ),
            (
                format!(
                    "   0: 00000000000000000000000001000000:1F90 00000000000000000000000001000000:D431 01 {tail} 7 1"
                ),
                Some("[::1]:8080 to [::1]:54321"),
            ),
            (
                format!("   0: 0100007F:1F90 00000000:0000 0A {tail} 77 1"),
                Some("127.0.0.1:8080 to 0.0.0.0:0"),
            ),
            (format!("   0: 0100007F:1F90 0200007F:D431 06 {tail} 0 1"), None),
            ("   0: 0100007F:1F90".to_owned(), None),
            ("   0: 01:1 02:2 01 a b c d e f 1 2".to_owned(), None),
            (String::new(), None),
        ] {
            assert_eq!(
                parse(&line).map(|row| row.connection.to_string()).as_deref(),
                expected,
                "{line}"
            );
        }
    }

    #[test]
    fn the_counters_tell_whether_a_table_is_worth_reading() {
        let text = "sockets: used 9\nTCP: inuse 3 orphan 0 tw 0 alloc 5 mem 0\nUDP: inuse 0 mem 0\n";
        assert_eq!(in_use(text, "TCP:"), Some(3));
        assert_eq!(in_use("TCP6: inuse 0\n", "TCP6:"), Some(0));
        assert_eq!(in_use("TCP: used 3\n", "TCP:"), None);
        assert_eq!(in_use("", "TCP:"), None);
    }

    #[test]
    fn our_own_connection_is_found_and_our_listener_is_not() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("listen");
        let address = listener.local_addr().expect("an address");
        let pids = [std::process::id().cast_signed()];
        let ours = |connections: Vec<Connection>| {
            connections
                .into_iter()
                .filter(|c| c.local == address || c.remote == address)
                .count()
        };
        let waits = || {
            let (_held, waiting) = held_and_waiting(&pids).expect("read the tables");
            waiting.contains(&address)
        };
        assert_eq!(ours(held(&pids).expect("read the tables")), 0);
        assert!(!waits());
        let _client = TcpStream::connect(address).expect("connect");
        assert!(waits());
        let _server = listener.accept().expect("accept");
        assert!(!waits());
        assert_eq!(ours(held(&pids).expect("read the tables")), 2);
    }
}
