//! From a finished dump to one in its place.
//!
//! ```text
//!   .cedana-partial/*  --sync-->  --rename: images, then inventory, then manifest-->  --remove what only an older dump had--> sync
//! ```
//!
//! The image directory may be a user's, with files of theirs beside the images: what is removed from it bears a name CRIU
//! gives, and only where an inventory says that a dump was there.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use super::DumpCause;
use crate::criu::manifest;

/// The file every dump has.
const INVENTORY: &str = "inventory.img";

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

/// Whether a dump gives this name to a file of its own.
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

/// Refuses an image directory that could not take the dump, as long as nothing has happened to the container.
///
/// # Errors
/// The name that is in the way.
pub fn check_target(images: &Path) -> Result<(), DumpCause> {
    for name in entries(images)?.iter().filter(|name| is_image(name)) {
        let path = images.join(name);
        let metadata = fs::symlink_metadata(&path).map_err(DumpCause::files("look at", &path))?;
        if metadata.is_dir() {
            return Err(DumpCause::Refused(format!(
                "{} is a directory, and an image takes that name; move it away or name another image directory",
                path.display()
            )));
        }
    }
    Ok(())
}

/// Writes a dump out to the disk.
///
/// # Errors
/// What the file system says.
pub fn sync_all(staging: &Path) -> Result<(), DumpCause> {
    sync(staging, &entries(staging)?)
}

/// Moves a complete dump from its staging directory to the images, in place of an earlier one.
///
/// # Errors
/// What the file system says. What was moved is moved back then, so that the dump is complete where it was.
pub fn into_place(staging: &Path, images: &Path) -> Result<(), DumpCause> {
    let names = ordered(entries(staging)?);
    let old: Vec<OsString> = match images.join(INVENTORY).exists() {
        true => entries(images)?
            .into_iter()
            .filter(|name| is_image(name) && !names.contains(name))
            .collect(),
        false => Vec::new(),
    };
    for (index, name) in names.iter().enumerate() {
        let from = staging.join(name);
        if let Err(error) = fs::rename(&from, images.join(name)) {
            move_back(staging, images, names.get(..index).unwrap_or_default());
            return Err(DumpCause::files("move into place", &from)(error));
        }
    }
    // From here on the dump is there: what is left of the older one does no harm that is worth a failure.
    for name in old {
        if let Err(error) = fs::remove_file(images.join(&name)) {
            tracing::warn!(name = %name.display(), %error, "an image of an earlier dump stays");
        }
    }
    if let Err(error) = fs::remove_dir(staging).and_then(|()| File::open(images)?.sync_all()) {
        tracing::warn!(images = %images.display(), %error, "the dump is complete, but may not be on the disk yet");
    }
    Ok(())
}

/// The inventory, without which nobody takes the rest for a dump, comes after the rest, and the manifest last.
fn ordered(mut names: Vec<OsString>) -> Vec<OsString> {
    names.sort_by_key(|name| (name == manifest::NAME, name == INVENTORY));
    names
}

fn sync(dir: &Path, names: &[OsString]) -> Result<(), DumpCause> {
    for path in names.iter().map(|name| dir.join(name)).chain([dir.to_owned()]) {
        let is_plain =
            fs::symlink_metadata(&path).is_ok_and(|metadata| metadata.is_file() || metadata.is_dir());
        if is_plain {
            File::open(&path)
                .and_then(|file| file.sync_all())
                .map_err(DumpCause::files("write out", &path))?;
        }
    }
    Ok(())
}

fn move_back(staging: &Path, images: &Path, moved: &[OsString]) {
    for name in moved {
        if let Err(error) = fs::rename(images.join(name), staging.join(name)) {
            tracing::warn!(name = %name.display(), %error, "an image stays in the image directory");
        }
    }
}

/// Gives the only copy of a container a name that the next dump does not clear away. Returns where it is.
pub fn keep(staging: &Path, init: i32) -> PathBuf {
    let kept = staging.with_file_name(format!("cedana-kept-{init}"));
    match fs::rename(staging, &kept) {
        Ok(()) => kept,
        Err(_) => staging.to_owned(),
    }
}

/// Whether CRIU came to the end of a dump here: the inventory is the last it writes before it ends the tasks.
pub fn is_written(dir: &Path) -> bool {
    dir.join(INVENTORY).exists()
}

fn entries(dir: &Path) -> Result<Vec<OsString>, DumpCause> {
    let listed = fs::read_dir(dir).and_then(|entries| entries.map(|entry| Ok(entry?.file_name())).collect());
    listed.map_err(DumpCause::files("list", dir))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<String> = entries(dir)
            .expect("list")
            .iter()
            .map(|name| name.display().to_string())
            .collect();
        names.sort();
        names
    }

    /// An image directory with these files, and a staged dump of the others.
    fn dirs(old: &[&str], new: &[&str]) -> (tempfile::TempDir, PathBuf) {
        let images = tempfile::tempdir().expect("a temporary directory");
        let staging = images.path().join("staging");
        fs::create_dir(&staging).expect("make");
        for name in old {
            fs::write(images.path().join(name), "old").expect("write");
        }
        for name in new {
            fs::write(staging.join(name), "new").expect("write");
        }
        (images, staging)
    }

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
    fn an_older_dump_goes_and_what_is_a_users_stays() {
        let (images, staging) = dirs(
            &[
                "inventory.img",
                "core-7.img",
                "cedana.json",
                "disk.img",
                "notes.txt",
            ],
            &["inventory.img", "core-1.img", "cedana.json"],
        );
        into_place(&staging, images.path()).expect("commit");
        assert_eq!(
            names(images.path()),
            [
                "cedana.json",
                "core-1.img",
                "disk.img",
                "inventory.img",
                "notes.txt"
            ]
        );
        assert_eq!(
            fs::read(images.path().join("inventory.img")).expect("read"),
            b"new"
        );
    }

    #[test]
    fn nothing_is_removed_where_no_dump_was() {
        let (images, staging) = dirs(&["core-7.img"], &["inventory.img"]);
        into_place(&staging, images.path()).expect("commit");
        assert_eq!(names(images.path()), ["core-7.img", "inventory.img"]);
    }

    #[test]
    fn the_manifest_comes_last_and_the_inventory_before_it() {
        let given = ["cedana.json", "inventory.img", "core-1.img"].map(OsString::from);
        assert_eq!(
            ordered(given.to_vec()),
            ["core-1.img", "inventory.img", "cedana.json"]
        );
    }

    #[test]
    fn a_commit_that_fails_leaves_the_dump_complete_where_it_was() {
        let (images, staging) = dirs(&[], &["core-1.img", "inventory.img", "cedana.json"]);
        fs::create_dir_all(images.path().join("inventory.img/full")).expect("make");
        assert!(check_target(images.path()).is_err(), "refused before the dump");
        assert!(into_place(&staging, images.path()).is_err());
        assert_eq!(names(&staging), ["cedana.json", "core-1.img", "inventory.img"]);
        let kept = keep(&staging, 7);
        assert_eq!(names(&kept).len(), 3);
        assert!(is_written(&kept) && !staging.exists());
    }
}
