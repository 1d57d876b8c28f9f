//! Where pages come from.

use std::fmt::Debug;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use oci_bundles::archive::Content;

use super::extents::Extent;
use super::uffd::{Mapped, Offered, Uffd};

/// The pages of a process, as they lie one after another in its file of pages.
pub(super) trait Source: Debug + Send + Sync {
    /// Reads all of `bytes` from there on.
    ///
    /// # Errors
    /// What the disk says; a file that is shorter than it was; an archive that is damaged, or was changed.
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()>;

    /// Gives a piece, by way of a buffer that has room for it if there is no other.
    ///
    /// # Errors
    /// As [`Source::read_at`].
    fn give(&self, uffd: &Uffd, piece: Extent, buffer: &mut [u8]) -> io::Result<Offered> {
        let len = usize::try_from(piece.len).ok();
        let bytes = len.and_then(|len| buffer.get_mut(..len)).unwrap_or_default();
        self.read_at(bytes, piece.offset)?;
        Ok(uffd.copy(piece.start, bytes))
    }
}

/// A file of pages. The kernel takes large pieces out of its own cache; measured (kernel 6.18, two threads): 1 GiB in 0.20 s so,
/// in 0.23 s by way of buffers.
#[derive(Debug)]
pub(super) struct PagesFile {
    file: File,
    mapped: Option<Mapped>,
}

impl PagesFile {
    /// A file of so many bytes. One that cannot be mapped is read.
    pub(super) fn new(file: File, len: u64) -> Self {
        let mapped = Mapped::new(&file, len).ok();
        Self { file, mapped }
    }
}

impl Source for PagesFile {
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(bytes, offset)
    }

    fn give(&self, uffd: &Uffd, piece: Extent, buffer: &mut [u8]) -> io::Result<Offered> {
        let taken = self
            .mapped
            .as_ref()
            .and_then(|mapped| uffd.copy_mapped(piece.start, mapped, piece.offset, piece.len));
        if let Some(offered) = taken {
            return Ok(offered);
        }
        // It is not to be had so, and reading says why not if it is not to be had at all.
        let len = usize::try_from(piece.len).ok();
        let bytes = len.and_then(|len| buffer.get_mut(..len)).unwrap_or_default();
        self.read_at(bytes, piece.offset)?;
        Ok(uffd.copy(piece.start, bytes))
    }
}

/// Pages in an archive, decompressed piece by piece.
#[derive(Debug)]
pub(super) struct PagesInArchive(pub(super) Arc<Content>);

impl Source for PagesInArchive {
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.read_at(bytes, offset).map_err(io::Error::from)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::super::uffd::waiting::Mapping;
    use super::*;

    const PAGE: u64 = 4096;

    #[test]
    fn a_file_that_was_cut_is_an_error_and_ends_nobody() {
        // It goes last: while anybody could read that it goes, the kernel waits for that.
        let memory = Mapping::new(4 * PAGE as usize).expect("a mapping");
        let Ok(uffd) = Uffd::of_self() else {
            let _ = writeln!(io::stderr(), "SKIP: no userfaultfd here");
            return;
        };
        memory.register(&uffd).expect("register");
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(&[7; 4 * PAGE as usize]).expect("write");
        let pages = PagesFile::new(file.try_clone().expect("a clone"), 4 * PAGE);
        assert!(pages.mapped.is_some());
        let piece = |first: u64, count: u64| Extent {
            start: memory.start + first * PAGE,
            len: count * PAGE,
            offset: first * PAGE,
        };
        let buffer = &mut [0; 4 * PAGE as usize];
        let given = pages.give(&uffd, piece(0, 2), buffer).expect("given");
        assert_eq!(given, Offered::Taken(2 * PAGE));
        assert_eq!(memory.byte(PAGE as usize), 7);
        file.set_len(2 * PAGE).expect("cut");
        let error = pages.give(&uffd, piece(2, 2), buffer).expect_err("cut");
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        // Past what there was when it was opened.
        assert!(pages.give(&uffd, piece(3, 2), buffer).is_err());
    }
}
