//! The line of CRIU's log that tells why it failed, what that means, and what to do.
//!
//! CRIU's log is thousands of lines; of its errors the first is the cause and the rest are each caller giving up in
//! turn. The [`table`] knows the causes that were met; for an unknown one the line still stands for itself.

mod table;

use std::fmt;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

use super::file::open_regular;
use table::{CAUSES, Cause, NOISE, RUNC_CAUSES};

/// At log level 4 a dump of 1000 tasks writes some 10 MiB. What comes after is not looked at.
const LOG_SIZE_MAX: u64 = 64 * 1024 * 1024;

/// A line longer than this is cut: CRIU's own buffer for a line is 4 KiB.
const LINE_LENGTH_MAX: usize = 4096;

/// Why CRIU failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Telling {
    /// CRIU's own line (or runc's, when CRIU got to none), without time and place.
    pub line: String,
    /// What it means, if known.
    pub meaning: Option<&'static str>,
    /// What to do about it, if known.
    pub remedy: Option<&'static str>,
    /// Whether the container or this host is in the way, so that trying again unchanged cannot help.
    pub lasting: bool,
}

impl fmt::Display for Telling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.line)?;
        if let Some(meaning) = self.meaning {
            write!(f, ": {meaning}")?;
        }
        if let Some(remedy) = self.remedy {
            write!(f, "; {remedy}")?;
        }
        Ok(())
    }
}

/// Reads a log and tells why the operation failed; `runc` is what runc said, for failures that leave no log.
pub fn read(log: &Path, runc: &str) -> Telling {
    let found = open_regular(log).and_then(|file| scan(BufReader::new(file.take(LOG_SIZE_MAX))));
    match found {
        Ok(Some(telling)) => telling,
        Ok(None) => of_runc(runc),
        Err(error) => {
            tracing::debug!(%error, log = %log.display(), "failed to read the log of criu");
            of_runc(runc)
        }
    }
}

/// The first line with a known cause, else the first error that is not noise.
fn scan(mut log: impl BufRead) -> io::Result<Option<Telling>> {
    let (mut line, mut first_error, mut warned) = (Vec::new(), None, None);
    loop {
        if !read_line(&mut log, &mut line)? {
            return Ok(warned.or(first_error));
        }
        let text = String::from_utf8_lossy(&line);
        let Some((message, is_error)) = complaint(&text) else {
            continue;
        };
        if NOISE.iter().any(|noise| message.contains(noise)) {
            continue;
        }
        match CAUSES.iter().find(|cause| cause.matches(message)) {
            Some(cause) if is_error => return Ok(Some(telling(message, Some(cause)))),
            // Some causes are only warned of, and what follows is a riddle. But a warning need not be fatal.
            Some(cause) => warned = warned.or_else(|| Some(telling(message, Some(cause)))),
            None if is_error && first_error.is_none() => first_error = Some(telling(message, None)),
            None => {}
        }
    }
}

/// Reads the next line into `line`, what is longer than [`LINE_LENGTH_MAX`] cut off; false at the end.
fn read_line(log: &mut impl BufRead, line: &mut Vec<u8>) -> io::Result<bool> {
    line.clear();
    let length_max = u64::try_from(LINE_LENGTH_MAX).unwrap_or(u64::MAX);
    if log.by_ref().take(length_max).read_until(b'\n', line)? == 0 {
        return Ok(false);
    }
    if !line.ends_with(b"\n") {
        let _ = log.skip_until(b'\n')?;
    }
    Ok(true)
}

/// A warning or an error without time and place, and whether it is an error:
/// `(00.107561) Error (criu/sk-inet.c:210): inet: Connected TCP socket` is `inet: Connected TCP socket`.
fn complaint(line: &str) -> Option<(&str, bool)> {
    let line = line.trim_end();
    let line = match line.split_once(") ") {
        Some((time, rest)) if time.starts_with('(') => rest,
        _ => line,
    };
    // A line of a forked task has its pid before the level.
    let levels = [("Error (", true), ("Warn  (", false)];
    levels.into_iter().find_map(|(level, is_error)| {
        let (before, rest) = line.split_once(level)?;
        let is_level = before
            .chars()
            .all(|c| c.is_ascii_digit() || matches!(c, ' ' | ':'));
        let (_, message) = rest.split_once("): ").filter(|_| is_level)?;
        Some((message.trim(), is_error))
    })
}

fn of_runc(said: &str) -> Telling {
    // runc 1.4 says no more than that its socket to CRIU ended.
    let said = if said.trim() == "EOF" {
        "read unixpacket: EOF"
    } else {
        said
    };
    telling(said.trim(), RUNC_CAUSES.iter().find(|cause| cause.matches(said)))
}

fn telling(line: &str, cause: Option<&'static Cause>) -> Telling {
    Telling {
        line: line.to_owned(),
        meaning: cause.map(|cause| cause.meaning),
        remedy: cause.map(|cause| cause.remedy),
        lasting: cause.is_some_and(|cause| cause.lasting),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(log: &str, line: &str, meaning: &str) {
        let found = scan(log.as_bytes())
            .expect("memory can be read")
            .expect("a cause");
        assert_eq!(found.line, line, "{log}");
        assert!(
            found.meaning.unwrap_or("").contains(meaning),
            "{:?} lacks {meaning:?}",
            found.meaning
        );
        assert_eq!(found.meaning.is_some(), !meaning.is_empty(), "{log}");
    }

    #[test]
    fn the_first_known_cause_is_told_and_not_what_followed_from_it() {
        check(
            "(00.000707) Error (criu/util.c:1534): rlimit: Can't setup RLIMIT_NOFILE for self: Operation not permitted\n\
             (00.107561) Error (criu/sk-inet.c:210): inet: Connected TCP socket, consider using --tcp-established option.\n\
             (00.107563) Error (criu/cr-dump.c:1545): Dump files (pid: 24681) failed with -1\n\
             (00.199038) Error (criu/cr-dump.c:1975): Dumping FAILED.\n",
            "inet: Connected TCP socket, consider using --tcp-established option.",
            "established TCP connection",
        );
    }

    #[test]
    fn each_class_of_failure_is_known_by_its_line() {
        for (line, meaning) in [
            (
                "sockets: Can't get 1:16 opt: Operation not supported",
                "older than 4.2",
            ),
            (
                "files-reg.c: Can't lookup mount=27 for fd=2 path=/var/log/x",
                "outside the container",
            ),
            (
                "mnt: Mount 303 ./run/x (master_id: 95 shared_id: 0) has unreachable sharing.",
                "mounted from outside",
            ),
            (
                "Can't dump ghost file /tmp/big of 2097152 size, increase limit",
                "deleted file",
            ),
            (
                "unix: External socket is used. Consider using --ext-unix-sk option.",
                "socket of the host",
            ),
            ("unix: Unix socket 0x1b2 without peer 0x1b1", "socket of the host"),
            ("Unknown shit 600 (anon_inode:[io_uring])", "io_uring"),
            ("Unknown shit 100600 (/secretmem (deleted))", "secret memory"),
            (
                "Can't dump file 5 of that type [600] (anon anon_inode:[perf_event])",
                "cannot be saved",
            ),
            ("Can't dump file 17 of that type [20666] (chr 195:255)", "GPU"),
            ("sockets: BUG! Unknown socket collected (family 40)", "vsock"),
            (
                "Some file locks are hold by dumping tasks! You can try --file-locks to dump them.",
                "file locks",
            ),
            ("Can't dump nested user namespace for 12", "nested namespace"),
            ("Can't dump nested uts namespace for 12", "nested namespace"),
            ("inet: Unsupported proto 262 for socket 80b3ab", "MPTCP"),
            ("page-xfer: Unable to spice data: No space left on device", "full"),
            ("cr_write_image: Can't write: No space left on device", "full"),
            ("Can't fork for 7: File exists", "pid"),
            ("One of more action scripts failed", "a script around"),
            ("File bin/app has bad size 10 (expect 20)", "not the one"),
        ] {
            let log =
                format!("(00.1) Error (criu/x.c:1): {line}\n(00.2) Error (criu/x.c:2): Dumping FAILED.\n");
            check(&log, line, meaning);
        }
    }

    #[test]
    fn an_unknown_cause_is_told_in_crius_words_and_noise_is_not_a_cause() {
        check(
            "(00.1)   1234: Error (criu/x.c:1): Alien\n(00.2) Error (criu/x.c:2): Dumping FAILED.\n",
            "Alien",
            "",
        );
        assert_eq!(
            scan("(00.1) Dumping finished successfully\n".as_bytes()).expect("memory"),
            None
        );
        let noise = "(00.1) Error (criu/util.c:1534): rlimit: Can't setup RLIMIT_NOFILE for self: x\n";
        assert_eq!(scan(noise.as_bytes()).expect("memory"), None);
    }

    #[test]
    fn a_failure_without_a_log_is_told_from_what_runc_said() {
        for (said, meaning) in [
            ("criu failed: type DUMP errno 56", "an option"),
            ("read unixpacket @->@: EOF", "crashed or was killed"),
            (
                "read unixpacket @->@: recvmsg: connection reset by peer",
                "crashed or was killed",
            ),
            (
                "exec: \"criu\": executable file not found in $PATH",
                "not installed",
            ),
            ("criu is missing features: [MemTrack]", "memory tracking"),
            (
                "runc checkpoint ended with status 137 and said nothing",
                "runc was killed",
            ),
        ] {
            let told = read(Path::new("/nonexistent/dump.log"), said);
            assert!(
                told.meaning.is_some_and(|found| found.contains(meaning)),
                "{said}: {told}"
            );
        }
        assert_eq!(read(Path::new("/nonexistent"), "odd\n").to_string(), "odd");
    }

    #[test]
    fn a_telling_reads_as_line_meaning_remedy() {
        let log = "(00.1) Error (criu/x.c:1): sockets: BUG! Unknown socket collected (family 40)\n";
        let told = scan(log.as_bytes())
            .expect("memory")
            .expect("a cause")
            .to_string();
        assert!(
            told.starts_with("sockets: BUG! Unknown socket collected (family 40): a process holds a vsock")
        );
        assert!(told.contains("; close it"), "{told}");
    }

    #[test]
    fn a_line_without_an_end_is_cut_while_it_is_read() {
        let mut log = vec![b'x'; 1 << 20];
        log.extend(b"\nshort\n\nlast");
        let (mut log, mut line) = (log.as_slice(), Vec::new());
        let mut lengths = Vec::new();
        while read_line(&mut log, &mut line).expect("memory") {
            lengths.push(line.len());
        }
        assert_eq!(lengths, [LINE_LENGTH_MAX, 6, 1, 4]);
        assert!(line.capacity() <= 2 * LINE_LENGTH_MAX, "{}", line.capacity());
    }
}
