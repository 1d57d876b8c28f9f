//! What became of a container whose dump was not answered: containerd may be gone, and CRIU have gone on.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::time::Duration;

use jobs::liveness;
use jobs::record::Process;
use oci_bundles::layout::INVENTORY;
use tokio::time::{Instant, sleep};

use super::foreign::{LOG, end_of};

/// How long CRIU is waited for that dumps on though nobody listens.
const LIMIT: Duration = Duration::from_secs(10);

/// Between two looks at that.
const LOOK: Duration = Duration::from_millis(20);

/// `/proc/PID/status` is some 1500 bytes, and the tracer is on its eighth line.
const STATUS_BYTES_MAX: u64 = 4096;

/// Whether CRIU wrote its inventory, which it does when all else is written, right before it ends the processes.
pub fn has_inventory(images: &Path) -> bool {
    images.join(INVENTORY).is_file()
}

/// Whether the container goes on for sure, so that the images are not needed. CRIU traces the processes for as long as it
/// dumps. Without a directory it cannot write its inventory, and lets them go on; with one it does if it says that it failed,
/// which it does after it has let go.
pub async fn goes_on(init: &Process, images: &Path) -> bool {
    let end = Instant::now() + LIMIT;
    while liveness::is_alive(init) {
        if !is_traced(init.pid) && (!has_inventory(images) || has_failed(images)) {
            return true;
        }
        if Instant::now() > end {
            return false;
        }
        sleep(LOOK).await;
    }
    false
}

/// Whether CRIU's log ends with its giving up.
fn has_failed(images: &Path) -> bool {
    end_of(&images.join(LOG)).is_ok_and(|log| log.contains("Dumping FAILED"))
}

fn is_traced(pid: i32) -> bool {
    let read = || -> io::Result<String> {
        let mut text = Vec::new();
        let file = File::open(format!("/proc/{pid}/status"))?;
        let _bytes = file.take(STATUS_BYTES_MAX).read_to_end(&mut text)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    };
    // Who is gone between two looks is seen to be at the next one.
    read().map_or(true, |status| tracer(&status) != Some(0))
}

/// The pid of the tracer; zero for none.
fn tracer(status: &str) -> Option<i32> {
    let line = status.lines().find_map(|line| line.strip_prefix("TracerPid:"))?;
    line.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tracer_is_found_in_the_status() {
        for (status, expected) in [
            ("Name:\tsh\nTracerPid:\t0\nUid:\t0\n", Some(0)),
            ("Name:\tsh\nTracerPid:\t4711\n", Some(4711)),
            ("Name:\tsh\n", None),
            ("TracerPid:\tx\n", None),
        ] {
            assert_eq!(tracer(status), expected, "{status}");
        }
    }

    #[tokio::test]
    async fn the_images_are_not_needed_while_the_container_lives_and_nobody_dumps_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let own = liveness::own().expect("a process");
        let gone = Process {
            started: own.started + 1,
            ..own.clone()
        };
        assert!(goes_on(&own, dir.path()).await);
        assert!(!goes_on(&gone, dir.path()).await);
        std::fs::write(dir.path().join(INVENTORY), "").expect("a file");
        let waited = tokio::time::timeout(LOOK * 5, goes_on(&own, dir.path())).await;
        assert!(!waited.unwrap_or(false), "it may be about to die");
        std::fs::write(
            dir.path().join(LOG),
            "(0.3) Error (criu/cr-dump.c:1975): Dumping FAILED.\n",
        )
        .expect("a file");
        assert!(goes_on(&own, dir.path()).await, "CRIU has let it go");
    }
}
