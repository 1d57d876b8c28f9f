//! `Create`: from a request to a container with an owner, or back to nothing.

use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use config::Settings;
use jobs::record::Key;
use oci_bundles::mounts::{self, Mount};
use oci_bundles::spec::{self, SpecView};

use super::acts::announce;
use super::execs::{ATTACH_DEADLINE, read_pid};
use super::{Container, Facts, queue};
use crate::cgroup::{Cgroup, moves};
use crate::criu::conf;
use crate::delete::leftover::Leftover;
use crate::error::{Error, Result, chain, internal};
use crate::events::EventSink;
use crate::options::Options;
use crate::progress::Progress;
use crate::reap::Reaper;
use crate::registry::{New, Registry};
use crate::restore::layer::{self, Replaced};
use crate::restore::{self, RestoreAt, RestoreCause, RestoreJob, Restored};
use crate::runc::{Call, Runc};
use crate::stdio::{self, Prepared, StdioRequest, Streams};
use crate::worker::files::shm;

/// How long cleaning up after a failed create may take.
const UNDO_DEADLINE: Duration = Duration::from_secs(30);

/// What containerd asks for.
#[derive(Debug)]
pub struct Request {
    /// containerd's namespace.
    pub namespace: String,
    /// The container's id.
    pub id: String,
    /// Its bundle.
    pub bundle: PathBuf,
    /// What its root file system is mounted from; empty if the bundle has it already.
    pub rootfs: Vec<Mount>,
    /// Where the init's stdio goes.
    pub stdio: StdioRequest,
    /// The checkpoint it is restored from; empty for a fresh start.
    pub checkpoint: String,
    /// The runtime options.
    pub options: Options,
}

/// What a container needs from its shim.
#[derive(Debug, Clone)]
pub struct Surroundings {
    /// containerd's namespace.
    pub namespace: String,
    /// Who takes exits.
    pub reaper: Arc<Reaper>,
    /// Who is told.
    pub events: Arc<dyn EventSink>,
    /// Where its jobs are listed.
    pub registry: Arc<Registry>,
}

/// A restore that has to wait for `Start`.
#[derive(Debug)]
pub struct Deferred {
    pub(super) prepared: Prepared,
    pub(super) images: Images,
}

/// Where a checkpoint is.
#[derive(Debug)]
pub(super) struct Images {
    /// Its directory; empty for none.
    pub(super) checkpoint: PathBuf,
    /// The list of its memory that is in an archive.
    pub(super) left: Option<PathBuf>,
}

/// The init as `Create` leaves it.
pub(super) enum Init {
    /// It exists.
    Here {
        pid: i32,
        streams: Streams,
        restored: Option<Restored>,
    },
    /// It comes with `Start`.
    Later(Deferred),
}

/// Creates a container. On failure nothing of it is left.
///
/// # Errors
/// What failed, with everything undone that had been done.
pub async fn create(mut request: Request, around: Surroundings) -> Result<Container> {
    let _moves = moves::expect();
    let spec = SpecView::read(&request.bundle).map_err(internal("read the container's config.json"))?;
    request.options.infer(&spec);
    if request.checkpoint.is_empty() {
        request.checkpoint.clone_from(&request.options.criu_image_path);
    }
    request
        .options
        .save(&request.bundle)
        .map_err(internal("keep the runtime options"))?;
    let mut settings = settings(&spec, &request.options)?;
    let registry = Arc::clone(&around.registry);
    let key = registry.key(&request.namespace, &request.id);
    let (mut unpacked_from, mut left) = (None, None);
    if let Some(pending) = registry.pending(settings.db.path.as_deref(), &key)? {
        settings = settings
            .with_flags(&pending.settings)
            .map_err(|error| Error::InvalidArgument(chain(&error)))?;
        request.checkpoint = pending.checkpoint.display().to_string();
        (unpacked_from, left) = (pending.unpacked_from, pending.left);
    }
    let facts = Arc::new(Facts::new(&request, spec, settings, key, around));
    refuse_foreign_state(&facts)?;
    give_criu_a_config(&facts)?;
    let checkpoint = PathBuf::from(&request.checkpoint);
    let images = Images { checkpoint, left };
    let layer = bring_layer(&facts, &images, &facts.settings.restore).await?;
    if let Err(error) = mount_rootfs(&facts.bundle, &request.rootfs) {
        put_layer_back(&facts, layer);
        return Err(error);
    }
    let entry = registry.entry(facts.new_entry(&request, unpacked_from.as_deref()));
    let strangers = facts.reaper.expect_strangers();
    let filled = layer.as_ref().is_some_and(Replaced::is_filled);
    let init = match init(&facts, &request, images, filled).await {
        Ok(init) => {
            keep_layer(layer);
            init
        }
        Err(error) => {
            clean(&facts).await;
            put_layer_back(&facts, layer);
            entry.not_created(facts.progress.last_phase(), &error.to_string());
            return Err(error);
        }
    };
    let pid = init.pid();
    announce(
        &facts,
        request.rootfs,
        request.stdio.clone(),
        request.checkpoint,
        pid,
    );
    let container = queue::own(facts, init, request.stdio, entry);
    drop(strangers);
    Ok(container)
}

impl Images {
    /// It is none: the container begins anew.
    fn is_none(&self) -> bool {
        self.checkpoint.as_os_str().is_empty()
    }

    /// The writable layer in it, if it has one.
    pub(super) fn layer(&self) -> std::result::Result<Option<layer::Saved>, RestoreCause> {
        layer::of_checkpoint(&self.checkpoint, self.left.as_deref())
    }
}

impl Init {
    fn pid(&self) -> i32 {
        match self {
            Self::Here { pid, .. } => *pid,
            Self::Later(_) => 0,
        }
    }
}

impl Facts {
    fn new(request: &Request, spec: SpecView, settings: Settings, key: Key, around: Surroundings) -> Self {
        let options = &request.options;
        let runc = Runc {
            binary: options.binary(),
            root: options.state_root(&request.namespace),
            log: request.bundle.join("log.json"),
            systemd_cgroup: options.systemd_cgroup,
            has_hooks: spec.hooks.any(),
            reaper: Arc::clone(&around.reaper),
        };
        let state = runc.root.join(&request.id);
        Self {
            rootfs: request.rootfs.clone(),
            cgroup_is_new: Leftover::find(&state, &spec.linux.cgroups_path).is_nothing(),
            namespace: request.namespace.clone(),
            id: request.id.clone(),
            bundle: request.bundle.clone(),
            runc,
            options: request.options.clone(),
            spec,
            settings,
            cgroup: OnceLock::new(),
            reaper: around.reaper,
            events: around.events,
            key,
            progress: Progress::default(),
        }
    }

    fn new_entry<'a>(&'a self, request: &'a Request, unpacked_from: Option<&'a Path>) -> New<'a> {
        let checkpoint = unpacked_from.unwrap_or(Path::new(&request.checkpoint));
        New {
            database: self.settings.db.path.as_deref(),
            key: self.key.clone(),
            bundle: &self.bundle,
            spec: &self.spec,
            stdio: &request.stdio,
            restored_from: (!checkpoint.as_os_str().is_empty()).then_some(checkpoint),
        }
    }

    /// What the stdio of one of its processes needs to know.
    pub(super) fn stdio_context<'a>(&'a self, id: &'a str) -> stdio::Context<'a> {
        let owner = match (self.options.io_uid, self.options.io_gid) {
            (None, None) => None,
            (uid, gid) => Some((uid.unwrap_or(0), gid.unwrap_or(0))),
        };
        stdio::Context {
            namespace: &self.namespace,
            id,
            socket_dir: &self.bundle,
            owner,
            reaper: &self.reaper,
        }
    }

    /// Flags that `runc create` and `runc restore` share.
    pub(super) fn creation_flags(&self) -> Vec<&'static OsStr> {
        let mut flags: Vec<&OsStr> = Vec::new();
        if self.options.no_pivot_root {
            flags.push("--no-pivot".as_ref());
        }
        flags
    }
}

/// A container of that id that the runtime already has is somebody else's: neither made nor cleaned up here.
fn refuse_foreign_state(facts: &Facts) -> Result<()> {
    let state = facts.state_dir();
    if !state.exists() {
        return Ok(());
    }
    let (binary, root) = (facts.runc.binary.display(), facts.runc.root.display());
    Err(Error::AlreadyExists(format!(
        "container {id} exists in the runtime already ({}), though not here; `{binary} --root {root} delete --force {id}` removes it",
        state.display(),
        id = facts.id,
    )))
}

/// The container's settings. A wrong annotation is its author's to mend; what is wrong with the host is only told.
fn settings(spec: &SpecView, options: &Options) -> Result<Settings> {
    let (settings, problems) = config::for_container(&spec.annotations, &options.settings)
        .map_err(|error| Error::InvalidArgument(chain(&error)))?;
    for problem in &problems {
        tracing::error!(error = chain(problem), "the host's settings are not used");
    }
    Ok(settings)
}

/// runc takes CRIU's configuration file from the spec the container was created with, so the annotation has to be in
/// it now; the file is written before each operation. Somebody else's annotation is left alone.
fn give_criu_a_config(facts: &Facts) -> Result<()> {
    if facts.spec.annotation(conf::ANNOTATION).is_some() {
        return Ok(());
    }
    let path = conf::path(&facts.bundle).display().to_string();
    spec::inject_annotations(&facts.bundle, &[(conf::ANNOTATION, &path)])
        .map_err(internal("add CRIU's configuration to config.json"))
}

/// A container that is made for a checkpoint of another engine's has its `/dev/shm` here: `cedana` names it in the spec, relative to the
/// bundle, which lies in memory and goes with the task.
fn make_own_shm(bundle: &Path) -> Result<()> {
    let path = bundle.join(shm::OWN);
    match fs::create_dir(&path) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => return Ok(()),
        Err(error) => return Err(internal("make a directory for shared memory")(error)),
    }
    fs::set_permissions(&path, Permissions::from_mode(0o1777))
        .map_err(internal("make a directory for shared memory"))
}

pub(super) fn mount_rootfs(bundle: &Path, rootfs: &[Mount]) -> Result<()> {
    if rootfs.is_empty() {
        return Ok(());
    }
    let target = bundle.join("rootfs");
    match fs::create_dir(&target) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
            return Err(internal("make the rootfs directory")(error));
        }
        _ => {}
    }
    mounts::mount_all(rootfs, &target).map_err(internal("mount the rootfs"))
}

pub(super) fn unmount_rootfs(bundle: &Path) -> Result<()> {
    mounts::unmount_recursive(&bundle.join("rootfs")).map_err(|errors| {
        let errors: Vec<_> = errors.iter().map(|error| chain(error)).collect();
        Error::Internal(format!("unmount the rootfs: {}", errors.join("; ")))
    })
}

/// Puts the writable layer of a checkpoint in the place of the container's, if it has one and we are to mount it.
pub(super) async fn bring_layer(
    facts: &Facts,
    images: &Images,
    settings: &config::Restore,
) -> Result<Option<Replaced>> {
    let gone =
        layer::mend(&facts.rootfs).map_err(internal("put back the layer that a restore had replaced"))?;
    gone.into_iter().for_each(remove_layer);
    let Some(upper) = layer::upper(&facts.rootfs).filter(|_| !images.is_none()) else {
        return Ok(None);
    };
    let failed = |error: RestoreCause| error.told("put back the writable layer");
    let Some(layer) = images.layer().map_err(failed)? else {
        return Ok(None);
    };
    let replaced = Replaced::with(&facts.reaper, layer, upper, &facts.bundle, settings.timeout).await;
    replaced.map(Some).map_err(failed)
}

/// The restore went well.
pub(super) fn keep_layer(layer: Option<Replaced>) {
    if let Some(gone) = layer.and_then(Replaced::keep) {
        remove_layer(gone);
    }
}

/// Takes as long as it has files: not on the shim's only thread.
fn remove_layer(gone: PathBuf) {
    drop(tokio::task::spawn_blocking(move || layer::remove(&gone)));
}

/// After a failure; the root file system is unmounted.
pub(super) fn put_layer_back(facts: &Facts, layer: Option<Replaced>) {
    if let Some(Err(error)) = layer.map(Replaced::put_back) {
        let error = chain(&error);
        tracing::warn!(
            id = facts.id,
            error,
            "the layer that was replaced is not back yet: the next create puts it back"
        );
    }
}

async fn init(facts: &Arc<Facts>, request: &Request, images: Images, layer_is_there: bool) -> Result<Init> {
    let mut prepared = stdio::prepare(&request.stdio, &facts.stdio_context(&facts.id))
        .map_err(internal("set up the stdio"))?;
    if images.is_none() {
        run_create(facts, &mut prepared).await?;
        let pid = read_pid(&facts.bundle.join("init.pid"))?;
        return here(facts, prepared, pid, None).await;
    }
    match restore::when(&images.checkpoint) {
        RestoreAt::Start => Ok(Init::Later(Deferred { prepared, images })),
        RestoreAt::Create => {
            let from = From {
                images,
                layer_is_there,
            };
            restore_init(facts, prepared, from, &facts.settings.restore).await
        }
    }
}

/// What a container is restored from.
#[derive(Debug)]
pub(super) struct From {
    pub(super) images: Images,
    /// Its writable layer has taken the place of the container's.
    pub(super) layer_is_there: bool,
}

/// Brings the processes of a checkpoint back, stopped.
pub(super) async fn restore_init(
    facts: &Arc<Facts>,
    mut prepared: Prepared,
    from: From,
    settings: &config::Restore,
) -> Result<Init> {
    make_own_shm(&facts.bundle)?;
    prepared
        .give_pipes()
        .map_err(internal("make pipes for what was one"))?;
    let work_path = Some(&facts.options.criu_work_path)
        .filter(|path| !path.is_empty())
        .map(PathBuf::from);
    let job = RestoreJob {
        runc: facts.runc.clone(),
        namespace: facts.namespace.clone(),
        id: facts.id.clone(),
        bundle: facts.bundle.clone(),
        checkpoint: from.images.checkpoint,
        left: from.images.left,
        key: facts.key.clone(),
        layer_is_there: from.layer_is_there,
        work_path,
        stdio: prepared.child_stdio(),
        console_socket: prepared.console_socket().map(Path::to_owned),
        no_pivot_root: facts.options.no_pivot_root,
        settings: settings.clone(),
        progress: facts.progress.clone(),
    };
    let restored = restore::restore(job).await.map_err(Error::from)?;
    here(facts, prepared, restored.pid, Some(restored)).await
}

async fn run_create(facts: &Facts, prepared: &mut Prepared) -> Result<()> {
    let pid_file = facts.bundle.join("init.pid");
    let mut args: Vec<&OsStr> = vec!["create".as_ref(), "--bundle".as_ref(), facts.bundle.as_ref()];
    args.extend::<[&OsStr; 2]>(["--pid-file".as_ref(), pid_file.as_ref()]);
    let console = prepared.console_socket().map(Path::to_owned);
    if let Some(console) = &console {
        args.extend::<[&OsStr; 2]>(["--console-socket".as_ref(), console.as_ref()]);
    }
    args.extend(facts.creation_flags());
    if facts.options.no_new_keyring {
        args.push("--no-new-keyring".as_ref());
    }
    args.push(facts.id.as_ref());
    let call = Call {
        stdio: Some(prepared.child_stdio()),
        ..Call::default()
    };
    facts
        .runc
        .run(&args, call)
        .await
        .map_err(internal("OCI runtime create failed"))
}

/// Takes hold of an init that runc has just made.
async fn here(facts: &Facts, prepared: Prepared, pid: i32, restored: Option<Restored>) -> Result<Init> {
    match Cgroup::of_pid(pid) {
        Ok(cgroup) => {
            if let Err(error) = cgroup.enable_controllers() {
                tracing::debug!(
                    id = facts.id,
                    error = chain(&error),
                    "not every cgroup controller could be enabled"
                );
            }
            let _ = facts.cgroup.set(cgroup);
        }
        // It runs all the same; what needs the cgroup says so when it is asked for.
        Err(error) => tracing::warn!(
            id = facts.id,
            error = chain(&error),
            "the container's cgroup cannot be found"
        ),
    }
    let streams = prepared
        .attach(ATTACH_DEADLINE)
        .await
        .map_err(internal("attach the stdio"))?;
    Ok(Init::Here {
        pid,
        streams,
        restored,
    })
}

/// Takes back whatever a failed create has left. The client gets the first cause; what fails here goes into the log.
pub(super) async fn clean(facts: &Facts) {
    delete_state(facts).await;
    remove_cgroup(facts).await;
    if !facts.rootfs.is_empty()
        && let Err(error) = unmount_rootfs(&facts.bundle)
    {
        tracing::warn!(id = facts.id, %error, "cannot unmount what a failed create left");
    }
}

/// A runc that was killed leaves the cgroups it had made, and its init in them, and no state to find them by.
async fn remove_cgroup(facts: &Facts) {
    if !facts.cgroup_is_new {
        return;
    }
    let (state, path) = (facts.state_dir(), facts.spec.linux.cgroups_path.clone());
    let remove = move || Leftover::find(&state, &path).remove();
    match tokio::task::spawn_blocking(remove).await {
        Ok(complaints) if complaints.is_empty() => {}
        Ok(complaints) => tracing::warn!(
            id = facts.id,
            complaints = complaints.join("; "),
            "a failed create left a cgroup"
        ),
        Err(error) => tracing::warn!(id = facts.id, %error, "a failed create may have left a cgroup"),
    }
}

async fn delete_state(facts: &Facts) {
    let state = facts.state_dir();
    if !state.exists() {
        return;
    }
    // While the root file system is still bound there, removing the state would empty it, by runc's hand or ours.
    if let Err(error) = restore::unmount_criu_root(&state).await {
        let error = chain(&error);
        return tracing::warn!(
            id = facts.id,
            error,
            "what a failed restore left stays, for it is still mounted"
        );
    }
    let args: [&OsStr; 3] = ["delete".as_ref(), "--force".as_ref(), facts.id.as_ref()];
    let call = Call {
        deadline: UNDO_DEADLINE,
        ..Call::default()
    };
    match facts.runc.run(&args, call).await {
        Err(error) if !error.is_gone() => {
            let error = chain(&error);
            tracing::warn!(
                id = facts.id,
                error,
                "cannot delete what a failed create left in the runtime"
            );
        }
        _ => {}
    }
}
