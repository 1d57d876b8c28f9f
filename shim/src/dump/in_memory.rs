//! Where CRIU writes its images: in memory, as long as a container stands for them, so that no disk can keep it.
//!
//! ```text
//!   <bundle>/criu-images/{pages-N.img as fifos, *.img}   --CRIU has ended, or asks before it ends the container-->
//!     .NAME.cedana-partial/checkpoint/*.img, the inventory last   --> digests, manifest, sync, commit
//! ```
//!
//! A CRIU that writes to a disk that hangs cannot be killed, and its tasks stand until the disk answers. A bundle is in memory nearly
//! always, and goes with its container, whoever clears up.
//!
//! Directly on the disk all the same: what is not staged, what may be much ([`super::room`]), what CRIU ends without asking, and what has
//! no freezer. Where that shows only when the fifos are made, links lead to them from where CRIU writes then.
//!
//! Invariant: an inventory on the disk says that all other images are there, and all pages, or that these are with the worker, which packs them.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, FileType, OpenOptions};
use std::io::{self, ErrorKind, Seek, SeekFrom};
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::errno::Errno;
use nix::libc::O_NOFOLLOW;
use nix::unistd::{Whence, lseek};
use oci_bundles::layout::INVENTORY;

use super::beside::{beside, beside_within};
use super::clear::remove_tree;
use super::room::{Expected, has_room};
use super::{DumpCause, Dumping};
use crate::criu::file::open_regular;
use crate::restore::loopback;

/// The directory in the bundle.
const NAME: &str = "criu-images";

/// It holds what the container's memory holds.
const MODE: u32 = 0o700;

/// How long the look at a container may take that stands: some milliseconds, and for ever where a file system of its own waits for one of
/// its processes.
const LOOK_LIMIT: Duration = Duration::from_secs(1);

/// Images in memory.
#[derive(Debug)]
pub(super) struct InMemory {
    dir: PathBuf,
    /// So many of them are fifos.
    fifos: u32,
    /// Only they are there, and links to them where the dump is staged.
    linked: bool,
    /// What they were expected to be.
    expected: Expected,
}

/// Where the images of a container are while they are in memory.
pub(crate) fn dir(bundle: &Path) -> PathBuf {
    bundle.join(NAME)
}

impl Dumping<'_> {
    /// CRIU's image directory.
    pub(super) fn criu_images(&self) -> PathBuf {
        match &self.in_memory {
            Some(in_memory) if !in_memory.linked => in_memory.dir.clone(),
            _ => self.staging.images(),
        }
    }

    /// What the dump is going to write, by all that there is, or by what was expected before; none if that cannot be told.
    pub(super) async fn expect(&self, before: Option<Expected>) -> Option<Expected> {
        let (bundle, pids) = (self.job.bundle.clone(), self.pids());
        let ghost_limit = self.job.settings.ghost_limit;
        let look = move || {
            Ok(match before {
                Some(before) => before.again(&bundle, &pids, ghost_limit),
                None => Expected::of(&bundle, &pids, ghost_limit),
            })
        };
        beside_within(LOOK_LIMIT, &self.job.bundle, look)
            .await
            .ok()
            .flatten()
    }

    /// Has the images written into memory, if they fit and CRIU asks before it ends the container.
    pub(super) fn take_memory(&mut self, expected: &Expected, fifos: u32) {
        let asks = !self.exits() || loopback::script().is_ok();
        if !asks || !has_room(&self.job.bundle, expected.bytes(fifos)) {
            tracing::debug!(id = self.job.id, ?expected, "the images go directly to the disk");
            return;
        }
        let dir = dir(&self.job.bundle);
        let made = remove_tree(&dir).and_then(|()| {
            let made = DirBuilder::new().mode(MODE).create(&dir);
            made.map_err(DumpCause::files("make", &dir))
        });
        if let Err(error) = made {
            tracing::warn!(id = self.job.id, %error, "the images go directly to the disk");
            return;
        }
        self.in_memory = Some(InMemory {
            dir,
            fifos,
            linked: false,
            expected: *expected,
        });
    }

    /// Looks again, now that nothing grows any more, if it did.
    pub(super) async fn stay_in_memory(&mut self) -> Result<(), DumpCause> {
        let (fifos, before) = match &self.in_memory {
            Some(in_memory) if self.froze => (in_memory.fifos, in_memory.expected),
            _ => return Ok(()),
        };
        let why = match self.expect(Some(before)).await {
            Some(expected) if has_room(&self.job.bundle, expected.bytes(fifos)) => return Ok(()),
            Some(_) => "it has grown",
            None => "it cannot be looked through in time",
        };
        tracing::warn!(id = self.job.id, why, "the images go directly to the disk");
        self.link_fifos().await
    }

    /// Has CRIU write to the disk, and its pages to the worker all the same: without that a container would stand until the disk had them.
    pub(super) async fn link_fifos(&mut self) -> Result<(), DumpCause> {
        let Some(in_memory) = &mut self.in_memory else {
            return Ok(());
        };
        in_memory.linked = true;
        let (fifos, images) = (in_memory.dir.clone(), self.staging.images());
        let link = move || {
            names(&fifos)?.into_iter().try_for_each(|name| {
                let at = images.join(&name);
                symlink(fifos.join(&name), &at).map_err(DumpCause::files("make", &at))
            })
        };
        beside_within(self.time_at_disk(), self.staging.root(), link).await
    }

    /// Has CRIU write to the disk, its pages too: those of a worker's fifos that it has not opened.
    pub(super) async fn go_to_disk(&mut self) -> Result<(), DumpCause> {
        let had_fifos = self.capture.take().is_some();
        if self.in_memory.is_some() {
            return self.leave_memory();
        }
        if had_fifos {
            let images = self.staging.images();
            let renew = move || super::clear::renew(&images);
            return beside_within(self.time_at_disk(), self.staging.root(), renew).await;
        }
        Ok(())
    }

    /// Nothing is in memory any more.
    pub(super) fn leave_memory(&mut self) -> Result<(), DumpCause> {
        match self.in_memory.take() {
            Some(in_memory) => remove_tree(&in_memory.dir),
            None => Ok(()),
        }
    }

    /// Brings the images to where they are staged, all pages being there. They are synced with the rest.
    pub(super) async fn move_images(&mut self) -> Result<(), DumpCause> {
        let Some(in_memory) = &self.in_memory else {
            return Ok(());
        };
        let (from, to, linked) = (in_memory.dir.clone(), self.staging.images(), in_memory.linked);
        self.job.progress.are_in(&to);
        // Nobody waits for it any more when this is dropped, and the next dump has its images at the same place.
        let given_up = GivenUp::default();
        let is_given_up = Arc::clone(&given_up.0);
        let bring = move || match linked {
            true => unlink_all(&to),
            false => copy_all(&from, &to, &is_given_up),
        };
        beside(self.staging.root(), bring).await?;
        self.leave_memory()
    }
}

/// Says, when it is dropped, that what was begun is not to be gone on with.
#[derive(Default)]
struct GivenUp(Arc<AtomicBool>);

impl Drop for GivenUp {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// What is in a directory.
fn names(dir: &Path) -> Result<Vec<OsString>, DumpCause> {
    let names = fs::read_dir(dir).and_then(|entries| {
        let names = entries.map(|entry| Ok(entry?.file_name()));
        names.collect::<io::Result<Vec<_>>>()
    });
    names.map_err(DumpCause::files("list", dir))
}

fn kind(path: &Path) -> Result<FileType, DumpCause> {
    let metadata = fs::symlink_metadata(path);
    Ok(metadata.map_err(DumpCause::files("look at", path))?.file_type())
}

/// The links to fifos that nobody has used: a file of pages has taken the place of every other.
fn unlink_all(images: &Path) -> Result<(), DumpCause> {
    for path in names(images)?.iter().map(|name| images.join(name)) {
        if kind(&path)?.is_symlink() {
            fs::remove_file(&path).map_err(DumpCause::files("remove", &path))?;
        }
    }
    Ok(())
}

/// The inventory comes last. Fifos stay.
fn copy_all(from: &Path, to: &Path, is_given_up: &AtomicBool) -> Result<(), DumpCause> {
    let mut names = names(from)?;
    names.sort_by_key(|name| name == INVENTORY);
    for name in names {
        let (path, target) = (from.join(&name), to.join(&name));
        if is_given_up.load(Ordering::Relaxed) {
            return Err(DumpCause::Cancelled);
        }
        if kind(&path)?.is_file() {
            copy(&path, &target).map_err(DumpCause::files("write", &target))?;
        }
    }
    Ok(())
}

/// With its rights and its holes.
fn copy(from: &Path, to: &Path) -> io::Result<()> {
    let mut source = open_regular(from)?;
    let metadata = source.metadata()?;
    let mut target = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(metadata.permissions().mode())
        .custom_flags(O_NOFOLLOW)
        .open(to)?;
    target.set_len(metadata.len())?;
    let mut end = 0;
    while let Some(at) = seek(&source, end, Whence::SeekData)? {
        end = seek(&source, at, Whence::SeekHole)?.unwrap_or(metadata.len());
        let _at = (
            source.seek(SeekFrom::Start(at))?,
            target.seek(SeekFrom::Start(at))?,
        );
        let mut part = io::Read::take(&mut source, end - at);
        if io::copy(&mut part, &mut target)? < end - at {
            return Err(ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(())
}

/// The next place with data or without; none behind the last.
fn seek(file: &File, from: u64, what: Whence) -> io::Result<Option<u64>> {
    let from = i64::try_from(from).map_err(io::Error::other)?;
    match lseek(file.as_fd(), from, what) {
        Ok(at) => u64::try_from(at).map(Some).map_err(io::Error::other),
        Err(Errno::ENXIO) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileExt, MetadataExt};

    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;

    use super::*;

    #[test]
    fn images_come_as_they_were_and_fifos_stay() {
        let (from, to) = (
            tempfile::tempdir().expect("a directory"),
            tempfile::tempdir().expect("a directory"),
        );
        let file = |name: &str| File::create(from.path().join(name)).expect("made");
        file("inventory.img").write_all_at(b"i", 0).expect("written");
        let ghost = file("ghost-file-1.img");
        ghost.write_all_at(b"begin", 0).expect("written");
        ghost.write_all_at(b"middle", 5 << 20).expect("written");
        ghost.set_len(9 << 20).expect("a hole at its end");
        ghost
            .set_permissions(fs::Permissions::from_mode(0o600))
            .expect("its owner's alone");
        drop(file("empty.img"));
        mkfifo(&from.path().join("pages-1.img"), Mode::S_IRWXU).expect("a fifo");
        let goes_on = AtomicBool::new(false);
        copy_all(from.path(), to.path(), &goes_on).expect("copied");
        let mut names: Vec<_> = fs::read_dir(to.path())
            .expect("listed")
            .flatten()
            .map(|entry| entry.file_name())
            .collect();
        names.sort();
        assert_eq!(names, ["empty.img", "ghost-file-1.img", "inventory.img"]);
        for name in ["empty.img", "ghost-file-1.img", "inventory.img"] {
            let read = |dir: &tempfile::TempDir| fs::read(dir.path().join(name)).expect("read");
            assert!(read(&from) == read(&to), "{name}");
        }
        let copied = fs::metadata(to.path().join("ghost-file-1.img")).expect("there");
        assert_eq!(copied.mode() & 0o777, 0o600);
        assert!(copied.blocks() * 512 <= 1 << 20, "holes take no room");
        // Again, as after a failure half way.
        copy_all(from.path(), to.path(), &goes_on).expect("copied");
        assert!(
            copy_all(from.path(), to.path(), &AtomicBool::new(true)).is_err(),
            "nobody wants it any more"
        );
    }

    #[test]
    fn links_go_and_what_took_their_places_stays() {
        let (fifos, images) = (
            tempfile::tempdir().expect("a directory"),
            tempfile::tempdir().expect("a directory"),
        );
        fs::write(images.path().join("pages-1.img"), "pages").expect("written");
        symlink(
            fifos.path().join("pages-2.img"),
            images.path().join("pages-2.img"),
        )
        .expect("a link");
        unlink_all(images.path()).expect("removed");
        assert_eq!(names(images.path()).expect("listed"), ["pages-1.img"]);
    }

    #[test]
    fn an_inventory_is_not_there_before_the_rest() {
        let (from, to) = (
            tempfile::tempdir().expect("a directory"),
            tempfile::tempdir().expect("a directory"),
        );
        for name in ["inventory.img", "a.img", "pstree.img"] {
            fs::write(from.path().join(name), name).expect("written");
        }
        // In the way of an image.
        fs::create_dir(to.path().join("pstree.img")).expect("made");
        assert!(copy_all(from.path(), to.path(), &AtomicBool::new(false)).is_err());
        assert!(!to.path().join("inventory.img").exists());
    }
}
