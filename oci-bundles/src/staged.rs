//! A dump that is not in its place yet, and what becomes of it when its maker is gone.
//!
//! ```text
//!   flat     <dest>/.cedana-partial/*   --file by file, the manifest last-->   <dest>/*
//!   nested   <dir>/.<name>.cedana-partial/   --one rename-->   <dir>/<name>/
//!   packed   <dir>/.<name>.cedana-partial/archive   --one rename-->   <dir>/<name>.tar.zst, or whatever its form is
//! ```
//!
//! Its maker holds a lock on a directory as long as it lives: on `<dest>` of a flat dump, on the staged directory of a nested one.
//! So whoever gets the lock may decide. An archive bears that name only when it is whole and on the disk (`archive`): it is brought to
//! its place, and what it was made of goes. Else the manifest tells, which lists digests only when all files are written:
//! - every file that it lists is there as it was digested: the dump is complete, and is brought to its place. That also mends
//!   a flat dump that was to take the place of an older one, and of which some files have done so already;
//! - it lists none, and the container was to end: its images may be all that is left of it, and are kept under another name;
//! - else it never came to its end, and goes.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag};

use crate::layout::{INVENTORY, Layout, Shape};
use crate::manifest::{BYTES_MAX, Digest, Manifest, NAME, Part};

mod archive;

pub use archive::{ARCHIVE, unfinished};

/// What a staged dump is called, or what its name ends with: on the same file system, so that renames are all it takes.
pub const PARTIAL: &str = ".cedana-partial";

/// What a worker calls its files until they are complete.
const UNFINISHED: &str = "unfinished-";

/// What CRIU calls pages, and what it calls the lists of them.
const PAGES: &str = "pages-";
const MAPS: &str = "pagemap-";

/// Entries of a directory that are looked at. One of more keeps what is in it.
const ENTRIES_MAX: usize = 100_000;

/// Names that are tried for what is kept.
const KEPT_MAX: u32 = 1000;

/// How a file is compared with the manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trust {
    /// By its size: enough as long as the machine has not gone down since it was written.
    Sizes,
    /// By its digest: all of it is read.
    Digests,
}

/// What was found, and what has been done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// Nothing is staged.
    Nothing,
    /// Its maker lives.
    InUse,
    /// It was complete, and is in its place now: here.
    Completed(PathBuf),
    /// It was not, and is gone.
    Removed,
    /// It may be all that is left of a container, and is kept here.
    Kept(PathBuf),
}

/// A dump on its way to a place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Staged {
    layout: Layout,
    dest: PathBuf,
}

impl Staged {
    /// The one that goes there in this shape, whether it is there or not.
    pub fn of(dest: &Path, shape: Shape) -> Self {
        let root = match shape {
            Shape::Flat => dest.join(PARTIAL),
            Shape::Nested => {
                let mut name = OsString::from(".");
                name.push(dest.file_name().unwrap_or_default());
                name.push(PARTIAL);
                dest.with_file_name(name)
            }
        };
        Self {
            layout: Layout::new(root, shape),
            dest: dest.to_owned(),
        }
    }

    /// All in a directory of checkpoints.
    ///
    /// # Errors
    /// It cannot be listed.
    pub fn within(dir: &Path) -> io::Result<Vec<Self>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(dir)?.take(ENTRIES_MAX) {
            let entry = entry?;
            if !entry.file_type()?.is_dir() {
                continue;
            }
            let staged = match destination(&entry.file_name()) {
                Some(name) => Self::of(&dir.join(name), Shape::Nested),
                None => Self::of(&entry.path(), Shape::Flat),
            };
            if staged.is_there() {
                found.push(staged);
            }
        }
        Ok(found)
    }

    /// Where its parts lie until then.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Where it is going.
    pub fn dest(&self) -> &Path {
        &self.dest
    }

    /// Whether something is staged.
    pub fn is_there(&self) -> bool {
        // A link is not followed to somebody else's files.
        fs::symlink_metadata(self.layout.root()).is_ok_and(|metadata| metadata.is_dir())
    }

    /// Completes it, keeps it or removes it, if its maker is gone.
    ///
    /// # Errors
    /// What the file system says; nothing is lost then that was not lost before.
    pub fn recover(&self, trust: Trust) -> io::Result<Found> {
        if !self.is_there() {
            return Ok(Found::Nothing);
        }
        let Some(_lock) = self.lock()? else {
            return Ok(Found::InUse);
        };
        // Somebody may have been faster.
        if !self.is_there() {
            return Ok(Found::Nothing);
        }
        if self.has_archive() {
            return self.settle_archive();
        }
        // One that cannot be read lists nothing.
        let manifest = read(&self.layout.root().join(NAME)).ok();
        let manifest = manifest
            .and_then(|text| Manifest::parse(&text).ok())
            .unwrap_or_default();
        if self.is_complete(&manifest, trust) {
            self.finish()?;
            return Ok(Found::Completed(self.dest.clone()));
        }
        if self.may_be_all_that_is_left(&manifest) {
            return self.keep().map(Found::Kept);
        }
        fs::remove_dir_all(self.layout.root())?;
        if self.layout.shape() == Shape::Flat {
            // It was made for this dump, if there is nothing else in it.
            let _not_empty = fs::remove_dir(&self.dest);
        }
        Ok(Found::Removed)
    }

    fn lock(&self) -> io::Result<Option<Flock<File>>> {
        let (path, link) = match self.layout.shape() {
            // It is somebody's own, and may be reached through a link.
            Shape::Flat => (self.dest.as_path(), OFlag::empty()),
            Shape::Nested => (self.layout.root(), OFlag::O_NOFOLLOW),
        };
        let flags = OFlag::O_DIRECTORY | link;
        let held = match File::options().read(true).custom_flags(flags.bits()).open(path) {
            // Another was faster.
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            held => held?,
        };
        let lock = match Flock::lock(held, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => lock,
            Err((_, Errno::EWOULDBLOCK)) => return Ok(None),
            Err((_, errno)) => return Err(errno.into()),
        };
        // The next dump may have made it anew meanwhile, and holds that.
        let ours = lock.metadata()?;
        let is_ours = |there: fs::Metadata| (ours.dev(), ours.ino()) == (there.dev(), there.ino());
        Ok(fs::metadata(path).is_ok_and(is_ours).then_some(lock))
    }

    fn is_complete(&self, manifest: &Manifest, trust: Trust) -> bool {
        !manifest.parts.is_empty() && manifest.parts.iter().all(|part| self.has(part, trust))
    }

    /// Where it is staged, or where it has gone already.
    fn has(&self, part: &Part, trust: Trust) -> bool {
        let staged = self.layout.root().join(&part.path);
        let placed = self.dest.join(&part.path);
        let is = |path: &Path| {
            size(path) == Some(part.size) && (trust == Trust::Sizes || digest(path).ok() == Some(part.digest))
        };
        match fs::symlink_metadata(&staged) {
            Ok(_) => is(&staged),
            Err(_) => self.layout.shape() == Shape::Flat && is(&placed),
        }
    }

    /// CRIU had written all it would, of which the inventory comes last, also where it was moved here from memory; and no
    /// worker holds pages of it, or held them until it was gone.
    fn may_be_all_that_is_left(&self, manifest: &Manifest) -> bool {
        let left_running = manifest
            .origin
            .as_ref()
            .and_then(|origin| origin.get("left_running")?.as_bool());
        left_running == Some(false)
            && manifest.parts.is_empty()
            && self.layout.has_images()
            && self.has_all_written()
    }

    fn has_all_written(&self) -> bool {
        let (mut pages, mut maps) = (false, false);
        let entries = fs::read_dir(self.layout.images()).into_iter().flatten().flatten();
        for entry in entries.take(ENTRIES_MAX) {
            let name = entry.file_name();
            let is_fifo = entry.file_type().is_ok_and(|kind| kind.is_fifo());
            if is_fifo || name.as_bytes().starts_with(UNFINISHED.as_bytes()) {
                return false;
            }
            pages |= name.as_bytes().starts_with(PAGES.as_bytes());
            maps |= name.as_bytes().starts_with(MAPS.as_bytes());
        }
        // Maps of pages come with files of pages, which are there even if they are empty.
        pages || !maps
    }

    /// Synced before each gets its name, the manifest last.
    fn finish(&self) -> io::Result<()> {
        let root = self.layout.root();
        sync_tree(root)?;
        if self.layout.shape() == Shape::Nested {
            fs::rename(root, &self.dest)?;
            return sync_parent(&self.dest);
        }
        let mut names = names(root)?;
        names.sort_by_key(|name| (name == NAME, name == INVENTORY));
        for name in names {
            fs::rename(root.join(&name), self.dest.join(&name))?;
        }
        fs::remove_dir(root)?;
        File::open(&self.dest)?.sync_all()?;
        sync_parent(&self.dest)
    }

    fn keep(&self) -> io::Result<PathBuf> {
        for number in 1..=KEPT_MAX {
            let kept = self.kept_name(number);
            if fs::symlink_metadata(&kept).is_err() {
                fs::rename(self.layout.root(), &kept)?;
                return Ok(kept);
            }
        }
        Err(ErrorKind::AlreadyExists.into())
    }

    /// What it is called when it is kept under another name than it was to have.
    pub fn kept_name(&self, number: impl fmt::Display) -> PathBuf {
        match self.layout.shape() {
            Shape::Flat => self.dest.join(format!("cedana-kept-{number}")),
            Shape::Nested => with_end(&self.dest, &format!(".cedana-kept-{number}")),
        }
    }
}

fn with_end(path: &Path, end: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(end);
    path.with_file_name(name)
}

/// Does with all that is staged in a directory of checkpoints what has to be done. One that fails does not keep another from it.
///
/// # Errors
/// The directory cannot be listed.
pub fn sweep(dir: &Path) -> io::Result<Vec<(PathBuf, io::Result<Found>)>> {
    let staged = Staged::within(dir)?;
    let done = staged
        .iter()
        .map(|one| (one.dest().to_owned(), one.recover(Trust::Digests)));
    Ok(done.collect())
}

/// The name that a nested dump of this name is going to get.
fn destination(name: &OsStr) -> Option<&OsStr> {
    let name = name
        .as_bytes()
        .strip_prefix(b".")?
        .strip_suffix(PARTIAL.as_bytes())?;
    (!name.is_empty()).then(|| OsStr::from_bytes(name))
}

fn names(dir: &Path) -> io::Result<Vec<OsString>> {
    let entries = fs::read_dir(dir)?.take(ENTRIES_MAX);
    entries.map(|entry| Ok(entry?.file_name())).collect()
}

/// A staged dump is two levels deep at most.
fn sync_tree(dir: &Path) -> io::Result<()> {
    for name in names(dir)? {
        let path = dir.join(name);
        let metadata = fs::symlink_metadata(&path)?;
        if metadata.is_dir() {
            sync_tree(&path)?;
        } else if metadata.is_file() {
            File::open(&path)?.sync_all()?;
        }
    }
    File::open(dir)?.sync_all()
}

fn sync_parent(path: &Path) -> io::Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
}

/// Opens a regular file, and waits for nothing else.
fn open(path: &Path) -> io::Result<File> {
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
    let file = File::options().read(true).custom_flags(flags.bits()).open(path)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(ErrorKind::InvalidInput.into()),
    }
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    let _bytes = open(path)?.take(BYTES_MAX).read_to_end(&mut text)?;
    Ok(text)
}

/// The size of a regular file.
fn size(path: &Path) -> Option<u64> {
    let metadata = fs::symlink_metadata(path).ok()?;
    metadata.is_file().then_some(metadata.len())
}

fn digest(path: &Path) -> io::Result<Digest> {
    let mut hasher = blake3::Hasher::new();
    let _hasher = hasher.update_reader(open(path)?)?;
    Ok(Digest::Blake3(*hasher.finalize().as_bytes()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use serde_json::json;

    use super::*;

    const FILES: [(&str, &[u8]); 3] = [
        ("core-1.img", &[1; 5000]),
        ("inventory.img", b"i"),
        ("pages-1.img", &[2; 9000]),
    ];

    /// A dump that was left staged for `saved` in this directory, with or without digests in its manifest.
    fn leave(home: &Path, shape: Shape, listed: bool, left_running: bool) -> Staged {
        let staged = Staged::of(&home.join("saved"), shape);
        fs::create_dir_all(staged.layout.images()).expect("made");
        let part = |(name, bytes): &(&str, &[u8])| {
            fs::write(staged.layout.image(name), bytes).expect("written");
            Part {
                path: shape.image(name),
                size: bytes.len() as u64,
                digest: Digest::Blake3(*blake3::hash(bytes).as_bytes()),
            }
        };
        let parts: Vec<Part> = FILES.iter().map(part).collect();
        let manifest = Manifest {
            parts: if listed { parts } else { Vec::new() },
            origin: Some(json!({"left_running": left_running})),
            ..Manifest::default()
        };
        fs::write(staged.layout.root().join(NAME), manifest.text().expect("text")).expect("written");
        staged
    }

    fn is_whole(dest: &Path, shape: Shape) -> bool {
        let is_there = |(name, bytes): &(&str, &[u8])| {
            fs::read(dest.join(shape.image(name))).is_ok_and(|read| read == *bytes)
        };
        FILES.iter().all(is_there) && dest.join(NAME).is_file()
    }

    fn list(dir: &Path) -> Vec<OsString> {
        let mut names = names(dir).expect("listed");
        names.sort();
        names
    }

    #[test]
    fn what_is_complete_gets_its_place_and_what_is_not_goes() {
        for shape in Shape::ALL {
            for (damage, left_running, expected) in [
                ("", true, None),
                ("", false, None),
                ("content", true, Some(Found::Removed)),
                ("size", false, Some(Found::Removed)),
                ("missing", false, Some(Found::Removed)),
                ("unlisted", true, Some(Found::Removed)),
                ("unlisted, in a worker", false, Some(Found::Removed)),
                ("unlisted, to be packed", false, Some(Found::Removed)),
            ] {
                let home = tempfile::tempdir().expect("a directory");
                let is_whole_one = expected.is_none();
                let expected = expected.unwrap_or_else(|| Found::Completed(home.path().join("saved")));
                let staged = leave(home.path(), shape, !damage.starts_with("unlisted"), left_running);
                let core = staged.layout.image("core-1.img");
                match damage {
                    "content" => fs::write(core, [9; 5000]).expect("written"),
                    "size" => fs::write(core, "").expect("written"),
                    "missing" => fs::remove_file(core).expect("removed"),
                    "unlisted, in a worker" => {
                        fs::write(staged.layout.image("unfinished-0"), "").expect("written")
                    }
                    "unlisted, to be packed" => {
                        fs::write(staged.layout.image("pagemap-1.img"), "").expect("written");
                        fs::remove_file(staged.layout.image("pages-1.img")).expect("removed");
                    }
                    _ => {}
                }
                let found = sweep(home.path()).expect("swept");
                let [(dest, Ok(found))] = found.as_slice() else {
                    panic!("{found:?}");
                };
                assert_eq!(
                    (dest, found),
                    (&home.path().join("saved"), &expected),
                    "{shape:?} {damage}"
                );
                assert_eq!(
                    list(home.path()).len(),
                    usize::from(is_whole_one),
                    "{shape:?} {damage}"
                );
                if is_whole_one {
                    assert!(is_whole(dest, shape));
                }
            }
        }
    }

    #[test]
    fn what_may_be_all_that_is_left_of_a_container_is_kept() {
        for (shape, at) in [
            (Shape::Flat, "saved/cedana-kept-1"),
            (Shape::Nested, "saved.cedana-kept-1"),
        ] {
            let home = tempfile::tempdir().expect("a directory");
            let staged = leave(home.path(), shape, false, false);
            let kept = home.path().join(at);
            assert_eq!(
                staged.recover(Trust::Digests).expect("kept"),
                Found::Kept(kept.clone())
            );
            assert!(Layout::new(kept, shape).has_images());
            assert_eq!(staged.recover(Trust::Digests).expect("nothing"), Found::Nothing);
        }
    }

    #[test]
    fn a_flat_dump_that_was_half_way_over_an_older_one_comes_to_its_end() {
        let home = tempfile::tempdir().expect("a directory");
        let staged = leave(home.path(), Shape::Flat, true, true);
        for name in ["core-1.img", "pages-1.img", "inventory.img", "cedana.json"] {
            fs::write(staged.dest.join(name), "old").expect("written");
        }
        fs::write(staged.dest.join("notes.txt"), "a user's").expect("written");
        fs::rename(staged.layout.image("core-1.img"), staged.dest.join("core-1.img")).expect("moved");
        let found = staged.recover(Trust::Digests).expect("done");
        assert_eq!(found, Found::Completed(staged.dest.clone()));
        assert_eq!(list(&staged.dest).len(), 5);
        assert!(is_whole(&staged.dest, Shape::Flat));
    }

    #[test]
    fn what_is_in_use_or_a_link_is_left_alone() {
        for shape in Shape::ALL {
            let home = tempfile::tempdir().expect("a directory");
            let staged = leave(home.path(), shape, true, true);
            let lock = staged.lock().expect("locked");
            assert_eq!(staged.recover(Trust::Sizes).expect("looked at"), Found::InUse);
            drop(lock);
            let elsewhere = home.path().join("elsewhere");
            fs::rename(staged.layout.root(), &elsewhere).expect("moved");
            symlink(&elsewhere, staged.layout.root()).expect("linked");
            assert_eq!(staged.recover(Trust::Sizes).expect("looked at"), Found::Nothing);
            assert!(elsewhere.join(NAME).exists());
        }
    }
}
