//! What the processes have mapped: devices, rings and deleted files whose descriptors may be closed long since.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use jobs::preflight::Severity;

use super::findings::Findings;
use super::read;
use super::tree::Process;
use crate::criu::culprits;

/// Size of the unit of `st_blocks`, whatever the file system.
const BLOCK_SIZE: u64 = 512;

/// The character devices whose mappings are ordinary memory (`/dev/zero`).
const MEMORY_MAJOR: u64 = 1;

/// Deleted by birth: memory that CRIU saves as such.
const MEMORY: [&str; 5] = ["/memfd:", "/SYSV", "/dev/zero", "/anon_hugepage", "/[aio]"];

/// One line of `maps`, as far as we look.
#[derive(Debug, PartialEq, Eq)]
struct Mapping<'a> {
    range: &'a str,
    path: &'a str,
}

/// Looks at one process.
pub(super) fn look(process: &Process, settings: &config::Dump, findings: &mut Findings) {
    let Ok(maps) = read::text(format!("/proc/{}/maps", process.pid), read::TABLE_BYTES_MAX) else {
        return;
    };
    if maps.len() as u64 >= read::TABLE_BYTES_MAX {
        findings.unseen(format!("some mappings of process {}", process.pid));
    }
    let mut seen = BTreeSet::new();
    for mapping in maps.lines().filter_map(parse) {
        if !seen.insert(mapping.path) {
            continue;
        }
        if let Some(what) = culprits::unsavable(mapping.path) {
            add_unsavable(process, what, findings);
        } else if mapping.path == "[uprobes]" {
            findings.add_of(
                process,
                "uprobe",
                Severity::Blocks,
                "is watched by a uprobe (a tracer or profiler), which CRIU cannot save",
                "end the tracer, and restart the container: the mapping stays",
            );
        } else if mapping.path.starts_with('/') {
            look_at_file(process, &mapping, settings, findings);
        }
    }
}

fn add_unsavable(process: &Process, what: &str, findings: &mut Findings) {
    let (code, remedy) = match what {
        "an io_uring" => ("io-uring", "switch it off in the application"),
        "an NVIDIA device" | "an AMD GPU" | "a graphics device" => {
            ("gpu", "stop its use of the GPU before the dump")
        }
        "secret memory" => ("secret-memory", "switch it off in the application"),
        _ => ("kernel-object", "unmap it before the dump"),
    };
    if findings.has(process, code) {
        return;
    }
    let what = format!("has {what} mapped, which CRIU cannot save");
    findings.add_of(process, code, Severity::Blocks, &what, remedy);
}

fn look_at_file(process: &Process, mapping: &Mapping<'_>, settings: &config::Dump, findings: &mut Findings) {
    if MEMORY.iter().any(|prefix| mapping.path.starts_with(prefix)) {
        return;
    }
    let deleted = mapping.path.ends_with(" (deleted)");
    if !deleted && !mapping.path.starts_with("/dev/") {
        return;
    }
    // Follows the kernel's link to the very file, wherever it is and whatever its name is now.
    let Ok(metadata) = fs::metadata(format!("/proc/{}/map_files/{}", process.pid, mapping.range)) else {
        return;
    };
    if metadata.file_type().is_char_device() && nix::sys::stat::major(metadata.rdev()) != MEMORY_MAJOR {
        let what = format!("has the device {} mapped, which CRIU cannot save", mapping.path);
        findings.add_of(
            process,
            "device",
            Severity::Blocks,
            &what,
            "stop its use of the device before the dump",
        );
    }
    let size = metadata.blocks().saturating_mul(BLOCK_SIZE);
    if deleted && metadata.is_file() && metadata.nlink() == 0 && size > settings.ghost_limit {
        let what = format!(
            "has the deleted file {} of {size} bytes mapped, over the limit of {}",
            mapping.path.trim_end_matches(" (deleted)"),
            settings.ghost_limit
        );
        let remedy = "raise dump.ghost-limit, for instance to 1G; the file goes into the image";
        findings.add_of(process, "deleted-file", Severity::NeedsSetting, &what, remedy);
    }
}

/// `7f00-7f01 rw-s 00000000 00:0f 1041 anon_inode:[io_uring]`; what has no path is plain memory.
fn parse(line: &str) -> Option<Mapping<'_>> {
    let (range, rest) = line.split_once(' ')?;
    let mut rest = rest;
    for _ in 0..4 {
        rest = rest.trim_start().split_once(' ')?.1;
    }
    let path = rest.trim_start();
    (!path.is_empty()).then_some(Mapping { range, path })
}

/// Any line.
#[cfg(any(test, fuzzing))]
pub(super) fn read_any(line: &str) {
    let _mapping = parse(line);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mappings_have_a_range_and_a_path() {
        for (line, expected) in [
            (
                "7f10-7f20 rw-s 00000000 00:0f 1041                       anon_inode:[io_uring]",
                Some(("7f10-7f20", "anon_inode:[io_uring]")),
            ),
            (
                "7f10-7f20 r-xp 00001000 fe:01 9 /usr/lib/a b.so (deleted)",
                Some(("7f10-7f20", "/usr/lib/a b.so (deleted)")),
            ),
            ("7f10-7f20 rw-p 00000000 00:00 0 ", None),
            ("7f10-7f20 rw-p 00000000 00:00 0", None),
            (
                "7ffc-7ffd rw-p 00000000 00:00 0                          [stack]",
                Some(("7ffc-7ffd", "[stack]")),
            ),
            ("", None),
        ] {
            let expected = expected.map(|(range, path)| Mapping { range, path });
            assert_eq!(parse(line), expected, "{line:?}");
        }
    }
}
