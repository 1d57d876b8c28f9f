//! The TCP connections a container holds.
//!
//! They decide two things: whether CRIU would refuse the dump, which is better said before anything is touched; and
//! whether packets must be locked out meanwhile, which costs 60 to 70 ms (six execs of iptables) and is pointless
//! without a connection.

use std::collections::HashSet;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// A container on the host's network sees all of its sockets, 150 bytes each; more than this is not read.
const TABLE_SIZE_MAX: u64 = 32 * 1024 * 1024;

/// The kernel's `TCP_LISTEN` and `TCP_CLOSE`: all other states are a connection to CRIU.
const UNCONNECTED: [u8; 2] = [0x0a, 0x07];

/// One end of a TCP connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Connection {
    /// This side.
    pub local: SocketAddr,
    /// The other side.
    pub remote: SocketAddr,
    inode: u64,
}

impl fmt::Display for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} to {}", self.local, self.remote)
    }
}

/// The connections these processes hold; all of them share the network namespace of the first one.
///
/// # Errors
/// The tables cannot be read: the first process is gone.
pub fn held(pids: &[i32]) -> io::Result<Vec<Connection>> {
    let Some(init) = pids.first() else {
        return Ok(Vec::new());
    };
    let mut connections = Vec::new();
    for table in ["tcp", "tcp6"] {
        match read(&format!("/proc/{init}/net/{table}")) {
            Ok(text) => connections.extend(text.lines().skip(1).filter_map(parse)),
            // A kernel without IPv6 has no table for it.
            Err(error) if error.kind() == io::ErrorKind::NotFound && table == "tcp6" => {}
            Err(error) => return Err(error),
        }
    }
    if connections.is_empty() {
        return Ok(connections);
    }
    let sockets: HashSet<u64> = pids.iter().flat_map(|pid| sockets_of(*pid)).collect();
    connections.retain(|connection| sockets.contains(&connection.inode));
    Ok(connections)
}

fn read(path: &str) -> io::Result<String> {
    let mut text = String::new();
    let _ = File::open(path)?.take(TABLE_SIZE_MAX).read_to_string(&mut text)?;
    Ok(text)
}

/// The socket inodes a process has open. One that is just gone has none.
fn sockets_of(pid: i32) -> Vec<u64> {
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

/// One line of `/proc/net/tcp` or `tcp6`, if it is a connection that some process holds.
fn parse(line: &str) -> Option<Connection> {
    let mut fields = line.split_ascii_whitespace().skip(1);
    let local = address(fields.next()?)?;
    let remote = address(fields.next()?)?;
    let state = u8::from_str_radix(fields.next()?, 16).ok()?;
    let inode: u64 = fields.nth(5)?.parse().ok()?;
    (inode != 0 && !UNCONNECTED.contains(&state)).then_some(Connection { local, remote, inode })
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
    fn only_connections_that_a_process_holds_are_read() {
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
            (format!("   0: 0100007F:1F90 00000000:0000 0A {tail} 77 1"), None),
            (format!("   0: 0100007F:1F90 0200007F:D431 06 {tail} 0 1"), None),
            ("   0: 0100007F:1F90".to_owned(), None),
            ("   0: 01:1 02:2 01 a b c d e f 1 2".to_owned(), None),
            (String::new(), None),
        ] {
            assert_eq!(
                parse(&line).map(|connection| connection.to_string()).as_deref(),
                expected,
                "{line}"
            );
        }
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
        assert_eq!(ours(held(&pids).expect("read the tables")), 0);
        let _client = TcpStream::connect(address).expect("connect");
        let _server = listener.accept().expect("accept");
        assert_eq!(ours(held(&pids).expect("read the tables")), 2);
    }
}
