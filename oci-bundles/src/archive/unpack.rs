//! An archive out into a directory, or read through without one.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::path::{Path, PathBuf};

use super::decode::Decoder;
use super::entry::{Entry, Kind, Span, stays_inside};
use super::form::{Form, detect};
use super::left::{Leaving, Left, Stamp};
use super::limits::Limits;
use super::out::{Out, Target};
use super::pack::Part;
use super::partial::Partial;
use super::reader::{ReadError, Reader};
use super::solid::write_solid;
use super::{ArchiveError, OnProgress, Progress, Step, tell};

/// Bytes of a file that are read and written at once.
const DATA_BYTES: usize = 256 << 10;

/// What was unpacked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unpacked {
    /// The form that the archive has.
    pub form: Form,
    /// Bytes of the files.
    pub bytes: u64,
    /// The files, in their order.
    pub parts: Vec<Part>,
}

/// Unpacks an archive into a directory that must not exist, for its owner only; set-id bits and owners in the archive
/// are not honoured. On any failure the directory is not there. It is not synced: an archive can be unpacked again.
pub fn unpack(
    archive: &Path,
    dest: &Path,
    limits: &Limits,
    on_progress: &mut OnProgress<'_>,
) -> Result<Unpacked, ArchiveError> {
    let form = detect_file(archive)?;
    let partial = Partial::beside(dest)?;
    partial.create_dir()?;
    let mut out = Out::new(partial.path(), dest)?;
    let mut passage = Passage::new(archive, form, Step::Unpack, limits, on_progress)?;
    passage.all(&mut Some(&mut out))?;
    let (bytes, parts) = (passage.bytes, passage.parts);
    out.finish(archive)?;
    partial.commit(false)?;
    Ok(Unpacked { form, bytes, parts })
}

/// The same without the memory in it, which is left where it is and can be read there ([`Left`]); nothing is left of an archive in
/// which all before a place has to be read to come there, or in which memory has a second name.
pub fn unpack_without_memory(
    archive: &Path,
    dest: &Path,
    limits: &Limits,
    on_progress: &mut OnProgress<'_>,
) -> Result<Left, ArchiveError> {
    let form = detect_file(archive)?;
    let mut is_whole = false;
    loop {
        let partial = Partial::beside(dest)?;
        partial.create_dir()?;
        let mut out = Out::new(partial.path(), dest)?;
        let mut passage = Passage::new(archive, form, Step::Unpack, limits, on_progress)?;
        if passage.reader.input().can_pass() && !is_whole {
            let most = passage.archive_bytes.saturating_mul(limits.ratio_max);
            passage.leaving = Some(Leaving::up_to(most.max(limits.ratio_from)));
        }
        passage.all(&mut Some(&mut out))?;
        if passage.is_linked {
            is_whole = true;
            continue;
        }
        let leaving = passage.leaving.take().unwrap_or_default();
        let stamp = passage.stamp;
        out.finish(archive)?;
        partial.commit(false)?;
        return Ok(leaving.from((archive, form, stamp), dest));
    }
}

/// Reads an archive through, as [`unpack`] would, and makes nothing: what is returned is what is in it.
pub fn verify(
    archive: &Path,
    limits: &Limits,
    on_progress: &mut OnProgress<'_>,
) -> Result<Unpacked, ArchiveError> {
    let form = detect_file(archive)?;
    let mut passage = Passage::new(archive, form, Step::Verify, limits, on_progress)?;
    passage.all(&mut None)?;
    Ok(Unpacked {
        form,
        bytes: passage.bytes,
        parts: passage.parts,
    })
}

/// One small file of an archive, such as its manifest; nothing if it has none of that name among its first
/// `within` bytes. In what [`pack`](super::pack) makes all small files stand before the memory, so little is read.
pub fn read_file(
    archive: &Path,
    name: &Path,
    bytes_max: u64,
    within: u64,
) -> Result<Option<Vec<u8>>, ArchiveError> {
    let found = read_files(archive, &[name], bytes_max, within)?;
    Ok(found.into_values().next())
}

/// Several small files of an archive, by their names: those of them that are among its first `within` bytes. What comes after
/// the last of them is not read.
pub fn read_files(
    archive: &Path,
    names: &[&Path],
    bytes_max: u64,
    within: u64,
) -> Result<BTreeMap<PathBuf, Vec<u8>>, ArchiveError> {
    let form = detect_file(archive)?;
    let limits = Limits {
        bytes_max: within,
        ..Limits::default()
    };
    let quiet = &mut |_| std::ops::ControlFlow::Continue(());
    let mut passage = Passage::new(archive, form, Step::Verify, &limits, quiet)?;
    let (mut count, mut passed, mut found) = (0, 0u64, BTreeMap::new());
    while found.len() < names.len()
        && let Some(entry) = passage.next_entry()?
    {
        count += 1;
        passed = passed.saturating_add(entry.stored_bytes());
        let is_wanted = names.contains(&entry.path.as_path()) && !found.contains_key(&entry.path);
        if is_wanted && entry.kind == Kind::File && entry.parts.is_none() {
            let data = passage.whole(&entry, bytes_max)?;
            let _none = found.insert(entry.path, data);
        }
        if count >= limits.entries_max || passed > within {
            break;
        }
    }
    Ok(found)
}

/// Reads an archive back that was just written, and compares.
pub(super) fn read_back(
    archive: &Path,
    form: Form,
    parts: &[Part],
    on_progress: &mut OnProgress<'_>,
) -> Result<(), ArchiveError> {
    // It is our own: how well its files compress proves nothing.
    let limits = Limits {
        ratio_max: u64::MAX,
        ..Limits::default()
    };
    let mut passage = Passage::new(archive, form, Step::Verify, &limits, on_progress)?;
    passage.all(&mut None)?;
    if passage.parts == parts {
        return Ok(());
    }
    let mut both = passage.parts.iter().zip(parts);
    let at = both.find(|(read, written)| read != written);
    let name = at.map_or_else(String::new, |(_, part)| format!(": {}", part.path.display()));
    Err(ArchiveError::damaged(
        archive,
        format!("not what was written{name}"),
    ))
}

fn detect_file(archive: &Path) -> Result<Form, ArchiveError> {
    match detect(archive)? {
        Form::Directory => Err(ArchiveError::Unsupported {
            path: archive.to_owned(),
            what: "a directory, not an archive".into(),
        }),
        form => Ok(form),
    }
}

/// One way through an archive from its beginning to its end.
struct Passage<'a, 'b> {
    archive: &'a Path,
    archive_bytes: u64,
    stamp: Stamp,
    reader: Reader<Decoder>,
    /// Where the current entry begins in the tar.
    entry_at: u64,
    /// What is left in the archive.
    leaving: Option<Leaving>,
    /// What is left has a second name, and the way ends there.
    is_linked: bool,
    limits: Limits,
    buffer: Vec<u8>,
    step: Step,
    on_progress: &'a mut OnProgress<'b>,
    /// Files by their names, for hard links: places in `parts`.
    names: HashMap<PathBuf, usize>,
    parts: Vec<Part>,
    bytes: u64,
    /// Bytes that took room: neither holes nor zeros.
    bytes_solid: u64,
}

impl<'a, 'b> Passage<'a, 'b> {
    fn new(
        archive: &'a Path,
        form: Form,
        step: Step,
        limits: &Limits,
        on_progress: &'a mut OnProgress<'b>,
    ) -> Result<Self, ArchiveError> {
        let failed = |error| ArchiveError::storage("read", archive, error);
        let file = File::open(archive).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        let decoder = Decoder::new(form, file).map_err(|error| ReadError::from(error).of(archive))?;
        Ok(Self {
            archive,
            archive_bytes: metadata.len(),
            stamp: Stamp::of(&metadata),
            reader: Reader::new(decoder),
            entry_at: 0,
            leaving: None,
            is_linked: false,
            limits: limits.clone(),
            buffer: vec![0; DATA_BYTES],
            step,
            on_progress,
            names: HashMap::new(),
            parts: Vec::new(),
            bytes: 0,
            bytes_solid: 0,
        })
    }

    fn all(&mut self, out: &mut Option<&mut Out<'_>>) -> Result<(), ArchiveError> {
        let mut count = 0u64;
        while !self.is_linked
            && let Some(entry) = self.next_entry()?
        {
            count += 1;
            if count > self.limits.entries_max {
                return Err(self.too_large("entries", self.limits.entries_max));
            }
            self.bytes = self.bytes.saturating_add(entry.size);
            if self.bytes > self.limits.bytes_max {
                return Err(self.too_large("bytes", self.limits.bytes_max));
            }
            self.one(entry, out)?;
            self.tick()?;
        }
        Ok(())
    }

    fn next_entry(&mut self) -> Result<Option<Entry>, ArchiveError> {
        self.reader.skip().map_err(|error| error.of(self.archive))?;
        self.entry_at = self.reader.input().used();
        self.reader.next_entry().map_err(|error| error.of(self.archive))
    }

    /// The bytes of a small file.
    fn whole(&mut self, entry: &Entry, bytes_max: u64) -> Result<Vec<u8>, ArchiveError> {
        if entry.size > bytes_max {
            return Err(self.too_large("bytes of one of its files", bytes_max));
        }
        let mut data = vec![0; entry.size as usize];
        let mut rest = data.as_mut_slice();
        while !rest.is_empty() {
            let read = self.reader.data(rest).map_err(|error| error.of(self.archive))?;
            rest = rest.get_mut(read..).unwrap_or_default();
        }
        Ok(data)
    }

    fn one(&mut self, entry: Entry, out: &mut Option<&mut Out<'_>>) -> Result<(), ArchiveError> {
        let depth = entry.path.components().count().saturating_sub(1);
        match &entry.kind {
            Kind::File if self.leaving.as_ref().is_some_and(|leaving| leaving.takes(&entry)) => {
                self.leave(entry)
            }
            Kind::File => {
                let target = match out {
                    Some(out) => Some(out.create(self.archive, &entry)?),
                    None => None,
                };
                let digest = self.file(&entry, target.as_ref())?;
                let place = self.parts.len();
                if self.names.insert(entry.path.clone(), place).is_some() {
                    return Err(self.refused(&entry, "it is there twice"));
                }
                self.parts.push(Part {
                    path: entry.path,
                    size: entry.size,
                    digest,
                });
                Ok(())
            }
            Kind::HardLink(first) if self.leaving.as_ref().is_some_and(|leaving| leaving.has(first)) => {
                self.is_linked = true;
                Ok(())
            }
            Kind::HardLink(first) => {
                let Some(place) = self.names.get(first).copied() else {
                    return Err(self.refused(&entry, "a link to no file before it"));
                };
                if let Some(out) = out {
                    out.link(self.archive, &entry, first)?;
                }
                if self.names.insert(entry.path.clone(), place).is_some() {
                    return Err(self.refused(&entry, "it is there twice"));
                }
                Ok(())
            }
            Kind::Directory => match out {
                Some(out) => out.directory(self.archive, entry),
                None => Ok(()),
            },
            Kind::Symlink(target) if !stays_inside(target, depth) => {
                Err(self.refused(&entry, "a link that could lead out"))
            }
            Kind::Symlink(_) => {
                if let Some(out) = out {
                    out.symlink(entry);
                }
                Ok(())
            }
            Kind::CharDevice(..) | Kind::BlockDevice(..) | Kind::Fifo => {
                Err(self.refused(&entry, "a device or fifo, which no checkpoint has"))
            }
        }
    }

    /// Leaves the data of a file where it is.
    fn leave(&mut self, entry: Entry) -> Result<(), ArchiveError> {
        let passed = self.reader.pass(Decoder::pass);
        passed.map_err(|error| error.of(self.archive))?;
        if self.names.insert(entry.path.clone(), self.parts.len()).is_some() {
            return Err(self.refused(&entry, "it is there twice"));
        }
        if let Some(leaving) = &mut self.leaving {
            leaving.take(entry, self.entry_at);
        }
        Ok(())
    }

    /// The data of a file; its digest.
    fn file(&mut self, entry: &Entry, target: Option<&Target>) -> Result<[u8; 32], ArchiveError> {
        let mut hasher = blake3::Hasher::new();
        let whole = [Span {
            at: 0,
            len: entry.size,
        }];
        let mut end = 0;
        for span in entry.parts.as_deref().unwrap_or(&whole) {
            self.hash_hole(&mut hasher, span.at - end)?;
            let mut at = span.at;
            end = span.at + span.len;
            while at < end {
                let wanted = DATA_BYTES.min(usize::try_from(end - at).unwrap_or(usize::MAX));
                let count = self.fill(wanted)?;
                let data = self.buffer.get(..count).unwrap_or_default();
                let _hasher = hasher.update(data);
                if let Some(target) = target {
                    let solid = write_solid(&target.file, data, at).map_err(|error| target.failed(error))?;
                    self.weigh(solid)?;
                }
                at += count as u64;
                self.tick()?;
            }
        }
        self.hash_hole(&mut hasher, entry.size - end)?;
        if let Some(target) = target {
            // Holes at the end are written by nobody.
            let result = target.file.set_len(entry.size);
            result.map_err(|error| target.failed(error))?;
        }
        Ok(*hasher.finalize().as_bytes())
    }

    /// Fills the buffer up to a length: whole pages are needed to see holes.
    fn fill(&mut self, wanted: usize) -> Result<usize, ArchiveError> {
        let mut count = 0;
        while count < wanted {
            let rest = self.buffer.get_mut(count..wanted).unwrap_or_default();
            count += self.reader.data(rest).map_err(|error| error.of(self.archive))?;
        }
        Ok(count)
    }

    fn hash_hole(&mut self, hasher: &mut blake3::Hasher, len: u64) -> Result<(), ArchiveError> {
        let mut rest = len;
        while rest > 0 {
            let now = DATA_BYTES.min(usize::try_from(rest).unwrap_or(usize::MAX));
            let zeros = self.buffer.get_mut(..now).unwrap_or_default();
            zeros.fill(0);
            let _hasher = hasher.update(zeros);
            rest -= now as u64;
            self.tick()?;
        }
        Ok(())
    }

    fn weigh(&mut self, solid: u64) -> Result<(), ArchiveError> {
        self.bytes_solid += solid;
        let most = self.archive_bytes.saturating_mul(self.limits.ratio_max);
        if self.bytes_solid > most.max(self.limits.ratio_from) {
            return Err(self.too_large("times its own size", self.limits.ratio_max));
        }
        Ok(())
    }

    fn tick(&mut self) -> Result<(), ArchiveError> {
        let progress = Progress {
            step: self.step,
            done: self.reader.input().position(),
            total: self.archive_bytes,
        };
        tell(self.on_progress, progress)
    }

    fn too_large(&self, what: &'static str, limit: u64) -> ArchiveError {
        ReadError::TooLarge { what, limit }.of(self.archive)
    }

    fn refused(&self, entry: &Entry, why: &'static str) -> ArchiveError {
        ReadError::refused(&entry.path, why).of(self.archive)
    }
}
