//! `-info` and `-v`: what this runtime is, and what it can do.

/// Why it is not known.
#[derive(Debug, thiserror::Error)]
#[error("info")]
pub struct InfoError;

/// Stand-in.
///
/// # Errors
/// None.
pub fn info(_: &[u8]) -> Result<Vec<u8>, InfoError> {
    Ok(Vec::new())
}

/// Name and version, as `-v` prints them.
pub fn version() -> String {
    format!("containerd-shim-cedana-v1:\n  Version:  {}\n", env!("CARGO_PKG_VERSION"))
}
