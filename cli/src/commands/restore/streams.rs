//! Where the streams of a restored container go: where they went, as far as that is still there.

use std::fs::OpenOptions;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use jobs::record::Stdio;

use crate::engines::containerd::Streams;

/// The streams for a restore: a file that was asked for, else those of before that still lead somewhere.
pub fn choose(before: Option<&Stdio>, out: Option<&Path>) -> Streams {
    let terminal = before.is_some_and(|before| before.terminal);
    if let Some(out) = out {
        let uri = file_uri(out);
        return Streams {
            stdin: String::new(),
            stdout: uri.clone(),
            stderr: if terminal { String::new() } else { uri },
            terminal,
        };
    }
    let Some(before) = before else {
        return Streams::default();
    };
    let still = |location: &str| {
        if leads_somewhere(location) {
            location.to_owned()
        } else {
            String::new()
        }
    };
    Streams {
        // A client that still writes has the output's other end too; whether it does cannot be asked without being it.
        stdin: if has_reader(&before.stdout) {
            before.stdin.clone()
        } else {
            String::new()
        },
        stdout: still(&before.stdout),
        stderr: still(&before.stderr),
        terminal,
    }
}

/// The URI by which a shim appends to a file.
pub fn file_uri(path: &Path) -> String {
    let mut uri = "file://".to_owned();
    for byte in path.as_os_str().as_encoded_bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'-' | b'.' | b'_' | b'~' => {
                uri.push(char::from(*byte))
            }
            other => uri.push_str(&format!("%{other:02X}")),
        }
    }
    uri
}

fn leads_somewhere(location: &str) -> bool {
    location.starts_with("file:") || location.starts_with("binary") || has_reader(location)
}

/// A fifo that somebody reads. Without a reader the open fails, so nothing waits here.
fn has_reader(location: &str) -> bool {
    let path = Path::new(location.strip_prefix("fifo://").unwrap_or(location));
    let is_fifo = std::fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_fifo());
    is_fifo
        && OpenOptions::new()
            .write(true)
            .custom_flags(nix::fcntl::OFlag::O_NONBLOCK.bits())
            .open(path)
            .is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fifo(dir: &Path, name: &str) -> String {
        let path = dir.join(name);
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).expect("a fifo");
        path.display().to_string()
    }

    #[test]
    fn files_and_binaries_stay_and_a_fifo_only_with_its_reader() {
        let dir = tempfile::tempdir().expect("a directory");
        let (read, unread) = (fifo(dir.path(), "read"), fifo(dir.path(), "unread"));
        let _reader = OpenOptions::new()
            .read(true)
            .custom_flags(nix::fcntl::OFlag::O_NONBLOCK.bits())
            .open(&read)
            .expect("a reader");
        let plain = dir.path().join("plain");
        std::fs::write(&plain, "").expect("a file");
        for (location, stays) in [
            ("", false),
            ("file:///var/log/x", true),
            ("binary:///usr/bin/logger?a=b", true),
            (read.as_str(), true),
            (unread.as_str(), false),
            (&plain.display().to_string(), false),
            ("/nowhere/at/all", false),
        ] {
            let before = Stdio {
                stdout: location.to_owned(),
                ..Stdio::default()
            };
            let chosen = choose(Some(&before), None).stdout;
            assert_eq!(chosen, if stays { location } else { "" }, "{location}");
        }
    }

    #[test]
    fn a_file_that_is_asked_for_wins_and_is_spelled_as_a_uri() {
        let before = Stdio {
            stdout: "file:///var/log/x".to_owned(),
            ..Stdio::default()
        };
        let chosen = choose(Some(&before), Some(Path::new("/tmp/a b?")));
        assert_eq!(
            (chosen.stdout.as_str(), chosen.stderr.as_str()),
            ("file:///tmp/a%20b%3F", "file:///tmp/a%20b%3F")
        );
        let terminal = Stdio {
            terminal: true,
            ..before
        };
        let chosen = choose(Some(&terminal), Some(Path::new("/tmp/a")));
        assert_eq!((chosen.stderr.as_str(), chosen.terminal), ("", true));
    }
}
