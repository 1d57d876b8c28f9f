//! What is settled when a container is created and never changes afterwards.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use jobs::record::Key;
use oci_bundles::mounts::Mount;
use oci_bundles::spec::SpecView;

use crate::cgroup::Cgroup;
use crate::error::{Error, Result};
use crate::events::EventSink;
use crate::options::Options;
use crate::progress::Progress;
use crate::reap::Reaper;
use crate::runc::Runc;

/// The unchanging part of a container, shared with the tasks that act for it.
#[derive(Debug)]
pub struct Facts {
    /// containerd's namespace.
    pub namespace: String,
    /// The container's id.
    pub id: String,
    /// Its bundle.
    pub bundle: PathBuf,
    /// How runc is called for it.
    pub runc: Runc,
    /// The runtime options it was created with.
    pub options: Options,
    /// What of `config.json` matters here.
    pub spec: SpecView,
    /// What `cedana.*` annotations and the configuration say.
    pub settings: config::Settings,
    /// What its root file system is mounted from, by us; empty if it was there before.
    pub rootfs: Vec<Mount>,
    /// There was no cgroup of its path before: whatever is found there after a failed create is ours to remove.
    pub cgroup_is_new: bool,
    /// Its cgroup, known once its init exists.
    pub cgroup: OnceLock<Cgroup>,
    /// Who takes exits.
    pub reaper: Arc<Reaper>,
    /// Who is told.
    pub events: Arc<dyn EventSink>,
    /// Which job it is.
    pub key: Key,
    /// How far a dump or restore of it is.
    pub progress: Progress,
}

impl Facts {
    /// runc's directory for this container.
    pub fn state_dir(&self) -> PathBuf {
        self.runc.root.join(&self.id)
    }

    /// Its cgroup.
    ///
    /// # Errors
    /// [`Error::FailedPrecondition`] before its init exists: a restore that waits for `Start`.
    pub fn cgroup(&self) -> Result<&Cgroup> {
        self.cgroup
            .get()
            .ok_or_else(|| Error::FailedPrecondition("the container has no process yet".to_owned()))
    }
}
