//! Where a checkpoint goes.

use std::fs::DirBuilder;
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use oci_bundles::archive::Form;

use super::flags::Flags;
use crate::commands::checkpoint::left;
use crate::context::Context;
use crate::error::Error;

/// File names have at most 255 bytes; a suffix and the shim's temporary name need some of them.
const NAME_BYTES_MAX: usize = 200;

/// Dumps of one job in one second. Nobody makes more.
const TRIES: u32 = 1000;

/// A place that was free when it was looked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The directory that the shim makes.
    pub directory: PathBuf,
    /// What is left in the end: the same, or the file that it is packed into.
    pub path: PathBuf,
    /// The form of that.
    pub form: Form,
}

/// The place of a dump that is called `dump-TYPE-JOB-TIME` if nobody says otherwise.
///
/// # Errors
/// The directory is not there, or the name is not free.
pub fn choose(context: &Context, flags: &Flags, job: &str) -> Result<Place, Error> {
    let dir = directory(context, flags)?;
    left::sweep(&dir);
    let form = match flags.compression {
        Some(form) => form,
        None => super::pack::configured(context),
    };
    match &flags.name {
        Some(name) => named(&dir, name, form),
        None => free(&dir, &default_name(job), form),
    }
}

fn directory(context: &Context, flags: &Flags) -> Result<PathBuf, Error> {
    let dir = match &flags.dir {
        Some(dir) => dir.clone(),
        None => {
            let dir = context.checkpoint_dir().to_owned();
            if context.checkpoint_dir_is_default() {
                make(&dir)?;
            }
            dir
        }
    };
    if let Some((scheme, _)) = dir.to_str().and_then(|text| text.split_once("://")) {
        return Err(Error::unsupported(format!(
            "failed to use {}: checkpoints cannot be kept at {scheme}:// here",
            dir.display()
        )));
    }
    let whole = dir.canonicalize().map_err(|source| {
        let message = format!("failed to use the directory {}: {source}", dir.display());
        match source.kind() {
            ErrorKind::NotFound => {
                Error::not_found(message).hint(format!("make it: mkdir -p {}", dir.display()))
            }
            _ => Error::usage(message),
        }
    })?;
    if whole.is_dir() {
        Ok(whole)
    } else {
        Err(Error::usage(format!(
            "failed to use {}: it is no directory",
            dir.display()
        )))
    }
}

/// Memory of containers is for root alone.
fn make(dir: &Path) -> Result<(), Error> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(|source| Error::failed(format!("failed to make {}: {source}", dir.display())))
}

fn named(dir: &Path, name: &str, form: Form) -> Result<Place, Error> {
    if name.is_empty() || name == "." || name == ".." || name.contains('/') || name.contains('\0') {
        return Err(Error::usage(format!(
            "failed to use the name {name:?}: it is no name of a file"
        ))
        .hint("--dir says where the checkpoint goes"));
    }
    if name.chars().any(char::is_control) {
        return Err(Error::usage(format!(
            "failed to use the name {name:?}: it has a line break or another control character in it"
        )));
    }
    if name.len() > NAME_BYTES_MAX {
        return Err(Error::usage(format!(
            "failed to use the name {name:?}: more than {NAME_BYTES_MAX} bytes"
        )));
    }
    let place = place(dir, name, form);
    match taken(&place) {
        Some(path) => Err(Error::wrong_state(format!(
            "failed to dump to {}: it is already there",
            path.display()
        ))),
        None => Ok(place),
    }
}

fn free(dir: &Path, name: &str, form: Form) -> Result<Place, Error> {
    (0..TRIES)
        .map(|count| match count {
            0 => place(dir, name, form),
            _ => place(dir, &format!("{name}-{count}"), form),
        })
        .find(|place| taken(place).is_none())
        .ok_or_else(|| {
            Error::wrong_state(format!(
                "failed to find a free name like {name} in {}",
                dir.display()
            ))
        })
}

fn place(dir: &Path, name: &str, form: Form) -> Place {
    Place {
        directory: dir.join(name),
        path: dir.join(format!("{name}{}", form.suffix())),
        form,
    }
}

fn taken(place: &Place) -> Option<&Path> {
    [&place.directory, &place.path]
        .into_iter()
        .map(PathBuf::as_path)
        .find(|path| path.symlink_metadata().is_ok())
}

/// A job's name is what somebody wrote into an annotation; only letters of file names are taken over.
fn default_name(job: &str) -> String {
    let plain: String = job
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() || "._-".contains(c) {
                c
            } else {
                '_'
            }
        })
        .take(NAME_BYTES_MAX / 2)
        .collect();
    let seconds = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    format!("dump-containerd-{plain}-{seconds}")
}

#[cfg(test)]
mod tests {
    use crate::error::Kind;

    use super::*;

    fn flags(dir: &Path, name: Option<&str>, form: Form) -> Flags {
        Flags {
            dir: Some(dir.to_owned()),
            name: name.map(str::to_owned),
            compression: Some(form),
            ..Flags::default()
        }
    }

    #[test]
    fn a_name_is_free_or_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::create_dir(dir.path().join("taken")).expect("a directory");
        std::fs::write(dir.path().join("packed.tar"), "").expect("a file");
        let choose =
            |name: &str, form| choose(&Context::default(), &flags(dir.path(), Some(name), form), "web");
        for (name, form, kind) in [
            ("taken", Form::Directory, Kind::WrongState),
            ("taken", Form::Tar, Kind::WrongState),
            ("packed", Form::Tar, Kind::WrongState),
            ("../out", Form::Directory, Kind::Usage),
            ("", Form::Directory, Kind::Usage),
            ("..", Form::Directory, Kind::Usage),
            ("a\nb", Form::Directory, Kind::Usage),
            ("\u{1b}[2J", Form::Tar, Kind::Usage),
            (&"x".repeat(NAME_BYTES_MAX + 1), Form::Directory, Kind::Usage),
        ] {
            assert_eq!(choose(name, form).expect_err(name).kind, kind, "{name}");
        }
        let place = choose("mine", Form::Gzip).expect("a place");
        assert!(place.directory.ends_with("mine"));
        assert!(place.path.ends_with("mine.tar.gz"));
    }

    #[test]
    fn a_default_name_is_made_of_the_job_and_never_taken() {
        let dir = tempfile::tempdir().expect("a directory");
        let flags = flags(dir.path(), None, Form::Directory);
        let first = choose(&Context::default(), &flags, "a/b c").expect("a place");
        let name = first
            .directory
            .file_name()
            .expect("a name")
            .to_string_lossy()
            .into_owned();
        assert!(name.starts_with("dump-containerd-a_b_c-"), "{name}");
        std::fs::create_dir(&first.directory).expect("a directory");
        let second = choose(&Context::default(), &flags, "a/b c").expect("a place");
        assert_ne!(first, second);
    }

    #[test]
    fn a_directory_must_be_there() {
        let context = Context::default();
        for (dir, kind) in [
            ("/proc/nowhere", Kind::NotFound),
            ("/proc/version", Kind::Usage),
            ("s3://bucket/key", Kind::Unsupported),
        ] {
            let flags = flags(Path::new(dir), None, Form::Directory);
            assert_eq!(
                choose(&context, &flags, "web").expect_err(dir).kind,
                kind,
                "{dir}"
            );
        }
    }
}
