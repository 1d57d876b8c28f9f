//! The names that a dump gives to its files, told from those of a user's in the same directory.

use std::ffi::OsStr;

use oci_bundles::layout::Extra;

use crate::criu::manifest;

/// runc's, beside the images.
const DESCRIPTORS: &str = "descriptors.json";

/// What CRIU's images are called, up to a number or `.img` (its `image-desc.c`, version 4.2).
const KINDS: [&str; 85] = [
    "amdgpu-kfd",
    "amdgpu-pages",
    "amdgpu-renderD",
    "apparmor",
    "autofs",
    "binfmt-misc",
    "bpfmap-data",
    "bpfmap-file",
    "cgroup",
    "core",
    "cpuinfo",
    "creds",
    "eventfd",
    "eventpoll",
    "eventpoll-tfd",
    "ext-files",
    "fanotify",
    "fanotify-mark",
    "fdinfo",
    "fifo",
    "fifo-data",
    "filelocks",
    "files",
    "fs",
    "ghost-file",
    "ids",
    "ifaddr",
    "inetsk",
    "inotify",
    "inotify-wd",
    "inventory",
    "ip6tables",
    "ipcns-msg",
    "ipcns-sem",
    "ipcns-shm",
    "ipcns-var",
    "iptables",
    "irmap-cache",
    "itimers",
    "mm",
    "mountpoints",
    "netdev",
    "netlinksk",
    "netns",
    "netns-ct",
    "netns-exp",
    "nftables",
    "ns-files",
    "packetsk",
    "pagemap",
    "pagemap-shmem",
    "pages",
    "pages-shmem",
    "pidns",
    "pipes",
    "pipes-data",
    "posix-timers",
    "pstree",
    "reg-files",
    "remap-fpath",
    "rlimit",
    "route",
    "route6",
    "rule",
    "seccomp",
    "sigacts",
    "signal-p",
    "signal-s",
    "signalfd",
    "sk-queues",
    "stats-dump",
    "stats-restore",
    "tcp-stream",
    "timens",
    "timerfd",
    "tmpfs",
    "tmpfs-dev",
    "tty",
    "tty-data",
    "tty-info",
    "tunfile",
    "unixsk",
    "userns",
    "utsns",
    "vmas",
];

/// What lies among the images of a flat dump that CRIU does not write.
const EXTRAS: [Extra; 3] = [Extra::RootfsDiff, Extra::DeletedFiles, Extra::DevShm];

/// Whether a flat dump gives this name to a file of its own.
pub fn is_of_dump(name: &OsStr) -> bool {
    is_image(name) || EXTRAS.iter().any(|extra| name == extra.name())
}

/// Whether a dump gives this name to an image, or to what describes them.
pub fn is_image(name: &OsStr) -> bool {
    let name = name.to_string_lossy();
    if name == DESCRIPTORS || name == manifest::NAME {
        return true;
    }
    let Some(stem) = name.strip_suffix(".img") else {
        return false;
    };
    let stem = ["tar.gz", "gz"]
        .iter()
        .find_map(|end| stem.strip_suffix(end)?.strip_suffix('.'))
        .unwrap_or(stem);
    // `core-12`, `pages-shmem-1a`, `amdgpu-kfd-3`, `ghost-file-2f-1`.
    let mut kind = stem;
    loop {
        if KINDS.contains(&kind) {
            return true;
        }
        match kind.rsplit_once('-') {
            Some((rest, number)) if is_number(number) => kind = rest,
            _ => return false,
        }
    }
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_crius_are_told_from_a_users() {
        for (name, expected) in [
            ("inventory.img", true),
            ("core-12.img", true),
            ("pages-1.img", true),
            ("pagemap-shmem-1a2b.img", true),
            ("tmpfs-dev-73.tar.gz.img", true),
            ("ipcns-var-10.img", true),
            ("route6-9.img", true),
            ("descriptors.json", true),
            ("cedana.json", true),
            ("disk.img", false),
            ("core.img.bak", false),
            ("core-of-apple.img", false),
            ("files.json", false),
            ("photo-1.img", false),
            (".img", false),
        ] {
            assert_eq!(is_image(OsStr::new(name)), expected, "{name}");
        }
    }

    #[test]
    fn extra_parts_are_a_dumps_and_logs_are_a_users() {
        for (name, expected) in [
            ("rootfs-diff.tar", true),
            ("deleted.files", true),
            ("devshm-checkpoint.tar", true),
            ("core-1.img", true),
            ("dump.log", false),
            ("rootfs-diff.tar.bak", false),
        ] {
            assert_eq!(is_of_dump(OsStr::new(name)), expected, "{name}");
        }
    }
}
