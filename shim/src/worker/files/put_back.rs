//! Puts saved files where the container will find them.

use std::fs::{self, File};
use std::io::{self, BufReader, Read};
use std::ops::ControlFlow;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::fcntl::OFlag;
use nix::sys::statvfs::statvfs;
use oci_bundles::archive::Limits;
use oci_bundles::rootfs::apply::{Allowed, Applied, Device, apply_to};
use oci_bundles::rootfs::{deleted, foreign};
use oci_bundles::spec::Devices;

use super::{Into, PutBack, PutBackOrder, some};

/// Bytes read of a tar at once.
const READ_BYTES: usize = 256 << 10;

/// Does the order.
///
/// # Errors
/// What failed, for people: the tar is damaged or hostile, or what the disk says.
pub(in crate::worker) fn put_back(order: PutBackOrder) -> Result<PutBack, String> {
    let (to, into) = (&order.to, order.into);
    let is_memory = matches!(into, Into::Memory | Into::Share);
    if is_memory {
        empty(to).map_err(|error| failed("empty", to, error))?;
    }
    let applied = match &order.tar {
        Some(tar) => apply(tar, &order, is_memory)?,
        None => Applied::default(),
    };
    if let Some(list) = &order.deleted {
        remove(list, to)?;
    }
    Ok(PutBack {
        bytes: applied.bytes,
        left_out: applied.left_out.len() as u64,
        names: some(&applied.left_out),
    })
}

fn apply(tar: &Path, order: &PutBackOrder, is_memory: bool) -> Result<Applied, String> {
    let (to, into) = (&order.to, order.into);
    let file = open(tar).map_err(|error| failed("read", tar, error))?;
    let devices = Devices::read(&order.bundle).map_err(|error| error.to_string())?;
    let mut limits = match is_memory {
        true => Limits::of_memory(),
        false => Limits::default(),
    };
    if into == Into::Share {
        let free = Free::of(to).map_err(|error| failed("look at", to, error))?;
        free.halve(&mut limits);
    }
    let allowed = Allowed {
        limits,
        device: &|Device {
                      is_block,
                      major,
                      minor,
                  }| devices.allow(is_block, major, minor),
    };
    let on_progress = &mut |_| ControlFlow::Continue(());
    let applied = match into {
        Into::Foreign => foreign::apply(file, tar, to, &allowed, on_progress),
        _ => {
            let input = BufReader::with_capacity(READ_BYTES, file);
            apply_to(into.tree(), input, tar, to, &allowed, on_progress)
        }
    };
    applied.map_err(|error| error.to_string())
}

fn remove(list: &Path, root: &Path) -> Result<(), String> {
    let mut text = Vec::new();
    let read = open(list).and_then(|file| file.take(deleted::BYTES_MAX).read_to_end(&mut text));
    let _bytes = read.map_err(|error| failed("read", list, error))?;
    let paths = deleted::parse(&text, list).map_err(|error| error.to_string())?;
    deleted::remove(root, &paths).map_err(|error| error.to_string())
}

fn failed(action: &str, path: &Path, error: io::Error) -> String {
    format!("{action} {}: {error}", path.display())
}

/// What is free where a directory is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Free {
    bytes: u64,
    /// None where the file system has no number of them, as btrfs, and a tmpfs with `nr_inodes=0`.
    inodes: Option<u64>,
}

impl Free {
    fn of(dir: &Path) -> io::Result<Self> {
        let found = statvfs(dir)?;
        Ok(Self {
            bytes: found.blocks_available().saturating_mul(found.fragment_size()),
            inodes: (found.files() > 0).then(|| found.files_available()),
        })
    }

    /// Lets half of it be taken.
    fn halve(self, limits: &mut Limits) {
        limits.bytes_max = self.bytes / 2;
        let inodes = self.inodes.map_or(u64::MAX, |inodes| inodes / 2);
        limits.entries_max = limits.entries_max.min(inodes);
    }
}

/// A regular file: whoever made the checkpoint may have put a fifo or a link there.
fn open(tar: &Path) -> io::Result<File> {
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
    let file = File::options().read(true).custom_flags(flags.bits()).open(tar)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")),
    }
}

/// Removes what is in a directory, and not what is mounted there.
fn empty(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        match fs::symlink_metadata(&path)?.is_dir() {
            true => fs::remove_dir_all(&path)?,
            false => fs::remove_file(&path)?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use nix::mount::{MsFlags, mount};
    use nix::sched::{CloneFlags, unshare};
    use oci_bundles::rootfs::Tree;
    use oci_bundles::rootfs::make::make_of;

    use super::*;

    fn tar_of(dir: &Path) -> Vec<u8> {
        let quiet = &mut |_| ControlFlow::Continue(());
        let (_made, tar) = make_of(Tree::Own, dir, Vec::new(), quiet).expect("a tar");
        tar
    }

    fn order(dir: &Path, into: Into) -> PutBackOrder {
        let (bundle, to) = (dir.join("bundle"), dir.join("to"));
        for made in [&bundle, &to] {
            fs::create_dir_all(made).expect("a directory");
        }
        fs::write(bundle.join("config.json"), "{}").expect("a file");
        fs::write(to.join("before"), "").expect("a file");
        PutBackOrder {
            tar: None,
            deleted: None,
            to,
            into,
            bundle,
        }
    }

    #[expect(clippy::print_stderr, reason = "a test that does not run says so")]
    fn is_root(name: &str) -> bool {
        let is_root = nix::unistd::geteuid().is_root();
        if !is_root {
            eprintln!("skipped {name}: no root");
        }
        is_root
    }

    #[test]
    fn what_is_listed_goes_after_what_comes_and_memory_is_emptied() {
        if !is_root("what_is_listed_goes_after_what_comes_and_memory_is_emptied") {
            return;
        }
        let dir = tempfile::tempdir().expect("a directory");
        let (tar, list) = (dir.path().join("tar"), dir.path().join("list"));
        let from = dir.path().join("from");
        fs::create_dir(&from).expect("a directory");
        fs::write(from.join("file"), [7; 700]).expect("a file");
        fs::write(&tar, tar_of(&from)).expect("a file");
        let order = order(dir.path(), Into::Foreign);
        let to = order.to.clone();
        let with = |tar: Option<&Path>, deleted: Option<&Path>, into| PutBackOrder {
            tar: tar.map(Path::to_owned),
            deleted: deleted.map(Path::to_owned),
            into,
            ..order.clone()
        };
        assert_eq!(
            put_back(with(Some(&tar), None, Into::Foreign))
                .expect("put")
                .bytes,
            700
        );
        assert!(to.join("file").exists() && to.join("before").exists());
        fs::write(&list, r#"["/file", "/before"]"#).expect("a file");
        drop(put_back(with(Some(&tar), Some(&list), Into::Foreign)).expect("put"));
        assert!(!to.join("file").exists() && !to.join("before").exists());
        fs::write(to.join("before"), "").expect("a file");
        drop(put_back(with(Some(&tar), None, Into::Share)).expect("put"));
        assert!(to.join("file").exists() && !to.join("before").exists());
        for hostile in [r#"["/../file"]"#, "[", r#"["/"]"#] {
            fs::write(&list, hostile).expect("a file");
            assert!(
                put_back(with(None, Some(&list), Into::Foreign)).is_err(),
                "{hostile}"
            );
            assert!(to.join("file").exists());
        }
    }

    #[test]
    fn half_of_what_is_free_may_be_taken_files_too() {
        let most = Limits::of_memory().entries_max;
        for (inodes, entries) in [
            (Some(0), 0),
            (Some(7), 3),
            (Some(2 * most + 2), most),
            (None, most),
        ] {
            let mut limits = Limits::of_memory();
            Free { bytes: 9, inodes }.halve(&mut limits);
            assert_eq!((limits.bytes_max, limits.entries_max), (4, entries));
        }
    }

    /// Runs something that mounts, which nobody else sees.
    fn alone<T: Send>(test: impl FnOnce() -> T + Send) -> T {
        let mounting = || {
            unshare(CloneFlags::CLONE_NEWNS).expect("mounts of its own");
            let none: Option<&str> = None;
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).expect("private");
            test()
        };
        std::thread::scope(|scope| scope.spawn(mounting).join().expect("no panic"))
    }

    #[test]
    fn a_share_of_few_inodes_is_not_used_up() {
        if !is_root("a_share_of_few_inodes_is_not_used_up") {
            return;
        }
        let dir = tempfile::tempdir().expect("a directory");
        let (from, tar) = (dir.path().join("from"), dir.path().join("tar"));
        for few in ["a", "b", "c"] {
            fs::create_dir_all(from.join(few)).expect("a directory");
        }
        fs::write(&tar, tar_of(&from)).expect("a file");
        let put_into = |name: &str| {
            let order = order(&dir.path().join(name), Into::Share);
            let (to, tar) = (order.to.clone(), Some(tar.clone()));
            alone(|| {
                let options = Some("nr_inodes=41,size=1m");
                mount(Some("test"), &to, Some("tmpfs"), MsFlags::empty(), options).expect("mounted");
                assert_eq!(Free::of(&to).expect("told").inodes, Some(40));
                put_back(PutBackOrder { tar, ..order })
            })
        };
        assert!(put_into("few").is_ok());
        for many in 0..30 {
            fs::write(from.join(format!("a/{many}")), "").expect("a file");
        }
        fs::write(&tar, tar_of(&from)).expect("a file");
        let said = put_into("many").expect_err("too many");
        assert!(said.contains("more than 20 entries"), "{said}");
    }
}
