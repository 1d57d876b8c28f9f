//! Child exits, to whoever waits.
//!
//! The shim is the subreaper of everything its containers leave behind, so one `waitpid(-1)` loop takes every exit and a
//! table keyed by pid hands it on. Nothing else in the process may wait for children: two waiters would steal from each
//! other (`tokio::process` is therefore not used).
//!
//! A container's init is not spawned by us but by runc, and may have exited before its pid is known. While a
//! [`StrangerGuard`] is held, exits of unknown pids are kept for [`Reaper::watch`] to find.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::process::{ChildStderr, ChildStdin, ChildStdout, Command};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use tokio::sync::watch;

use crate::signals;

/// Exits of strangers kept while someone expects one. A container that forks and orphans as fast as it can must not grow
/// the shim: past this, the oldest knowledge is lost first, and the pid looked for is among the newest.
const STRANGERS_MAX: usize = 4096;

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// The exit code, or 128 plus the signal's number, as shells and containerd count.
    pub status: u32,
    /// When it was reaped.
    pub at: SystemTime,
}

/// Resolves when a process has ended; may be cloned and asked any number of times.
#[derive(Debug, Clone)]
pub struct ExitWatch(watch::Receiver<Option<Exit>>);

impl ExitWatch {
    /// A watch that resolved already.
    pub fn ended(exit: Exit) -> Self {
        Self(watch::channel(Some(exit)).1)
    }

    /// Waits, without a deadline, for the end of the process.
    pub async fn wait(&self) -> Exit {
        let mut receiver = self.0.clone();
        match receiver.wait_for(Option::is_some).await {
            Ok(exit) => (*exit).unwrap_or_else(lost),
            Err(_) => lost(),
        }
    }

    /// The exit, if it has happened.
    pub fn now(&self) -> Option<Exit> {
        *self.0.borrow()
    }
}

/// The exit reported when its real status can no longer be known: 255, containerd's own "unknown" status.
fn lost() -> Exit {
    Exit {
        status: 255,
        at: SystemTime::now(),
    }
}

/// A child the shim spawned itself.
#[derive(Debug)]
pub struct Child {
    /// Its pid; it is valid until `exit` has resolved.
    pub pid: i32,
    /// Its end.
    pub exit: ExitWatch,
    /// The write end of its standard input, if piped.
    pub stdin: Option<ChildStdin>,
    /// The read end of its standard output, if piped.
    pub stdout: Option<ChildStdout>,
    /// The read end of its standard error, if piped.
    pub stderr: Option<ChildStderr>,
}

/// The table of who waits for which pid.
#[derive(Debug, Default)]
pub struct Reaper {
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    watched: HashMap<i32, watch::Sender<Option<Exit>>>,
    strangers: VecDeque<(i32, Exit)>,
    expecting: usize,
}

impl Reaper {
    /// An empty table. The caller arranges for [`Reaper::reap`] to run on every SIGCHLD.
    pub fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    /// Watches a pid that is, or becomes, a child of this process. An exit kept under a [`StrangerGuard`] is found.
    pub fn watch(&self, pid: i32) -> ExitWatch {
        let mut table = self.lock();
        // The newest, should a pid have been used twice.
        if let Some(at) = table.strangers.iter().rposition(|(stranger, _)| *stranger == pid)
            && let Some((_, exit)) = table.strangers.remove(at)
        {
            return ExitWatch::ended(exit);
        }
        let sender = table.watched.entry(pid).or_insert_with(|| watch::channel(None).0);
        ExitWatch(sender.subscribe())
    }

    /// Spawns a command and watches it. The table is locked over the spawn, so the exit cannot be missed.
    ///
    /// # Errors
    /// What [`Command::spawn`] says.
    pub fn spawn(&self, command: &mut Command) -> io::Result<Child> {
        let mut table = self.lock();
        let mut child = command.spawn()?;
        let pid = i32::try_from(child.id()).map_err(io::Error::other)?;
        let (sender, receiver) = watch::channel(None);
        drop(table.watched.insert(pid, sender));
        Ok(Child {
            pid,
            exit: ExitWatch(receiver),
            stdin: child.stdin.take(),
            stdout: child.stdout.take(),
            stderr: child.stderr.take(),
        })
    }

    /// Keeps the exits of unknown pids for as long as the guard lives.
    pub fn expect_strangers(self: &Arc<Self>) -> StrangerGuard {
        self.lock().expecting += 1;
        StrangerGuard(Arc::clone(self))
    }

    /// Takes every exit the kernel has for us. To be called on SIGCHLD.
    pub fn reap(&self) {
        while let Some((pid, status)) = signals::reap_any() {
            self.deliver(pid, status);
        }
    }

    fn deliver(&self, pid: i32, status: u32) {
        let exit = Exit {
            status,
            at: SystemTime::now(),
        };
        let mut table = self.lock();
        if let Some(sender) = table.watched.remove(&pid) {
            let _ = sender.send_replace(Some(exit));
        } else if table.expecting > 0 {
            if table.strangers.len() == STRANGERS_MAX {
                let _ = table.strangers.pop_front();
            }
            table.strangers.push_back((pid, exit));
        }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        // Nothing panics while the table is locked, and a table is never half-changed.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// While it lives, exits of unknown pids are kept.
#[derive(Debug)]
pub struct StrangerGuard(Arc<Reaper>);

impl Drop for StrangerGuard {
    fn drop(&mut self) {
        let mut table = self.0.lock();
        table.expecting -= 1;
        if table.expecting == 0 {
            table.strangers.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exit_of_a_stranger_is_found_only_while_one_is_expected() {
        let reaper = Reaper::new();
        reaper.deliver(41, 1);
        assert_eq!(reaper.watch(41).now(), None, "nobody expected it");
        let guard = reaper.expect_strangers();
        reaper.deliver(42, 7);
        reaper.deliver(43, 8);
        assert_eq!(reaper.watch(42).now().map(|exit| exit.status), Some(7));
        drop(guard);
        assert_eq!(reaper.watch(43).now(), None, "the stash dies with the last guard");
    }

    #[test]
    fn of_too_many_strangers_the_oldest_are_forgotten() {
        let reaper = Reaper::new();
        let _guard = reaper.expect_strangers();
        for pid in 0..=STRANGERS_MAX as i32 {
            reaper.deliver(1000 + pid, 3);
        }
        assert_eq!(reaper.watch(1000).now(), None);
        assert!(reaper.watch(1000 + STRANGERS_MAX as i32).now().is_some());
    }

    #[test]
    fn every_watcher_of_a_pid_gets_the_same_exit() {
        let reaper = Reaper::new();
        let (first, second) = (reaper.watch(50), reaper.watch(50));
        reaper.deliver(50, 137);
        assert_eq!(first.now(), second.now());
        assert_eq!(first.now().map(|exit| exit.status), Some(137));
    }
}
