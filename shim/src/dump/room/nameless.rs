//! Files without a name that processes hold: CRIU saves the content of those that were deleted, and shared memory is made of them.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs::{self, Metadata};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::stat::fstat;

use super::table;

/// How the kernel's links end that lead to a file without a name.
const DELETED: &str = " (deleted)";

/// How those begin that lead to memory. A deleted file may be called so, too.
const MEMORY: [&str; 4] = ["/memfd:", "/SYSV", "/dev/zero", "/anon_hugepage"];

/// What a pipe's and a socket's are.
const QUEUES: [&str; 2] = ["pipe:[", "socket:["];

/// The unit of `st_blocks`, whatever the file system.
const BLOCK_BYTES: u64 = 512;

/// What was found.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Nameless {
    /// Bytes of deleted files, of each no more than CRIU takes.
    pub(super) ghosts: u64,
    /// Bytes of shared memory, which come as pages.
    pub(super) shared: u64,
    /// How many pieces of it there are.
    pub(super) segments: usize,
    /// Pipes and sockets.
    pub(super) queues: usize,
}

/// A search under way.
struct Search {
    found: Nameless,
    ghost_limit: u64,
    /// The device of memory that has no file system of its own.
    memory: u64,
    files: HashSet<(u64, u64)>,
    queues: HashSet<OsString>,
    left: usize,
}

impl Nameless {
    /// Those that these processes have open or mapped; none if something cannot be told, or there are more descriptors and mappings
    /// than so many.
    pub(super) fn of(pids: &[i32], ghost_limit: u64, looks: usize) -> Option<Self> {
        let memory = memfd_create(c"cedana", MFdFlags::MFD_CLOEXEC).ok()?;
        let mut search = Search {
            found: Self::default(),
            ghost_limit,
            memory: fstat(&memory).ok()?.st_dev,
            files: HashSet::new(),
            queues: HashSet::new(),
            left: looks,
        };
        for pid in pids {
            search.look_at_open(*pid)?;
            search.look_at_mapped(*pid)?;
        }
        Some(search.found)
    }
}

impl Search {
    fn look_at_open(&mut self, pid: i32) -> Option<()> {
        let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fd")) else {
            // It is gone.
            return Some(());
        };
        for entry in entries.flatten() {
            self.left = self.left.checked_sub(1)?;
            let Ok(link) = fs::read_link(entry.path()) else {
                continue;
            };
            let text = link.to_string_lossy();
            if QUEUES.iter().any(|queue| text.starts_with(queue)) {
                self.found.queues += usize::from(self.queues.insert(link.as_os_str().to_owned()));
            } else if text.ends_with(DELETED)
                && let Ok(file) = fs::metadata(entry.path())
            {
                self.add(link.as_os_str().as_bytes(), &file);
            }
        }
        Some(())
    }

    fn look_at_mapped(&mut self, pid: i32) -> Option<()> {
        let dir = format!("/proc/{pid}");
        if !Path::new(&dir).exists() {
            return Some(());
        }
        for line in table(format!("{dir}/maps"))?.lines() {
            self.left = self.left.checked_sub(1)?;
            let Some((range, name)) = deleted(line) else {
                continue;
            };
            let file = fs::metadata(format!("{dir}/map_files/{range}")).ok()?;
            self.add(name.as_bytes(), &file);
        }
        Some(())
    }

    fn add(&mut self, name: &[u8], file: &Metadata) {
        if !file.is_file() || !self.files.insert((file.dev(), file.ino())) {
            return;
        }
        let held = file.blocks().saturating_mul(BLOCK_BYTES);
        let found = &mut self.found;
        if file.dev() == self.memory {
            found.segments += 1;
            found.shared = found.shared.saturating_add(held);
        } else if MEMORY.iter().any(|start| name.starts_with(start.as_bytes())) {
            // Huge pages, or a file that is called like them: counted as both.
            found.segments += 1;
            found.ghosts = found.ghosts.saturating_add(held.max(file.len()));
        } else if file.nlink() == 0 {
            // A larger one is refused by CRIU.
            found.ghosts = found.ghosts.saturating_add(file.len().min(self.ghost_limit));
        }
    }
}

/// The range of a mapping as `map_files` has it, and the name of what is mapped, if that was deleted.
fn deleted(line: &str) -> Option<(String, &str)> {
    if !line.ends_with(DELETED) {
        return None;
    }
    let (range, rest) = line.split_once(' ')?;
    let name = rest.find('/').and_then(|at| rest.get(at..))?;
    let plain = |address: &str| u64::from_str_radix(address, 16).ok();
    let (start, end) = range.split_once('-')?;
    Some((format!("{:x}-{:x}", plain(start)?, plain(end)?), name))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{self, Write};
    use std::process::{Command, Stdio};

    use memmap2::MmapMut;

    use super::*;

    #[test]
    fn deleted_mappings_are_found_by_their_range() {
        for (line, expected) in [
            (
                "00400000-00452000 r-xp 00000000 08:02 173521  /tmp/a b (deleted)",
                Some(("400000-452000".to_owned(), "/tmp/a b (deleted)")),
            ),
            (
                "7f0000000000-7f0000001000 rw-s 00000000 00:01 7  /dev/zero (deleted)",
                Some(("7f0000000000-7f0000001000".to_owned(), "/dev/zero (deleted)")),
            ),
            ("00400000-00452000 r-xp 00000000 08:02 173521  /bin/a", None),
            ("7f0000000000-7f0000001000 rw-p 00000000 00:00 0", None),
            (" (deleted)", None),
        ] {
            assert_eq!(deleted(line), expected, "{line}");
        }
    }

    #[test]
    fn what_is_open_is_counted_once_and_no_more_of_it_than_criu_takes() {
        let mut ghost = tempfile::tempfile().expect("a file");
        ghost.write_all(&[1; 10_000]).expect("written");
        let memory = memfd_create(c"memory", MFdFlags::MFD_CLOEXEC).expect("memory");
        let mut memory = File::from(memory);
        memory.write_all(&[1; 8192]).expect("written");
        let (_reader, writer) = io::pipe().expect("a pipe");
        let hold = |file: &File| -> Stdio { file.try_clone().expect("the same").into() };
        let run = |ends: [Stdio; 3]| {
            let [stdin, stdout, stderr] = ends;
            let mut command = Command::new("sleep");
            let _command = command.arg("100").stdin(stdin).stdout(stdout).stderr(stderr);
            command.spawn().expect("sleep")
        };
        let mut children = [
            run([hold(&ghost), hold(&memory), writer.into()]),
            run([hold(&memory), hold(&ghost), hold(&ghost)]),
        ];
        let pids = children.each_ref().map(|child| child.id().cast_signed());
        let found = [1 << 20, 1000].map(|ghost_limit| Nameless::of(&pids, ghost_limit, 1000));
        let too_many = Nameless::of(&pids, 1000, 3);
        for child in &mut children {
            child.kill().expect("ended");
            let _status = child.wait().expect("gone");
        }
        for (found, ghosts) in found.into_iter().zip([10_000, 1000]) {
            let found = found.expect("looked through");
            assert_eq!((found.ghosts, found.shared, found.segments), (ghosts, 8192, 1));
            // They may have more from whoever runs the test.
            assert!(found.queues >= 1);
        }
        assert_eq!(too_many, None);
        assert_eq!(
            Nameless::of(&[i32::MAX], 1, 1),
            Some(Nameless::default()),
            "it is gone"
        );
    }

    #[test]
    #[ignore = "looks at what is mapped, which takes root"]
    #[expect(unsafe_code, reason = "maps a file")]
    fn what_is_mapped_and_not_open_counts() {
        let memory = File::from(memfd_create(c"memory", MFdFlags::MFD_CLOEXEC).expect("memory"));
        memory.set_len(8 << 20).expect("long enough");
        // SAFETY: nobody else has this memory.
        let mut shared = unsafe { MmapMut::map_mut(&memory) }.expect("mapped");
        drop(memory);
        shared.fill(1);
        let us = std::process::id().cast_signed();
        let found = Nameless::of(&[us], 1, 1 << 20).expect("looked through");
        assert!(found.segments >= 1 && found.shared >= 8 << 20, "{found:?}");
    }
}
