//! A directory into an archive.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;

use super::encode::Encoder;
use super::entry::{Entry, Kind};
use super::form::Form;
use super::held::Held;
use super::partial::Partial;
use super::tree::{self, Found};
use super::unpack::read_back;
use super::writer::Writer;
use super::{ArchiveError, OnProgress, Progress, Step, tell};

/// Bytes read of a file at once.
const READ_BYTES: usize = 256 << 10;

/// Of what is in memory: nobody else's business.
const HELD_MODE: u32 = 0o600;

/// What was packed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packed {
    /// Bytes of the archive.
    pub bytes: u64,
    /// Bytes of the files in it.
    pub bytes_raw: u64,
    /// The files, in their order.
    pub parts: Vec<Part>,
}

/// A file in an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Its name there.
    pub path: PathBuf,
    /// Its bytes.
    pub size: u64,
    /// The BLAKE3 digest of them.
    pub digest: [u8; 32],
}

/// Packs what is in a directory into an archive of a form, which must not exist. When this returns, the archive is
/// on the disk and was read back; the directory is as it was. Who packs must be able to write beside the archive.
pub fn pack(
    dir: &Path,
    dest: &Path,
    form: Form,
    on_progress: &mut OnProgress<'_>,
) -> Result<Packed, ArchiveError> {
    if form == Form::Directory {
        return Err(ArchiveError::Unpackable {
            path: dir.to_owned(),
            why: "a directory is no archive".into(),
        });
    }
    let partial = Partial::beside(dest)?;
    let found = tree::list(dir)?;
    let file = partial.create_file()?;
    let (file, parts) = write(found, &[], (dest, form, file), on_progress)?;
    let bytes = file
        .metadata()
        .map_err(|error| ArchiveError::storage("write", dest, error))?
        .len();
    drop(file);
    read_back(partial.path(), form, &parts, on_progress)?;
    partial.commit(true)?;
    Ok(Packed {
        bytes,
        bytes_raw: parts.iter().map(|part| part.size).sum(),
        parts,
    })
}

/// Writes what was found, and then what is held, as an archive into a file; it is on the disk when this returns.
pub(super) fn write(
    found: Vec<Found>,
    held: &[Held<'_>],
    (dest, form, file): (&Path, Form, File),
    on_progress: &mut OnProgress<'_>,
) -> Result<(File, Vec<Part>), ArchiveError> {
    let failed = |error| ArchiveError::storage("write", dest, error);
    let encoder = Encoder::new(form, file).map_err(failed)?;
    let found_bytes: u64 = found.iter().map(|found| found.entry.size).sum();
    let held_bytes: u64 = held.iter().map(Held::size).sum();
    let mut packing = Packing {
        dest,
        writer: Writer::new(encoder),
        buffer: vec![0; READ_BYTES],
        parts: Vec::new(),
        progress: Progress {
            step: Step::Pack,
            done: 0,
            total: found_bytes + held_bytes,
        },
        on_progress,
    };
    packing.all(found)?;
    for held in held {
        packing.held(held)?;
    }
    let parts = packing.parts;
    let encoder = packing.writer.finish().map_err(failed)?;
    let file = encoder.finish().map_err(failed)?;
    file.sync_all().map_err(failed)?;
    Ok((file, parts))
}

/// An archive while it is written.
struct Packing<'a, 'b> {
    dest: &'a Path,
    writer: Writer<Encoder>,
    buffer: Vec<u8>,
    parts: Vec<Part>,
    progress: Progress,
    on_progress: &'a mut OnProgress<'b>,
}

impl Packing<'_, '_> {
    fn all(&mut self, found: Vec<Found>) -> Result<(), ArchiveError> {
        let mut first_names: HashMap<(u64, u64), PathBuf> = HashMap::new();
        for Found {
            mut entry,
            path,
            inode,
        } in found
        {
            if let Some(inode) = inode {
                if let Some(first) = first_names.get(&inode) {
                    self.tick(entry.size)?;
                    (entry.kind, entry.size) = (Kind::HardLink(first.clone()), 0);
                } else {
                    let _none = first_names.insert(inode, entry.path.clone());
                }
            }
            if entry.kind == Kind::File {
                self.file(entry, &path)?;
            } else {
                self.writer.entry(&entry).map_err(|error| self.failed(error))?;
            }
        }
        Ok(())
    }

    fn file(&mut self, mut entry: Entry, path: &Path) -> Result<(), ArchiveError> {
        let read = |error| ArchiveError::storage("read", path, error);
        let changed = || ArchiveError::Unpackable {
            path: path.to_owned(),
            why: "it changed while it was packed".into(),
        };
        let mut file = open(path).map_err(read)?;
        entry.size = file.metadata().map_err(read)?.len();
        self.writer.entry(&entry).map_err(|error| self.failed(error))?;
        let mut hasher = blake3::Hasher::new();
        let mut rest = entry.size;
        while rest > 0 {
            let wanted = self.buffer.len().min(usize::try_from(rest).unwrap_or(usize::MAX));
            let count = match file.read(self.buffer.get_mut(..wanted).unwrap_or_default()) {
                Ok(0) => return Err(changed()),
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(read(error)),
            };
            let data = self.buffer.get(..count).unwrap_or_default();
            let _hasher = hasher.update(data);
            self.writer
                .data(data)
                .map_err(|error| ArchiveError::storage("write", self.dest, error))?;
            rest -= count as u64;
            self.tick(count as u64)?;
        }
        if file.metadata().map_err(read)?.len() != entry.size {
            return Err(changed());
        }
        self.parts.push(Part {
            path: entry.path,
            size: entry.size,
            digest: *hasher.finalize().as_bytes(),
        });
        Ok(())
    }

    /// A file that is in memory. Whoever has it there knows its digest.
    fn held(&mut self, held: &Held<'_>) -> Result<(), ArchiveError> {
        let mut entry = Entry::new(held.path.clone(), Kind::File, HELD_MODE);
        entry.size = held.size();
        self.writer.entry(&entry).map_err(|error| self.failed(error))?;
        for run in &held.runs {
            for data in run.chunks(READ_BYTES) {
                self.writer.data(data).map_err(|error| self.failed(error))?;
                self.tick(data.len() as u64)?;
            }
        }
        Ok(())
    }

    fn tick(&mut self, bytes: u64) -> Result<(), ArchiveError> {
        self.progress.done += bytes;
        tell(self.on_progress, self.progress)
    }

    fn failed(&self, error: std::io::Error) -> ArchiveError {
        ArchiveError::storage("write", self.dest, error)
    }
}

/// Opens a file that was a regular one when it was listed; it is not followed, or waited for, if it is not now.
fn open(path: &Path) -> std::io::Result<File> {
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
    let file = fs::File::options()
        .read(true)
        .custom_flags(flags.bits())
        .open(path)?;
    if file.metadata()?.is_file() {
        return Ok(file);
    }
    Err(std::io::Error::other("no longer a file"))
}
