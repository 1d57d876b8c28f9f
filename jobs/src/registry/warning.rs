//! What the user should know of a registry that does not work as it should.

use std::path::PathBuf;

use super::store::{Fault, StoreError};
use crate::spool::SpoolError;

/// Files of the spool that are named one by one: a directory full of rubbish is one warning.
const PROBLEMS_NAMED_MAX: usize = 5;

/// Something is wrong with the registry; no container depends on it.
#[derive(Debug, thiserror::Error)]
pub enum Warning {
    /// The database was damaged.
    #[error("the registry {} was damaged: it is kept as {}, and a new one made", .path.display(), .moved_to.display())]
    Damaged {
        /// Where it was.
        path: PathBuf,
        /// Where it is.
        moved_to: PathBuf,
    },
    /// Another process has locked it for too long.
    #[error("the registry {} is locked by another process: this command goes without it", .0.display())]
    Locked(PathBuf),
    /// Its file system is full.
    #[error("there is no room for the registry {}: this command goes without it", .0.display())]
    Full(PathBuf),
    /// A newer version of us has written it.
    #[error("the registry {} belongs to a newer version (schema {schema}): this command goes without it", .path.display())]
    Newer {
        /// Where it is.
        path: PathBuf,
        /// The newer version's.
        schema: i32,
    },
    /// It cannot be used for another reason.
    #[error("the registry {} cannot be used ({text}): this command goes without it", .path.display())]
    Unusable {
        /// Where it is.
        path: PathBuf,
        /// Why.
        text: String,
    },
    /// A record that cannot be read; it stays as it is.
    #[error("{} is left alone: {error}", .path.display())]
    Record {
        /// Which file.
        path: PathBuf,
        /// Why.
        error: SpoolError,
    },
    /// More of these.
    #[error("{0} more records are left alone")]
    MoreRecords(usize),
}

impl Warning {
    pub(super) fn in_memory(path: PathBuf, e: &StoreError) -> Self {
        match e.fault {
            Fault::Locked => Self::Locked(path),
            Fault::Full => Self::Full(path),
            Fault::Newer(schema) => Self::Newer { path, schema },
            Fault::Missing | Fault::Damaged | Fault::Unusable | Fault::Foreign => Self::Unusable {
                path,
                text: e.to_string(),
            },
        }
    }

    pub(super) fn of_problems(problems: Vec<(PathBuf, SpoolError)>) -> Vec<Self> {
        let more = problems.len().saturating_sub(PROBLEMS_NAMED_MAX);
        let named = problems.into_iter().take(PROBLEMS_NAMED_MAX);
        let mut warnings: Vec<Self> = named.map(|(path, error)| Self::Record { path, error }).collect();
        if more > 0 {
            warnings.push(Self::MoreRecords(more));
        }
        warnings
    }
}
