//! Files that may come from anywhere: an image directory is what a client, or another host, put together.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::libc::{O_NOFOLLOW, O_NONBLOCK};

/// Opens a regular file and nothing else: a link would lead out of the directory, and a fifo without a writer would stop
/// the only thread of the shim.
///
/// # Errors
/// What the kernel says (`ELOOP` for a link), or that it is no regular file.
pub(crate) fn open_regular(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(O_NOFOLLOW | O_NONBLOCK)
        .open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(ErrorKind::InvalidInput, "not a regular file"));
    }
    Ok(file)
}

/// Reads a regular file, of which no more than `size_max` bytes.
///
/// # Errors
/// As [`open_regular`], and what the kernel says about reading.
pub(crate) fn read_regular(path: &Path, size_max: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let _ = open_regular(path)?.take(size_max).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;

    use super::*;

    #[test]
    fn only_a_regular_file_is_read_and_no_more_of_it_than_may_be() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let place = |name: &str| dir.path().join(name);
        fs::write(place("file"), "12345").expect("write");
        symlink(place("file"), place("link")).expect("link");
        mkfifo(&place("fifo"), Mode::S_IRWXU).expect("make a fifo");
        assert_eq!(read_regular(&place("file"), 3).expect("read"), b"123");
        assert_eq!(read_regular(&place("file"), 9).expect("read"), b"12345");
        for name in ["link", "fifo", "."] {
            assert!(read_regular(&place(name), 9).is_err(), "{name}");
        }
        let missing = read_regular(&place("missing"), 9).map_err(|error| error.kind());
        assert_eq!(missing, Err(ErrorKind::NotFound));
    }
}
