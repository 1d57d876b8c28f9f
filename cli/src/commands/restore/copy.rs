//! Another container like one that is there: what a checkpoint is restored into under a new id.

use jobs::record::NAME_ANNOTATION;
use serde_json::Value;

use super::engine::is_ours;
use crate::engines::RUNTIME;
use crate::engines::containerd::{Container, Containerd};
use crate::error::Error;

/// Labels of clients that keep books of their own, which another container would not be in.
const KEEPERS: [(&str, &str); 2] = [
    ("nerdctl/name", "nerdctl"),
    ("io.cri-containerd.kind", "Kubernetes"),
];

/// Makes a container of that id like another one, with the file system of its image.
///
/// # Errors
/// The other one belongs to a client that must make it, or containerd does not do it. Then nothing is left.
pub async fn create(engine: &Containerd, like: &Container, id: &str) -> Result<Container, Error> {
    if let Some((_, keeper)) = KEEPERS.iter().find(|(label, _)| like.labels.contains_key(*label)) {
        return Err(Error::unsupported(format!(
            "{} belongs to {keeper}, which must make the container {id} itself",
            like.id
        )));
    }
    if like.snapshot.is_empty() {
        return Err(Error::unsupported(format!(
            "{} runs from a directory, which two containers cannot share",
            like.id
        )));
    }
    let mut spec = like.spec()?;
    rename(&mut spec, &like.id, id);
    let mut container = like.copy(id, &spec, id)?;
    if !is_ours(&container.runtime) && container.runtime.is_empty() {
        container.runtime = RUNTIME.to_owned();
    }
    // The record first: containerd collects a file system that no record names.
    engine.create_container(&container).await?;
    match engine
        .prepare_beside(&container.snapshotter, &like.snapshot, id)
        .await
    {
        Ok(()) => Ok(container),
        Err(error) => Err(match engine.delete_container(id).await {
            Ok(()) => error,
            Err(second) => Error::new(
                error.kind,
                format!("{}; and then {}", error.message, second.message),
            ),
        }),
    }
}

/// Removes what [`create`] made, and returns the cause with what went wrong besides.
pub async fn undo(engine: &Containerd, container: &Container, mut cause: Error) -> Error {
    let record = engine.delete_container(&container.id).await;
    let snapshot = engine
        .remove_snapshot(&container.snapshotter, &container.snapshot)
        .await;
    for error in [record, snapshot].into_iter().filter_map(Result::err) {
        cause.message = format!("{}; and then {}", cause.message, error.message);
    }
    cause
}

/// Puts a new id where clients put the old one: a cgroup belongs to one container.
fn rename(spec: &mut Value, old: &str, new: &str) {
    if let Some(Value::String(path)) = spec.pointer_mut("/linux/cgroupsPath")
        && let Some(parent) = path.strip_suffix(old)
        && parent.ends_with(['/', ':'])
    {
        *path = format!("{parent}{new}");
    }
    if let Some(Value::Object(annotations)) = spec.pointer_mut("/annotations") {
        let _ = annotations.remove(NAME_ANNOTATION);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cgroup_follows_the_id_and_the_jobs_name_does_not() {
        for (path, expected) in [
            ("/default/web", "/default/copy"),
            ("system.slice:containerd:web", "system.slice:containerd:copy"),
            ("/web/else", "/web/else"),
            ("/default/myweb", "/default/myweb"),
        ] {
            let mut spec = serde_json::json!({
                "linux": { "cgroupsPath": path },
                "annotations": { "cedana.job": "web", "cedana.dump.tcp": "close" },
            });
            rename(&mut spec, "web", "copy");
            let expected = serde_json::json!({
                "linux": { "cgroupsPath": expected },
                "annotations": { "cedana.dump.tcp": "close" },
            });
            assert_eq!(spec, expected);
        }
        let mut bare = serde_json::json!({});
        rename(&mut bare, "a", "b");
        assert_eq!(bare, serde_json::json!({}));
    }
}
