//! Snapshots: the file systems of containers.

use containerd_client::services::v1::snapshots::{
    MountsRequest, PrepareSnapshotRequest, RemoveSnapshotRequest, StatSnapshotRequest,
};
use containerd_client::types::Mount;

use super::{CALL_LIMIT, Containerd, RUNTIME_LIMIT};
use crate::error::Error;

impl Containerd {
    /// How the file system of a container is mounted.
    ///
    /// # Errors
    /// It is gone, or containerd does not answer.
    pub(super) async fn mounts(&self, snapshotter: &str, key: &str) -> Result<Vec<Mount>, Error> {
        let message = MountsRequest {
            snapshotter: snapshotter.to_owned(),
            key: key.to_owned(),
        };
        let mut client = self.client.snapshots();
        let request = self.request(message, CALL_LIMIT);
        let act = format!("find file system {key}");
        Ok(self
            .answer(&act, CALL_LIMIT, client.mounts(request))
            .await?
            .mounts)
    }

    /// Makes a writable file system on what another one was made on: its image.
    ///
    /// # Errors
    /// The other one is gone, or there is one of that key.
    pub async fn prepare_beside(&self, snapshotter: &str, other: &str, key: &str) -> Result<(), Error> {
        let mut client = self.client.snapshots();
        let message = StatSnapshotRequest {
            snapshotter: snapshotter.to_owned(),
            key: other.to_owned(),
        };
        let request = self.request(message, CALL_LIMIT);
        let act = format!("find file system {other}");
        let answer = self.answer(&act, CALL_LIMIT, client.stat(request)).await?;
        let message = PrepareSnapshotRequest {
            snapshotter: snapshotter.to_owned(),
            key: key.to_owned(),
            parent: answer.info.map(|info| info.parent).unwrap_or_default(),
            ..PrepareSnapshotRequest::default()
        };
        let request = self.request(message, RUNTIME_LIMIT);
        let act = format!("make file system {key}");
        let _ = self.answer(&act, RUNTIME_LIMIT, client.prepare(request)).await?;
        Ok(())
    }

    /// Removes a file system.
    ///
    /// # Errors
    /// It is gone, or in use.
    pub async fn remove_snapshot(&self, snapshotter: &str, key: &str) -> Result<(), Error> {
        let message = RemoveSnapshotRequest {
            snapshotter: snapshotter.to_owned(),
            key: key.to_owned(),
        };
        let mut client = self.client.snapshots();
        let request = self.request(message, RUNTIME_LIMIT);
        let act = format!("remove file system {key}");
        self.answer(&act, RUNTIME_LIMIT, client.remove(request)).await
    }
}
