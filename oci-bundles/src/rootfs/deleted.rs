//! What of its image a container had deleted, as podman and CRI-O list it beside a diff without whiteouts.
//!
//! The list is foreign input, and goes to a root file system of a foreign image: no symlink is followed and no mount crossed, so
//! nothing outside is removed.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use serde::de::{DeserializeSeed, Deserializer, Error, SeqAccess, Visitor};

use super::remove::{mounted, remove_at};
use crate::archive::entry::plain_path;
use crate::archive::place::Place;
use crate::archive::reader::ReadError;
use crate::archive::{ArchiveError, Limits};

/// The most that is read of a list, in bytes: a million names of sixty.
pub const BYTES_MAX: u64 = 64 << 20;

/// The paths in a list, relative to the root. `name` is what the list is called in messages.
///
/// # Errors
/// It is no list of paths, one of them leads elsewhere, or it has too many.
pub fn parse(text: &[u8], name: &Path) -> Result<Vec<PathBuf>, ArchiveError> {
    let mut listed = Vec::new();
    let limit = Limits::default().entries_max;
    let into = Listed {
        paths: &mut listed,
        limit,
    };
    let mut json = serde_json::Deserializer::from_slice(text);
    if let Err(error) = into.deserialize(&mut json).and_then(|()| json.end()) {
        let what = "deleted files";
        let error = match listed.len() as u64 > limit {
            true => ReadError::TooLarge { what, limit },
            false => ReadError::Damaged(format!("no list of paths: {error}")),
        };
        return Err(error.of(name));
    }
    let relative = |path: PathBuf| {
        // Podman writes them with the slash of the root.
        let plain = plain_path(path.strip_prefix("/").unwrap_or(&path));
        let plain = plain.and_then(|plain| match plain.as_os_str().is_empty() {
            true => Err("it is the root itself"),
            false => Ok(plain),
        });
        plain.map_err(|why| ReadError::refused(&path, why).of(name))
    };
    listed.into_iter().map(relative).collect()
}

/// Takes paths up to one more than the limit: a text can have so many that they would take nine times its own memory.
struct Listed<'a> {
    paths: &'a mut Vec<PathBuf>,
    limit: u64,
}

impl<'de> DeserializeSeed<'de> for Listed<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Listed<'_> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a list")
    }

    // Go writes a list that was never made so.
    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        while let Some(path) = list.next_element()? {
            self.paths.push(path);
            if self.paths.len() as u64 > self.limit {
                return Err(A::Error::custom("too many"));
            }
        }
        Ok(())
    }
}

/// Removes these paths, and what is below them, from a root file system that is mounted. What is not there is fine.
///
/// # Errors
/// A path goes through what is no directory, something is mounted there or on the way, or what the disk says.
pub fn remove(root: &Path, paths: &[PathBuf]) -> Result<(), ArchiveError> {
    let place = Place::open(root).map_err(|error| ArchiveError::storage("open", root, error))?;
    paths.iter().try_for_each(|path| match remove_one(&place, path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(ArchiveError::storage("remove", &root.join(path), error))
        }
        _ => Ok(()),
    })
}

fn remove_one(place: &Place, path: &Path) -> io::Result<()> {
    let name = path.file_name().ok_or(Errno::EISDIR)?;
    let above = path.parent().unwrap_or(Path::new(""));
    let dir = place.look(above).map_err(|errno| match errno {
        Errno::EXDEV => mounted(above),
        _ => errno.into(),
    })?;
    remove_at(&dir, Path::new(name))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    fn parsed(text: &str) -> Result<Vec<PathBuf>, String> {
        parse(text.as_bytes(), Path::new("list")).map_err(|error| error.to_string())
    }

    #[test]
    fn a_list_has_paths_below_the_root() {
        for (text, wanted) in [
            (r#"["/etc/motd", "./root"]"#, &["etc/motd", "root"][..]),
            ("[]", &[]),
            ("null", &[]),
        ] {
            let wanted: Vec<PathBuf> = wanted.iter().map(PathBuf::from).collect();
            assert_eq!(parsed(text), Ok(wanted), "{text}");
        }
        for (text, wanted) in [
            (r#"["/a/../../etc"]"#, "its name goes up"),
            (r#"["//etc", "/..", "/"]"#, "its name goes up"),
            (r#"["/"]"#, "the root itself"),
            (r#"["."]"#, "the root itself"),
            (r#"[""]"#, "the root itself"),
            (r#"["/a\u0000"]"#, "a zero byte"),
            (r#"[7]"#, "no list of paths"),
            (r#"{"a": 1}"#, "no list of paths"),
            (r#"["/a"] more"#, "no list of paths"),
            ("", "no list of paths"),
        ] {
            let said = parsed(text).expect_err(text);
            assert!(said.contains(wanted), "{text}: {said}");
        }
        let many = format!("[{}\"\"]", r#""/a","#.repeat(1 << 20));
        assert!(parsed(&many).expect_err("too many").contains("more than"));
        // It is not read on from there, so what follows is of no account.
        let cut = |count| format!("[{}no list", r#""/a","#.repeat(count));
        assert!(
            parsed(&cut((1 << 20) + 1))
                .expect_err("too many")
                .contains("more than")
        );
        assert!(
            parsed(&cut(1 << 20))
                .expect_err("damaged")
                .contains("no list of paths")
        );
    }

    #[test]
    fn what_is_listed_goes_and_nothing_outside() {
        let dir = tempfile::tempdir().expect("a directory");
        let (root, outside) = (dir.path().join("root"), dir.path().join("outside"));
        fs::create_dir_all(root.join("etc/ssl/certs")).expect("directories");
        fs::create_dir(&outside).expect("a directory");
        for file in [
            root.join("etc/motd"),
            root.join("etc/ssl/certs/ca"),
            outside.join("kept"),
        ] {
            fs::write(file, "").expect("a file");
        }
        symlink("../outside", root.join("up")).expect("a link");
        symlink(&outside, root.join("etc/away")).expect("a link");
        let paths = |names: &[&str]| names.iter().map(PathBuf::from).collect::<Vec<_>>();
        // A link itself can be deleted, a directory with all in it, and twice.
        let gone = ["etc/motd", "etc/motd", "etc/ssl", "etc/away", "no/such/file"];
        remove(&root, &paths(&gone)).expect("removed");
        assert_eq!(fs::read_dir(root.join("etc")).expect("listed").count(), 0);
        assert!(!root.join("no").exists());
        for hostile in ["up/kept", "up/sub/kept"] {
            assert!(remove(&root, &paths(&[hostile])).is_err(), "{hostile}");
        }
        assert!(outside.join("kept").exists());
    }
}
