//! The image of a job, for its checkpoint to remember: the shim knows only a root file system.

use std::time::Duration;

use jobs::registry::Job;
use jobs::wire::Image;

use crate::engines::containerd::Containerd;
use crate::engines::docker::{self, Docker};
use crate::error::Error;

/// The engine answers within milliseconds. A dump does not wait for one that does not: a checkpoint without an image is one too.
const LIMIT: Duration = Duration::from_secs(2);

/// What its engine says; none if it does not, or if the job runs from a directory.
pub async fn of(job: &Job) -> Option<Image> {
    match tokio::time::timeout(LIMIT, ask(job)).await {
        Ok(Ok(image)) => image,
        Ok(Err(_)) | Err(_) => None,
    }
}

async fn ask(job: &Job) -> Result<Option<Image>, Error> {
    let key = &job.key;
    if key.namespace == docker::NAMESPACE {
        let image = Docker::of_environment()?.image(&key.id).await?;
        return Ok(Some(Image {
            name: image.name,
            id: image.id,
            digest: String::new(),
        }));
    }
    let engine = Containerd::connect(&key.engine, &key.namespace).await?;
    let Some(container) = engine.container(&key.id).await? else {
        return Ok(None);
    };
    if container.image.is_empty() {
        return Ok(None);
    }
    let known = engine.image(&container.image).await?;
    let known = known.map(|image| (image.digest, image.id)).unwrap_or_default();
    Ok(Some(Image {
        name: container.image,
        digest: known.0,
        id: known.1,
    }))
}
