//! A staged dump that is one file by now: its pages are nowhere else.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};

use super::{Found, KEPT_MAX, Staged, sync_parent, with_end};
use crate::layout::Shape;

/// What it is called among what is staged, once all of it is on the disk.
pub const ARCHIVE: &str = "archive";

/// What an archive is called until then.
pub fn unfinished(archive: &Path) -> PathBuf {
    with_end(archive, ".unfinished")
}

impl Staged {
    fn archive(&self) -> PathBuf {
        self.layout.root().join(ARCHIVE)
    }

    /// Flat dumps are never packed.
    pub(super) fn has_archive(&self) -> bool {
        self.layout.shape() == Shape::Nested
            && fs::symlink_metadata(self.archive()).is_ok_and(|metadata| metadata.is_file())
    }

    /// Gives it the name that it was to have, or, where something is by now, that of what is kept.
    pub(super) fn settle_archive(&self) -> io::Result<Found> {
        let suffix = suffix(&self.archive());
        let found = match self.move_archive(&with_end(&self.dest, suffix)) {
            Ok(place) => Found::Completed(place),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Found::Kept(self.keep_archive()?),
            Err(error) => return Err(error),
        };
        // It was made of this. What stays lists pages that are not there, and goes with the next look.
        drop(fs::remove_dir_all(self.layout.root()));
        Ok(found)
    }

    /// Keeps it under a name that no other dump takes. What it was made of stays.
    ///
    /// # Errors
    /// What the file system says; it is where it was then.
    pub fn keep_archive(&self) -> io::Result<PathBuf> {
        let suffix = suffix(&self.archive());
        for number in 1..=KEPT_MAX {
            match self.move_archive(&with_end(&self.kept_name(number), suffix)) {
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                moved => return moved,
            }
        }
        Err(ErrorKind::AlreadyExists.into())
    }

    fn move_archive(&self, to: &Path) -> io::Result<PathBuf> {
        let from = self.archive();
        match renameat2(AT_FDCWD, &from, AT_FDCWD, to, RenameFlags::RENAME_NOREPLACE) {
            // File systems without that flag: what is there is looked for instead.
            Err(nix::Error::EINVAL) if fs::symlink_metadata(to).is_err() => fs::rename(&from, to)?,
            Err(nix::Error::EINVAL) => return Err(ErrorKind::AlreadyExists.into()),
            moved => moved?,
        }
        // It is there, whatever the disk says of the name.
        drop(sync_parent(to));
        Ok(to.to_owned())
    }
}

/// What its form ends a name with; nothing if nobody can tell.
#[cfg(feature = "archive")]
fn suffix(archive: &Path) -> &'static str {
    use std::io::Read;

    use super::open;
    use crate::archive::form;

    let mut head = Vec::new();
    let read = open(archive).and_then(|file| file.take(form::HEAD_BYTES as u64).read_to_end(&mut head));
    read.ok()
        .and_then(|_bytes| form::of_head(&head).ok())
        .map_or("", form::Form::suffix)
}

/// Who knows no forms does not lose it either.
#[cfg(not(feature = "archive"))]
fn suffix(_archive: &Path) -> &'static str {
    ""
}

#[cfg(feature = "archive")]
#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use serde_json::json;

    use super::super::Trust;
    use super::*;
    use crate::archive::{Form, Held, pack_held};
    use crate::layout::INVENTORY;
    use crate::manifest::{Digest, Manifest, NAME, Part};

    /// As a shim leaves it that is killed when the archive is whole: the manifest lists pages that are only in there.
    fn leave(home: &Path, left_running: bool) -> Staged {
        let staged = Staged::of(&home.join("saved"), Shape::Nested);
        fs::create_dir_all(staged.layout.images()).expect("made");
        fs::write(staged.layout.image(INVENTORY), "i").expect("written");
        let pages = Part {
            path: Shape::Nested.image("pages-1.img"),
            size: 5,
            digest: Digest::Blake3(*blake3::hash(b"pages").as_bytes()),
        };
        let manifest = Manifest {
            parts: vec![pages],
            origin: Some(json!({"left_running": left_running})),
            ..Manifest::default()
        };
        fs::write(staged.layout.root().join(NAME), manifest.text().expect("text")).expect("written");
        staged
    }

    fn pack(staged: &Staged, form: Form) -> Vec<u8> {
        let held = Held {
            path: Shape::Nested.image("pages-1.img"),
            runs: vec![b"pages"],
        };
        let _bytes = pack_held(staged.layout.root(), &[held], &staged.archive(), form).expect("packed");
        fs::read(staged.archive()).expect("read")
    }

    #[test]
    fn a_whole_archive_comes_to_its_place_whatever_became_of_the_container() {
        for form in Form::ALL.into_iter().filter(|form| *form != Form::Directory) {
            for (left_running, trust) in [(false, Trust::Sizes), (true, Trust::Digests)] {
                let home = tempfile::tempdir().expect("a directory");
                let staged = leave(home.path(), left_running);
                let packed = pack(&staged, form);
                let place = home.path().join(format!("saved{}", form.suffix()));
                let found = staged.recover(trust).expect("done");
                assert_eq!(found, Found::Completed(place.clone()));
                assert_eq!(fs::read(place).expect("there"), packed);
                assert_eq!(fs::read_dir(home.path()).expect("listed").count(), 1);
                assert_eq!(staged.recover(trust).expect("nothing"), Found::Nothing);
            }
        }
    }

    #[test]
    fn an_archive_takes_the_place_of_nothing_and_is_never_removed() {
        let home = tempfile::tempdir().expect("a directory");
        let staged = leave(home.path(), false);
        let packed = pack(&staged, Form::Zstd);
        for name in ["saved.tar.zst", "saved.cedana-kept-1.tar.zst"] {
            fs::write(home.path().join(name), "somebody's").expect("written");
        }
        let kept = home.path().join("saved.cedana-kept-2.tar.zst");
        assert_eq!(
            staged.recover(Trust::Sizes).expect("kept"),
            Found::Kept(kept.clone())
        );
        assert_eq!(fs::read(kept).expect("there"), packed);
        assert!(!staged.is_there());

        // Of no form that is known.
        let staged = leave(home.path(), false);
        fs::write(staged.archive(), "?").expect("written");
        let place = home.path().join("saved");
        assert_eq!(
            staged.recover(Trust::Sizes).expect("done"),
            Found::Completed(place)
        );
    }

    #[test]
    fn what_is_no_whole_archive_goes() {
        for is_link in [true, false] {
            let home = tempfile::tempdir().expect("a directory");
            let staged = leave(home.path(), false);
            let other = home.path().join("other");
            fs::write(&other, "somebody's").expect("written");
            match is_link {
                true => symlink(&other, staged.archive()).expect("linked"),
                false => fs::write(unfinished(&staged.archive()), "half").expect("written"),
            }
            assert_eq!(staged.recover(Trust::Sizes).expect("done"), Found::Removed);
            assert_eq!(fs::read(&other).expect("there"), b"somebody's");
            assert_eq!(fs::read_dir(home.path()).expect("listed").count(), 1);
        }
    }
}
