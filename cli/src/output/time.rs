//! Times as people read them.

const MINUTE: u64 = 60;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;
const WEEK: u64 = 7 * DAY;
const MONTH: u64 = 30 * DAY;
const YEAR: u64 = 365 * DAY;

/// How long ago that was: `3 seconds ago`. Both in milliseconds since 1970; what lies ahead is `now`.
pub fn relative(at: u64, now: u64) -> String {
    let seconds = now.saturating_sub(at) / 1000;
    let (unit, name) = match seconds {
        0 => return "now".to_owned(),
        1..MINUTE => (1, "second"),
        MINUTE..HOUR => (MINUTE, "minute"),
        HOUR..DAY => (HOUR, "hour"),
        DAY..WEEK => (DAY, "day"),
        WEEK..MONTH => (WEEK, "week"),
        MONTH..YEAR => (MONTH, "month"),
        YEAR.. => (YEAR, "year"),
    };
    match seconds / unit {
        1 => format!("1 {name} ago"),
        many => format!("{many} {name}s ago"),
    }
}

/// The local date and time: `2026-01-02 15:04:05`.
pub fn local(at: u64) -> String {
    shown(at, jiff::tz::TimeZone::system())
}

fn shown(at: u64, zone: jiff::tz::TimeZone) -> String {
    let millis = i64::try_from(at).unwrap_or(i64::MAX);
    match jiff::Timestamp::from_millisecond(millis) {
        Ok(time) => time.to_zoned(zone).strftime("%Y-%m-%d %H:%M:%S").to_string(),
        // Beyond the year 9999: a record with a broken clock.
        Err(_) => format!("{millis} ms"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_long_ago_is_said_in_one_unit() {
        let now = 4_000_000_000_000;
        for (seconds, said) in [
            (0, "now"),
            (1, "1 second ago"),
            (3, "3 seconds ago"),
            (59, "59 seconds ago"),
            (60, "1 minute ago"),
            (3599, "59 minutes ago"),
            (3600, "1 hour ago"),
            (23 * 3600, "23 hours ago"),
            (24 * 3600, "1 day ago"),
            (7 * 86400, "1 week ago"),
            (30 * 86400, "1 month ago"),
            (364 * 86400, "12 months ago"),
            (365 * 86400, "1 year ago"),
            (3 * 365 * 86400, "3 years ago"),
        ] {
            assert_eq!(relative(now - seconds * 1000, now), said);
        }
        assert_eq!(relative(now + 5000, now), "now", "a clock that was set back");
    }

    #[test]
    fn a_moment_is_shown_in_the_zone_of_the_reader() {
        let zone = jiff::tz::TimeZone::fixed(jiff::tz::offset(2));
        assert_eq!(shown(1_767_366_245_000, zone.clone()), "2026-01-02 17:04:05");
        assert_eq!(shown(u64::MAX, zone), format!("{} ms", i64::MAX));
    }
}
