//! Bounded reading and plain writing of cgroup files.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::Path;

use super::CgroupError;

/// The most that is read of one file, in bytes. The longest are `io.stat` and `cgroup.procs` of huge hosts and
/// containers (4 million pids of 8 bytes are the kernel's limit; nobody's container has a tenth).
pub(super) const FILE_BYTES_MAX: u64 = 4 << 20;

/// The text of a file. One that vanished, or whose cgroup did (ENODEV), is [`CgroupError::Gone`].
pub(super) fn read(path: &Path) -> Result<String, CgroupError> {
    let mut text = String::new();
    match File::open(path).and_then(|file| file.take(FILE_BYTES_MAX).read_to_string(&mut text)) {
        Ok(_) => Ok(text),
        Err(error) => Err(failed("read", path, error)),
    }
}

/// The text of a file that need not be there: a controller that is not enabled, a kernel without it, a cgroup
/// that has just gone.
pub(super) fn read_optional(path: &Path) -> Option<String> {
    read(path).ok()
}

/// Writes a value into an existing file.
pub(super) fn write(path: &Path, value: &str) -> Result<(), CgroupError> {
    OpenOptions::new()
        .write(true)
        .open(path)
        .and_then(|mut file| file.write_all(value.as_bytes()))
        .map_err(|error| failed("write", path, error))
}

/// An error with its path, absence told apart.
pub(super) fn failed(action: &'static str, path: &Path, source: io::Error) -> CgroupError {
    match source.raw_os_error() {
        Some(nix::libc::ENOENT | nix::libc::ENODEV | nix::libc::ESRCH) => {
            CgroupError::Gone(path.display().to_string())
        }
        _ => CgroupError::Io {
            action,
            path: path.to_owned(),
            source,
        },
    }
}

/// The value of `key` in lines of the form `key value`.
pub(super) fn keyed(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let (name, value) = line.split_once(' ')?;
        if name == key {
            value.trim().parse().ok()
        } else {
            None
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_found_only_whole() {
        let text = "populated 1\nfrozen 0\nnot a number\nbig 18446744073709551615\n";
        for (key, value) in [
            ("populated", Some(1)),
            ("frozen", Some(0)),
            ("froze", None),
            ("not", None),
            ("big", Some(u64::MAX)),
            ("", None),
        ] {
            assert_eq!(keyed(text, key), value, "{key}");
        }
    }

    #[test]
    fn absence_is_told_from_failure() {
        assert!(matches!(
            read(Path::new("/proc/self/nothing")),
            Err(CgroupError::Gone(_))
        ));
        assert!(matches!(
            write(Path::new("/proc/self"), "x"),
            Err(CgroupError::Io { .. })
        ));
    }
}
