//! Unmounting a root file system and everything in it.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};

use super::MountError;

/// The most that is read of `mountinfo`, in bytes; the kernel's limit of mounts in a namespace, with long lines.
const MOUNTINFO_BYTES_MAX: u64 = 64 << 20;

/// Mounts stacked on one path that are taken off before giving up.
const STACK_MAX: u32 = 1000;

/// Unmounts what is at a path and below it, deepest first. A mount that is busy is detached: it is out of the way
/// at once and gone when its last user is. A path that does not exist, or is no mount, is fine. Goes on after a
/// failure and returns all of them.
///
/// On the common way, one mount and nothing in it, `mountinfo` is not read: on a busy host that costs more than
/// the unmount.
pub fn unmount_recursive(path: &Path) -> Result<(), Vec<MountError>> {
    let failed = |error| vec![MountError::io("unmount", path, error)];
    // The last part of the path is not followed: a link there is not a mount of ours.
    let path = match (path.parent().map(Path::canonicalize), path.file_name()) {
        (Some(Ok(parent)), Some(name)) => parent.join(name),
        (Some(Err(error)), Some(_)) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        _ => std::path::absolute(path).map_err(failed)?,
    };
    match unmount_stack(&path, MntFlags::empty()) {
        Ok(0) | Err(Errno::EBUSY) => {}
        Ok(_) | Err(Errno::ENOENT) => return Ok(()),
        Err(error) => return Err(failed(error.into())),
    }
    let mut errors = Vec::new();
    for point in mounts_below(&path).map_err(failed)? {
        let result = match unmount_stack(&point, MntFlags::empty()) {
            Err(Errno::EBUSY) => unmount_stack(&point, MntFlags::MNT_DETACH),
            result => result,
        };
        match result {
            Ok(_) | Err(Errno::ENOENT) => {}
            Err(error) => errors.push(MountError::io("unmount", &point, error)),
        }
    }
    if errors.is_empty() { Ok(()) } else { Err(errors) }
}

/// Takes off every mount stacked on a path; says how many there were.
fn unmount_stack(path: &Path, flags: MntFlags) -> Result<u32, Errno> {
    for count in 0..STACK_MAX {
        match umount2(path, flags | MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) => {}
            // Not a mount, or no longer one.
            Err(Errno::EINVAL) => return Ok(count),
            Err(error) => return Err(error),
        }
    }
    Err(Errno::ELOOP)
}

/// Mount points at and below a path, deepest first.
fn mounts_below(path: &Path) -> std::io::Result<Vec<PathBuf>> {
    let file = File::open("/proc/thread-self/mountinfo")?;
    let mut points = Vec::new();
    for line in BufReader::new(file.take(MOUNTINFO_BYTES_MAX)).split(b'\n') {
        if let Some(point) = mount_point(&line?)
            && point.starts_with(path)
        {
            points.push(point);
        }
    }
    points.sort_by_key(|point| std::cmp::Reverse(point.components().count()));
    points.dedup();
    Ok(points)
}

/// The fifth field of a line of `mountinfo`, its octal escapes undone.
fn mount_point(line: &[u8]) -> Option<PathBuf> {
    use std::os::unix::ffi::OsStringExt;
    let mut field = line.split(|byte| *byte == b' ').nth(4)?.iter().copied();
    let mut point = Vec::new();
    while let Some(byte) = field.next() {
        if byte != b'\\' {
            point.push(byte);
            continue;
        }
        let mut value = 0u32;
        for _ in 0..3 {
            value = value * 8 + char::from(field.next()?).to_digit(8)?;
        }
        point.push(u8::try_from(value).ok()?);
    }
    Some(std::ffi::OsString::from_vec(point).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_gives_its_mount_point() {
        for (line, point) in [
            (
                "36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw",
                Some("/mnt2"),
            ),
            (
                "36 35 98:0 / /with\\040space\\134x rw - tmpfs none rw",
                Some("/with space\\x"),
            ),
            ("36 35 98:0 / /short\\04", None),
            ("36 35 98:0 / /not\\09x rw", None),
            ("36 35", None),
            ("", None),
        ] {
            assert_eq!(mount_point(line.as_bytes()), point.map(PathBuf::from), "{line}");
        }
    }

    #[test]
    fn what_is_not_there_or_no_mount_is_fine() {
        let dir = tempfile::tempdir().unwrap();
        assert!(unmount_recursive(&dir.path().join("nothing")).is_ok());
        if nix::unistd::geteuid().is_root() {
            assert!(unmount_recursive(dir.path()).is_ok());
        }
    }
}
