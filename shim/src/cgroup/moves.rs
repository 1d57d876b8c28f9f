//! Moving processes between cgroups without waiting for it.
//!
//! The first write to any `cgroup.procs` after a while takes a lock (`cgroup_threadgroup_rwsem`) whose writer waits for an
//! RCU grace period: about 10 ms (kernel 6.18, two cores; `rcu_sync_enter` in `kernel/rcu/sync.c`). The next writers find
//! the lock in its slow mode and do not wait, until a grace period has passed without any. runc's first move comes 10 to
//! 20 ms after its start, so the wait can be over by then if somebody has begun it: `runc exec` takes 14 ms instead of 25.
//!
//! What is written is the shim's own pid into its own cgroup, which moves nothing.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::Cgroup;

/// How often the lock is kept in its slow mode; well below the shortest grace period seen (8 ms).
const RENEWAL: Duration = Duration::from_millis(4);
/// The longest the lock is kept so. Everybody's fork and exit is a little slower meanwhile (a shared counter instead of
/// one for each processor), so it ends even if runc takes longer.
const WINDOW_MAX: Duration = Duration::from_millis(100);
/// The thread only writes; the default of 2 MiB would be address space for nothing.
const STACK_BYTES: usize = 32 * 1024;

/// Where the shim's own cgroup was found, and by which text of `/proc/self/cgroup`: if that changes, somebody has moved
/// the shim, and a write to the old place would move it back.
static OWN: Mutex<Option<(String, PathBuf)>> = Mutex::new(None);

/// While it lives, moves between cgroups do not wait.
#[derive(Debug)]
pub struct ExpectedMoves(Arc<AtomicBool>);

impl Drop for ExpectedMoves {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Begins the wait that a process about to be started would have to go through. None if that is not possible: then it
/// waits itself.
pub fn expect() -> Option<ExpectedMoves> {
    let mut procs = OpenOptions::new().write(true).open(own_procs()?).ok()?;
    let over = Arc::new(AtomicBool::new(false));
    let expected = ExpectedMoves(Arc::clone(&over));
    let renew = move || {
        let end = Instant::now() + WINDOW_MAX;
        // "0" is the writer itself.
        while procs.write_all(b"0").is_ok() && !over.load(Ordering::Relaxed) && Instant::now() < end {
            thread::sleep(RENEWAL);
        }
    };
    let thread = thread::Builder::new()
        .name("moves".to_owned())
        .stack_size(STACK_BYTES)
        .spawn(renew);
    thread.is_ok().then_some(expected)
}

fn own_procs() -> Option<PathBuf> {
    let text = fs::read_to_string("/proc/self/cgroup").ok()?;
    let mut own = OWN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((known, path)) = own.as_ref()
        && *known == text
    {
        return Some(path.clone());
    }
    let path = Cgroup::of_pid(std::process::id().cast_signed())
        .ok()?
        .main_dir()?
        .join("cgroup.procs");
    *own = Some((text, path.clone()));
    Some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shim_stays_where_it_is() {
        let before = fs::read_to_string("/proc/self/cgroup").expect("read our cgroup");
        drop(expect());
        drop(expect());
        assert_eq!(
            fs::read_to_string("/proc/self/cgroup").expect("read our cgroup"),
            before
        );
    }
}
