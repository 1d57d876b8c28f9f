//! Images: what containerd has under a name, as far down as the configuration for this machine.

use containerd_client::services::v1::{GetImageRequest, ReadContentRequest};
use serde::Deserialize;

use super::{CALL_LIMIT, Containerd, optional};
use crate::error::{Error, Kind};

/// The largest description that is read: an index, a manifest or a configuration has some KiB.
const DESCRIPTION_BYTES_MAX: usize = 4 << 20;

/// An index may list indexes. Nobody nests them deeper.
const DEPTH_MAX: usize = 4;

/// An image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// The digest of what its name stands for: a manifest, or an index of several.
    pub digest: String,
    /// The digest of its configuration on this machine: what Docker and podman call its id.
    pub id: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Description {
    manifests: Vec<Descriptor>,
    config: Option<Descriptor>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Descriptor {
    digest: String,
    platform: Option<Platform>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Platform {
    architecture: String,
    os: String,
}

impl Platform {
    fn is_here(&self) -> bool {
        // As Go calls them.
        let here = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        self.os == "linux" && self.architecture == here
    }
}

impl Containerd {
    /// The image of a name; none if there is none.
    ///
    /// # Errors
    /// containerd does not answer, or what describes the image is not there.
    pub async fn image(&self, name: &str) -> Result<Option<Image>, Error> {
        let message = GetImageRequest {
            name: name.to_owned(),
        };
        let request = self.request(message, CALL_LIMIT);
        let act = format!("find image {name}");
        let mut client = self.client.images();
        let answer = optional(self.answer(&act, CALL_LIMIT, client.get(request)).await)?;
        let target = answer
            .and_then(|answer| answer.image)
            .and_then(|image| image.target);
        let Some(target) = target else {
            return Ok(None);
        };
        let id = self.configuration(&target.digest).await?;
        Ok(Some(Image {
            digest: target.digest,
            id,
        }))
    }

    /// The digest of the configuration below a manifest or an index.
    async fn configuration(&self, digest: &str) -> Result<String, Error> {
        let mut next = digest.to_owned();
        for _ in 0..DEPTH_MAX {
            let text = self.content(&next).await?;
            let description: Description = serde_json::from_slice(&text)
                .map_err(|source| Error::tool(format!("failed to read {next} of an image: {source}")))?;
            match (description.config, here(description.manifests)) {
                (Some(config), _) => return Ok(config.digest),
                (None, Some(manifest)) => next = manifest.digest,
                (None, None) => break,
            }
        }
        Err(Error::new(
            Kind::Unsupported,
            format!("{digest} is no image for this machine"),
        ))
    }

    /// A small blob.
    async fn content(&self, digest: &str) -> Result<Vec<u8>, Error> {
        let act = format!("read {digest}");
        let message = ReadContentRequest {
            digest: digest.to_owned(),
            ..ReadContentRequest::default()
        };
        let request = self.request(message, CALL_LIMIT);
        let mut client = self.client.content();
        let mut stream = self.answer(&act, CALL_LIMIT, client.read(request)).await?;
        let mut text = Vec::new();
        // The whole call has a deadline, of its request.
        while let Some(piece) = stream
            .message()
            .await
            .map_err(|status| self.refused(&act, &status))?
        {
            text.extend_from_slice(&piece.data);
            if text.len() > DESCRIPTION_BYTES_MAX {
                return Err(Error::failed(format!("failed to {act}: it describes no image")));
            }
        }
        Ok(text)
    }
}

/// The manifest for this machine; the only one, if it does not say for which.
fn here(mut manifests: Vec<Descriptor>) -> Option<Descriptor> {
    let is_here = |manifest: &Descriptor| manifest.platform.as_ref().is_some_and(Platform::is_here);
    if let Some(place) = manifests.iter().position(is_here) {
        return Some(manifests.swap_remove(place));
    }
    match manifests.as_slice() {
        [only] if only.platform.is_none() => manifests.pop(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(digest: &str, platform: Option<(&str, &str)>) -> Descriptor {
        Descriptor {
            digest: digest.to_owned(),
            platform: platform.map(|(os, architecture)| Platform {
                architecture: architecture.to_owned(),
                os: os.to_owned(),
            }),
        }
    }

    #[test]
    fn the_manifest_is_the_one_for_this_machine() {
        let ours = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            _ => "arm64",
        };
        let digest = |manifests: Vec<Descriptor>| here(manifests).map(|one| one.digest);
        let other = manifest("sha256:1", Some(("linux", "s390x")));
        let mine = manifest("sha256:2", Some(("linux", ours)));
        let bare = manifest("sha256:3", None);
        assert_eq!(digest(vec![other.clone(), mine]).as_deref(), Some("sha256:2"));
        assert_eq!(digest(vec![bare.clone()]).as_deref(), Some("sha256:3"));
        assert_eq!(digest(vec![other.clone()]), None);
        assert_eq!(digest(vec![bare, other]), None);
    }
}
