//! Whether a container is of the image that a checkpoint is of.

use jobs::registry::Job;
use jobs::wire;
use oci_bundles::manifest::Image;

use super::images::Images;
use crate::commands::dump;
use crate::error::Error;

/// Refuses a checkpoint of another image before anything is touched. Files of its own are what a program has open: of other ones CRIU tells
/// only those whose size or permissions differ.
///
/// # Errors
/// Both images are known, and differ.
pub async fn refuse_another(job: &Job, images: &Images) -> Result<(), Error> {
    let Some(saved) = images.image().filter(|saved| !saved.id.is_empty()) else {
        return Ok(());
    };
    match dump::image::of(job).await {
        Some(now) if differs(&saved, &now) => Err(Error::wrong_state(format!(
            "the checkpoint is of image {} ({}), and {} was made from {} ({})",
            saved.name, saved.id, job.name, now.name, now.id
        ))
        .hint("make a container of that image; if this one fits all the same: --skip-image-check")),
        _ => Ok(()),
    }
}

/// An engine may not tell.
fn differs(saved: &Image, now: &wire::Image) -> bool {
    !now.id.is_empty() && saved.id != now.id
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_known_differs_from_nothing() {
        let saved = Image {
            name: "a:1".to_owned(),
            digest: String::new(),
            id: "sha256:1".to_owned(),
        };
        for (id, differs_from) in [("sha256:1", false), ("sha256:2", true), ("", false)] {
            let now = wire::Image {
                name: "b:2".to_owned(),
                id: id.to_owned(),
                ..wire::Image::default()
            };
            assert_eq!(differs(&saved, &now), differs_from, "{id}");
        }
    }
}
