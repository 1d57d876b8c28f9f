//! Ids of checkpoints.

use std::fs;
use std::io;

/// Where the kernel makes one at each reading.
pub const SOURCE: &str = "/proc/sys/kernel/random/uuid";

/// A random UUID.
///
/// # Errors
/// `/proc` is not there.
pub fn random() -> io::Result<String> {
    Ok(fs::read_to_string(SOURCE)?.trim().to_owned())
}
