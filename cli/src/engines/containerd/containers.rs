//! Containers: containerd's records of them, which outlive tasks and reboots.

use std::collections::HashMap;

use containerd_client::services::v1::{
    self as api, CreateContainerRequest, DeleteContainerRequest, GetContainerRequest, ListContainersRequest,
    UpdateContainerRequest,
};
use prost_types::{Any, FieldMask, Timestamp};
use serde_json::Value;

use super::{CALL_LIMIT, Containerd, MESSAGE_BYTES_MAX, optional};
use crate::error::{Error, Kind};

/// A container's record.
#[derive(Debug, Clone, Default)]
pub struct Container {
    /// Its id.
    pub id: String,
    /// Its image; empty for one that runs from a directory.
    pub image: String,
    /// The name of its runtime.
    pub runtime: String,
    /// Its labels, in which clients keep their own names.
    pub labels: HashMap<String, String>,
    /// Who keeps its file system; empty for one that runs from a directory.
    pub snapshotter: String,
    /// Its file system there.
    pub snapshot: String,
    /// When its record was made, in milliseconds since 1970; zero if containerd does not say.
    pub created: u64,
    runtime_options: Option<Any>,
    spec: Option<Any>,
}

impl From<api::Container> for Container {
    fn from(raw: api::Container) -> Self {
        let (runtime, runtime_options) = raw
            .runtime
            .map(|runtime| (runtime.name, runtime.options))
            .unwrap_or_default();
        Self {
            id: raw.id,
            image: raw.image,
            runtime,
            labels: raw.labels,
            snapshotter: raw.snapshotter,
            snapshot: raw.snapshot_key,
            created: raw.created_at.map(ms).unwrap_or_default(),
            runtime_options,
            spec: raw.spec,
        }
    }
}

fn ms(at: Timestamp) -> u64 {
    let seconds = u64::try_from(at.seconds).unwrap_or_default();
    let rest = u64::try_from(at.nanos / 1_000_000).unwrap_or_default();
    seconds.saturating_mul(1000).saturating_add(rest)
}

impl Container {
    /// Its OCI spec.
    ///
    /// # Errors
    /// It has none, or none in JSON.
    pub fn spec(&self) -> Result<Value, Error> {
        let bytes = self
            .spec
            .as_ref()
            .map(|spec| spec.value.as_slice())
            .unwrap_or_default();
        serde_json::from_slice(bytes).map_err(|source| {
            Error::new(
                Kind::Unsupported,
                format!("failed to read the spec of {}: {source}", self.id),
            )
        })
    }

    /// The same container under another id, with another spec and file system.
    ///
    /// # Errors
    /// The spec cannot be written.
    pub fn copy(&self, id: &str, spec: &Value, snapshot: &str) -> Result<Self, Error> {
        let value = serde_json::to_vec(spec).map_err(|source| {
            Error::new(
                Kind::Failed,
                format!("failed to write the spec of {id}: {source}"),
            )
        })?;
        let type_url = self
            .spec
            .as_ref()
            .map(|spec| spec.type_url.clone())
            .unwrap_or_default();
        Ok(Self {
            id: id.to_owned(),
            snapshot: snapshot.to_owned(),
            spec: Some(Any { type_url, value }),
            ..self.clone()
        })
    }
}

impl Containerd {
    /// The containers of the namespace.
    ///
    /// # Errors
    /// containerd does not answer.
    pub async fn containers(&self) -> Result<Vec<Container>, Error> {
        let request = self.request(ListContainersRequest::default(), CALL_LIMIT);
        let mut client = self
            .client
            .containers()
            .max_decoding_message_size(MESSAGE_BYTES_MAX);
        let answer = self
            .answer("list containers", CALL_LIMIT, client.list(request))
            .await?;
        Ok(answer.containers.into_iter().map(Container::from).collect())
    }

    /// One container; none if there is none of that id.
    ///
    /// # Errors
    /// containerd does not answer.
    pub async fn container(&self, id: &str) -> Result<Option<Container>, Error> {
        let request = self.request(GetContainerRequest { id: id.to_owned() }, CALL_LIMIT);
        let mut client = self
            .client
            .containers()
            .max_decoding_message_size(MESSAGE_BYTES_MAX);
        let act = format!("look for container {id}");
        let answer = optional(self.answer(&act, CALL_LIMIT, client.get(request)).await)?;
        Ok(answer.and_then(|answer| answer.container).map(Container::from))
    }

    /// Makes a record.
    ///
    /// # Errors
    /// There is one of that id, or what it names is not there.
    pub async fn create_container(&self, container: &Container) -> Result<(), Error> {
        let container = container.clone();
        let act = format!("create container {}", container.id);
        let raw = api::Container {
            id: container.id,
            labels: container.labels,
            image: container.image,
            runtime: Some(api::container::Runtime {
                name: container.runtime,
                options: container.runtime_options,
            }),
            spec: container.spec,
            snapshotter: container.snapshotter,
            snapshot_key: container.snapshot,
            ..api::Container::default()
        };
        let request = self.request(CreateContainerRequest { container: Some(raw) }, CALL_LIMIT);
        let mut client = self.client.containers();
        let _ = self.answer(&act, CALL_LIMIT, client.create(request)).await?;
        Ok(())
    }

    /// Changes the spec of a record, which the next task is made of.
    ///
    /// # Errors
    /// There is none of that id, or containerd does not do it.
    pub async fn update_spec(&self, container: &Container) -> Result<(), Error> {
        let act = format!("change container {}", container.id);
        let message = UpdateContainerRequest {
            container: Some(api::Container {
                id: container.id.clone(),
                spec: container.spec.clone(),
                ..api::Container::default()
            }),
            update_mask: Some(FieldMask {
                paths: vec!["spec".to_owned()],
            }),
        };
        let request = self.request(message, CALL_LIMIT);
        let mut client = self.client.containers();
        let _ = self.answer(&act, CALL_LIMIT, client.update(request)).await?;
        Ok(())
    }

    /// Removes a record.
    ///
    /// # Errors
    /// There is none, or it has a task.
    pub async fn delete_container(&self, id: &str) -> Result<(), Error> {
        let request = self.request(DeleteContainerRequest { id: id.to_owned() }, CALL_LIMIT);
        let mut client = self.client.containers();
        let act = format!("delete container {id}");
        self.answer(&act, CALL_LIMIT, client.delete(request)).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_to_the_millisecond() {
        for (seconds, nanos, expected) in [
            (0, 0, 0),
            (7, 5_999_999, 7005),
            (-62_135_596_800, 0, 0),
            (i64::MAX, 999_999_999, u64::MAX),
        ] {
            assert_eq!(ms(Timestamp { seconds, nanos }), expected);
        }
    }
}
