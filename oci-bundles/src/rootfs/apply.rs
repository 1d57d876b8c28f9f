//! A diff to an upper directory.

use std::cell::Cell;
use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::AtFlags;
use nix::sys::stat::{
    FchmodatFlags, Mode, SFlag, UtimensatFlags, fchmodat, fstat, makedev, mknodat, utimensat,
};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchownat, symlinkat, unlinkat};

use super::Tree;
use super::attributes;
use super::overlay::{Meaning, OPAQUE_XATTR, meaning, travels};
use super::remove::remove_at;
use crate::archive::entry::{Entry, Kind, Span};
use crate::archive::limits::Limits;
use crate::archive::place::Place;
use crate::archive::reader::{ReadError, Reader};
use crate::archive::solid::{HOLE_BYTES, write_solid};
use crate::archive::{ArchiveError, OnProgress, Progress, Step, tell};

/// Bytes of a file that are read and written at once.
const DATA_BYTES: usize = 256 << 10;

/// A device in a diff.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Device {
    /// It is a block device.
    pub is_block: bool,
    /// Its major number.
    pub major: u32,
    /// Its minor number.
    pub minor: u32,
}

/// What a request allows a diff to do.
pub struct Allowed<'a> {
    /// How much it may be.
    pub limits: Limits,
    /// Whether the container may have this device.
    pub device: &'a dyn Fn(Device) -> bool,
}

impl std::fmt::Debug for Allowed<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Allowed")
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

/// What was applied.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Applied {
    /// Entries.
    pub entries: u64,
    /// Bytes of files.
    pub bytes: u64,
    /// Devices that are not there because they are not allowed.
    pub left_out: Vec<PathBuf>,
}

/// Puts a diff into a tree, for instance an upper directory whose overlay is not mounted. What is there already is replaced, except that
/// directories stay. After a failure the tree has a part of the diff and is to be thrown away. `name` is what the diff is called in messages. Needs root, or a user namespace that has every owner in the diff.
///
/// # Errors
/// The diff is damaged, hostile or larger than allowed, or what the disk says.
pub fn apply_to(
    tree: Tree,
    diff: impl Read,
    name: &Path,
    upper: &Path,
    allowed: &Allowed<'_>,
    on_progress: &mut OnProgress<'_>,
) -> Result<Applied, ArchiveError> {
    apply_of(None, tree, diff, name, upper, allowed, on_progress)
}

/// The same of a diff that is unpacked meanwhile. `packed` is how many bytes that has read so far: what they make of themselves
/// is weighed.
pub(super) fn apply_of(
    packed: Option<&Cell<u64>>,
    tree: Tree,
    diff: impl Read,
    name: &Path,
    upper: &Path,
    allowed: &Allowed<'_>,
    on_progress: &mut OnProgress<'_>,
) -> Result<Applied, ArchiveError> {
    let place = Place::open(upper).map_err(|error| ArchiveError::storage("open", upper, error))?;
    let mut applying = Applying {
        tree,
        name,
        upper,
        place,
        reader: Reader::new(diff),
        dirs: Vec::new(),
        files: HashSet::new(),
        limits: &allowed.limits,
        packed,
        not_dirs: 0,
        bytes_solid: 0,
        applied: Applied::default(),
        buffer: vec![0; DATA_BYTES],
    };
    while let Some(entry) = applying.next_entry()? {
        applying.count(&entry)?;
        applying.one(entry, allowed, on_progress)?;
    }
    applying.finish_dirs()?;
    Ok(applying.applied)
}

struct Applying<'a, R> {
    tree: Tree,
    name: &'a Path,
    upper: &'a Path,
    place: Place,
    reader: Reader<R>,
    /// Directories, which get what they are at the end: making things in them changes their times.
    dirs: Vec<Entry>,
    /// Files made so far: what a hard link may name.
    files: HashSet<PathBuf>,
    limits: &'a Limits,
    /// Bytes that all came out of, where they were packed.
    packed: Option<&'a Cell<u64>>,
    /// Entries that are no directories.
    not_dirs: u64,
    /// Bytes of data on the disk.
    bytes_solid: u64,
    applied: Applied,
    buffer: Vec<u8>,
}

impl<R: Read> Applying<'_, R> {
    fn next_entry(&mut self) -> Result<Option<Entry>, ArchiveError> {
        self.reader.next_entry().map_err(|error| error.of(self.name))
    }

    fn count(&mut self, entry: &Entry) -> Result<(), ArchiveError> {
        self.applied.entries += 1;
        self.not_dirs += u64::from(entry.kind != Kind::Directory);
        self.applied.bytes = self.applied.bytes.saturating_add(entry.size);
        let (what, limit) = if self.applied.entries.max(self.inodes()) > self.limits.entries_max {
            ("entries", self.limits.entries_max)
        } else if self.applied.bytes > self.limits.bytes_max {
            ("bytes", self.limits.bytes_max)
        } else {
            return self.weigh(0);
        };
        Err(ReadError::TooLarge { what, limit }.of(self.name))
    }

    /// The most that was made: one name can have a hundred directories above it, of which no entry speaks.
    fn inodes(&self) -> u64 {
        self.not_dirs.saturating_add(self.place.dirs_made())
    }

    /// Weighs what is on the disk with `solid` bytes more: whole blocks, and one for each inode.
    fn weigh(&mut self, solid: u64) -> Result<(), ArchiveError> {
        let Some(packed) = self.packed else {
            return Ok(());
        };
        let block = HOLE_BYTES as u64;
        self.bytes_solid = self.bytes_solid.saturating_add(solid.next_multiple_of(block));
        let weight = self
            .bytes_solid
            .saturating_add(self.inodes().saturating_mul(block));
        let limit = self.limits.ratio_max;
        if weight > packed.get().saturating_mul(limit).max(self.limits.ratio_from) {
            let what = "times its own size";
            return Err(ReadError::TooLarge { what, limit }.of(self.name));
        }
        Ok(())
    }

    fn one(
        &mut self,
        entry: Entry,
        allowed: &Allowed<'_>,
        on_progress: &mut OnProgress<'_>,
    ) -> Result<(), ArchiveError> {
        let name = entry.path.file_name().unwrap_or_default();
        match meaning(name) {
            _ if !self.tree.has_whiteouts() => {}
            Meaning::Plain => {}
            _ if entry.kind != Kind::File => return Err(self.refused(&entry, "a whiteout that is no file")),
            Meaning::Whiteout(deleted) => return self.whiteout(&entry, &deleted),
            Meaning::Opaque => return self.opaque(&entry),
            Meaning::Unknown => return Err(self.refused(&entry, "a whiteout of an unknown kind")),
        }
        let _was_there = self.files.remove(&entry.path);
        match &entry.kind {
            Kind::File => self.file(entry, on_progress),
            Kind::Directory => {
                self.make_room_for_dir(&entry.path)?;
                let made = self.place.create_dir(&entry.path);
                made.map_err(|error| self.failed(&entry.path, error))?;
                self.dirs.push(entry);
                Ok(())
            }
            Kind::HardLink(first) => {
                if !self.files.contains(first) {
                    return Err(self.refused(&entry, "a link to no file before it"));
                }
                self.make_room(&entry.path)?;
                let linked = self.place.create_link(&entry.path, first);
                linked.map_err(|error| self.failed(&entry.path, error))?;
                let _is_new = self.files.insert(entry.path);
                Ok(())
            }
            Kind::Symlink(target) => {
                self.make_room(&entry.path)?;
                let made = self
                    .place
                    .split(&entry.path)
                    .and_then(|(dir, name)| symlinkat(target, dir, name));
                made.map_err(|error| self.failed(&entry.path, error))?;
                self.finish(&entry)
            }
            Kind::CharDevice(major, minor) | Kind::BlockDevice(major, minor) => {
                let device = Device {
                    is_block: matches!(entry.kind, Kind::BlockDevice(..)),
                    major: *major,
                    minor: *minor,
                };
                // To overlay a character device 0:0 is a whiteout, and a layer says that by name.
                let is_sign = self.tree != Tree::Own && !device.is_block && (*major, *minor) == (0, 0);
                if !is_sign && (allowed.device)(device) {
                    return self.node(&entry, Some(device));
                }
                self.applied.left_out.push(entry.path);
                Ok(())
            }
            Kind::Fifo => self.node(&entry, None),
        }
    }

    fn file(&mut self, entry: Entry, on_progress: &mut OnProgress<'_>) -> Result<(), ArchiveError> {
        self.make_room(&entry.path)?;
        let made = self.place.create_file(&entry.path, Mode::S_IRUSR | Mode::S_IWUSR);
        let file = made.map_err(|error| self.failed(&entry.path, error))?;
        let whole = [Span {
            at: 0,
            len: entry.size,
        }];
        for part in entry.parts.as_deref().unwrap_or(&whole) {
            self.part(&entry.path, &file, *part, on_progress)?;
        }
        file.set_len(entry.size)
            .map_err(|error| self.failed(&entry.path, error))?;
        drop(file);
        self.finish(&entry)?;
        let _is_new = self.files.insert(entry.path);
        Ok(())
    }

    fn part(
        &mut self,
        path: &Path,
        file: &File,
        part: Span,
        on_progress: &mut OnProgress<'_>,
    ) -> Result<(), ArchiveError> {
        let (mut at, end) = (part.at, part.at + part.len);
        while at < end {
            let wanted = DATA_BYTES.min(usize::try_from(end - at).unwrap_or(usize::MAX));
            let mut count = 0;
            while count < wanted {
                let rest = self.buffer.get_mut(count..wanted).unwrap_or_default();
                count += self.reader.data(rest).map_err(|error| error.of(self.name))?;
            }
            let data = self.buffer.get(..count).unwrap_or_default();
            let written = write_solid(file, data, at);
            let solid =
                written.map_err(|error| ArchiveError::storage("write", &self.upper.join(path), error))?;
            self.weigh(solid)?;
            at += count as u64;
            let progress = Progress {
                step: Step::Unpack,
                done: self.applied.bytes,
                total: 0,
            };
            tell(on_progress, progress)?;
        }
        Ok(())
    }

    /// A device or, without one, a fifo.
    fn node(&mut self, entry: &Entry, device: Option<Device>) -> Result<(), ArchiveError> {
        self.make_room(&entry.path)?;
        let kind = match device {
            Some(device) if device.is_block => SFlag::S_IFBLK,
            Some(_) => SFlag::S_IFCHR,
            None => SFlag::S_IFIFO,
        };
        let number = device.map_or(0, |device| makedev(device.major.into(), device.minor.into()));
        let made = self.place.split(&entry.path);
        let made = made.and_then(|(dir, name)| mknodat(dir, name, kind, Mode::empty(), number));
        made.map_err(|error| self.failed(&entry.path, error))?;
        self.finish(entry)
    }

    fn whiteout(&mut self, entry: &Entry, deleted: &OsStr) -> Result<(), ArchiveError> {
        let path = entry.path.with_file_name(deleted);
        let _was_there = self.files.remove(&path);
        self.make_room(&path)?;
        if self.tree.is_merged() {
            return Ok(());
        }
        let made = self.place.split(&path);
        let made = made.and_then(|(dir, name)| mknodat(dir, name, SFlag::S_IFCHR, Mode::empty(), 0));
        made.map_err(|error| self.failed(&path, error))
    }

    fn opaque(&mut self, entry: &Entry) -> Result<(), ArchiveError> {
        let dir = entry.path.parent().unwrap_or(Path::new(""));
        if self.tree.is_merged() {
            return self.empty(dir);
        }
        let made = self.place.create_dir(dir).and_then(|()| self.place.look(dir));
        let fd = made.map_err(|error| self.failed(dir, error))?;
        attributes::set(&fd, OsStr::new(OPAQUE_XATTR), b"y").map_err(|error| self.failed(dir, error))
    }

    /// Removes what is at a path, unless it is a directory; in a merged tree that, too: the layer hides it.
    fn make_room(&mut self, path: &Path) -> Result<(), ArchiveError> {
        if self.tree.is_merged() {
            return self.remove(path);
        }
        let removed = self.place.split(path);
        match removed.and_then(|(dir, name)| unlinkat(dir, name, UnlinkatFlags::NoRemoveDir)) {
            Ok(()) | Err(Errno::ENOENT) => Ok(()),
            Err(error) => Err(self.failed(path, error)),
        }
    }

    /// In a merged tree a directory may have to take the place of something else.
    fn make_room_for_dir(&mut self, path: &Path) -> Result<(), ArchiveError> {
        if !self.tree.is_merged() || path.as_os_str().is_empty() {
            return Ok(());
        }
        let is_dir =
            |fd: OwnedFd| fstat(&fd).map(|stat| stat.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFDIR.bits());
        match self.place.look(path).and_then(is_dir) {
            Ok(true) | Err(Errno::ENOENT) => Ok(()),
            Ok(false) => self.remove(path),
            Err(error) => Err(self.failed(path, error)),
        }
    }

    /// Removes all that is in a directory.
    fn empty(&mut self, dir: &Path) -> Result<(), ArchiveError> {
        match self.place.names(dir) {
            Ok(names) => names.iter().try_for_each(|name| self.remove(&dir.join(name))),
            Err(Errno::ENOENT) => Ok(()),
            Err(error) => Err(self.failed(dir, error)),
        }
    }

    /// Removes whatever is at a path, with all that is below it.
    fn remove(&mut self, path: &Path) -> Result<(), ArchiveError> {
        let (dir, name) = match self.place.split(path) {
            Ok(there) => there,
            Err(error) => return Err(self.failed(path, error)),
        };
        match remove_at(dir, name) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(ArchiveError::storage("remove", &self.upper.join(path), error))
            }
            _ => Ok(()),
        }
    }

    fn finish_dirs(&mut self) -> Result<(), ArchiveError> {
        // The deepest last in the tar are first here, so that a parent's times are the last that change.
        for entry in std::mem::take(&mut self.dirs).into_iter().rev() {
            self.finish(&entry)?;
        }
        Ok(())
    }

    /// Owner, mode, attributes and time, in the order in which none undoes another: a new owner takes set-id bits
    /// and capabilities away.
    fn finish(&mut self, entry: &Entry) -> Result<(), ArchiveError> {
        let set = self.set_all(entry);
        set.map_err(|error| ArchiveError::storage("set attributes of", &self.upper.join(&entry.path), error))
    }

    fn set_all(&mut self, entry: &Entry) -> io::Result<()> {
        let fd = self.place.look(&entry.path)?;
        let (owner, group) = (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid));
        fchownat(&fd, "", Some(owner), Some(group), AtFlags::AT_EMPTY_PATH)?;
        // The descriptor is the thing itself, so what is followed here is only the link in /proc.
        let path = attributes::path_of(&fd);
        let at = nix::fcntl::AT_FDCWD;
        if !matches!(entry.kind, Kind::Symlink(_)) {
            fchmodat(
                at,
                &path,
                Mode::from_bits_truncate(entry.mode),
                FchmodatFlags::FollowSymlink,
            )?;
        }
        for (name, value) in entry.xattrs.iter().filter(|(name, _)| travels(name)) {
            match attributes::set(&fd, name, value) {
                // Memory takes users' attributes from Linux 6.6 on, and another host's kernel may be newer.
                Err(error) if self.tree == Tree::Own && error.kind() == io::ErrorKind::Unsupported => {}
                result => result?,
            }
        }
        let time = TimeSpec::new(entry.mtime.0, entry.mtime.1.into());
        utimensat(at, &path, &time, &time, UtimensatFlags::FollowSymlink)?;
        Ok(())
    }

    fn failed(&self, path: &Path, error: impl Into<io::Error>) -> ArchiveError {
        let error = error.into();
        let refused = |why| ReadError::refused(path, why).of(self.name);
        match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::ENOTDIR | Errno::ELOOP) => refused("it goes through what is no directory"),
            Some(Errno::EXDEV) => refused("something is mounted there or on its way"),
            Some(Errno::EISDIR) => refused("there is a directory in its place"),
            Some(Errno::ENAMETOOLONG) => refused("its name is too long"),
            _ => ArchiveError::storage("create", &self.upper.join(path), error),
        }
    }

    fn refused(&self, entry: &Entry, why: &'static str) -> ArchiveError {
        ReadError::refused(&entry.path, why).of(self.name)
    }
}
