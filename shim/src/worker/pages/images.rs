//! What CRIU's images say of the memory that is restored late.
//!
//! ```text
//!   pagemap-<pid>.img    common magic u32, own magic u32, then records: the number of the file of pages (1),
//!                        then runs of pages by address: address (1), their number (5, before CRIU 4.0 in 2), flags (4)
//!   pages-<number>.img   the pages of all runs that say "present", one after another
//! ```
//!
//! Pids are the container's own. A run that says "lazy" is left to us by CRIU; the others it reads itself. The files may
//! come from anywhere: everything is bounded and checked, and nothing is believed of a file that is not in it.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use oci_bundles::archive::Contents;
use thiserror::Error;

use super::extents::{Extent, Extents};
use super::source::{PagesFile, PagesInArchive, Source};
use crate::criu::file::{open_regular, read_regular};
use crate::criu::images::{COMMON_MAGIC, PSTREE_MAGIC, number, record, word};

/// A run is 15 bytes or more: four million runs a process, which is 16 GiB if every second page is there.
const PAGEMAP_SIZE_MAX: u64 = 64 * 1024 * 1024;

/// A pstree record is 20 bytes and 3 for each thread.
const PSTREE_SIZE_MAX: u64 = 8 * 1024 * 1024;

/// As many processes as are looked at; the file descriptors of so many are more than any limit grants.
const PROCESSES_MAX: usize = 16 * 1024;

/// Forked processes share the pages that neither has changed, and CRIU restores them so. Pages that come late belong to one
/// process. So much may be had twice; containers with more are restored as CRIU does it, at once.
const SHARED_MAX: u64 = 64 * 1024 * 1024;

const PAGEMAP_MAGIC: u32 = 0x5608_4025;

/// Flags of a run.
const PARENT: u64 = 1;
const LAZY: u64 = 1 << 1;
const PRESENT: u64 = 1 << 2;

/// Why memory cannot be restored late; all of it can be restored at once all the same, or CRIU says what is wrong.
#[derive(Debug, Error)]
pub(super) enum Unsuitable {
    /// A file is missing or cannot be read.
    #[error("read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// A file is not what CRIU writes.
    #[error("read {}: not a complete image of CRIU", .0.display())]
    Malformed(PathBuf),
    /// It builds on an earlier dump.
    #[error("read {}: some of its pages are in an earlier dump", .0.display())]
    Parent(PathBuf),
    /// There is no memory to speak of.
    #[error("restore late what is not there: no process has memory of its own")]
    Nothing,
    /// Memory is missing: CRIU would ask for it again and again.
    #[error("{} is shorter than its map of pages says: the checkpoint is damaged", .0.display())]
    Short(PathBuf),
    /// Too many processes.
    #[error("serve more than {PROCESSES_MAX} processes")]
    Processes,
    /// Forked processes would lose what they share.
    #[error("give {0} bytes twice that forked processes share")]
    Shared(u64),
}

/// The memory of one process that is restored late.
#[derive(Debug)]
pub(super) struct Memory {
    /// Its pid in the container.
    pub(super) pid: i32,
    /// What is to come.
    pub(super) missing: Extents,
    /// The file it comes from, or would if it had been taken out of its archive.
    pub(super) file: PathBuf,
    /// The same, open. Clients remove the images as soon as the restore has returned; an open file stays.
    pub(super) pages: Arc<dyn Source>,
}

/// Reads what can be restored late of all processes of a dump, of which files of pages may be left in an archive.
///
/// # Errors
/// [`Unsuitable`], by the first file for which it is so.
pub(super) fn load(dir: &Path, page_size: u64, left: Option<&Contents>) -> Result<Vec<Memory>, Unsuitable> {
    let reading = |path: &Path| {
        let path = path.to_owned();
        move |source| Unsuitable::Read { path, source }
    };
    let pstree = dir.join("pstree.img");
    let bytes = read_regular(&pstree, PSTREE_SIZE_MAX).map_err(reading(&pstree))?;
    let family = family(&bytes).ok_or(Unsuitable::Malformed(pstree))?;
    if family.len() > PROCESSES_MAX {
        return Err(Unsuitable::Processes);
    }
    let mut memories = Vec::new();
    for (pid, _) in &family {
        let path = dir.join(format!("pagemap-{pid}.img"));
        let bytes = match read_regular(&path, PAGEMAP_SIZE_MAX + 1) {
            Ok(bytes) => bytes,
            // A zombie has no memory.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(reading(&path)(error)),
        };
        let map = match pagemap(&bytes, page_size) {
            Ok(map) if bytes.len() as u64 <= PAGEMAP_SIZE_MAX => map,
            Err(Flaw::Parent) => return Err(Unsuitable::Parent(path)),
            _ => return Err(Unsuitable::Malformed(path)),
        };
        let path = dir.join(format!("pages-{}.img", map.pages));
        let (pages, len): (Arc<dyn Source>, u64) = match left.and_then(|left| left.at(&path)) {
            Some(content) => (Arc::new(PagesInArchive(Arc::clone(content))), content.size()),
            None => {
                let pages = open_regular(&path).map_err(reading(&path))?;
                let len = pages.metadata().map_err(reading(&path))?.len();
                (Arc::new(PagesFile::new(pages, len)), len)
            }
        };
        if len < map.size {
            return Err(Unsuitable::Short(path));
        }
        memories.push(Memory {
            pid: *pid,
            missing: map.missing,
            file: path,
            pages,
        });
    }
    if memories.iter().all(|memory| memory.missing.is_empty()) {
        return Err(Unsuitable::Nothing);
    }
    match shared(&family, &memories) {
        shared if shared > SHARED_MAX => Err(Unsuitable::Shared(shared)),
        _ => Ok(memories),
    }
}

/// How much every process may share with its parent, in bytes.
fn shared(family: &[(i32, i32)], memories: &[Memory]) -> u64 {
    let of = |pid: i32| memories.iter().find(|memory| memory.pid == pid);
    family
        .iter()
        .filter_map(|(pid, parent)| Some(of(*pid)?.missing.shared(&of(*parent)?.missing)))
        .sum()
}

/// Every process and its parent, in a pstree image.
pub(super) fn family(image: &[u8]) -> Option<Vec<(i32, i32)>> {
    if word(image, 0) != Some(COMMON_MAGIC) || word(image, 4) != Some(PSTREE_MAGIC) {
        return None;
    }
    let (mut rest, mut family) = (image.get(8..)?, Vec::new());
    while !rest.is_empty() {
        let entry = record(&mut rest)?;
        let pid = i32::try_from(number(entry, 1)?).ok().filter(|pid| *pid > 0)?;
        let parent = i32::try_from(number(entry, 2)?).ok()?;
        family.push((pid, parent));
    }
    Some(family)
}

/// One pagemap image.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Pagemap {
    /// The number of its file of pages.
    pages: u64,
    /// The runs that are left to us.
    pub(super) missing: Extents,
    /// The size that file must have.
    pub(super) size: u64,
}

/// What is wrong with a pagemap image.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Flaw {
    /// It is no image of CRIU.
    Malformed,
    /// It builds on an earlier dump.
    Parent,
}

pub(super) fn pagemap(image: &[u8], page_size: u64) -> Result<Pagemap, Flaw> {
    if word(image, 0) != Some(COMMON_MAGIC) || word(image, 4) != Some(PAGEMAP_MAGIC) {
        return Err(Flaw::Malformed);
    }
    let mut rest = image.get(8..).unwrap_or_default();
    let head = record(&mut rest).ok_or(Flaw::Malformed)?;
    let mut map = Pagemap {
        pages: number(head, 1).ok_or(Flaw::Malformed)?,
        ..Pagemap::default()
    };
    while !rest.is_empty() {
        let entry = record(&mut rest).ok_or(Flaw::Malformed)?;
        let flags = number(entry, 4).unwrap_or(0);
        if flags & PARENT != 0 || number(entry, 3).is_some_and(|parent| parent != 0) {
            return Err(Flaw::Parent);
        }
        let run = run(entry, map.size, page_size).ok_or(Flaw::Malformed)?;
        // Without its pages it was dumped late itself, from a process that is gone.
        if flags & PRESENT == 0 {
            return Err(Flaw::Parent);
        }
        map.size = run.offset + run.len;
        if flags & LAZY != 0 && !map.missing.add(run) {
            return Err(Flaw::Malformed);
        }
    }
    Ok(map)
}

fn run(entry: &[u8], offset: u64, page_size: u64) -> Option<Extent> {
    let start = number(entry, 1)?;
    let pages = number(entry, 5).or_else(|| number(entry, 2))?;
    let len = pages.checked_mul(page_size)?;
    let fits = offset.checked_add(len).is_some() && start.checked_add(len).is_some();
    (start % page_size == 0 && len > 0 && fits).then_some(Extent { start, len, offset })
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};

    use super::*;

    const PAGE: u64 = 4096;

    fn varint(mut value: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        while value > 0x7f {
            bytes.push((value & 0x7f) as u8 | 0x80);
            value >>= 7;
        }
        bytes.push(value as u8);
        bytes
    }

    fn message(fields: &[(u64, u64)]) -> Vec<u8> {
        fields
            .iter()
            .flat_map(|(field, value)| [varint(field << 3), varint(*value)].concat())
            .collect()
    }

    fn image(magic: u32, records: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = [COMMON_MAGIC.to_le_bytes(), magic.to_le_bytes()].concat();
        for record in records {
            bytes.extend((record.len() as u32).to_le_bytes());
            bytes.extend(record);
        }
        bytes
    }

    fn map(runs: &[&[(u64, u64)]]) -> Vec<u8> {
        let head = std::iter::once(message(&[(1, 7)]));
        let runs = runs.iter().map(|run| message(run));
        image(PAGEMAP_MAGIC, &head.chain(runs).collect::<Vec<_>>())
    }

    #[test]
    fn only_lazy_runs_are_ours_and_all_take_room_in_the_file() {
        let bytes = map(&[
            &[(1, 0x1000), (2, 2), (4, LAZY | PRESENT), (5, 2)],
            &[(1, 0x8000), (5, 3), (4, PRESENT)],
            &[(1, 0x10000), (2, 1), (4, LAZY | PRESENT)],
        ]);
        let read = pagemap(&bytes, PAGE).expect("complete");
        let runs: Vec<_> = read.missing.iter().collect();
        let run = |start, pages: u64, before: u64| Extent {
            start,
            len: pages * PAGE,
            offset: before * PAGE,
        };
        assert_eq!(runs, [run(0x1000, 2, 0), run(0x10000, 1, 5)]);
        assert_eq!((read.pages, read.size), (7, 6 * PAGE));
    }

    #[test]
    fn what_is_no_pagemap_is_refused() {
        let whole = map(&[&[(1, 0x1000), (5, 2), (4, LAZY | PRESENT)]]);
        let runs = |fields: &[(u64, u64)]| map(&[fields]);
        for (bytes, flaw) in [
            (Vec::new(), Flaw::Malformed),
            (whole[..whole.len() - 1].to_vec(), Flaw::Malformed),
            (image(PSTREE_MAGIC, &[message(&[(1, 1)])]), Flaw::Malformed),
            (image(PAGEMAP_MAGIC, &[]), Flaw::Malformed),
            (runs(&[(1, 0x1001), (5, 2), (4, 6)]), Flaw::Malformed),
            (runs(&[(1, 0x1000), (4, 6)]), Flaw::Malformed),
            (runs(&[(1, 0x1000), (5, 0), (4, 6)]), Flaw::Malformed),
            (runs(&[(1, 0x1000), (5, u64::MAX), (4, 6)]), Flaw::Malformed),
            (runs(&[(1, u64::MAX - 4095), (5, 9), (4, 6)]), Flaw::Malformed),
            (
                map(&[&[(1, 0x1000), (5, 2), (4, 6)], &[(1, 0x2000), (5, 2), (4, 6)]]),
                Flaw::Malformed,
            ),
            (runs(&[(1, 0x1000), (5, 2), (4, PARENT)]), Flaw::Parent),
            (runs(&[(1, 0x1000), (5, 2), (3, 1)]), Flaw::Parent),
            (runs(&[(1, 0x1000), (5, 2), (4, LAZY)]), Flaw::Parent),
        ] {
            assert_eq!(pagemap(&bytes, PAGE), Err(flaw), "{bytes:x?}");
        }
    }

    fn dump(pagemaps: &[(i32, i32, Vec<u8>)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let write = |name: String, bytes: &[u8]| fs::write(dir.path().join(name), bytes).expect("write");
        let tree: Vec<_> = pagemaps
            .iter()
            .map(|(pid, parent, _)| message(&[(1, *pid as u64), (2, *parent as u64)]))
            .collect();
        write("pstree.img".to_owned(), &image(PSTREE_MAGIC, &tree));
        for (pid, _, map) in pagemaps {
            write(format!("pagemap-{pid}.img"), map);
        }
        dir
    }

    fn pages(dir: &tempfile::TempDir, size: u64) {
        let file = File::create(dir.path().join("pages-7.img")).expect("make");
        file.set_len(size).expect("size");
    }

    #[test]
    fn a_dump_is_served_when_every_page_of_it_is_there() {
        let one = map(&[&[(1, 0x1000), (5, 2), (4, 6)]]);
        let dir = dump(&[(1, 0, one.clone()), (5, 1, one)]);
        pages(&dir, 2 * PAGE - 1);
        let short = load(dir.path(), PAGE, None).expect_err("a byte is missing");
        assert!(short.to_string().contains("pages-7.img"), "{short}");
        assert!(matches!(short, Unsuitable::Short(_)));
        pages(&dir, 2 * PAGE);
        let memories = load(dir.path(), PAGE, None).expect("complete");
        assert_eq!(
            memories.iter().map(|memory| memory.pid).collect::<Vec<_>>(),
            [1, 5]
        );
        fs::remove_file(dir.path().join("pages-7.img")).expect("remove");
        assert!(matches!(
            load(dir.path(), PAGE, None),
            Err(Unsuitable::Read { .. })
        ));
    }

    #[test]
    fn what_would_be_had_twice_or_not_at_all_is_not_served() {
        let large = || map(&[&[(1, 0x1000), (5, SHARED_MAX / PAGE + 1), (4, 6)]]);
        let dir = dump(&[(1, 0, large()), (5, 1, large())]);
        pages(&dir, SHARED_MAX + PAGE);
        assert!(matches!(load(dir.path(), PAGE, None), Err(Unsuitable::Shared(_))));
        let dir = dump(&[(1, 0, large()), (5, 0, large())]);
        pages(&dir, SHARED_MAX + PAGE);
        assert!(load(dir.path(), PAGE, None).is_ok(), "they are not related");
        let dir = dump(&[(1, 0, map(&[&[(1, 0x1000), (5, 1), (4, PRESENT)]]))]);
        pages(&dir, PAGE);
        assert!(matches!(load(dir.path(), PAGE, None), Err(Unsuitable::Nothing)));
    }
}
