//! Puts saved files where the container will find them.

use std::fs::{self, File};
use std::io::{self, BufReader};
use std::ops::ControlFlow;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::fcntl::OFlag;
use oci_bundles::archive::Limits;
use oci_bundles::rootfs::apply::{Allowed, Device, apply_to};
use oci_bundles::spec::Devices;

use super::{Into, PutBack, PutBackOrder, some};

/// Bytes read of a tar at once.
const READ_BYTES: usize = 256 << 10;

/// Does the order.
///
/// # Errors
/// What failed, for people: the tar is damaged or hostile, or what the disk says.
pub(in crate::worker) fn put_back(order: PutBackOrder) -> Result<PutBack, String> {
    let PutBackOrder {
        tar,
        to,
        into,
        bundle,
    } = &order;
    let failed =
        |action: &str, path: &Path, error: io::Error| format!("{action} {}: {error}", path.display());
    let file = open(tar).map_err(|error| failed("read", tar, error))?;
    if *into == Into::Memory {
        empty(to).map_err(|error| failed("empty", to, error))?;
    }
    let devices = Devices::read(bundle).map_err(|error| error.to_string())?;
    let allowed = Allowed {
        limits: match into {
            Into::Memory => Limits::of_memory(),
            Into::Upper | Into::Merged => Limits::default(),
        },
        device: &|Device {
                      is_block,
                      major,
                      minor,
                  }| devices.allow(is_block, major, minor),
    };
    let input = BufReader::with_capacity(READ_BYTES, file);
    let on_progress = &mut |_| ControlFlow::Continue(());
    let applied =
        apply_to(into.tree(), input, tar, to, &allowed, on_progress).map_err(|error| error.to_string())?;
    Ok(PutBack {
        bytes: applied.bytes,
        left_out: applied.left_out.len() as u64,
        names: some(&applied.left_out),
    })
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
