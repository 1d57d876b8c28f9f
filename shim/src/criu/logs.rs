//! Where the log of a failed operation goes.
//!
//! ```text
//!   <bundle>/criu-dump.log                    as containerd's own shim leaves it; gone with the bundle
//!   <log-dir>/<namespace>/<id>/dump.log       stays; one a container and operation, the latest
//! ```
//!
//! A failed restore takes its bundle with it within milliseconds, so the second place is the one an error names.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use super::file::open_regular;

/// A dump of 1000 tasks writes some 10 MiB; CRIU fails at the end of its log, so that is what is kept of a longer one.
const KEPT_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// Whose log it is and where it is kept.
#[derive(Debug)]
pub struct Keeper<'a> {
    /// `dump.log-dir` or `restore.log-dir`.
    pub log_dir: &'a Path,
    /// containerd's namespace.
    pub namespace: &'a str,
    /// The container.
    pub id: &'a str,
    /// Its bundle.
    pub bundle: &'a Path,
}

impl Keeper<'_> {
    /// Keeps a log; `name` is `dump` or `restore`. The place that lasts is returned, or the one in the bundle if that is
    /// all there is, or nothing if CRIU wrote no log.
    pub fn keep(&self, log: &Path, name: &str) -> Option<PathBuf> {
        if let Err(error) = open_regular(log) {
            tracing::debug!(%error, log = %log.display(), "there is no log of criu to keep");
            return None;
        }
        let dir = self.log_dir.join(self.namespace).join(self.id);
        if let Err(error) = fs::create_dir_all(&dir) {
            tracing::warn!(%error, dir = %dir.display(), "failed to make the directory for logs");
        }
        let lasting = dir.join(format!("{name}.log"));
        let in_bundle = self.bundle.join(format!("criu-{name}.log"));
        let kept = [lasting, in_bundle].map(|place| match copy_end(log, &place) {
            Ok(()) => Some(place),
            Err(error) => {
                tracing::warn!(%error, log = %log.display(), place = %place.display(), "failed to keep the log of criu");
                None
            }
        });
        kept.into_iter().flatten().next()
    }
}

/// Copies the last [`KEPT_BYTES_MAX`] bytes of a file.
fn copy_end(log: &Path, place: &Path) -> io::Result<()> {
    let mut from = open_regular(log)?;
    let start = from.metadata()?.len().saturating_sub(KEPT_BYTES_MAX);
    let _ = from.seek(SeekFrom::Start(start))?;
    // CRIU, if it still lives, goes on writing.
    let _ = io::copy(&mut from.take(KEPT_BYTES_MAX), &mut File::create(place)?)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_kept_where_it_outlives_the_bundle() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (bundle, log) = (dir.path().join("bundle"), dir.path().join("dump.log"));
        let log_dir = dir.path().join("logs");
        fs::create_dir(&bundle).expect("make the bundle");
        let keeper = Keeper {
            log_dir: &log_dir,
            namespace: "ns",
            id: "c1",
            bundle: &bundle,
        };
        assert_eq!(keeper.keep(&log, "dump"), None, "there is no log");
        assert!(!log_dir.exists(), "and no directory for it");
        fs::write(&log, "why").expect("write");
        let kept = keeper.keep(&log, "dump").expect("kept");
        assert_eq!(kept, log_dir.join("ns/c1/dump.log"));
        assert_eq!(fs::read_to_string(kept).expect("read"), "why");
        assert_eq!(
            fs::read_to_string(bundle.join("criu-dump.log")).expect("read"),
            "why"
        );
    }

    #[test]
    fn a_log_dir_that_cannot_be_written_leaves_the_one_in_the_bundle() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (log, file) = (dir.path().join("dump.log"), dir.path().join("file"));
        fs::write(&log, "why").expect("write");
        fs::write(&file, "").expect("write");
        let keeper = Keeper {
            log_dir: &file,
            namespace: "ns",
            id: "c1",
            bundle: dir.path(),
        };
        assert_eq!(keeper.keep(&log, "dump"), Some(dir.path().join("criu-dump.log")));
    }

    #[test]
    fn the_end_of_a_long_log_is_kept() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (log, kept) = (dir.path().join("dump.log"), dir.path().join("kept.log"));
        for (length, want) in [(3, 3), (KEPT_BYTES_MAX + 9, KEPT_BYTES_MAX)] {
            let file = File::create(&log).expect("create");
            file.set_len(length).expect("a sparse log");
            std::os::unix::fs::FileExt::write_all_at(&file, b"end", length - 3).expect("write");
            copy_end(&log, &kept).expect("copied");
            let text = fs::read(&kept).expect("read");
            assert_eq!(text.len() as u64, want);
            assert!(text.ends_with(b"end"));
        }
    }
}
