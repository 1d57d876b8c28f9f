//! What the shim reads of CRIU's image files.
//!
//! ```text
//!   inventory.img        magic u32, then records; says what was dumped how
//!   pstree.img           common magic u32, own magic u32, then one record a process: pid 1, …
//!   core-<pid>.img       the same; one a task (threads too); processes carry their state in field 3
//!   tcp-stream-*.img     one for each established connection
//!   record               length u32, protobuf
//! ```
//!
//! Pids are those of the container's own pid namespace. Everything is little-endian. The files may come from anywhere:
//! every length is checked, of a core no more than its first record is read, and there are bounds for the rest.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::file::read_regular;

/// A pstree record is 20 bytes and 3 for each thread; the inventory is smaller.
const LIST_SIZE_MAX: u64 = 8 * 1024 * 1024;

/// A core image is a few KiB, most of it registers (10 KiB of them with AMX).
const CORE_SIZE_MAX: u64 = 128 * 1024;

/// Twice as many processes as Linux has pids by default. The core of each is opened.
const PROCESSES_MAX: usize = 64 * 1024;

/// A dump has a dozen files, and three for each process and one for each connection.
const FILES_MAX: usize = 1 << 20;

/// runc's own, beside the images: where the standard streams went.
const DESCRIPTORS: &str = "descriptors.json";

/// What every image but the inventory begins with.
pub(crate) const COMMON_MAGIC: u32 = 0x5456_4319;
const INVENTORY_MAGIC: u32 = 0x5831_3116;
pub(crate) const PSTREE_MAGIC: u32 = 0x5027_3030;
const CORE_MAGIC: u32 = 0x5505_3847;

/// CRIU's `TASK_STOPPED`: stopped by a signal when it was dumped.
const TASK_STOPPED: u64 = 3;

/// Why a directory is not a usable dump.
#[derive(Debug, Error)]
pub enum ImageError {
    /// A file is missing or cannot be read.
    #[error("read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// What has an image's name is a link, a fifo or the like.
    #[error("read {}: not a regular file", path.display())]
    Strange {
        /// It.
        path: PathBuf,
    },
    /// A file is not what CRIU writes.
    #[error("read {}: not a complete image of CRIU", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
    },
    /// The manifest is not for this shim, or the files are not those that it lists.
    #[error("use {}: {problem}", dir.display())]
    Manifest {
        /// The image directory.
        dir: PathBuf,
        /// What is wrong.
        problem: String,
    },
}

/// What a dump consists of, as far as a restore cares before CRIU does.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Summary {
    /// Its processes.
    pub processes: Vec<i32>,
    /// Those that were stopped by a signal when they were dumped.
    pub stopped: Vec<i32>,
    /// Whether it has established TCP connections.
    pub connections: bool,
    /// The size of all files in bytes.
    pub size: u64,
}

/// Looks a dump through: the inventory and a core for every process must be there.
///
/// # Errors
/// The first file that is missing or damaged.
pub fn summarize(dir: &Path) -> Result<Summary, ImageError> {
    let mut summary = look_through(dir)?;
    let listing = |source| ImageError::Read {
        path: dir.to_owned(),
        source,
    };
    for entry in fs::read_dir(dir).map_err(listing)?.take(FILES_MAX) {
        let entry = entry.map_err(listing)?;
        let size = entry.metadata().map_err(listing)?.len();
        summary.size = summary.size.saturating_add(size);
        summary.connections |= entry.file_name().to_string_lossy().starts_with("tcp-stream-");
    }
    Ok(summary)
}

/// The same for a dump to which a worker still gives its files their names: they are not counted.
///
/// # Errors
/// As [`summarize`].
pub fn verify(dir: &Path) -> Result<(), ImageError> {
    look_through(dir).map(drop)
}

/// Only what CRIU has written is looked at, and by name.
fn look_through(dir: &Path) -> Result<Summary, ImageError> {
    let inventory = dir.join("inventory.img");
    let bytes = read(&inventory, LIST_SIZE_MAX)?;
    let first = bytes.get(4..).and_then(|mut rest| record(&mut rest));
    if word(&bytes, 0) != Some(INVENTORY_MAGIC) || first.is_none() {
        return Err(ImageError::Malformed { path: inventory });
    }
    let pstree = dir.join("pstree.img");
    let processes =
        processes(&read(&pstree, LIST_SIZE_MAX)?).ok_or(ImageError::Malformed { path: pstree })?;
    let mut summary = Summary {
        processes,
        ..Summary::default()
    };
    for pid in &summary.processes {
        let path = dir.join(format!("core-{pid}.img"));
        let state = task_state(&read(&path, CORE_SIZE_MAX)?).ok_or(ImageError::Malformed { path })?;
        if state == TASK_STOPPED {
            summary.stopped.push(*pid);
        }
    }
    Ok(summary)
}

/// Refuses a dump in which the name of an image is anything but a file's: CRIU and runc would follow a link out of it, or wait for
/// a fifo.
///
/// # Errors
/// The first such name.
pub fn refuse_strange(dir: &Path) -> Result<(), ImageError> {
    let listing = |source| ImageError::Read {
        path: dir.to_owned(),
        source,
    };
    for entry in fs::read_dir(dir).map_err(listing)?.take(FILES_MAX) {
        let entry = entry.map_err(listing)?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let is_image = name.ends_with(".img") || name == DESCRIPTORS;
        if is_image && !entry.file_type().map_err(listing)?.is_file() {
            return Err(ImageError::Strange { path: entry.path() });
        }
    }
    Ok(())
}

fn read(path: &Path, size_max: u64) -> Result<Vec<u8>, ImageError> {
    read_regular(path, size_max).map_err(|source| ImageError::Read {
        path: path.to_owned(),
        source,
    })
}

/// All that is read of an image, of any bytes.
#[cfg(any(test, fuzzing))]
pub(crate) fn read_any(image: &[u8]) {
    let (pids, _state) = (processes(image), task_state(image));
    assert!(pids.iter().flatten().all(|pid| *pid > 0));
    let mut rest = image;
    while let Some(record) = record(&mut rest) {
        for field in 1..8 {
            let _found = (number(record, field), message(record, field).is_some());
        }
    }
}

/// The pids in a pstree image; none if one is there twice, or there are too many or none of them.
fn processes(image: &[u8]) -> Option<Vec<i32>> {
    if word(image, 0) != Some(COMMON_MAGIC) || word(image, 4) != Some(PSTREE_MAGIC) {
        return None;
    }
    let (mut rest, mut seen, mut pids) = (image.get(8..)?, HashSet::new(), Vec::new());
    while !rest.is_empty() {
        let pid = number(record(&mut rest)?, 1)?;
        let pid = i32::try_from(pid).ok().filter(|pid| *pid > 0)?;
        if pids.len() == PROCESSES_MAX || !seen.insert(pid) {
            return None;
        }
        pids.push(pid);
    }
    Some(pids).filter(|pids| !pids.is_empty())
}

/// The state in a process' core image.
fn task_state(image: &[u8]) -> Option<u64> {
    if word(image, 0) != Some(COMMON_MAGIC) || word(image, 4) != Some(CORE_MAGIC) {
        return None;
    }
    number(message(record(&mut image.get(8..)?)?, 3)?, 1)
}

/// The little-endian number at this place.
pub(crate) fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes
        .get(at..at.checked_add(4)?)?
        .try_into()
        .ok()
        .map(u32::from_le_bytes)
}

/// Takes the first record; none if it is cut short.
pub(crate) fn record<'a>(bytes: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = usize::try_from(word(bytes, 0)?).ok()?;
    let (record, rest) = bytes.get(4..)?.split_at_checked(length)?;
    *bytes = rest;
    Some(record)
}

/// One field of a protobuf message.
enum Field<'a> {
    Number(u64),
    Bytes(&'a [u8]),
    Other,
}

/// The first field of that number, if it is one.
pub(crate) fn number(message: &[u8], wanted: u64) -> Option<u64> {
    find(message, wanted).and_then(|field| match field {
        Field::Number(value) => Some(value),
        _ => None,
    })
}

fn message(message: &[u8], wanted: u64) -> Option<&[u8]> {
    find(message, wanted).and_then(|field| match field {
        Field::Bytes(bytes) => Some(bytes),
        _ => None,
    })
}

/// The first field of that number. The generated code of CRIU's 70 messages would cost the shim more than this.
fn find(mut message: &[u8], wanted: u64) -> Option<Field<'_>> {
    while !message.is_empty() {
        let tag = varint(&mut message)?;
        let field = match tag & 7 {
            0 => Field::Number(varint(&mut message)?),
            1 => skip(&mut message, 8)?,
            2 => {
                let length = usize::try_from(varint(&mut message)?).ok()?;
                let (bytes, rest) = message.split_at_checked(length)?;
                message = rest;
                Field::Bytes(bytes)
            }
            5 => skip(&mut message, 4)?,
            _ => return None,
        };
        if tag >> 3 == wanted {
            return Some(field);
        }
    }
    None
}

fn skip<'a>(message: &mut &'a [u8], length: usize) -> Option<Field<'a>> {
    *message = message.get(length..)?;
    Some(Field::Other)
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(magics: &[u32], records: &[&[u8]]) -> Vec<u8> {
        let mut bytes: Vec<u8> = magics.iter().flat_map(|magic| magic.to_le_bytes()).collect();
        for record in records {
            bytes.extend(u32::try_from(record.len()).expect("short").to_le_bytes());
            bytes.extend_from_slice(record);
        }
        bytes
    }

    /// As CRIU 4.2 writes it: machine type, some registers, then the state of the task.
    fn core(state: u8) -> Vec<u8> {
        image(
            &[COMMON_MAGIC, CORE_MAGIC],
            &[&[0x08, 1, 0x12, 3, 0x08, 0x80, 0x01, 0x1a, 4, 0x08, state, 0x10, 0]],
        )
    }

    /// As CRIU 4.2 writes it: pid, parent, group, session, thread.
    fn pstree(pids: &[u8]) -> Vec<u8> {
        let records: Vec<[u8; 10]> = pids
            .iter()
            .map(|pid| [8, *pid, 16, 0, 24, 1, 32, 1, 40, *pid])
            .collect();
        image(
            &[COMMON_MAGIC, PSTREE_MAGIC],
            &records.iter().map(<[u8; 10]>::as_slice).collect::<Vec<_>>(),
        )
    }

    fn dump() -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("a temporary directory");
        for (name, bytes) in [
            ("inventory.img", image(&[INVENTORY_MAGIC], &[&[8, 2]])),
            ("pstree.img", pstree(&[1, 7])),
            ("core-1.img", core(1)),
            ("core-7.img", core(3)),
        ] {
            fs::write(dir.path().join(name), bytes).expect("write an image");
        }
        dir
    }

    #[test]
    fn files_that_a_worker_is_naming_do_not_disturb_a_verification() {
        let dir = dump();
        let (old, new) = (dir.path().join("unfinished-0"), dir.path().join("pages-1.img"));
        fs::write(&old, "").expect("write an image");
        let naming =
            |_| -> std::io::Result<()> { fs::rename(&old, &new).and_then(|()| fs::rename(&new, &old)) };
        std::thread::scope(|scope| {
            let names = scope.spawn(|| (0..20_000).try_for_each(naming).expect("renamed"));
            while !names.is_finished() {
                verify(dir.path()).expect("complete");
            }
        });
        fs::remove_file(dir.path().join("core-7.img")).expect("remove");
        assert!(verify(dir.path()).is_err());
    }

    #[test]
    fn a_dump_tells_its_processes_which_were_stopped_and_whether_they_are_connected() {
        let dir = dump();
        let summary = summarize(dir.path()).expect("a complete dump");
        assert_eq!(
            (summary.processes, summary.stopped, summary.connections),
            (vec![1, 7], vec![7], false)
        );
        fs::write(dir.path().join("tcp-stream-1f.img"), "x").expect("write an image");
        assert!(summarize(dir.path()).expect("a complete dump").connections);
    }

    #[test]
    fn a_dump_that_lacks_a_file_or_a_part_of_one_is_refused_by_its_name() {
        for (name, bytes) in [
            ("inventory.img", None),
            ("inventory.img", Some(image(&[INVENTORY_MAGIC], &[]))),
            ("inventory.img", Some(image(&[COMMON_MAGIC], &[&[8, 2]]))),
            ("pstree.img", None),
            ("pstree.img", Some(image(&[COMMON_MAGIC, PSTREE_MAGIC], &[]))),
            ("pstree.img", Some(pstree(&[1, 7])[..30].to_vec())),
            ("pstree.img", Some(pstree(&[1, 8]))),
            ("pstree.img", Some(pstree(&[1, 7, 7]))),
            ("pstree.img", Some(pstree(&[0]))),
            ("core-7.img", Some(core(3)[..9].to_vec())),
            ("core-7.img", Some(Vec::new())),
            (
                "core-7.img",
                Some(image(
                    &[COMMON_MAGIC, CORE_MAGIC],
                    &[&[0x12, 0xff, 0xff, 0xff, 0xff, 0xff]],
                )),
            ),
        ] {
            let dir = dump();
            let path = dir.path().join(name);
            match &bytes {
                Some(bytes) => fs::write(&path, bytes).expect("damage an image"),
                None => fs::remove_file(&path).expect("remove an image"),
            }
            let error = summarize(dir.path()).expect_err("damaged").to_string();
            let named = if bytes == Some(pstree(&[1, 8])) {
                "core-8.img"
            } else {
                name
            };
            assert!(error.contains(named), "{error} does not name {named}");
        }
    }

    #[test]
    fn the_work_that_a_file_can_make_is_bounded() {
        let list = |count: usize| {
            let records: Vec<Vec<u8>> = (1..=count)
                .map(|pid| vec![8, pid as u8 | 0x80, (pid >> 7) as u8 | 0x80, (pid >> 14) as u8])
                .collect();
            let records: Vec<&[u8]> = records.iter().map(Vec::as_slice).collect();
            image(&[COMMON_MAGIC, PSTREE_MAGIC], &records)
        };
        let read = processes(&list(PROCESSES_MAX)).expect("as many as may be");
        assert_eq!((read.len(), read.last()), (PROCESSES_MAX, Some(&(64 * 1024))));
        assert_eq!(processes(&list(PROCESSES_MAX + 1)), None);

        let dir = dump();
        let mut long = core(3);
        long.resize(1 << 20, 0xff);
        fs::write(dir.path().join("core-7.img"), long).expect("a core with more behind it");
        assert_eq!(
            summarize(dir.path())
                .expect("only its first record counts")
                .stopped,
            [7]
        );
        fs::remove_file(dir.path().join("core-7.img")).expect("remove");
        std::os::unix::fs::symlink("core-1.img", dir.path().join("core-7.img")).expect("link");
        let error = summarize(dir.path()).expect_err("a link").to_string();
        assert!(error.contains("core-7.img"), "{error}");
    }

    #[test]
    fn what_is_not_a_file_is_no_image() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        std::fs::write(dir.path().join("core-1.img"), "").expect("write");
        std::os::unix::fs::symlink("/dev/zero", dir.path().join("notes")).expect("a link");
        assert!(refuse_strange(dir.path()).is_ok());
        for name in ["pages-1.img", "descriptors.json"] {
            let path = dir.path().join(name);
            std::os::unix::fs::symlink("/dev/zero", &path).expect("a link");
            assert!(
                matches!(refuse_strange(dir.path()), Err(ImageError::Strange { .. })),
                "{name}"
            );
            std::fs::remove_file(&path).expect("removed");
        }
        nix::unistd::mkfifo(&dir.path().join("pages-2.img"), nix::sys::stat::Mode::S_IRUSR).expect("a fifo");
        assert!(refuse_strange(dir.path()).is_err());
    }
}
