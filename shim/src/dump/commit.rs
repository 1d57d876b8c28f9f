//! From a finished dump to one in its place.
//!
//! ```text
//!   flat    .cedana-partial/*  --sync-->  --rename: images, then inventory, then manifest-->  --remove what only an older dump had--> sync
//!   nested  .NAME.cedana-partial/  --sync-->  --rename--> NAME/  --sync the directory they are in-->
//! ```
//!
//! A nested dump has a directory of its own, so it is there with one rename, and not before.
//!
//! The image directory may be a user's, with files of theirs beside the images: what is removed from it bears a name CRIU
//! gives, and only where an inventory says that a dump was there.

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use oci_bundles::layout::{INVENTORY, Layout, Shape};
use oci_bundles::staged::Staged;

use super::DumpCause;
use super::names::is_of_dump;
use super::target::{Target, taken};
use crate::criu::manifest;
use crate::progress::size_of;

/// How often, and after how long, a directory is made anew that a sweep has removed. One look of a sweep's takes far less.
const CLAIM_TRIES: u32 = 10;
const CLAIM_PAUSE: Duration = Duration::from_millis(10);

/// Refuses an image directory that could not take the dump, as long as nothing has happened to the container.
///
/// # Errors
/// The name that is in the way.
pub fn check_target(images: &Path) -> Result<(), DumpCause> {
    for name in entries(images)?.iter().filter(|name| is_of_dump(name)) {
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

/// Where a dump is written before it is committed to this path.
pub fn staging(dest: &Path, shape: Shape) -> Layout {
    Staged::of(dest, shape).layout().clone()
}

/// Takes the directory in which a nested dump is written: a new one, and nothing that somebody has put there, link or not. What an
/// earlier dump had left is settled by then.
///
/// # Errors
/// Its destination is there, another dump is under way to it, or what the file system says.
pub fn prepare_nested(staging: &Layout, dest: &Path) -> Result<Target, DumpCause> {
    if fs::symlink_metadata(dest).is_ok() {
        return Err(DumpCause::Exists(dest.to_owned()));
    }
    if fs::symlink_metadata(staging.root()).is_ok_and(|metadata| !metadata.is_dir()) {
        return Err(DumpCause::Refused(format!(
            "{} is in the way of the dump, and is no directory of one; remove it",
            staging.root().display()
        )));
    }
    let target = claim_new(staging.root(), dest)?;
    let images = staging.images();
    fs::create_dir(&images).map_err(DumpCause::files("make", &images))?;
    Ok(target)
}

/// Whoever sweeps may take the directory for a leftover before it is locked, and remove it.
fn claim_new(root: &Path, dest: &Path) -> Result<Target, DumpCause> {
    let mut claimed = Target::claim(root, true);
    if matches!(claimed, Err(DumpCause::Exists(_))) {
        return Err(taken(dest));
    }
    for _ in 0..CLAIM_TRIES {
        match claimed {
            Err(DumpCause::Refused(_) | DumpCause::Exists(_)) => thread::sleep(CLAIM_PAUSE),
            claimed => return claimed,
        }
        claimed = Target::claim(root, true);
    }
    Err(taken(dest))
}

/// The bytes of a dump's files.
pub fn size(dump: &Layout) -> u64 {
    let images = match dump.shape() {
        Shape::Flat => 0,
        Shape::Nested => size_of(&dump.images()),
    };
    size_of(dump.root()).saturating_add(images)
}

/// Writes a dump out to the disk.
///
/// # Errors
/// What the file system says.
pub fn sync_all(staging: &Layout) -> Result<(), DumpCause> {
    if staging.shape() == Shape::Nested {
        let images = staging.images();
        sync(&images, &entries(&images)?)?;
    }
    sync(staging.root(), &entries(staging.root())?)
}

/// Moves a complete dump from where it was staged to where it belongs: a flat one in place of an earlier one.
///
/// # Errors
/// What the file system says. The dump is complete where it was then.
pub fn into_place(staging: &Layout, dest: &Path) -> Result<(), DumpCause> {
    match staging.shape() {
        Shape::Flat => merge(staging.root(), dest),
        Shape::Nested => take_name(staging.root(), dest),
    }
}

/// The name was free when the dump began; if something is there now, the rename fails, unless that is an empty directory.
fn take_name(staging: &Path, dest: &Path) -> Result<(), DumpCause> {
    fs::rename(staging, dest).map_err(DumpCause::files("move into place", staging))?;
    let parent = dest.parent().unwrap_or(Path::new("/"));
    if let Err(error) = File::open(parent).and_then(|parent| parent.sync_all()) {
        tracing::warn!(dump = %dest.display(), %error, "the dump is complete, but may not be on the disk yet");
    }
    Ok(())
}

/// File by file, into a directory that may have others. What was moved is moved back if it cannot be done.
fn merge(staging: &Path, images: &Path) -> Result<(), DumpCause> {
    let names = ordered(entries(staging)?);
    let old: Vec<OsString> = match images.join(INVENTORY).exists() {
        true => entries(images)?
            .into_iter()
            .filter(|name| is_of_dump(name) && !names.contains(name))
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
    // The directory itself may be new.
    let parent = images.parent().unwrap_or(Path::new("/"));
    let synced = fs::remove_dir(staging)
        .and_then(|()| File::open(images)?.sync_all())
        .and_then(|()| File::open(parent)?.sync_all());
    if let Err(error) = synced {
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
pub fn keep(staging: &Layout, dest: &Path, init: i32) -> PathBuf {
    let kept = match staging.shape() {
        Shape::Flat => dest.join(format!("cedana-kept-{init}")),
        Shape::Nested => {
            let mut name = dest.file_name().unwrap_or_default().to_owned();
            name.push(format!(".cedana-kept-{init}"));
            dest.with_file_name(name)
        }
    };
    match fs::rename(staging.root(), &kept) {
        Ok(()) => kept,
        Err(_) => staging.root().to_owned(),
    }
}

/// Whether CRIU came to the end of a dump here: the inventory is the last it writes before it ends the tasks.
pub fn is_written(dump: &Layout) -> bool {
    dump.has_images()
}

fn entries(dir: &Path) -> Result<Vec<OsString>, DumpCause> {
    let listed = fs::read_dir(dir).and_then(|entries| entries.map(|entry| Ok(entry?.file_name())).collect());
    listed.map_err(DumpCause::files("list", dir))
}

#[cfg(test)]
mod tests {
    use super::super::clear::settle_earlier;
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
    fn dirs(old: &[&str], new: &[&str]) -> (tempfile::TempDir, Layout) {
        let images = tempfile::tempdir().expect("a temporary directory");
        let staging = staging(images.path(), Shape::Flat);
        fs::create_dir(staging.root()).expect("make");
        for name in old {
            fs::write(images.path().join(name), "old").expect("write");
        }
        for name in new {
            fs::write(staging.root().join(name), "new").expect("write");
        }
        (images, staging)
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
    fn extra_parts_of_an_older_dump_go_and_their_names_are_looked_at_before() {
        let (images, staging) = dirs(
            &["inventory.img", "rootfs-diff.tar", "deleted.files", "dump.log"],
            &["inventory.img", "devshm-checkpoint.tar"],
        );
        check_target(images.path()).expect("files may be there");
        into_place(&staging, images.path()).expect("commit");
        assert_eq!(
            names(images.path()),
            ["devshm-checkpoint.tar", "dump.log", "inventory.img"]
        );
        fs::create_dir(images.path().join("rootfs-diff.tar")).expect("make");
        assert!(matches!(check_target(images.path()), Err(DumpCause::Refused(_))));
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
        assert_eq!(
            names(staging.root()),
            ["cedana.json", "core-1.img", "inventory.img"]
        );
        let kept = keep(&staging, images.path(), 7);
        assert_eq!(names(&kept).len(), 3);
        assert!(is_written(&Layout::new(kept, Shape::Flat)) && !staging.root().exists());
    }

    #[test]
    fn a_nested_dump_is_there_with_one_rename() {
        let home = tempfile::tempdir().expect("a temporary directory");
        let dest = home.path().join("saved");
        let staging = staging(&dest, Shape::Nested);
        // As a shim that was killed leaves it, for the next dump to settle.
        fs::create_dir_all(staging.root().join("checkpoint/more")).expect("make");
        fs::write(staging.image("core-9.img"), "old").expect("write");
        fs::write(staging.root().join("spec.dump"), "old").expect("write");
        assert!(matches!(
            prepare_nested(&staging, &dest),
            Err(DumpCause::Refused(_))
        ));
        settle_earlier(&dest).expect("settled");
        let target = prepare_nested(&staging, &dest).expect("prepared");
        assert!(target.made);
        assert!(matches!(
            prepare_nested(&staging, &dest),
            Err(DumpCause::Refused(_))
        ));
        assert!(names(&staging.images()).is_empty() && !is_written(&staging));
        for path in [staging.image(INVENTORY), staging.root().join(manifest::NAME)] {
            fs::write(path, "12345").expect("write");
        }
        assert_eq!((is_written(&staging), size(&staging)), (true, 10));
        assert!(!dest.exists());
        sync_all(&staging).expect("on the disk");
        into_place(&staging, &dest).expect("committed");
        drop(target);
        assert_eq!(names(home.path()), ["saved"]);
        assert_eq!(names(&dest), ["cedana.json", "checkpoint"]);
        assert!(matches!(
            prepare_nested(&staging, &dest),
            Err(DumpCause::Exists(_))
        ));
    }

    #[test]
    fn a_planted_link_is_refused_and_not_followed() {
        let home = tempfile::tempdir().expect("a temporary directory");
        let (dest, precious) = (home.path().join("saved"), home.path().join("precious"));
        let staging = staging(&dest, Shape::Nested);
        fs::create_dir(&precious).expect("make");
        fs::write(precious.join("file"), "a user's").expect("write");
        std::os::unix::fs::symlink(&precious, staging.root()).expect("link");
        settle_earlier(&dest).expect("settled");
        assert!(matches!(
            prepare_nested(&staging, &dest),
            Err(DumpCause::Refused(_))
        ));
        assert_eq!(names(&precious), ["file"]);
    }

    #[test]
    fn a_sweep_that_comes_between_costs_the_dump_nothing() {
        let home = tempfile::tempdir().expect("a temporary directory");
        let dest = home.path().join("saved");
        let staging = staging(&dest, Shape::Nested);
        let done = std::sync::atomic::AtomicBool::new(false);
        thread::scope(|scope| {
            let _sweeping = scope.spawn(|| {
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    // One may find that another has removed it.
                    drop(oci_bundles::staged::sweep(home.path()));
                }
            });
            for _ in 0..200 {
                let target = prepare_nested(&staging, &dest);
                let is_ours = target.is_ok() && staging.images().is_dir();
                if !is_ours {
                    done.store(true, std::sync::atomic::Ordering::Relaxed);
                }
                assert!(is_ours, "{target:?}");
                fs::remove_dir_all(staging.root()).expect("removed");
            }
            done.store(true, std::sync::atomic::Ordering::Relaxed);
        });
    }

    #[test]
    fn a_nested_dump_takes_the_place_of_nothing() {
        let home = tempfile::tempdir().expect("a temporary directory");
        let dest = home.path().join("saved");
        let staging = staging(&dest, Shape::Nested);
        let _target = prepare_nested(&staging, &dest).expect("prepared");
        fs::write(staging.image(INVENTORY), "").expect("write");
        fs::create_dir_all(dest.join("a user's")).expect("make");
        assert!(into_place(&staging, &dest).is_err());
        let kept = keep(&staging, &dest, 7);
        assert_eq!(names(home.path()), ["saved", "saved.cedana-kept-7"]);
        assert!(is_written(&Layout::new(kept, Shape::Nested)));
    }
}
