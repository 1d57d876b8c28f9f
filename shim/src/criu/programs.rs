//! Processes in the middle of starting a program, which CRIU cannot save.
//!
//! A vfork: CRIU stops the child, the parent waits for the child and cannot be stopped, and after 10 s CRIU gives up
//! (a shell that starts programs in a loop: one dump in fifty). A container or an exec that has just been started:
//! runc comes back a moment before its init executes the container's program.

use std::time::Duration;

use tokio::time::sleep;

use super::proc;
use crate::cgroup::{Cgroup, CgroupError};

/// From vfork to exec, or from runc's init to the program, takes a fraction of a millisecond.
pub const START_TIME: Duration = Duration::from_millis(1);

/// A container that starts programs without a pause is in a vfork at half of all times; a second of tries finds the
/// other half.
const ATTEMPTS: u32 = 200;

/// Whether one of these processes is about to start a program.
pub fn is_any_starting(pids: &[i32]) -> bool {
    pids.iter()
        .any(|pid| proc::is_vforking(*pid) || proc::is_launching(*pid))
}

/// Lets a frozen container run on, for moments, until no process of it is in the middle of starting a program. False if one
/// does not come to its program; it is frozen all the same.
///
/// # Errors
/// The cgroup cannot be thawed or frozen again.
pub async fn leave_starts(cgroup: &Cgroup, deadline: Duration) -> Result<bool, CgroupError> {
    for _ in 0..ATTEMPTS {
        if !is_any_starting(&cgroup.procs()) {
            return Ok(true);
        }
        cgroup.thaw(deadline).await?;
        sleep(START_TIME).await;
        cgroup.freeze(deadline).await?;
    }
    Ok(false)
}
