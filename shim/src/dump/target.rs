//! The directory a dump goes to: for one dump at a time, and for its owner alone.

use std::fs::{self, DirBuilder, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use nix::fcntl::{Flock, FlockArg, OFlag};

use super::DumpCause;

/// It holds what the container's memory holds.
const MODE: u32 = 0o700;

/// A directory that no other dump writes to as long as this is there.
#[derive(Debug)]
pub(super) struct Target {
    _lock: Flock<File>,
    /// It was made for this dump.
    pub(super) made: bool,
}

impl Target {
    /// Takes the directory, and makes it if it is not there. `exclusive`: it must not be.
    ///
    /// # Errors
    /// It is there, another dump has it, or what the file system says.
    pub(super) fn claim(images: &Path, exclusive: bool) -> Result<Self, DumpCause> {
        let made = make(images, exclusive)?;
        let directory = match open(images, made) {
            // Somebody took it for a leftover as long as nobody held it.
            Err(error) if made && error.kind() == ErrorKind::NotFound => return Err(taken(images)),
            opened => opened.map_err(DumpCause::files("open", images))?,
        };
        let inode = directory.metadata().map(|metadata| metadata.ino());
        let lock =
            Flock::lock(directory, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
                nix::errno::Errno::EWOULDBLOCK => taken(images),
                errno => DumpCause::files("lock", images)(errno.into()),
            })?;
        // The one who had it may have removed it before we had the lock.
        match (inode, fs::metadata(images).map(|metadata| metadata.ino())) {
            (Ok(ours), Ok(there)) if ours == there => Ok(Self { _lock: lock, made }),
            _ => Err(taken(images)),
        }
    }
}

/// What was made is no link; a directory of somebody's own may be reached through one.
fn open(images: &Path, made: bool) -> io::Result<File> {
    let link = if made { OFlag::O_NOFOLLOW } else { OFlag::empty() };
    let flags = OFlag::O_DIRECTORY | link;
    File::options().read(true).custom_flags(flags.bits()).open(images)
}

fn make(images: &Path, exclusive: bool) -> Result<bool, DumpCause> {
    let made = DirBuilder::new().mode(MODE).create(images);
    match made {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::AlreadyExists && exclusive => {
            Err(DumpCause::Exists(images.to_owned()))
        }
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(false),
        Err(error) if error.kind() == ErrorKind::NotFound && !exclusive => {
            let all: io::Result<()> = DirBuilder::new().recursive(true).mode(MODE).create(images);
            all.map(|()| true).map_err(DumpCause::files("make", images))
        }
        Err(error) => Err(DumpCause::files("make", images)(error)),
    }
}

pub(super) fn taken(images: &Path) -> DumpCause {
    DumpCause::Refused(format!(
        "another dump writes to {}; wait for it, or name another directory",
        images.display()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_one_dumps_at_a_time() {
        let root = tempfile::tempdir().expect("a temporary directory");
        let images = root.path().join("a/b");
        let first = Target::claim(&images, false).expect("claimed");
        assert!(first.made);
        assert!(matches!(
            Target::claim(&images, false),
            Err(DumpCause::Refused(_))
        ));
        assert!(matches!(Target::claim(&images, true), Err(DumpCause::Exists(_))));
        drop(first);
        assert!(!Target::claim(&images, false).expect("free again").made);
        assert_eq!(fs::metadata(&images).expect("there").mode() & 0o777, MODE);
        let lone = root.path().join("c/d");
        assert!(Target::claim(&lone, true).is_err(), "its parent is not there");
        assert!(Target::claim(&root.path().join("e"), true).expect("claimed").made);
    }
}
