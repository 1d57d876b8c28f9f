//! With what a dump was made, for the restore: `cedana.json` among the image files.
//!
//! CRIU wants some options of the dump again at the restore, and a client that restores does not know them. The file is
//! flat and small, so it survives every way an image directory travels (containerd tars it, CRI copies it file by file).
//! A dump without it, made by containerd's own shim, is restored from what its images tell.
//!
//! The file may come from anywhere: it can switch nothing on that reaches outside the container.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::Path;

use jobs::record::Origin;
use serde::{Deserialize, Serialize};

use super::file::read_regular;
use crate::capture::Part;

/// The name in the image directory.
pub const NAME: &str = "cedana.json";

/// Written into the file. A reader refuses newer ones, whose fields it cannot honour.
const SCHEMA: u32 = 1;

/// A manifest has under 1 KiB, unless a thousand processes were stopped.
const SIZE_MAX: u64 = 64 * 1024;

/// What a restore has to know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    schema: u32,
    /// CRIU's version at the dump, for people.
    #[serde(default)]
    pub criu: String,
    /// The dump took the terminal of a shell along (`--shell-job`).
    #[serde(default)]
    pub shell_job: bool,
    /// It left sockets out that were connected to the host (`--ext-unix-sk`).
    #[serde(default)]
    pub external_unix_sockets: bool,
    /// It closed the TCP connections.
    #[serde(default)]
    pub tcp_closed: bool,
    /// Processes that were stopped by a signal and that the images hold as running, by the container's own pids.
    #[serde(default)]
    pub stopped: Vec<i32>,
    /// The files of pages, if they were captured.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pages: Vec<Part>,
    /// Whose it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
}

impl Default for Manifest {
    fn default() -> Self {
        Self {
            schema: SCHEMA,
            criu: String::new(),
            shell_job: false,
            external_unix_sockets: false,
            tcp_closed: false,
            stopped: Vec::new(),
            pages: Vec::new(),
            origin: None,
        }
    }
}

impl Manifest {
    /// That of a dump of this job.
    pub fn of(origin: Origin) -> Self {
        Self {
            origin: Some(origin),
            ..Self::default()
        }
    }

    /// Writes it into an image directory.
    ///
    /// # Errors
    /// What the file system says.
    pub fn write(&self, dir: &Path) -> io::Result<()> {
        fs::write(dir.join(NAME), serde_json::to_vec(self)?)
    }

    /// Reads the one of an image directory; the default one if there is none.
    ///
    /// # Errors
    /// It cannot be read, is damaged, or is newer than this shim.
    pub fn read(dir: &Path) -> io::Result<Self> {
        let bytes = match read_regular(&dir.join(NAME), SIZE_MAX) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(error),
        };
        Self::parse(&bytes)
    }

    fn parse(bytes: &[u8]) -> io::Result<Self> {
        let manifest: Self = serde_json::from_slice(bytes)?;
        if manifest.schema > SCHEMA {
            let text = format!(
                "schema {} is newer than this shim, which knows {SCHEMA}",
                manifest.schema
            );
            return Err(io::Error::new(ErrorKind::Unsupported, text));
        }
        Ok(manifest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_and_nothing_is_the_default() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        assert_eq!(Manifest::read(dir.path()).expect("none"), Manifest::default());
        let manifest = Manifest {
            shell_job: true,
            stopped: vec![7],
            ..Manifest::default()
        };
        manifest.write(dir.path()).expect("write");
        assert_eq!(Manifest::read(dir.path()).expect("read"), manifest);
    }

    #[test]
    fn an_unknown_field_is_ignored_and_a_newer_schema_refused() {
        for (text, ok) in [
            (r#"{"schema": 1}"#, true),
            (r#"{"schema": 1, "invented": [1]}"#, true),
            (r#"{"schema": 2}"#, false),
            (r#"{"schema": 1, "stopped": "all"}"#, false),
            ("{}", false),
            ("", false),
        ] {
            assert_eq!(Manifest::parse(text.as_bytes()).is_ok(), ok, "{text}");
        }
    }
}
