//! What podman and checkpointctl want to find in a nested checkpoint beside the images.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use jobs::time::millis;
use oci_bundles::layout::{Extra, Layout};
use oci_bundles::podman::{BYTES_MAX, Known, config_dump, root_alone, spec_dump};
use oci_bundles::spec::CONFIG_FILE;
use serde_json::Value;

use super::beside::{beside, beside_within};
use super::{DumpCause, Dumping};
use crate::criu::file::read_regular;

/// CRIU's files in its work directory that are worth keeping, and what they are called in a checkpoint.
const OF_CRIU: [(&str, Extra); 2] = [("dump.log", Extra::DumpLog), ("stats-dump", Extra::Statistics)];

impl Dumping<'_> {
    /// Says whose checkpoint it is, in podman's words. A `config.json` that is none would not have been run.
    pub(super) async fn write_portable(&self) -> Result<(), DumpCause> {
        let path = self.job.bundle.join(CONFIG_FILE);
        let text = read_regular(&path, BYTES_MAX).map_err(DumpCause::files("read", &path))?;
        let config: Value =
            serde_json::from_slice(&text).map_err(|error| DumpCause::files("read", &path)(error.into()))?;
        let (options, origin) = (&self.job.options, &self.job.origin);
        let made = fs::metadata(&path).and_then(|file| file.modified());
        let name = origin.name.as_ref().or(options.name.as_ref());
        let known = Known {
            id: &self.job.id,
            name: name.unwrap_or(&self.job.id),
            image: options.image.as_ref(),
            created: made.map_or(origin.at, millis),
            saved: origin.at,
        };
        let root = format!("/proc/{}/root/", self.job.init_pid);
        let root = fs::metadata(&root).map_err(DumpCause::files("look at", root.as_ref()))?;
        let texts = [
            (Extra::Config, config_dump(&known, &config)),
            (Extra::Spec, spec_dump(&config, known.name)),
            (Extra::RootfsDiff, root_alone(root.mode(), root.uid(), root.gid())),
        ];
        let staging = self.staging.clone();
        let write = move || {
            texts.iter().try_for_each(|(extra, text)| {
                let path = staging.extra(*extra);
                fs::write(&path, text).map_err(DumpCause::files("write", &path))
            })
        };
        match self.job.was_paused {
            true => beside_within(self.time_at_disk(), self.staging.root(), write).await,
            false => beside(self.staging.root(), write).await,
        }
    }
}

/// Takes CRIU's log and statistics along, as far as they are there: they tell of the dump, and no restore needs them. What has been
/// taken stays as it is, since a manifest may have its digest already.
pub(super) fn keep_logs(work: &Path, staging: &Layout) {
    for (name, extra) in OF_CRIU {
        let (from, to) = (work.join(name), staging.extra(extra));
        if !from.exists() || to.exists() {
            continue;
        }
        if let Err(error) = fs::copy(&from, &to) {
            tracing::debug!(name, %error, "the checkpoint goes without");
            // Half of it is worse than none.
            drop(fs::remove_file(&to));
        }
    }
}
