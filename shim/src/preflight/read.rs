//! Files of `/proc`, read no further than they may be long.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// The longest table that is read (maps, mountinfo, sockets), in bytes. The most mappings and mounts the kernel allows a
/// process by default take less.
pub(super) const TABLE_BYTES_MAX: u64 = 32 << 20;

/// The longest file about one descriptor or process that is read, in bytes. An epoll descriptor has a line for each of
/// its files.
pub(super) const FILE_BYTES_MAX: u64 = 64 << 10;

/// The text of a file, cut at the limit; what is not UTF-8 in it is replaced.
pub(super) fn text(path: impl AsRef<Path>, bytes_max: u64) -> io::Result<String> {
    let mut bytes = Vec::new();
    let _ = File::open(path)?.take(bytes_max).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The number after a field's name at the beginning of a line: `TracerPid:\t7`.
pub(super) fn number(text: &str, name: &str) -> Option<i64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    rest.trim_start_matches(':')
        .split_ascii_whitespace()
        .next()?
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_found_by_their_names() {
        let status = "Name:\tsh\nTracerPid:\t7\nSeccomp:\t2\n";
        for (name, expected) in [
            ("TracerPid", Some(7)),
            ("Seccomp", Some(2)),
            ("Name", None),
            ("Uid", None),
        ] {
            assert_eq!(number(status, name), expected, "{name}");
        }
    }
}
