//! What a client of the Task service can do about a failure: one variant per answer.

use thiserror::Error;

/// The kinds of failure clients act on; each maps to one ttrpc code (`translate`).
///
/// The text is what a user of `ctr` or `docker` reads, so it says what failed, why, and where it is known what to do.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Error {
    /// There is no such container or process, or it is already gone.
    #[error("{0}")]
    NotFound(String),
    /// The id is taken.
    #[error("{0}")]
    AlreadyExists(String),
    /// The request is not legal in the present state; it may be later.
    #[error("{0}")]
    FailedPrecondition(String),
    /// The request itself is wrong; repeating it cannot help.
    #[error("{0}")]
    InvalidArgument(String),
    /// Out of time or out of queue; repeating it may help.
    #[error("{0}")]
    Unavailable(String),
    /// This shim, or what it runs on, cannot do that.
    #[error("{0}")]
    Unimplemented(String),
    /// It was given up, as a client asked.
    #[error("{0}")]
    Cancelled(String),
    /// Something the shim relies on failed: the kernel, runc, CRIU.
    #[error("{0}")]
    Internal(String),
}

/// The result of everything a client asked for.
pub type Result<T> = std::result::Result<T, Error>;

/// Any lower error as [`Error::Internal`], with what was being done in front: `internal("mount the rootfs")`.
pub fn internal<E: std::error::Error>(doing: &str) -> impl FnOnce(E) -> Error + '_ {
    move |error| Error::Internal(format!("{doing}: {}", chain(&error)))
}

/// An error and its sources in one line; our own errors do not repeat their sources.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        // Foreign errors often do repeat them.
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}
