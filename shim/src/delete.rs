//! `delete`: take away what a container left behind.

use std::path::Path;

use crate::args::Args;

/// Why something is left.
#[derive(Debug, thiserror::Error)]
#[error("delete")]
pub struct DeleteError;

/// Stand-in.
///
/// # Errors
/// None.
pub fn delete(_: &Args, _: &Path) -> Result<Vec<u8>, DeleteError> {
    Ok(Vec::new())
}
