//! What the processes have open.

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, Metadata};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use config::Choice;
use jobs::preflight::Severity;
use nix::sys::stat::{major, minor};

use super::findings::{Findings, shown};
use super::mounts::Mounts;
use super::read;
use super::tree::Process;
use crate::criu::culprits;

/// A process with more descriptors is not looked through to the end.
const DESCRIPTORS_MAX: usize = 64 * 1024;

/// Files without a path that CRIU saves, by what the kernel calls them. (BPF maps: only arrays and hashes.)
const SAVABLE: [&str; 9] = [
    "[eventfd]",
    "[eventpoll]",
    "[signalfd]",
    "[timerfd]",
    "[pidfd]",
    "inotify",
    "[fanotify]",
    "bpf-map",
    "[aio]",
];

/// Links of files in the kernel's own memory, which look like paths and are on no mount.
const INTERNAL: [&str; 4] = ["/memfd:", "/SYSV", "/dev/zero (deleted)", "/anon_hugepage"];

/// Size of the unit of `st_blocks`, whatever the file system.
const BLOCK_SIZE: u64 = 512;

/// Where a socket is open: the process by its place in the report, and the descriptor.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) process: Process,
    pub(super) descriptor: i32,
}

/// The sockets found, by inode.
pub(super) type Sockets = BTreeMap<u64, Place>;

/// What the descriptors are held against.
#[derive(Debug)]
pub(super) struct Around<'a> {
    pub(super) settings: &'a config::Dump,
    pub(super) mounts: &'a Mounts,
    pub(super) namespaces: &'a HashSet<String>,
}

/// What a descriptor's link says.
#[derive(Debug, PartialEq, Eq)]
enum Kind<'a> {
    Socket(u64),
    /// A file with a path, which the kernel may have marked as deleted.
    Path,
    /// A namespace, as the kernel links it.
    Namespace(&'a str),
    /// What no CRIU saves.
    Unsavable(String),
    Fine,
}

/// One thing found of a process, and the descriptors it was found at.
type Found = BTreeMap<Trouble, Vec<i32>>;

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Trouble {
    code: &'static str,
    severity: Severity,
    what: String,
    remedy: &'static str,
}

/// Looks at one process. Returns its sockets.
pub(super) fn look(process: &Process, around: &Around<'_>, findings: &mut Findings) -> Sockets {
    let mut sockets = Sockets::new();
    let mut found = Found::new();
    let dir = PathBuf::from(format!("/proc/{}/fd", process.pid));
    let Ok(entries) = fs::read_dir(&dir) else {
        return sockets;
    };
    for (count, entry) in entries.flatten().enumerate() {
        if count >= DESCRIPTORS_MAX {
            findings.unseen(format!(
                "descriptors of process {} beyond the first {DESCRIPTORS_MAX}",
                process.pid
            ));
            break;
        }
        let Some(descriptor) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let Ok(link) = fs::read_link(entry.path()) else {
            continue;
        };
        let link = link.to_string_lossy();
        let trouble = match kind(&link) {
            Kind::Socket(inode) => {
                let process = process.clone();
                let _ = sockets.insert(inode, Place { process, descriptor });
                continue;
            }
            Kind::Fine => continue,
            Kind::Unsavable(what) => Some(unsavable(&what)),
            Kind::Namespace(name) => (!around.namespaces.contains(name)).then(foreign_namespace),
            Kind::Path => trouble_of_path(process, descriptor, &link, around),
        };
        if let Some(trouble) = trouble {
            found.entry(trouble).or_default().push(descriptor);
        }
    }
    report(process, found, findings);
    sockets
}

fn report(process: &Process, found: Found, findings: &mut Findings) {
    for (trouble, descriptors) in found {
        let word = if descriptors.len() == 1 {
            "descriptor"
        } else {
            "descriptors"
        };
        let what = format!("has {} open as {word} {}", trouble.what, shown(&descriptors));
        findings.add_of(process, trouble.code, trouble.severity, &what, trouble.remedy);
    }
}

fn kind(link: &str) -> Kind<'_> {
    if let Some(what) = culprits::unsavable(link) {
        return Kind::Unsavable(what.to_owned());
    }
    if let Some(name) = link.strip_prefix("anon_inode:") {
        return if SAVABLE.contains(&name) {
            Kind::Fine
        } else {
            Kind::Unsavable(format!("a kernel object ({name})"))
        };
    }
    if link.starts_with('/') {
        let internal = INTERNAL.iter().any(|prefix| link.starts_with(prefix));
        return if internal { Kind::Fine } else { Kind::Path };
    }
    match link.split_once(":[") {
        Some(("socket", rest)) => rest
            .strip_suffix(']')
            .and_then(|inode| inode.parse().ok())
            .map_or(Kind::Fine, Kind::Socket),
        Some(("pipe", _)) => Kind::Fine,
        Some((_, rest)) if rest.ends_with(']') => Kind::Namespace(link),
        _ => Kind::Unsavable(format!("a kernel object ({link})")),
    }
}

/// What is wrong with the thing, by its name in [`culprits`] or the kernel's.
fn unsavable(what: &str) -> Trouble {
    let (code, remedy) = match what {
        "an io_uring" => (
            "io-uring",
            "switch it off in the application (UV_USE_IO_URING=0 for Node.js) or forbid it by seccomp",
        ),
        "an NVIDIA device" | "an AMD GPU" | "a graphics device" => {
            ("gpu", "stop its use of the GPU before the dump")
        }
        "secret memory" => ("secret-memory", "switch it off in the application"),
        "a userfaultfd" => (
            "userfaultfd",
            "if the container was restored lazily, wait until all its memory is there; else close it",
        ),
        _ => ("kernel-object", "close it before the dump"),
    };
    Trouble {
        code,
        severity: Severity::Blocks,
        what: format!("{what}, which CRIU cannot save,"),
        remedy,
    }
}

fn foreign_namespace() -> Trouble {
    Trouble {
        code: "outside-namespace",
        severity: Severity::Blocks,
        what: "a namespace that is not the container's".to_owned(),
        remedy: "close it before the dump",
    }
}

fn trouble_of_path(process: &Process, descriptor: i32, link: &str, around: &Around<'_>) -> Option<Trouble> {
    let info = read::text(
        format!("/proc/{}/fdinfo/{descriptor}", process.pid),
        read::FILE_BYTES_MAX,
    )
    .ok()?;
    // Follows the kernel's link to the very file, wherever it is and whatever its name is now.
    let metadata = fs::metadata(format!("/proc/{}/fd/{descriptor}", process.pid)).ok()?;
    of_device(&metadata, link)
        .or_else(|| of_mount(&info, &metadata, link, around))
        .or_else(|| of_deleted(&metadata, link, around.settings))
        .or_else(|| of_lock(&info, link, around.settings))
}

/// Devices: CRIU saves memory devices, terminals and tun; all else needs a plugin.
fn of_device(metadata: &Metadata, link: &str) -> Option<Trouble> {
    let kind = metadata.file_type();
    let savable = !kind.is_char_device() || is_savable_device(major(metadata.rdev()), minor(metadata.rdev()));
    (!savable || kind.is_block_device()).then(|| Trouble {
        code: "device",
        severity: Severity::Blocks,
        what: format!("the device {link}, which CRIU cannot save,"),
        remedy: "close it before the dump",
    })
}

/// By the numbers in the kernel's `devices.txt`: memory (null, zero, random …), terminals of all kinds, tun and autofs.
fn is_savable_device(major: u64, minor: u64) -> bool {
    match major {
        1 | 4 | 5 | 128..=143 => true,
        10 => matches!(minor, 200 | 235),
        _ => false,
    }
}

/// A file on a mount that the container does not have.
fn of_mount(info: &str, metadata: &Metadata, link: &str, around: &Around<'_>) -> Option<Trouble> {
    let mount = read::number(info, "mnt_id")?;
    if around.mounts.has(mount) {
        return None;
    }
    let (code, severity, what, remedy) = if metadata.file_type().is_char_device()
        && link.starts_with("/dev/pts/")
    {
        if around.settings.shell_job {
            return None;
        }
        (
            "outside-terminal",
            Severity::NeedsSetting,
            format!("the terminal {link} of the host"),
            "start the container with pipes or a terminal of its own; or set dump.shell-job to true, if it is restored where there is one",
        )
    } else {
        (
            "outside-file",
            Severity::Blocks,
            format!("the file {link}, which is outside of the container,"),
            "close it; if it is stdin, stdout or stderr, start the container with pipes or a terminal",
        )
    };
    Some(Trouble {
        code,
        severity,
        what,
        remedy,
    })
}

/// A deleted file: its content goes into the image, up to a limit.
fn of_deleted(metadata: &Metadata, link: &str, settings: &config::Dump) -> Option<Trouble> {
    if !link.ends_with(" (deleted)") || !metadata.is_file() {
        return None;
    }
    let path = Path::new(link.trim_end_matches(" (deleted)")).display();
    let size = metadata.blocks().saturating_mul(BLOCK_SIZE);
    if metadata.nlink() > 0 {
        let (severity, saved, remedy) = match settings.link_remap {
            Choice::Yes => (
                Severity::Note,
                " which a dump saves by a link_remap file beside it,",
                "",
            ),
            Choice::Auto => (
                Severity::Note,
                " which only a dump that ends the container can save,",
                "close it before a dump that leaves the container running",
            ),
            Choice::No => (Severity::NeedsSetting, "", "set dump.link-remap to auto"),
        };
        return Some(Trouble {
            code: "deleted-link",
            severity,
            what: format!("the deleted file {path}, which has another name,{saved}"),
            remedy,
        });
    }
    (size > settings.ghost_limit).then(|| Trouble {
        code: "deleted-file",
        severity: Severity::NeedsSetting,
        what: format!(
            "the deleted file {path} of {size} bytes, over the limit of {},",
            settings.ghost_limit
        ),
        remedy: "raise dump.ghost-limit, for instance to 1G; the file goes into the image",
    })
}

fn of_lock(info: &str, link: &str, settings: &config::Dump) -> Option<Trouble> {
    let locked = info.lines().any(|line| line.starts_with("lock:"));
    let (severity, saved, remedy) = match settings.file_locks {
        true => (Severity::Note, ", whose lock a dump saves,", ""),
        false => (Severity::NeedsSetting, "", "set dump.file-locks to true"),
    };
    locked.then(|| Trouble {
        code: "file-lock",
        severity,
        what: format!("the locked file {}{saved}", Path::new(link).display()),
        remedy,
    })
}

/// Any line.
#[cfg(any(test, fuzzing))]
pub(super) fn read_any(line: &str) {
    let _kind = kind(line);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_told_apart() {
        let unsavable = |what: &str| Kind::Unsavable(what.to_owned());
        for (link, expected) in [
            ("socket:[77]", Kind::Socket(77)),
            ("pipe:[7]", Kind::Fine),
            ("net:[4026531840]", Kind::Namespace("net:[4026531840]")),
            ("anon_inode:[eventpoll]", Kind::Fine),
            ("anon_inode:inotify", Kind::Fine),
            ("anon_inode:bpf-map", unsavable("a BPF object")),
            ("anon_inode:[io_uring]", unsavable("an io_uring")),
            ("anon_inode:kvm-vm", unsavable("a kernel object (kvm-vm)")),
            (
                "anon_inode:[fscontext]",
                unsavable("a kernel object ([fscontext])"),
            ),
            ("/memfd:x (deleted)", Kind::Fine),
            ("/SYSV00000000 (deleted)", Kind::Fine),
            ("/secretmem (deleted)", unsavable("secret memory")),
            ("/dev/nvidiactl", unsavable("an NVIDIA device")),
            ("/etc/passwd", Kind::Path),
            ("/tmp/a (deleted)", Kind::Path),
        ] {
            assert_eq!(kind(link), expected, "{link}");
        }
    }

    #[test]
    fn devices_are_savable_by_their_number() {
        for (major, minor, expected) in [
            (1, 3, true),
            (5, 2, true),
            (136, 0, true),
            (10, 200, true),
            (10, 229, false),
            (10, 232, false),
            (195, 255, false),
        ] {
            assert_eq!(is_savable_device(major, minor), expected, "{major}:{minor}");
        }
    }

    #[test]
    fn a_deleted_file_of_ours_is_measured() {
        use std::io::Write;

        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let mut file = fs::File::create(&path).unwrap();
        file.write_all(&[1; 8192]).unwrap();
        file.sync_all().unwrap();
        fs::remove_file(&path).unwrap();
        let metadata = file.metadata().unwrap();
        let link = format!("{} (deleted)", path.display());
        for (ghost_limit, expected) in [(1024, Some("deleted-file")), (1 << 20, None)] {
            let settings = config::Dump {
                ghost_limit,
                ..config::Dump::default()
            };
            let code = of_deleted(&metadata, &link, &settings).map(|trouble| trouble.code);
            assert_eq!(code, expected, "{ghost_limit}");
        }
    }
}
