//! Where pages come from.

use std::fmt::Debug;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// The pages of a process, as they lie one after another in its file of pages.
pub(super) trait Source: Debug + Send + Sync {
    /// Reads all of `bytes` from there on.
    ///
    /// # Errors
    /// What the disk says; a file that is shorter than it was; an archive that is damaged.
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()>;
}

impl Source for File {
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        self.read_exact_at(bytes, offset)
    }
}
