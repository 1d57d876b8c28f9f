//! The phases that make, remove and commit the directories of a dump, and wait for their disk.

use std::path::{Path, PathBuf};
use std::time::Duration;

use oci_bundles::layout::{Layout, Shape};
use tokio::time::timeout;

use super::beside::{beside, beside_or_back, beside_within};
use super::clear::{remove_empty, remove_tree, renew, settle_earlier};
use super::steps::DEADLINE_MIN;
use super::target::Target;
use super::{DumpCause, Dumping, commit, mark};
use crate::criu::{manifest, work};

/// How long a client waits for the removal of what a failed dump has written; one that paused the container resumes it only then.
/// A disk that hangs may take longer: then it is removed when the disk answers.
const REMOVE_LIMIT: Duration = Duration::from_secs(5);

impl Dumping<'_> {
    pub(super) async fn prepare_directories(&mut self) -> Result<(), DumpCause> {
        let options = &self.job.options;
        let (images, exclusive) = (options.image_path.clone(), options.new_directory);
        let (staging, staged) = (self.staging.clone(), self.staged());
        let prepare = move || {
            settle_earlier(&images)?;
            match staging.shape() {
                Shape::Nested => commit::prepare_nested(&staging, &images),
                Shape::Flat => {
                    let target = Target::claim(&images, exclusive)?;
                    commit::check_target(&images)?;
                    if staged {
                        renew(staging.root())?;
                    }
                    Ok(target)
                }
            }
        };
        let bundle = &self.job.bundle;
        // Before anything is made there.
        mark::set(bundle, &self.job.options.image_path).map_err(DumpCause::files("write in", bundle))?;
        self.target = Some(match self.job.was_paused {
            true => {
                let (staged, staging, images) = self.places();
                let remove = move |target| drop(remove_made(&target, staged, &staging, &images));
                beside_or_back(self.time_at_disk(), self.staging.root(), prepare, remove).await?
            }
            false => beside(self.staging.root(), prepare).await?,
        });
        if self.staging.shape() == Shape::Nested {
            self.write_portable().await?;
        }
        work::make(&self.work, self.owns_work()).map_err(DumpCause::files("make", &self.work))
    }

    pub(super) async fn remove_directories(&mut self) -> Result<(), DumpCause> {
        let work = work::remove_after_kill(&self.work, self.owns_work())
            .map_err(DumpCause::files("remove what criu left in", &self.work));
        if self.holds_only_copy() {
            self.kept = Some(self.keep().await);
            return work;
        }
        let memory = self.leave_memory();
        // Without a target nothing was made, and what is there is another's; or it is still being made, and the mark tells where.
        let removed = match self.target.take() {
            None => Ok(()),
            Some(target) => {
                let (staged, staging, images) = self.places();
                let remove = move || remove_made(&target, staged, &staging, &images);
                let removed = beside_within(REMOVE_LIMIT, self.staging.root(), remove).await;
                removed.inspect(|()| mark::clear(&self.job.bundle))
            }
        };
        all_of([work, memory, removed])
    }

    /// Whether the dump is staged, where, and where it is to go.
    fn places(&self) -> (bool, Layout, PathBuf) {
        let images = self.job.options.image_path.clone();
        (self.staged(), self.staging.clone(), images)
    }

    /// Returns where it is: the archive, if there is one, since the pages are only in there.
    async fn keep(&mut self) -> PathBuf {
        if self.packed.is_some() {
            return self.keep_archive().await;
        }
        // A CRIU that did not ask, and a disk that did not take them: once more.
        let limit = self.time_at_disk();
        if !matches!(timeout(limit, self.move_images()).await, Ok(Ok(()))) {
            return self.criu_images();
        }
        match self.staged() {
            true => commit::keep(&self.staging, &self.job.options.image_path, self.job.init_pid),
            false => self.staging.root().to_owned(),
        }
    }

    /// How long a disk is waited for while the container stands, which it may from the beginning.
    pub(super) fn time_at_disk(&self) -> Duration {
        match self.deadline {
            Duration::ZERO => DEADLINE_MIN,
            known => known,
        }
    }

    /// Whether CRIU has ended the container as it was told to: its images are all that is left of the application.
    fn holds_only_copy(&self) -> bool {
        self.exits() && (self.saved || self.agreed || self.ended() && commit::is_written(&self.staging))
    }

    pub(super) async fn commit(&mut self) -> Result<(), DumpCause> {
        if !self.staged() {
            return self.write_manifest_beside().await;
        }
        if self.packed.is_some() {
            return self.commit_archive().await;
        }
        let (_, staging, images) = self.places();
        let target = self.target.take();
        let place = move || Ok((commit::into_place(&staging, &images), target));
        let (placed, target) = if self.job.was_paused && !self.exits() {
            // A client that has paused it may wait for the answer to resume it. What has been begun must not be taken back beside itself,
            // so the target is gone with it.
            let placed = timeout(self.deadline, beside(self.staging.root(), place)).await;
            placed.unwrap_or_else(|_| Err(self.is_late_in_place()))?
        } else {
            beside(self.staging.root(), place).await?
        };
        self.target = target;
        placed
    }

    fn is_late_in_place(&self) -> DumpCause {
        let (images, limit) = (self.job.options.image_path.display(), self.deadline.as_secs());
        DumpCause::TimedOut(format!(
            "move the dump, which is complete, to {images} within {limit} s: it gets there when its disk answers"
        ))
    }

    /// Writes the manifest beside the shim's only thread, while the container stands: a disk that hangs must not keep it so.
    pub(super) async fn write_manifest_beside(&self) -> Result<(), DumpCause> {
        let (root, manifest) = (self.staging.root().to_owned(), self.manifest.clone());
        let write = move || {
            manifest::write(&root, &manifest).map_err(DumpCause::files("write the manifest in", &root))
        };
        beside_within(self.deadline, self.staging.root(), write).await
    }
}

/// What comes first of these is told to the client, the others in the log.
fn all_of(results: [Result<(), DumpCause>; 3]) -> Result<(), DumpCause> {
    let mut failures = results.into_iter().filter_map(Result::err);
    let first = failures.next();
    failures.for_each(|error| tracing::warn!(%error, "what a failed dump has left stays"));
    first.map_or(Ok(()), Err)
}

/// Removes what was made for a dump, as long as nobody else has the place.
fn remove_made(target: &Target, staged: bool, staging: &Layout, images: &Path) -> Result<(), DumpCause> {
    if staged || target.made {
        remove_tree(staging.root())?;
    }
    // A nested one gets its directory with the commit.
    match staged && target.made && staging.shape() == Shape::Flat {
        true => remove_empty(images),
        false => Ok(()),
    }
}
