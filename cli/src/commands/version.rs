//! `cedana version`.

use serde::Serialize;

use crate::context::Context;
use crate::error::Error;
use crate::output;

/// Its arguments.
#[derive(Debug, clap::Args)]
pub struct Args {}

#[derive(Serialize)]
struct Version {
    version: &'static str,
}

/// Prints the version, as `--version` does.
///
/// # Errors
/// Standard output cannot be written.
#[expect(clippy::unused_async, reason = "every verb is called alike")]
pub async fn run(_args: Args, context: &Context) -> Result<(), Error> {
    let version = env!("CARGO_PKG_VERSION");
    if context.json {
        return output::json(&Version { version });
    }
    output::line(&format!("cedana {version}"))
}
