//! Whose a `/dev/shm` is that a client mounts from the host.
//!
//! Docker's containers that share theirs, Kubernetes' pods and nerdctl's have a tmpfs of their own on the host, bound into the
//! container. It is the container's if it is mounted there as a whole, is not the host's own, and no other container has it.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::sys::stat::{major, minor};
use nix::sys::statfs::{TMPFS_MAGIC, statfs};
use oci_bundles::spec::{Bind, bind_at};

use crate::criu::file::read_regular;

/// Where it is in every container.
pub(crate) const SHM: &str = "/dev/shm";

/// The source of one that stands in a bundle, relative to that: what `cedana` writes for a container that it makes for another engine's
/// checkpoint. The directory is made with the task and goes with it.
pub(crate) const OWN: &str = "cedana-shm";

/// A table of mounts is some hundred bytes for each.
const MOUNTINFO_BYTES_MAX: u64 = 4 << 20;

/// `init.pid` has 10 digits at most.
const PID_FILE_SIZE_MAX: u64 = 64;

/// The annotation by which Kubernetes' containers name the one that holds their pod together.
const SANDBOX: &str = "io.kubernetes.cri.sandbox-id";

/// The host's side of a container's `/dev/shm`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Shm {
    /// A file system that a client has mounted for it.
    Mounted(PathBuf),
    /// A directory in its bundle, of our making.
    InBundle(PathBuf),
}

impl Shm {
    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        match self {
            Self::Mounted(path) | Self::InBundle(path) => path,
        }
    }
}

/// The host's side of a container's `/dev/shm`; none if the container makes its own.
///
/// # Errors
/// Why it is not the container's alone.
pub(crate) fn of_container(bundle: &Path, init: Option<i32>) -> Result<Option<Shm>, String> {
    let Some(Bind { source, annotations }) =
        bind_at(bundle, Path::new(SHM)).map_err(|error| error.to_string())?
    else {
        return Ok(None);
    };
    if source == Path::new(OWN) {
        return Ok(Some(Shm::InBundle(bundle.join(OWN))));
    }
    let is_memory = statfs(&source).is_ok_and(|found| found.filesystem_type() == TMPFS_MAGIC);
    if !is_memory {
        return Err("it is a directory on a disk".to_owned());
    }
    let device = device_of(&source).ok_or("it cannot be looked at")?;
    if device_of(Path::new(SHM)).as_ref() == Some(&device) {
        return Err("it is the host's own".to_owned());
    }
    let own = mountinfo("self");
    if !own.lines().any(|line| is_at(line, &device, &source)) {
        return Err("it is a part of a file system of the host's".to_owned());
    }
    let sandbox = annotations.get(SANDBOX).and_then(|id| {
        let pid_file = bundle.parent()?.join(id).join("init.pid");
        let text = read_regular(&pid_file, PID_FILE_SIZE_MAX).ok()?;
        std::str::from_utf8(&text).ok()?.trim().parse().ok()
    });
    match is_shared(&device, &source, &[init, sandbox]) {
        true => Err("another container has it, too".to_owned()),
        false => Ok(Some(Shm::Mounted(source))),
    }
}

/// Whether a process in another mount namespace has it, elsewhere than the host has. Namespaces of these processes do not count.
fn is_shared(device: &str, source: &Path, but: &[Option<i32>]) -> bool {
    let namespace = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/mnt")).ok();
    let mut seen: HashSet<PathBuf> = but
        .iter()
        .flatten()
        .filter_map(|pid| namespace(&pid.to_string()))
        .collect();
    seen.extend(namespace("self"));
    let Ok(processes) = fs::read_dir("/proc") else {
        return true;
    };
    processes.flatten().any(|process| {
        let name = process.file_name().to_string_lossy().into_owned();
        if !name.bytes().all(|byte| byte.is_ascii_digit())
            || !namespace(&name).is_some_and(|one| seen.insert(one))
        {
            return false;
        }
        mountinfo(&name)
            .lines()
            .any(|line| is_of(line, device) && !is_at(line, device, source))
    })
}

fn is_of(line: &str, device: &str) -> bool {
    line.split(' ').nth(2) == Some(device)
}

fn is_at(line: &str, device: &str, point: &Path) -> bool {
    is_of(line, device)
        && line.split(' ').nth(3) == Some("/")
        && line.split(' ').nth(4).map(Path::new) == Some(point)
}

/// The number of the file system that a path is on, as `mountinfo` has it.
fn device_of(path: &Path) -> Option<String> {
    let device = fs::metadata(path).ok()?.dev();
    Some(format!("{}:{}", major(device), minor(device)))
}

pub(super) fn mountinfo(pid: &str) -> String {
    let mut bytes = Vec::new();
    // What was read before an error counts: the process may end meanwhile.
    let _ = File::open(format!("/proc/{pid}/mountinfo"))
        .and_then(|file| file.take(MOUNTINFO_BYTES_MAX).read_to_end(&mut bytes));
    String::from_utf8_lossy(&bytes).into_owned()
}
