//! Mounts that show shifted ids (`uidmap=`, `gidmap=`): files keep their owners on disk and have others in the
//! container's user namespace.

use std::fs::{self, File};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use nix::unistd::pipe2;

use super::options::Options;
use super::{MountError, detach, kernel};

/// The kernel's limit of ranges in one map.
const RANGES_MAX: usize = 340;

/// A user namespace that has the wanted maps and no process.
#[derive(Debug)]
pub(super) struct UserNamespace(OwnedFd);

/// The namespace the options ask for. None when they ask for none; one map alone means nothing, as in containerd.
pub(super) fn namespace(options: &Options) -> Result<Option<UserNamespace>, MountError> {
    let (Some(uids), Some(gids)) = (&options.uid_map, &options.gid_map) else {
        return Ok(None);
    };
    let (uids, gids) = (map_text(uids)?, map_text(gids)?);
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC)
        .map_err(|error| MountError::io("make a pipe for", Path::new("user namespace"), error))?;
    let pid = kernel::clone_into_user_namespace(&reader, &writer)
        .map_err(|error| MountError::io("create", Path::new("user namespace"), error))?;
    let process = PathBuf::from(format!("/proc/{pid}"));
    let made = write_map(&process.join("uid_map"), &uids)
        .and_then(|()| write_map(&process.join("gid_map"), &gids))
        .and_then(|()| {
            let path = process.join("ns/user");
            File::open(&path).map_err(|error| MountError::io("open", &path, error))
        });
    // The end of the pipe is the child's end.
    drop(writer);
    kernel::wait_clone(pid);
    made.map(|file| Some(UserNamespace(file.into())))
}

/// `container:host:size[,…]` in the form the kernel takes.
fn map_text(option: &str) -> Result<String, MountError> {
    let invalid = |reason: String| MountError::Invalid {
        kind: "id map".to_owned(),
        reason,
    };
    let mut text = String::new();
    for (number, range) in option.split(',').enumerate() {
        let fields: Vec<&str> = range.split(':').collect();
        let is_valid = fields.len() == 3 && fields.iter().all(|field| field.parse::<u32>().is_ok());
        if !is_valid || number >= RANGES_MAX {
            return Err(invalid(format!(
                "{range:?} in {option:?} is not container:host:size"
            )));
        }
        text.push_str(&fields.join(" "));
        text.push('\n');
    }
    Ok(text)
}

fn write_map(path: &Path, text: &str) -> Result<(), MountError> {
    fs::write(path, text).map_err(|error| MountError::io("write", path, error))
}

/// Puts a copy with shifted ids in the place of the mount at `target`.
pub(super) fn shift(target: &Path, users: &UserNamespace, is_recursive: bool) -> Result<(), MountError> {
    let copy = shifted_copy(target, users, is_recursive)?;
    detach(target);
    kernel::attach_mount(&copy, target).map_err(|error| MountError::io("attach to", target, error))
}

fn shifted_copy(path: &Path, users: &UserNamespace, is_recursive: bool) -> Result<OwnedFd, MountError> {
    let copy = kernel::clone_mount(path, is_recursive)
        .map_err(|error| MountError::io("clone mount", path, error))?;
    kernel::set_id_map(&copy, users.0.as_fd()).map_err(|error| MountError::io("map ids of", path, error))?;
    Ok(copy)
}

/// Copies of an overlay's lower directories with shifted ids. Overlay takes them by path, so they are attached
/// beside the target while the overlay is mounted (it keeps its own reference) and taken away after.
#[derive(Debug)]
pub(super) struct LowerDirs {
    parent: PathBuf,
    dirs: Vec<PathBuf>,
}

impl LowerDirs {
    pub(super) fn shifted(
        options: &Options,
        users: &UserNamespace,
        target: &Path,
    ) -> Result<Self, MountError> {
        let parent = target.with_file_name(format!(".lower-{}", std::process::id()));
        fs::create_dir(&parent).map_err(|error| MountError::io("create", &parent, error))?;
        let mut lower = Self {
            parent,
            dirs: Vec::new(),
        };
        for (number, source) in options.lower_dirs().into_iter().enumerate() {
            let dir = lower.parent.join(number.to_string());
            fs::create_dir(&dir).map_err(|error| MountError::io("create", &dir, error))?;
            lower.dirs.push(dir.clone());
            // Escapes are overlay's; the path itself has none.
            let source = source.replace("\\:", ":").replace("\\\\", "\\");
            let copy = shifted_copy(Path::new(&source), users, false)?;
            kernel::attach_mount(&copy, &dir).map_err(|error| MountError::io("attach to", &dir, error))?;
        }
        Ok(lower)
    }

    /// The options with these directories.
    pub(super) fn replace(&self, options: &Options) -> Options {
        let dirs: Vec<String> = self.dirs.iter().map(|dir| dir.display().to_string()).collect();
        options.with_lower_dirs(&dirs)
    }
}

impl Drop for LowerDirs {
    fn drop(&mut self) {
        for dir in &self.dirs {
            detach(dir);
            // Never remove_dir_all: were the mount still there, that would empty an image's layer.
            drop(fs::remove_dir(dir));
        }
        drop(fs::remove_dir(&self.parent));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_are_ranges_of_three_numbers() {
        assert_eq!(map_text("0:100000:65536").unwrap(), "0 100000 65536\n");
        assert_eq!(map_text("0:5:1,1:7:2").unwrap(), "0 5 1\n1 7 2\n");
        for text in [
            "",
            "0:1",
            "0:1:2:3",
            "0:-1:2",
            "a:1:2",
            "0:1:2,",
            "0:1:4294967296",
        ] {
            assert!(map_text(text).is_err(), "{text}");
        }
    }
}
