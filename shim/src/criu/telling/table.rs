//! What is known of the ways CRIU fails: found by making each of them happen, with CRIU 4.1 and 4.2.

/// One way to fail.
#[derive(Debug)]
pub(super) struct Cause {
    /// All of these are in the line.
    parts: &'static [&'static str],
    /// What it means: fits after the line and a colon.
    pub(super) meaning: &'static str,
    /// What to do: fits after "to get past it,".
    pub(super) remedy: &'static str,
    /// Whether it comes from what the container or the host is, so that trying again cannot help.
    pub(super) lasting: bool,
}

impl Cause {
    pub(super) fn matches(&self, line: &str) -> bool {
        self.parts.iter().all(|part| line.contains(part))
    }
}

const fn cause(parts: &'static [&'static str], meaning: &'static str, remedy: &'static str) -> Cause {
    Cause {
        parts,
        meaning,
        remedy,
        lasting: true,
    }
}

const fn passing(parts: &'static [&'static str], meaning: &'static str, remedy: &'static str) -> Cause {
    Cause {
        parts,
        meaning,
        remedy,
        lasting: false,
    }
}

/// Errors that CRIU prints on its way to success.
pub(super) const NOISE: &[&str] = &[
    "rlimit: Can't setup RLIMIT_NOFILE",
    "Can't initialize libnftables",
    "Unable to initialize nftables",
    "nftables: ",
];

const OLD_CRIU: &str = "install CRIU 4.2 or later";
const EXTERNAL_SOCKET: &str = "a process is connected to a Unix socket of the host";
const OUTSIDE_MOUNT: &str = "something was mounted from outside after the container had started";
const NESTED: &str = "a process of the container made a nested namespace, which CRIU cannot save";
const FULL: &str = "the disk for the images is full";

/// Causes by a line of CRIU's log; the first match counts, so the particular stand before the general.
pub(super) const CAUSES: &[Cause] = &[
    cause(
        &["sockets: Can't get 1:16 opt"],
        "this CRIU is older than 4.2 and cannot save network sockets on kernel 6.16 or later",
        OLD_CRIU,
    ),
    cause(
        &["Can't splice all pages to pipe"],
        "this CRIU is older than 4.2 and does not know guard pages",
        OLD_CRIU,
    ),
    cause(
        &["Can't dump page with parasite"],
        "this CRIU is older than 4.2 and does not know guard pages",
        OLD_CRIU,
    ),
    cause(
        &["inet: Connected TCP socket"],
        "the container has an established TCP connection",
        "close it, or set the annotation cedana.dump.tcp to established (save it) or close (let it come back closed)",
    ),
    cause(
        &["In-flight connection"],
        "a TCP connection to the container has not been accepted yet",
        "try again, or set the annotation cedana.dump.skip-in-flight to true",
    ),
    cause(
        &["External socket is used"],
        EXTERNAL_SOCKET,
        "close it, or set the annotation cedana.dump.external-unix-sockets to true if it is a datagram socket",
    ),
    cause(
        &["unix: Dangling connection"],
        EXTERNAL_SOCKET,
        "close it; a stream connection out of the container cannot be saved",
    ),
    cause(
        &["nix socket", "without peer"],
        EXTERNAL_SOCKET,
        "close it; a stream connection out of the container cannot be saved",
    ),
    cause(
        &["Can't lookup mount=", "fd="],
        "a process has a file open that is outside the container",
        "close it; if it is stdin, stdout or stderr, start the container with pipes or a terminal",
    ),
    cause(
        &["has unreachable sharing"],
        OUTSIDE_MOUNT,
        "unmount it, or put it into the container's configuration",
    ),
    cause(
        &["doesn't have a proper root mount"],
        OUTSIDE_MOUNT,
        "unmount it, or put it into the container's configuration",
    ),
    cause(
        &["No mapping for", "mountpoint"],
        OUTSIDE_MOUNT,
        "give the restored container the same mounts",
    ),
    cause(
        &["io_uring"],
        "a process uses io_uring, which CRIU cannot save",
        "switch it off in the application (UV_USE_IO_URING=0 for Node.js) or forbid it by seccomp",
    ),
    cause(
        &["Message reply from daemon is trimmed"],
        "a process uses io_uring, which CRIU cannot save",
        "switch it off in the application",
    ),
    cause(
        &["send_fds failed (-22)"],
        "a process uses io_uring, which CRIU cannot save",
        "switch it off in the application",
    ),
    cause(
        &["secretmem"],
        "a process has secret memory (memfd_secret), which cannot be saved",
        "switch it off in the application",
    ),
    cause(
        &["Can't dump file", "(chr 195:"],
        "a process uses an NVIDIA GPU, whose state CRIU cannot save",
        "stop its use of the GPU before the dump",
    ),
    cause(
        &["handle_device_vma plugin failed"],
        "a process has GPU memory mapped, whose state CRIU cannot save",
        "stop its use of the GPU before the dump",
    ),
    cause(
        &["Can't handle non-regular mapping"],
        "a process has a device mapped, whose state CRIU cannot save",
        "stop its use of the device before the dump",
    ),
    cause(
        &["Can't dump file", "of that type"],
        "a process has something open that cannot be saved",
        "close it before the dump",
    ),
    cause(
        &["Unknown shit"],
        "a process has something open that cannot be saved",
        "close it before the dump",
    ),
    cause(
        &["Unknown socket collected (family 40)"],
        "a process holds a vsock socket, which CRIU cannot save",
        "close it before the dump",
    ),
    cause(
        &["ghost file", "increase limit"],
        "a deleted file that is still open is larger than the limit",
        "raise it with the annotation cedana.dump.ghost-limit, for instance to 1G; the file goes into the image",
    ),
    cause(
        &["Can't create link remap", "link-remap option"],
        "a deleted file that is still open has another name",
        "close it, or have the container end with the dump: cedana.dump.link-remap allows it then",
    ),
    cause(
        &["file locks are hold"],
        "the container holds file locks",
        "set the annotation cedana.dump.file-locks to true",
    ),
    cause(
        &["inet: Unsupported proto 262"],
        "a process has an MPTCP socket, which CRIU cannot save",
        "start the program with GODEBUG=multipathtcp=0 if it is written in Go (1.24 and later listen so); else switch MPTCP off in it",
    ),
    cause(
        &["Can't dump nested", "namespace"],
        NESTED,
        "stop what made it (a sandbox, a nested container)",
    ),
    cause(
        &["more than one netns"],
        NESTED,
        "stop what made it (a sandbox, a nested container)",
    ),
    cause(
        &["A session leader", "outside of its pid namespace"],
        "a process started by exec is still running",
        "end exec sessions before the dump",
    ),
    cause(
        &["slave peer index without"],
        "a terminal of an exec session is still open",
        "end exec sessions before the dump",
    ),
    passing(
        &["action scripts failed"],
        "a script around the dump failed",
        "look for its own error",
    ),
    passing(
        &["Can't freeze"],
        "the processes could not be stopped in time",
        "try again when the host is less loaded",
    ),
    passing(
        &["No space left on device"],
        FULL,
        "make room or choose another directory, and try again",
    ),
    passing(
        &["Disk quota exceeded"],
        FULL,
        "make room or choose another directory, and try again",
    ),
    passing(
        &["Unable to spice data: Broken pipe"],
        "what takes the image data has failed",
        "look for its own error, and try again",
    ),
    cause(
        &["Network is unreachable", "soccr"],
        "the address of a saved TCP connection does not exist here",
        "give the container the same address, or set the annotation cedana.restore.tcp to close",
    ),
    cause(
        &["Can't bind inet socket"],
        "an address the container listens on is in use or missing here",
        "free it, or restore with a network of its own",
    ),
    cause(
        &["Can't bind", "Address already in use"],
        "an address the container listens on is in use",
        "free it, or restore with a network of its own",
    ),
    cause(
        &["Can't open file", "on restore"],
        "a file that was open at the dump is missing",
        "restore on the same root file system and mounts",
    ),
    cause(
        &["has bad size"],
        "a file in use is not the one it was at the dump",
        "restore on the same image and the same writable layer",
    ),
    cause(
        &["has bad mode"],
        "a file in use has other permissions than at the dump",
        "restore on the same image, or set the annotation cedana.restore.skip-file-check to true",
    ),
    cause(
        &["has bad build-id"],
        "a program or library is not the one it was at the dump",
        "restore on the same image",
    ),
    cause(
        &["Can't fork for", "File exists"],
        "a pid that the container needs is taken",
        "run the container in a pid namespace of its own",
    ),
    cause(
        &["do not match expected"],
        "a pid that the container needs is taken",
        "run the container in a pid namespace of its own",
    ),
    cause(
        &["feature mismatch"],
        "this processor lacks what the one of the dump had",
        "restore on the same family of processors",
    ),
    cause(
        &["pparmor"],
        "the AppArmor profile of the dump is missing here",
        "load the profile, or run the container without one",
    ),
    cause(
        &["elinux"],
        "the SELinux label of the dump cannot be set here",
        "use the same policy on both hosts",
    ),
    cause(
        &["inventory.img", "No"],
        "the directory does not hold a complete dump",
        "check the path of the checkpoint",
    ),
    cause(
        &["Unexpected EOF on (empty-image)"],
        "the directory does not hold a complete dump",
        "check the path of the checkpoint",
    ),
];

/// Causes by what runc says, for failures that leave nothing in CRIU's log.
pub(super) const RUNC_CAUSES: &[Cause] = &[
    cause(
        &["errno 56"],
        "an option in a CRIU configuration file is unknown to this CRIU",
        "look into /etc/criu",
    ),
    passing(
        &["unixpacket", "connection reset"],
        "CRIU crashed or was killed",
        "try again; if it comes back, look into the kernel's log",
    ),
    passing(
        &["unixpacket", "EOF"],
        "CRIU crashed or was killed",
        "try again; if it comes back, look into the kernel's log",
    ),
    passing(
        &["unixpacket", "broken pipe"],
        "CRIU crashed or was killed",
        "try again; if it comes back, look into the kernel's log",
    ),
    cause(
        &["\"criu\"", "not found"],
        "CRIU is not installed",
        "install the package criu, 4.2 or later",
    ),
    cause(
        &["missing features", "MemTrack"],
        "this kernel has no memory tracking",
        "take full dumps, without a parent",
    ),
    passing(&["status 137"], "runc was killed", "try again"),
    passing(
        &["type NOTIFY"],
        "a hook or a script around the dump failed",
        "look for its own error",
    ),
    cause(
        &["no such file or directory", "criu"],
        "CRIU is not installed",
        "install the package criu, 4.2 or later",
    ),
];
