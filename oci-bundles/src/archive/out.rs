//! Where an archive is unpacked to: files, directories and links, made so that none reaches outside.

use std::fs::File;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::stat::Mode;

use super::ArchiveError;
use super::entry::{Entry, Kind};
use super::place::Place;
use super::reader::ReadError;

/// A file that is being unpacked.
pub struct Target {
    /// It, open for writing.
    pub file: File,
    /// As it is to be called; for messages.
    path: PathBuf,
}

impl Target {
    /// That it could not be written.
    pub fn failed(&self, error: std::io::Error) -> ArchiveError {
        ArchiveError::storage("write", &self.path, error)
    }
}

/// Where an archive goes.
pub struct Out<'a> {
    /// As it is to be called; for messages.
    dest: &'a Path,
    place: Place,
    /// Directories get their modes at the end: one without write permission is filled before.
    dirs: Vec<Entry>,
    /// Symlinks are made at the end, so that there is none to follow while files are made.
    symlinks: Vec<Entry>,
}

impl<'a> Out<'a> {
    /// A directory that is to be called `dest`, and is at `at` until then.
    pub fn new(at: &Path, dest: &'a Path) -> Result<Self, ArchiveError> {
        let place = Place::open(at).map_err(|error| ArchiveError::storage("open", at, error))?;
        Ok(Self {
            dest,
            place,
            dirs: Vec::new(),
            symlinks: Vec::new(),
        })
    }

    /// A file, to be filled by the caller.
    pub fn create(&mut self, archive: &Path, entry: &Entry) -> Result<Target, ArchiveError> {
        let file = self.made(archive, entry, |place| {
            place.create_file(&entry.path, permissions(entry.mode))
        })?;
        let path = self.dest.join(&entry.path);
        Ok(Target { file, path })
    }

    /// A directory.
    pub fn directory(&mut self, archive: &Path, entry: Entry) -> Result<(), ArchiveError> {
        self.made(archive, &entry, |place| place.create_dir(&entry.path))?;
        // The top one stays private, whatever the archive says.
        if !entry.path.as_os_str().is_empty() {
            self.dirs.push(entry);
        }
        Ok(())
    }

    /// A second name for a file.
    pub fn link(&mut self, archive: &Path, entry: &Entry, first: &Path) -> Result<(), ArchiveError> {
        self.made(archive, entry, |place| place.create_link(&entry.path, first))
    }

    /// A symlink, which must lead nowhere outside.
    pub fn symlink(&mut self, entry: Entry) {
        self.symlinks.push(entry);
    }

    /// Makes what had to wait until all files were there.
    pub fn finish(&mut self, archive: &Path) -> Result<(), ArchiveError> {
        for entry in std::mem::take(&mut self.symlinks) {
            let Kind::Symlink(target) = &entry.kind else {
                continue;
            };
            self.made(archive, &entry, |place| place.create_symlink(&entry.path, target))?;
        }
        for entry in std::mem::take(&mut self.dirs) {
            let mode = permissions(entry.mode) | Mode::S_IRWXU;
            self.made(archive, &entry, |place| place.set_dir_mode(&entry.path, mode))?;
        }
        Ok(())
    }

    /// Makes something; what the kernel refuses because of what came before in the archive is the archive's fault.
    fn made<T>(
        &mut self,
        archive: &Path,
        entry: &Entry,
        make: impl FnOnce(&mut Place) -> nix::Result<T>,
    ) -> Result<T, ArchiveError> {
        make(&mut self.place).map_err(|error| {
            let refused = |why| ReadError::refused(&entry.path, why).of(archive);
            match error {
                Errno::EEXIST => refused("it is there twice"),
                Errno::ENOTDIR | Errno::ELOOP | Errno::EXDEV => {
                    refused("it goes through what is no directory")
                }
                Errno::ENAMETOOLONG => refused("its name is too long"),
                error => ArchiveError::storage("create", &self.dest.join(&entry.path), error),
            }
        })
    }
}

/// The nine bits: who unpacks owns the files, and what they were set-id for is somebody else.
fn permissions(mode: u32) -> Mode {
    Mode::from_bits_truncate(mode & 0o777)
}
