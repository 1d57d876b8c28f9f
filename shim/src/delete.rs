//! `delete`: take away what a container left behind, and tell containerd how it ended.
//!
//! containerd runs this after *every* removal of a container. Nearly always the server has cleaned up, and all that is to be
//! done is to see that, quickly. If the server died, everything it looked after goes here, in an order in which nothing
//! comes back: runc and CRIU, which may be making processes; the container; its cgroup; its mounts; the socket.

pub(crate) mod leftover;
mod straggler;
mod unfinished;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use containerd_shim_protos::api::DeleteResponse;
use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use oci_bundles::mounts;
use oci_bundles::spec::SpecView;
use protobuf::Message;
use protobuf::well_known_types::timestamp::Timestamp;
use tokio::runtime::Builder;
use tokio::signal::unix::{SignalKind, signal};

use crate::args::Args;
use crate::criu::work;
use crate::error::chain;
use crate::options::Options;
use crate::reap::Reaper;
use crate::registry::Registry;
use crate::runc::{Call, Runc};
use crate::start::ADDRESS_FILE;
use leftover::Leftover;

/// How long `runc delete --force` may take. containerd kills us after five seconds, and there is more to do.
const RUNC_LIMIT: Duration = Duration::from_secs(3);

/// Mounts stacked on one path that are taken off before giving up.
const STACK_MAX: u32 = 100;

/// The largest file of a bundle that is read here, in bytes: they hold a number or a path.
const SMALL_FILE_MAX: u64 = 4096;

/// What is reported of a process nobody waited for: killed (128 + SIGKILL), as the Go shims say.
const STATUS_KILLED: u32 = 137;

/// What `delete` has to say.
#[derive(Debug)]
pub struct Deleted {
    /// The answer for stdout.
    pub answer: Vec<u8>,
    /// What could not be taken away, and why. containerd logs it as a warning.
    pub complaints: Vec<String>,
}

/// Cleans up after the container `args.id`, whose bundle is in the same directory as `directory` (the working directory, which is
/// its own bundle or that of another container in its group). Goes on after failures.
///
/// # Errors
/// Only if the answer cannot be encoded.
pub fn delete(args: &Args, directory: &Path) -> protobuf::Result<Deleted> {
    let bundle = bundle(directory, &args.id);
    let mut complaints = Vec::new();
    let options = Options::load(&bundle).unwrap_or_else(|error| {
        complaints.push(error.to_string());
        Options::default()
    });
    let state = options.state_root(&args.namespace).join(&args.id);
    if state.exists() || is_abandoned(&bundle) {
        complaints.extend(clean_up(args, &bundle, &options, &state));
        if let Some(database) = config::for_container(&BTreeMap::new(), &options.settings)
            .ok()
            .and_then(|(settings, _)| settings.db.path)
        {
            let registry = Registry::new(PathBuf::from(&args.address), PathBuf::new());
            registry.abandoned(&database, &registry.key(&args.namespace, &args.id), STATUS_KILLED);
        }
    }
    if let Err(error) = unmount(&bundle.join("rootfs")) {
        complaints.push(format!("unmount {}: {error}", bundle.join("rootfs").display()));
    }
    remove_dead_socket(&bundle);
    Ok(Deleted {
        answer: answer(pid(&bundle))?,
        complaints,
    })
}

/// The container's bundle: all bundles of a namespace are in one directory.
fn bundle(directory: &Path, id: &str) -> PathBuf {
    directory.parent().unwrap_or(directory).join(id)
}

/// Whether the container's server is gone without having cleaned up: its socket is there, or the container's root file system
/// still mounted (a group's socket goes with the first of its containers).
fn is_abandoned(bundle: &Path) -> bool {
    let device = |path: &Path| fs::symlink_metadata(path).map(|metadata| metadata.dev()).ok();
    let rootfs = device(&bundle.join("rootfs"));
    let is_mounted = rootfs.is_some() && rootfs != device(bundle);
    is_mounted || socket(bundle).is_some_and(|path| path.exists() && UnixStream::connect(path).is_err())
}

/// Takes away everything that may be left of a container. Returns what could not be.
fn clean_up(args: &Args, bundle: &Path, options: &Options, state: &Path) -> Vec<String> {
    let mut complaints = Vec::new();
    let spec = SpecView::read(bundle).unwrap_or_default();
    let find = || Leftover::find(state, &spec.linux.cgroups_path);
    straggler::kill(bundle, &find().members());
    let leftover = find();
    // A killed CRIU leaves the host's cgroup hierarchies mounted where it worked, runc the rootfs bound in its state. Whoever
    // removes those directories empties what is mounted there: containerd does so with the bundle, runc with its state.
    let ours = [work::dir(bundle), state.join("criu-root")];
    complaints.extend(ours.iter().flat_map(|place| unmount_below(place)));
    if !options.criu_work_path.is_empty()
        && let Err(error) = work::unmount_in_foreign(Path::new(&options.criu_work_path))
    {
        complaints.push(format!(
            "unmount what criu left in {}: {error}",
            options.criu_work_path
        ));
    }
    if !complaints.is_empty() {
        return complaints;
    }
    if state.exists() {
        let mut options = options.clone();
        options.infer(&spec);
        if let Err(error) = runc_delete(args, bundle, &options) {
            complaints.push(error);
        }
    }
    complaints.extend(leftover.remove());
    complaints.extend(unmount_below(bundle));
    if state.exists()
        && let Err(error) = fs::remove_dir_all(state)
    {
        complaints.push(format!("remove {}: {error}", state.display()));
    }
    // Nobody is left who could write to it.
    complaints.extend(unfinished::settle(bundle));
    complaints
}

/// `runc delete --force`, which kills the container first.
fn runc_delete(args: &Args, bundle: &Path, options: &Options) -> Result<(), String> {
    let run = async {
        let reaper = Reaper::new();
        let runc = Runc {
            binary: options.binary(),
            root: options.state_root(&args.namespace),
            log: if bundle.is_dir() {
                bundle.join("log.json")
            } else {
                "/dev/null".into()
            },
            systemd_cgroup: options.systemd_cgroup,
            has_hooks: true,
            reaper: reaper.clone(),
        };
        let mut child = signal(SignalKind::child()).map_err(|error| format!("watch for exits: {error}"))?;
        let words: [&OsStr; 3] = ["delete".as_ref(), "--force".as_ref(), args.id.as_ref()];
        let call = runc.run(
            &words,
            Call {
                deadline: RUNC_LIMIT,
                ..Call::default()
            },
        );
        tokio::pin!(call);
        loop {
            tokio::select! {
                done = &mut call => return done.map_err(|error| format!("delete {} from runc: {error}", args.id)),
                _ = child.recv() => reaper.reap(),
            }
        }
    };
    let runtime = Builder::new_current_thread().enable_all().build();
    runtime
        .map_err(|error| format!("start the runtime: {error}"))?
        .block_on(run)
}

/// Unmounts what is at a path and below it. Returns what could not be.
fn unmount_below(path: &Path) -> Vec<String> {
    let errors = mounts::unmount_recursive(path).err().unwrap_or_default();
    errors.iter().map(|error| chain(error)).collect()
}

/// Takes a mount away, with everything mounted in it, at once; that nothing is mounted there is fine.
fn unmount(path: &Path) -> Result<(), Errno> {
    for _ in 0..STACK_MAX {
        match umount2(path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) => {}
            Err(Errno::EINVAL | Errno::ENOENT) => return Ok(()),
            Err(error) => return Err(error),
        }
    }
    Err(Errno::ELOOP)
}

/// Removes the server's socket if no server is behind it.
fn remove_dead_socket(bundle: &Path) {
    if let Some(path) = socket(bundle)
        && path.exists()
        && UnixStream::connect(&path).is_err()
    {
        // Somebody else who comes here for another container of the group may have been faster.
        let _ = fs::remove_file(path);
    }
}

/// The socket that `start` noted.
fn socket(bundle: &Path) -> Option<PathBuf> {
    let address = small_file(&bundle.join(ADDRESS_FILE)).ok()?;
    address.trim().strip_prefix("unix://").map(PathBuf::from)
}

/// The init process, zero if that is not known any more.
fn pid(bundle: &Path) -> u32 {
    small_file(&bundle.join("init.pid"))
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(0)
}

fn small_file(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    let _ = fs::File::open(path)?
        .take(SMALL_FILE_MAX)
        .read_to_string(&mut text)?;
    Ok(text)
}

fn answer(pid: u32) -> protobuf::Result<Vec<u8>> {
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    let exited_at = Timestamp {
        seconds: i64::try_from(now.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(now.subsec_nanos()).unwrap_or(0),
        ..Timestamp::default()
    };
    let exited_at = Some(exited_at).into();
    DeleteResponse {
        pid,
        exit_status: STATUS_KILLED,
        exited_at,
        ..DeleteResponse::default()
    }
    .write_to_bytes()
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    fn args(id: &str) -> Args {
        Args {
            namespace: "tests-of-delete".into(),
            id: id.into(),
            ..Args::default()
        }
    }

    fn response(deleted: &Deleted) -> DeleteResponse {
        DeleteResponse::parse_from_bytes(&deleted.answer).unwrap()
    }

    #[test]
    fn a_container_that_left_nothing_is_answered_for() {
        let bundles = tempfile::tempdir().unwrap();
        let deleted = delete(&args("c"), &bundles.path().join("c")).unwrap();
        assert_eq!(deleted.complaints, [""; 0]);
        assert_eq!((response(&deleted).pid, response(&deleted).exit_status), (0, 137));
        assert!(response(&deleted).exited_at.seconds > 1_700_000_000);
    }

    #[test]
    fn the_bundle_beside_the_working_directory_is_meant() {
        let bundles = tempfile::tempdir().unwrap();
        fs::create_dir(bundles.path().join("c")).unwrap();
        fs::write(bundles.path().join("c/init.pid"), "4711\n").unwrap();
        let deleted = delete(&args("c"), &bundles.path().join("sandbox")).unwrap();
        assert_eq!(response(&deleted).pid, 4711);
    }

    #[test]
    fn a_damaged_bundle_is_complained_about_and_answered_for() {
        let bundles = tempfile::tempdir().unwrap();
        let bundle = bundles.path().join("c");
        fs::create_dir(&bundle).unwrap();
        for file in ["options.json", "config.json", "init.pid", "address"] {
            fs::write(bundle.join(file), "{{{").unwrap();
        }
        let deleted = delete(&args("c"), &bundle).unwrap();
        assert_eq!(
            (deleted.complaints.len(), response(&deleted).pid),
            (1, 0),
            "{deleted:?}"
        );
    }

    #[test]
    fn a_socket_goes_only_when_its_server_is_dead() {
        let bundles = tempfile::tempdir().unwrap();
        let bundle = bundles.path().join("c");
        fs::create_dir(&bundle).unwrap();
        let path = bundles.path().join("socket");
        fs::write(bundle.join("address"), format!("unix://{}", path.display())).unwrap();
        let listener = UnixListener::bind(&path).unwrap();
        assert!(!is_abandoned(&bundle));
        let _ = delete(&args("c"), &bundle).unwrap();
        assert!(path.exists(), "its server lives");
        drop(listener);
        assert!(is_abandoned(&bundle));
        let _ = delete(&args("c"), &bundle).unwrap();
        assert!(!path.exists());
        assert!(!is_abandoned(&bundle));
    }
}
