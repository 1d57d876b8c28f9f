//! What the shim's child processes inherit: descriptors, death signal, process group, mounts.
//!
//! Everything that runs between fork and exec is async-signal-safe:
//! it makes system calls on values prepared before the fork, and allocates nothing.
#![expect(
    unsafe_code,
    reason = "code between fork and exec, and descriptors inherited by number, have no safe interface"
)]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::libc;

/// First descriptor number above everything that is ever passed on purpose; sources are moved here before the targets
/// are filled, so that no target overwrites a source that is still needed.
const PARKING_FD: RawFd = 64;

/// Where the descriptor scan stops on kernels without `close_range` (before 5.9; its `CLOEXEC` flag came in 5.11).
const FALLBACK_FD_MAX: RawFd = 1024;

/// `PIDTYPE_PGID`, the scope argument of `PR_SCHED_CORE`; libc has no name for it.
const SCHED_CORE_SCOPE_PGID: libc::c_ulong = 2;

/// Gives each descriptor to the child under the number beside it, whatever the numbers are in this process.
///
/// The descriptors stay open here until `command` is dropped.
pub fn pass_fds(command: &mut Command, fds: Vec<(OwnedFd, RawFd)>) {
    let targets: Vec<RawFd> = fds.iter().map(|(_, target)| *target).collect();
    let parked: io::Result<Vec<(OwnedFd, RawFd)>> = fds
        .into_iter()
        .map(|(source, target)| Ok((duplicate_from(&source, PARKING_FD)?, target)))
        .collect();
    // The standard library reports a failed exec through a pipe that takes the lowest free numbers. Were that pipe on
    // one of our targets, dup2 would close it and a failed exec would look like a success. So occupy the free targets,
    // after parking, which has just freed the sources' own numbers.
    let source = parked.as_ref().ok().and_then(|parked| parked.first());
    let occupy_target = |target: &RawFd| source.and_then(|(source, _)| occupy(source, *target));
    let placeholders: Vec<OwnedFd> = targets.iter().filter_map(occupy_target).collect();
    let give = move || {
        let _occupied = &placeholders;
        let parked = parked
            .as_ref()
            .map_err(|e| io::Error::from_raw_os_error(e.raw_os_error().unwrap_or(libc::EMFILE)))?;
        for (source, target) in parked {
            // SAFETY: dup2 from a descriptor owned by this closure to a number nobody else uses in the child.
            if unsafe { libc::dup2(source.as_raw_fd(), *target) } < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: the closure makes async-signal-safe system calls only, and allocates nothing.
    let _ = unsafe { command.pre_exec(give) };
}

/// Has the kernel kill the child when this process dies, so that a killed shim leaves no runc behind.
///
/// Bound to the *thread* that spawns, which is why the runtime has only one.
pub fn die_with_parent(command: &mut Command) {
    let parent = nix::unistd::getpid().as_raw();
    let ask = move || {
        // SAFETY: prctl with plain integers and getppid; both async-signal-safe.
        unsafe {
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
                return Err(io::Error::last_os_error());
            }
            // The parent may have died before the request was made.
            if libc::getppid() != parent {
                return Err(io::Error::from_raw_os_error(libc::ESRCH));
            }
        }
        Ok(())
    };
    // SAFETY: the closure makes async-signal-safe system calls only, and allocates nothing.
    let _ = unsafe { command.pre_exec(ask) };
}

/// Gives the child a mount namespace of its own, which goes with it. What is mounted on the host meanwhile is seen there; what
/// the child mounts and unmounts is not seen on the host.
pub fn own_mounts(command: &mut Command) {
    let unshare = || {
        // SAFETY: two system calls on constants; both async-signal-safe.
        unsafe {
            if libc::unshare(libc::CLONE_NEWNS) != 0 {
                return Err(io::Error::last_os_error());
            }
            let none = std::ptr::null();
            let flags = libc::MS_REC | libc::MS_SLAVE;
            if libc::mount(none, c"/".as_ptr(), none, flags, std::ptr::null()) != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: the closure makes async-signal-safe system calls only, and allocates nothing.
    let _ = unsafe { command.pre_exec(unshare) };
}

/// Keeps every descriptor from `first` on out of the child, also those that were inherited without close-on-exec.
///
/// They are marked, not closed: the standard library still needs its own pipe until the exec.
pub fn seal_fds(command: &mut Command, first: RawFd) {
    let seal = move || {
        let low = libc::c_uint::try_from(first).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
        // SAFETY: close_range and fcntl with plain integers; marking a descriptor close-on-exec invalidates nothing.
        unsafe {
            let flags = libc::CLOSE_RANGE_CLOEXEC;
            if libc::syscall(libc::SYS_close_range, low, libc::c_uint::MAX, flags) == 0 {
                return Ok(());
            }
            for fd in first..FALLBACK_FD_MAX {
                let _ = libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC);
            }
        }
        Ok(())
    };
    // SAFETY: the closure makes async-signal-safe system calls only, and allocates nothing.
    let _ = unsafe { command.pre_exec(seal) };
}

/// Gives this process group a core-scheduling cookie of its own: its hyperthread siblings run nothing of others.
///
/// # Errors
/// `EINVAL` on kernels without core scheduling (before 5.14), `ENODEV` without hyperthreads.
pub fn isolate_core() -> io::Result<()> {
    // SAFETY: prctl with plain integers.
    let rc = unsafe {
        libc::prctl(
            libc::PR_SCHED_CORE,
            libc::PR_SCHED_CORE_CREATE,
            0,
            SCHED_CORE_SCOPE_PGID,
            0,
        )
    };
    if rc == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Takes over the listening socket that `start` left at descriptor `fd`. Call once.
///
/// # Errors
/// When the descriptor is closed or is not a listening socket: the process was not started by `start`.
pub fn inherited_listener(fd: RawFd) -> io::Result<UnixListener> {
    let mut listening: libc::c_int = 0;
    let mut size = libc::socklen_t::try_from(size_of::<libc::c_int>()).unwrap_or(0);
    // SAFETY: the two pointers are to live locals, and `size` is the length of the first.
    let rc = unsafe {
        let value = std::ptr::from_mut(&mut listening).cast();
        libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_ACCEPTCONN, value, &raw mut size)
    };
    if rc != 0 {
        return Err(io::Error::last_os_error());
    }
    if listening == 0 {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    // SAFETY: the descriptor is an open listening socket, and nothing else in this process refers to its number:
    // it was open at the exec, and the caller takes it once. Children must not have it.
    unsafe {
        let _ = libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC);
        Ok(UnixListener::from_raw_fd(fd))
    }
}

/// Opens the number `target` with a copy of `source` if it is free; None if something is there already.
fn occupy(source: &OwnedFd, target: RawFd) -> Option<OwnedFd> {
    duplicate_from(source, target)
        .ok()
        .filter(|fd| fd.as_raw_fd() == target)
}

/// A close-on-exec copy of `source` at the first free number from `first` on.
fn duplicate_from(source: &OwnedFd, first: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: fcntl duplicates a descriptor we own; the result is a new descriptor that is ours alone.
    unsafe {
        let fd = libc::fcntl(source.as_raw_fd(), libc::F_DUPFD_CLOEXEC, first);
        if fd < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(OwnedFd::from_raw_fd(fd))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{PipeReader, Read, Write};
    use std::process::Stdio;

    use super::*;

    fn pipe_with(text: &str) -> OwnedFd {
        let (reader, mut writer): (PipeReader, _) = std::io::pipe().unwrap();
        writer.write_all(text.as_bytes()).unwrap();
        reader.into()
    }

    fn shell(script: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        let _ = command
            .args(["-c", script])
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        command
    }

    fn output(command: &mut Command) -> String {
        let mut child = command.spawn().unwrap();
        let mut text = String::new();
        let _ = child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
        let _ = child.wait().unwrap();
        text
    }

    #[test]
    fn each_descriptor_arrives_under_its_number() {
        let mut command = shell("cat <&5 <&3; cat <&3; cat <&4");
        let fds = vec![
            (pipe_with("three "), 3),
            (pipe_with("four "), 4),
            (pipe_with("five "), 5),
        ];
        pass_fds(&mut command, fds);
        // `cat <&5 <&3` reads the last redirection, so 5 is left unread.
        assert_eq!(output(&mut command), "three four ");
    }

    #[test]
    fn sources_that_sit_on_each_others_targets_are_not_lost() {
        let (a, b) = (pipe_with("a"), pipe_with("b"));
        let (at_a, at_b) = (a.as_raw_fd(), b.as_raw_fd());
        let mut command = shell(&format!("cat /proc/self/fd/{at_a} /proc/self/fd/{at_b}"));
        pass_fds(&mut command, vec![(a, at_b), (b, at_a)]);
        assert_eq!(output(&mut command), "ba");
    }

    #[test]
    fn a_failed_exec_is_reported_although_its_target_was_free() {
        let mut command = Command::new("/nonexistent/program");
        pass_fds(
            &mut command,
            (3..20).map(|target| (pipe_with(""), target)).collect(),
        );
        assert_eq!(command.spawn().unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn sealed_descriptors_stay_out_of_the_child() {
        let leaked = pipe_with("x");
        let inherited = duplicate_from(&leaked, 40).unwrap();
        // SAFETY: clears close-on-exec on a descriptor this test owns.
        let rc = unsafe { libc::fcntl(inherited.as_raw_fd(), libc::F_SETFD, 0) };
        assert_eq!(rc, 0);
        let script = format!(
            "test -e /proc/self/fd/{} && echo there || echo gone",
            inherited.as_raw_fd()
        );
        assert_eq!(output(&mut shell(&script)), "there\n");
        let mut command = shell(&script);
        seal_fds(&mut command, 4);
        assert_eq!(output(&mut command), "gone\n");
    }

    #[test]
    fn what_a_child_mounts_is_its_own() {
        if !nix::unistd::geteuid().is_root() {
            let _ = std::io::Write::write_all(
                &mut std::io::stderr(),
                b"SKIP what_a_child_mounts_is_its_own: needs root\n",
            );
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().display();
        let mut command = shell(&format!(
            "mount -t tmpfs x {place} && grep -c {place} /proc/self/mountinfo"
        ));
        own_mounts(&mut command);
        assert_eq!(output(&mut command).trim(), "1");
        let here = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!here.contains(&place.to_string()), "it is mounted here too");
    }

    #[test]
    fn only_a_listening_socket_is_taken_over() {
        let pipe = pipe_with("");
        assert!(inherited_listener(pipe.as_raw_fd()).is_err());
        let (left, _right) = std::os::unix::net::UnixStream::pair().unwrap();
        assert!(inherited_listener(left.as_raw_fd()).is_err());
    }
}
