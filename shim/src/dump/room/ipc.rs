//! What lies in System V's shared memory and queues of a container: CRIU saves all of it, attached or not.
//!
//! The kernel shows these tables only to who is in their namespace: a thread goes there to read them, and ends.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::Path;
use std::thread;

use nix::sched::{CloneFlags, setns};

use super::table;

/// Tables of the namespace that the reader is in.
const MEMORY: &str = "/proc/sysvipc/shm";
const MESSAGES: &str = "/proc/sysvipc/msg";

/// What was found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Ipc {
    /// Bytes of shared memory, which come as pages.
    pub(super) shared: u64,
    /// How many pieces of it there are.
    pub(super) segments: usize,
    /// Bytes of messages.
    pub(super) messages: u64,
}

/// What the namespace of a process has; nothing if that is ours, which CRIU leaves alone. None if it cannot be told.
pub(super) fn held(pid: i32) -> Option<Ipc> {
    let path = format!("/proc/{pid}/ns/ipc");
    let link = |path: &str| fs::read_link(path).ok();
    if link(&path)? == link("/proc/self/ns/ipc")? {
        return Some(Ipc::default());
    }
    let namespace = File::open(path).ok()?;
    let look = move || {
        setns(namespace, CloneFlags::CLONE_NEWIPC).ok()?;
        Some(Ipc::of(&rows(MEMORY)?, &rows(MESSAGES)?))
    };
    let thread = thread::Builder::new().spawn(look).ok()?;
    thread.join().ok()?
}

/// The text of a table; an empty one of a kernel that has none.
fn rows(path: &str) -> Option<String> {
    match fs::metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Some(String::new()),
        _ => table(Path::new(path)),
    }
}

impl Ipc {
    fn of(memory: &str, messages: &str) -> Self {
        let [resident, swapped] = ["rss", "swap"].map(|name| column(memory, name));
        Self {
            shared: resident
                .iter()
                .chain(&swapped)
                .copied()
                .fold(0, u64::saturating_add),
            segments: resident.len(),
            messages: column(messages, "cbytes")
                .into_iter()
                .fold(0, u64::saturating_add),
        }
    }
}

/// The numbers of a column, by its name in the first line.
fn column(table: &str, name: &str) -> Vec<u64> {
    let mut lines = table.lines();
    let names = lines.next().unwrap_or_default();
    let Some(at) = names.split_ascii_whitespace().position(|one| one == name) else {
        return Vec::new();
    };
    let number = |line: &str| line.split_ascii_whitespace().nth(at)?.parse().ok();
    lines.filter_map(number).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "\
       key      shmid perms                  size  cpid  lpid nattch   uid   gid  cuid  cgid      atime      dtime      ctime                   rss                  swap\n\
         0          0   600              33554432   918   918      0     0     0     0     0          0          0 1795810000              33554432                  4096\n\
         7          1   600                  4096   918   918      1     0     0     0     0          0          0 1795810000                  4096                     0\n";

    #[test]
    fn segments_and_messages_are_summed_up() {
        let queues = "       key      msqid perms      cbytes       qnum\n         0          0   600         100          3\n";
        let expected = Ipc {
            shared: 33_554_432 + 4096 + 4096,
            segments: 2,
            messages: 100,
        };
        assert_eq!(Ipc::of(TABLE, queues), expected);
        assert_eq!(Ipc::of("", "nothing like it\n1 2 3\n"), Ipc::default());
    }

    #[test]
    fn what_is_ours_is_left_alone() {
        let us = std::process::id().cast_signed();
        assert_eq!(held(us), Some(Ipc::default()));
        assert_eq!(held(i32::MAX), None);
    }
}
