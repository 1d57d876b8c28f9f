//! Our log lines in containerd's log.
//!
//! containerd reads the fifo `log` of each bundle and copies it to its own output, so a line looks like its own (logrus text).
//! containerd may be away, or slow: a line that does not fit into the fifo is dropped, never waited for. Each line is one
//! write, since several processes may have the fifo open and the kernel keeps a write of up to 4096 bytes in one piece.

use std::fmt::{self, Write as _};
use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use nix::libc;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

/// Name of the fifo in a bundle.
pub const LOG_FIFO: &str = "log";

/// Longest line in bytes (PIPE_BUF on Linux): longer ones could be torn apart by another writer.
const LINE_BYTES_MAX: usize = 4096;

/// Whose lines these are, and which are wanted.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The bundle with the fifo.
    pub bundle: PathBuf,
    /// containerd's namespace, on each line.
    pub namespace: String,
    /// The container, on each line.
    pub id: String,
    /// Whether debug lines are wanted.
    pub debug: bool,
}

/// Sends this process's log lines, and the message of a panic, to containerd. Call once, at the start.
pub fn start(settings: &Settings) {
    let suffix = format!(
        " namespace={} shim={}\n",
        quoted(&settings.namespace),
        quoted(&settings.id)
    );
    let fifo = Fifo {
        path: settings.bundle.join(LOG_FIFO),
        open: Mutex::new(None),
    };
    let level = if settings.debug { Level::DEBUG } else { Level::INFO };
    // An error means that there is a log already, which is then the one to keep.
    let _ = tracing::subscriber::set_global_default(Lines { level, suffix, fifo });
    std::panic::set_hook(Box::new(
        |panic| tracing::error!(%panic, "the shim gives up: this is a bug in it"),
    ));
}

/// The subscriber: every event becomes a line. Spans are not used in the shim.
#[derive(Debug)]
struct Lines {
    level: Level,
    suffix: String,
    fifo: Fifo,
}

impl Subscriber for Lines {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= self.level && metadata.is_event()
    }

    fn max_level_hint(&self) -> Option<tracing::level_filters::LevelFilter> {
        Some(self.level.into())
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let level = level_name(*event.metadata().level());
        self.fifo
            .write(&line(SystemTime::now(), level, &fields, &self.suffix));
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

/// The message of an event, and its other fields as they will stand in the line.
#[derive(Debug, Default)]
struct Fields {
    message: String,
    others: String,
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            self.message = value.to_owned();
        } else {
            // Writing to a string cannot fail.
            let _ = write!(self.others, " {}={}", field.name(), quoted(value));
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.record_str(field, &format!("{value:?}"));
    }
}

/// The write end of the fifo, opened when first needed: nothing reads it before containerd does.
#[derive(Debug)]
struct Fifo {
    path: PathBuf,
    open: Mutex<Option<File>>,
}

impl Fifo {
    fn write(&self, line: &str) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if open.is_none() {
            *open = open_fifo(&self.path);
        }
        // A full fifo, or one without a reader, loses the line: there is nobody else to tell. The descriptor stays
        // good, a containerd that comes back opens the same fifo.
        if let Some(file) = open.as_mut() {
            let _ = file.write(line.as_bytes());
        }
    }
}

fn open_fifo(path: &Path) -> Option<File> {
    // Without O_NONBLOCK this waits until somebody reads; with it, ENXIO says that nobody does.
    File::options()
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
        .ok()
}

fn level_name(level: Level) -> &'static str {
    match level {
        Level::ERROR => "error",
        Level::WARN => "warning",
        Level::INFO => "info",
        Level::DEBUG | Level::TRACE => "debug",
    }
}

fn line(at: SystemTime, level: &str, fields: &Fields, suffix: &str) -> String {
    let mut line = format!(
        "time=\"{}\" level={level} msg={}{}",
        rfc3339(at),
        quoted(&fields.message),
        fields.others
    );
    let room = LINE_BYTES_MAX.saturating_sub(suffix.len());
    if line.len() > room {
        let dots = "…";
        let end = (0..=room.saturating_sub(dots.len()))
            .rev()
            .find(|end| line.is_char_boundary(*end));
        line.truncate(end.unwrap_or(0));
        line.push_str(dots);
    }
    line.push_str(suffix);
    line
}

/// As logrus quotes: only what would not be one word.
fn quoted(value: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-._/@^+".contains(c);
    if !value.is_empty() && value.chars().all(is_plain) {
        value.to_owned()
    } else {
        format!("{value:?}")
    }
}

/// Time in UTC as RFC 3339 with nanoseconds; the epoch for anything before it.
fn rfc3339(at: SystemTime) -> String {
    let since = at
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or(Duration::ZERO);
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let (year, month, day) = date(days);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let nanos = since.subsec_nanos();
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{nanos:09}Z")
}

/// Year, month and day of a day counted from 1970-01-01, in the Gregorian calendar.
fn date(days: u64) -> (u64, u64, u64) {
    // Years are counted from March, so that the leap day is the last of its year; 719468 days lie between 0000-03-01
    // and 1970-01-01, 146097 in 400 years. Within a year the months from March on follow (153 m + 2) / 5.
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year_of_era = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day_of_year = day - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * day_of_year + 2) / 153;
    let day_of_month = day_of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 {
        from_march + 3
    } else {
        from_march - 9
    };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    (year, month, day_of_month)
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn times_are_calendar_times() {
        let cases = [
            (0, "1970-01-01T00:00:00.000000005Z"),
            (951_782_399, "2000-02-28T23:59:59.000000005Z"),
            (951_782_400, "2000-02-29T00:00:00.000000005Z"),
            (951_868_800, "2000-03-01T00:00:00.000000005Z"),
            (1_767_225_599, "2025-12-31T23:59:59.000000005Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000000005Z"),
        ];
        for (seconds, want) in cases {
            assert_eq!(rfc3339(SystemTime::UNIX_EPOCH + Duration::new(seconds, 5)), want);
        }
    }

    #[test]
    fn words_are_bare_and_everything_else_is_quoted() {
        let cases = [
            ("abc-1.2/x", "abc-1.2/x"),
            ("", "\"\""),
            ("a b", "\"a b\""),
            ("a\nb\"c", "\"a\\nb\\\"c\""),
        ];
        for (value, want) in cases {
            assert_eq!(quoted(value), want);
        }
    }

    #[test]
    fn lines_fit_into_one_write() {
        let fields = Fields {
            message: "é".repeat(3000),
            others: " pid=1".into(),
        };
        let line = line(SystemTime::UNIX_EPOCH, "info", &fields, " shim=c\n");
        assert!(
            line.len() <= LINE_BYTES_MAX && line.ends_with("… shim=c\n"),
            "{}",
            line.len()
        );
    }

    #[test]
    fn an_event_arrives_in_the_fifo_as_one_line_and_a_missing_reader_costs_nothing() {
        let bundle = tempfile::tempdir().unwrap();
        let path = bundle.path().join(LOG_FIFO);
        nix::unistd::mkfifo(
            &path,
            nix::sys::stat::Mode::S_IRUSR | nix::sys::stat::Mode::S_IWUSR,
        )
        .unwrap();
        let fifo = Fifo {
            path: path.clone(),
            open: Mutex::new(None),
        };
        let lines = Lines {
            level: Level::INFO,
            suffix: " shim=c\n".into(),
            fifo,
        };
        tracing::subscriber::with_default(lines, || {
            tracing::info!("nobody reads this");
            let mut reader = File::options()
                .read(true)
                .write(true)
                .custom_flags(libc::O_NONBLOCK)
                .open(&path)
                .unwrap();
            tracing::debug!("not wanted");
            tracing::warn!(pid = 7, name = "a b", error = %"bad", "it is {}", "odd");
            let mut text = [0; 1000];
            let length = reader.read(&mut text).unwrap();
            let text = std::str::from_utf8(&text[..length]).unwrap();
            let rest = text.split_once("Z\" ").unwrap().1;
            assert_eq!(
                rest,
                "level=warning msg=\"it is odd\" pid=7 name=\"a b\" error=bad shim=c\n"
            );
        });
    }
}
