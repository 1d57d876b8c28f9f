//! How much CRIU is going to write into its image directory, and whether that has room in memory.
//!
//! What goes through the fifos of a worker takes none. The rest is half a MiB for a few processes, but for what a container decides: its
//! own memory file systems, deleted files that it holds, segments of shared memory that no fifo was made for. What can be had cheaply is
//! counted, and the sum must fit several times: a memory file system that is full costs the dump, and others their own files.

mod ipc;
mod nameless;
mod tmpfs;

use std::path::Path;

use nix::sys::statfs::{TMPFS_MAGIC, statfs};

use super::capture::available_memory;
use crate::capture::FIFOS_MAX;
use crate::criu::file::read_regular;
use crate::criu::proc;
use ipc::Ipc;
use nameless::Nameless;

/// The most that goes into memory, in bytes: what a disk takes in a second or two.
const BYTES_MAX: u64 = 64 << 20;

/// How many times what is expected has to fit into what is free. The counts below are what is usual, and this is what is unusual.
const MARGIN: u64 = 4;

/// Images that every dump has, in bytes.
const BASE_BYTES: u64 = 1 << 20;

/// The image of a thread, in bytes: most of it registers, 10 KiB of them with AMX.
const THREAD_BYTES: u64 = 16 << 10;

/// What lies in a pipe or a socket, in bytes: a pipe takes as much, a socket of the kernel's default size three times that.
const QUEUE_BYTES: u64 = 64 << 10;

/// For so many bytes of memory there is one in the lists of pages: an entry for each run of pages takes 20, and a run is rarely one page.
const LISTED_BYTES: u64 = 1024;

/// Fifos for segments of shared memory that come meanwhile, or that nobody sees: they cost a descriptor each.
const FIFOS_SPARE: usize = 16;

/// A memory file system that can take fewer files than this is left alone: a dump makes some tens, and a few for each process.
const FILES_FREE_MIN: u64 = 16 << 10;

/// Descriptors and mappings that are looked at, in all processes: at a microsecond or two each, while the container may stand.
const LOOKED_AT_MAX: usize = 16 << 10;

/// A table of mounts has some hundred bytes for each mount, one of mappings for each mapping.
const TABLE_BYTES_MAX: u64 = 4 << 20;

/// What a dump is expected to write.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Expected {
    /// Bytes that never go through a fifo.
    small: u64,
    /// Bytes of the processes' own pages, and of the segments that they share.
    pages: u64,
    /// How many files these pages come in.
    files: usize,
    /// What of it has no process.
    ipc: Ipc,
}

impl Expected {
    /// By what the processes of a container have, the init first. None if that cannot be told, or is too much to be looked through.
    pub(super) fn of(bundle: &Path, pids: &[i32], ghost_limit: u64) -> Option<Self> {
        Self::with(ipc::held(*pids.first()?)?, bundle, pids, ghost_limit)
    }

    /// The same of a container that has been looked at and stands now. What takes longest, some milliseconds, and grows least is as it was.
    pub(super) fn again(&self, bundle: &Path, pids: &[i32], ghost_limit: u64) -> Option<Self> {
        Self::with(self.ipc, bundle, pids, ghost_limit)
    }

    fn with(ipc: Ipc, bundle: &Path, pids: &[i32], ghost_limit: u64) -> Option<Self> {
        let held = Nameless::of(pids, ghost_limit, LOOKED_AT_MAX)?;
        let resident = proc::resident_bytes(pids);
        let threads: u64 = pids.iter().map(|pid| proc::threads(*pid)).sum();
        let small = [
            BASE_BYTES,
            threads * THREAD_BYTES,
            held.queues as u64 * QUEUE_BYTES,
            resident / LISTED_BYTES,
            held.ghosts,
            ipc.messages,
            tmpfs::used(bundle, pids)?,
        ];
        Some(Self {
            small: small.into_iter().fold(0, u64::saturating_add),
            pages: resident
                .saturating_add(proc::swapped_bytes(pids))
                .saturating_add(held.shared)
                .saturating_add(ipc.shared),
            files: pids.len() + held.segments + ipc.segments,
            ipc,
        })
    }

    /// How many fifos a worker is to make for it.
    pub(super) fn fifos(&self) -> u32 {
        fifos(self.files)
    }

    /// The bytes that become files where there are so many fifos.
    pub(super) fn bytes(&self, fifos: u32) -> u64 {
        match self.files <= fifos as usize {
            true => self.small,
            false => self.small.saturating_add(self.pages),
        }
    }
}

/// How many fifos a worker is to make for so many files of pages as are known.
pub(super) fn fifos(files: usize) -> u32 {
    let files = u32::try_from(files + FIFOS_SPARE);
    files.unwrap_or(FIFOS_MAX).min(FIFOS_MAX)
}

/// Whether a directory is in memory, with room for so many bytes.
pub(super) fn has_room(dir: &Path, bytes: u64) -> bool {
    let Ok(system) = statfs(dir) else { return false };
    let block = u64::try_from(system.block_size()).unwrap_or(0);
    let free = match system.blocks() {
        // It has no limit of its own.
        0 => u64::MAX,
        _ => system.blocks_available().saturating_mul(block),
    };
    // A file system without a limit for files says that it has none at all.
    let has_files = system.files() == 0 || system.files_free() >= FILES_FREE_MIN;
    system.filesystem_type() == TMPFS_MAGIC
        && has_files
        && fits(bytes, free.min(available_memory().unwrap_or(0)))
}

fn fits(bytes: u64, free: u64) -> bool {
    bytes <= BYTES_MAX && bytes.saturating_mul(MARGIN) <= free
}

/// The text of a file of `/proc`; none of one that is gone, or longer than it may be.
fn table(path: impl AsRef<Path>) -> Option<String> {
    let text = read_regular(path.as_ref(), TABLE_BYTES_MAX).ok()?;
    ((text.len() as u64) < TABLE_BYTES_MAX).then(|| String::from_utf8_lossy(&text).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_take_room_where_no_fifo_takes_them() {
        let expected = Expected {
            small: 10,
            pages: 1000,
            files: 5,
            ipc: Ipc::default(),
        };
        assert_eq!(expected.fifos(), 21);
        for (fifos, bytes) in [(0, 1010), (4, 1010), (5, 10), (21, 10)] {
            assert_eq!(expected.bytes(fifos), bytes, "{fifos}");
        }
        let many = Expected {
            files: 5000,
            ..expected
        };
        assert_eq!((many.fifos(), many.bytes(many.fifos())), (FIFOS_MAX, 1010));
    }

    #[test]
    fn what_is_expected_fits_several_times() {
        for (bytes, free, expected) in [
            (1 << 20, 4 << 20, true),
            (1 << 20, (4 << 20) - 1, false),
            (BYTES_MAX, u64::MAX, true),
            (BYTES_MAX + 1, u64::MAX, false),
        ] {
            assert_eq!(fits(bytes, free), expected, "{bytes} of {free}");
        }
        assert!(!has_room(Path::new("/proc"), 0), "it is no memory of anybody's");
        assert!(!has_room(Path::new("/nonexistent"), 0));
    }

    #[test]
    fn a_process_of_our_own_is_looked_through() {
        let bundle = tempfile::tempdir().expect("a temporary directory");
        std::fs::write(bundle.path().join("config.json"), "{}").expect("written");
        let us = std::process::id().cast_signed();
        let expected = Expected::of(bundle.path(), &[us], 1 << 20);
        // A development machine may have anything mounted, but a process it has.
        if let Some(expected) = expected {
            assert!(expected.small > BASE_BYTES && expected.pages > 0 && expected.files >= 1);
        }
        assert_eq!(Expected::of(bundle.path(), &[], 1 << 20), None);
    }
}
