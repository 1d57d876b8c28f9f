//! Signals by number: nix has no names for real-time signals, which containers use (`STOPSIGNAL SIGRTMIN+3`).
#![expect(
    unsafe_code,
    reason = "kill and waitpid by number have no safe interface that knows real-time signals"
)]

use nix::errno::Errno;
use nix::libc;

/// Sends a signal by number; zero only asks whether the process is there.
///
/// The caller makes sure that the pid has not been reaped, else it may be somebody else's by now.
///
/// # Errors
/// `EINVAL` for a number that is no signal, `ESRCH` for a process that is gone.
pub fn send(pid: i32, signal: i32) -> Result<(), Errno> {
    if pid <= 0 {
        // Zero and negative numbers are groups, or everything: never meant here.
        return Err(Errno::ESRCH);
    }
    // SAFETY: kill takes two integers and touches no memory.
    Errno::result(unsafe { libc::kill(pid, signal) }).map(drop)
}

/// Reaps one ended child, if there is one: its pid and its status as containerd counts (128 plus the signal's number).
///
/// nix's `waitpid` fails for a child killed by a real-time signal after the kernel has already given up its pid: the
/// exit would be lost.
pub fn reap_any() -> Option<(i32, u32)> {
    loop {
        let mut status = 0;
        // SAFETY: the pointer is to a live local; WNOHANG makes the call return at once.
        let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) };
        match pid {
            -1 if Errno::last() == Errno::EINTR => {}
            0 | -1 => return None,
            pid if libc::WIFEXITED(status) => return Some((pid, libc::WEXITSTATUS(status).unsigned_abs())),
            pid if libc::WIFSIGNALED(status) => {
                return Some((pid, 128 + libc::WTERMSIG(status).unsigned_abs()));
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_never_signalled() {
        assert_eq!(send(0, 0), Err(Errno::ESRCH));
        assert_eq!(send(-1, 0), Err(Errno::ESRCH));
        assert_eq!(send(std::process::id().cast_signed(), 0), Ok(()));
        assert_eq!(send(std::process::id().cast_signed(), 4096), Err(Errno::EINVAL));
    }
}
