//! Points in time as records have them: milliseconds since 1970.

use std::time::{SystemTime, UNIX_EPOCH};

/// That of a point in time; zero for one before 1970.
pub fn millis(at: SystemTime) -> u64 {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Now.
pub fn now() -> u64 {
    millis(SystemTime::now())
}
