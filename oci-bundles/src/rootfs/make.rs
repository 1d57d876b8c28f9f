//! An upper directory to a diff.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, readlinkat};
use nix::sys::stat::{FileStat, SFlag, fstat, major, minor};
use nix::unistd::{Whence, lseek};

use super::Tree;
use super::attributes;
use super::overlay::{OPAQUE_NAME, Role, WHITEOUT_PREFIX, role, travels};
use crate::archive::entry::{Entry, Kind, Span};
use crate::archive::limits::{DEPTH_MAX, MEMORY_ENTRIES_MAX};
use crate::archive::place::Place;
use crate::archive::writer::Writer;
use crate::archive::{ArchiveError, OnProgress, Progress, Step, tell};

/// Bytes read of a file at once.
const READ_BYTES: usize = 256 << 10;

/// Entries of a diff: what is listed is in memory, and what is made here is applied within the same limit.
const ENTRIES_MAX: u64 = 1 << 20;

/// Holes smaller than this, in bytes, are written as zeros: a map costs a kilobyte.
const HOLE_BYTES_MIN: u64 = 64 << 10;

/// Parts of a sparse file before it is taken as a whole.
const PARTS_MAX: usize = 10_000;

/// What went into a diff.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Made {
    /// Entries, whiteouts among them.
    pub entries: u64,
    /// Bytes of files, holes not counted.
    pub bytes: u64,
    /// What of the image is deleted, for the list that podman wants beside the diff.
    pub deleted: Vec<PathBuf>,
    /// Sockets, which are not in it.
    pub left_out: Vec<PathBuf>,
    /// What a layer cannot say, since a name that begins with `.wh.` has another meaning there: files, and directories with all in them.
    pub unsayable: Vec<PathBuf>,
}

/// Writes a diff of an upper directory. Whatever changes in it meanwhile, nothing outside it is read; a file that
/// changes its size fails the diff, so the container should be frozen. The total of the progress is not known, and 0.
///
/// # Errors
/// A layer with `redirect_dir` or `metacopy`, and what the disk says of either side: [`ArchiveError`] has the path.
pub fn make<W: Write>(
    upper: &Path,
    out: W,
    on_progress: &mut OnProgress<'_>,
) -> Result<(Made, W), ArchiveError> {
    make_of(Tree::Upper, upper, out, on_progress)
}

/// The same of any tree; of one that is no layer, all of it.
///
/// # Errors
/// As [`make`].
pub fn make_of<W: Write>(
    tree: Tree,
    upper: &Path,
    out: W,
    on_progress: &mut OnProgress<'_>,
) -> Result<(Made, W), ArchiveError> {
    let place = Place::open(upper).map_err(|error| ArchiveError::storage("read", upper, error))?;
    let is_layer = tree == Tree::Upper;
    let writer = Writer::new(out);
    let mut making = Making {
        is_layer,
        upper,
        place,
        writer: if is_layer { writer.of_root() } else { writer },
        first_names: HashMap::new(),
        made: Made::default(),
        buffer: vec![0; READ_BYTES],
        on_progress,
    };
    let _is_dir = making.one(PathBuf::new())?;
    let mut dirs = vec![PathBuf::new()];
    while let Some(dir) = dirs.pop() {
        let mut below = Vec::new();
        for name in making.names(&dir)? {
            let path = dir.join(name);
            if making.one(path.clone())? {
                below.push(path);
            }
        }
        // The first by name is on top.
        dirs.extend(below.into_iter().rev());
    }
    let made = making.made;
    let out = making.writer.finish();
    let out = out.map_err(|error| ArchiveError::storage("write the diff of", upper, error))?;
    Ok((made, out))
}

/// A diff while it is written.
struct Making<'a, 'b, W> {
    is_layer: bool,
    upper: &'a Path,
    place: Place,
    writer: Writer<W>,
    /// Files with more than one name: device and inode, and the first of them.
    first_names: HashMap<(u64, u64), PathBuf>,
    made: Made,
    buffer: Vec<u8>,
    on_progress: &'a mut OnProgress<'b>,
}

impl<W: Write> Making<'_, '_, W> {
    fn names(&self, dir: &Path) -> Result<Vec<OsString>, ArchiveError> {
        match self.place.names(dir) {
            // Removed, or become something else, since it was listed.
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => Ok(Vec::new()),
            result => result.map_err(|error| self.unread(dir, error)),
        }
    }

    /// Writes what is at a path; true for a directory.
    fn one(&mut self, path: PathBuf) -> Result<bool, ArchiveError> {
        let fd = match self.place.look(&path) {
            Err(Errno::ENOENT) => return Ok(false),
            result => result.map_err(|error| self.unread(&path, error))?,
        };
        let stat = fstat(&fd).map_err(|error| self.unread(&path, error))?;
        let xattrs = attributes::read(&fd).map_err(|error| self.unread(&path, error))?;
        let kind = SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits());
        let role = match kind {
            _ if !self.is_layer => Role::Plain,
            SFlag::S_IFCHR if stat.st_rdev == 0 => Role::Whiteout,
            _ => role(&xattrs, kind == SFlag::S_IFREG && stat.st_size == 0),
        };
        let name = path.file_name().unwrap_or_default();
        if let Role::Entangled(why) = role {
            return Err(self.unpackable(&path, why));
        }
        if self.is_layer && name.as_bytes().starts_with(WHITEOUT_PREFIX) {
            self.count()?;
            self.made.unsayable.push(path);
            return Ok(false);
        }
        if path.components().count() > DEPTH_MAX {
            return Err(self.unpackable(&path, "it is too deep"));
        }
        if role == Role::Whiteout {
            let sign = [WHITEOUT_PREFIX, name.as_bytes()].concat();
            let sign = path.with_file_name(std::ffi::OsStr::from_bytes(&sign));
            self.made.deleted.push(path);
            self.entry(&Entry::new(sign, Kind::File, 0))?;
            return Ok(false);
        }
        let mut entry = Entry::new(path.clone(), Kind::File, stat.st_mode & 0o7777);
        (entry.uid, entry.gid) = (stat.st_uid, stat.st_gid);
        entry.mtime = (stat.st_mtime, u32::try_from(stat.st_mtime_nsec).unwrap_or(0));
        entry.xattrs = xattrs.into_iter().filter(|(name, _)| travels(name)).collect();
        entry.kind = match kind {
            SFlag::S_IFREG => return self.file(entry, &fd, &stat).map(|()| false),
            SFlag::S_IFDIR => Kind::Directory,
            SFlag::S_IFLNK => {
                let target = readlinkat(&fd, "").map_err(|error| self.unread(&path, error))?;
                Kind::Symlink(target.into())
            }
            SFlag::S_IFCHR => Kind::CharDevice(number(major(stat.st_rdev)), number(minor(stat.st_rdev))),
            SFlag::S_IFBLK => Kind::BlockDevice(number(major(stat.st_rdev)), number(minor(stat.st_rdev))),
            SFlag::S_IFIFO => Kind::Fifo,
            _ => {
                self.made.left_out.push(path);
                return Ok(false);
            }
        };
        self.entry(&entry)?;
        if role == Role::Opaque {
            self.entry(&Entry::new(path.join(OPAQUE_NAME), Kind::File, 0))?;
        }
        Ok(entry.kind == Kind::Directory)
    }

    fn file(&mut self, mut entry: Entry, fd: &OwnedFd, stat: &FileStat) -> Result<(), ArchiveError> {
        if stat.st_nlink > 1 {
            let inode = (stat.st_dev, stat.st_ino);
            if let Some(first) = self.first_names.get(&inode) {
                entry.kind = Kind::HardLink(first.clone());
                entry.xattrs.clear();
                return self.entry(&entry);
            }
            let _none = self.first_names.insert(inode, entry.path.clone());
        }
        // The very file that was looked at, whatever has its name by now.
        let opened = File::options()
            .read(true)
            .custom_flags(OFlag::O_NONBLOCK.bits())
            .open(attributes::path_of(fd));
        let mut file = opened.map_err(|error| self.unread(&entry.path, error))?;
        entry.size = u64::try_from(stat.st_size).unwrap_or(0);
        entry.parts = parts(&file, entry.size).map_err(|error| self.unread(&entry.path, error))?;
        self.entry(&entry)?;
        let whole = [Span {
            at: 0,
            len: entry.size,
        }];
        for part in entry.parts.as_deref().unwrap_or(&whole) {
            self.part(&entry.path, &mut file, *part)?;
        }
        Ok(())
    }

    fn part(&mut self, path: &Path, file: &mut File, part: Span) -> Result<(), ArchiveError> {
        let _at = file
            .seek(SeekFrom::Start(part.at))
            .map_err(|error| self.unread(path, error))?;
        let mut rest = part.len;
        while rest > 0 {
            let wanted = self.buffer.len().min(usize::try_from(rest).unwrap_or(usize::MAX));
            let count = match file.read(self.buffer.get_mut(..wanted).unwrap_or_default()) {
                Ok(0) => return Err(self.unpackable(path, "it shrank while it was read")),
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(self.unread(path, error)),
            };
            let data = self.buffer.get(..count).unwrap_or_default();
            let written = self.writer.data(data);
            written
                .map_err(|error| ArchiveError::storage("write the diff of", &self.upper.join(path), error))?;
            rest -= count as u64;
            self.made.bytes += count as u64;
            let progress = Progress {
                step: Step::Pack,
                done: self.made.bytes,
                total: 0,
            };
            tell(self.on_progress, progress)?;
        }
        Ok(())
    }

    fn count(&mut self) -> Result<(), ArchiveError> {
        self.made.entries += 1;
        let most = match self.is_layer {
            true => ENTRIES_MAX,
            false => MEMORY_ENTRIES_MAX,
        };
        match self.made.entries > most {
            true => Err(self.unpackable(Path::new(""), "it has too many files")),
            false => Ok(()),
        }
    }

    fn entry(&mut self, entry: &Entry) -> Result<(), ArchiveError> {
        self.count()?;
        let written = self.writer.entry(entry);
        written
            .map_err(|error| ArchiveError::storage("write the diff of", &self.upper.join(&entry.path), error))
    }

    fn unread(&self, path: &Path, error: impl Into<io::Error>) -> ArchiveError {
        ArchiveError::storage("read", &self.upper.join(path), error)
    }

    fn unpackable(&self, path: &Path, why: &str) -> ArchiveError {
        ArchiveError::Unpackable {
            path: self.upper.join(path),
            why: why.into(),
        }
    }
}

/// The parts of a file that have data; nothing if it is not worth a map.
fn parts(file: &File, size: u64) -> io::Result<Option<Vec<Span>>> {
    let mut parts = Vec::new();
    let mut end = 0;
    let seek = |at: u64, whence| {
        let at = i64::try_from(at).map_err(|_| Errno::EOVERFLOW)?;
        lseek(file.as_fd(), at, whence).map(|at| u64::try_from(at).unwrap_or(0))
    };
    while end < size {
        let at = match seek(end, Whence::SeekData) {
            Ok(at) => at.min(size),
            // Only a hole is left.
            Err(Errno::ENXIO) => break,
            // The file system does not tell.
            Err(Errno::EINVAL) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        end = seek(at, Whence::SeekHole)?.min(size);
        if parts.len() == PARTS_MAX || end <= at {
            return Ok(None);
        }
        parts.push(Span { at, len: end - at });
    }
    let there: u64 = parts.iter().map(|part| part.len).sum();
    Ok((size - there >= HOLE_BYTES_MIN).then_some(parts))
}

/// The kernel has 12 bits for a major number and 20 for a minor one.
fn number(part: u64) -> u32 {
    u32::try_from(part).unwrap_or(u32::MAX)
}
