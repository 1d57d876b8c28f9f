//! What the engines call their containers: asked once for each, and only for what is new.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::time::Duration;

use jobs::record::Key;
use jobs::registry::{EngineKind, Enrichment, Registry};
use serde_json::Value;

use crate::engines::containerd::{Container, Containerd};
use crate::engines::{docker, nerdctl};
use crate::error::Error;

/// A list takes milliseconds. An engine that is stuck must not hold up the list of jobs: names can wait for the next call.
const ENGINE: Duration = Duration::from_millis(300);

/// The labels by which a kubelet's runtime names its containers.
const POD: &str = "io.kubernetes.pod.name";
const POD_CONTAINER: &str = "io.kubernetes.container.name";

/// The annotations by which containerd's CRI names them, also such as no kubelet made: those of `crictl`.
const CRI_POD: &str = "io.kubernetes.cri.sandbox-name";
const CRI_CONTAINER: &str = "io.kubernetes.cri.container-name";

/// What the engine of one namespace knows, by id.
type Known = HashMap<String, Enrichment>;

/// Asks the engines of all jobs of which they have not been asked.
///
/// # Errors
/// The registry does not work.
pub async fn enrich(registry: &mut Registry) -> Result<(), Error> {
    let mut wanted: BTreeMap<(PathBuf, String), Vec<Key>> = BTreeMap::new();
    for key in registry.unenriched()? {
        let place = (key.engine.clone(), key.namespace.clone());
        wanted.entry(place).or_default().push(key);
    }
    for ((engine, namespace), keys) in wanted {
        // An engine that does not answer is asked again by the next call.
        let Ok(Ok(known)) = tokio::time::timeout(ENGINE, ask(&engine, &namespace)).await else {
            continue;
        };
        for key in keys {
            let found = known.get(&key.id).cloned().unwrap_or_default();
            registry.enrich(&key, &found)?;
        }
    }
    Ok(())
}

async fn ask(engine: &Path, namespace: &str) -> Result<Known, Error> {
    if namespace == docker::NAMESPACE {
        let of_docker = |(id, container): (String, docker::Container)| {
            (
                id,
                enrichment(EngineKind::Docker, container.name, container.image),
            )
        };
        let containers = docker::Docker::of_environment()?.containers().await?;
        return Ok(containers.into_iter().map(of_docker).collect());
    }
    let of_containerd = |container: Container| {
        let (kind, name) = match named(namespace, &container.labels) {
            (EngineKind::Cri, name) if name.is_empty() => (EngineKind::Cri, annotated(&container)),
            named => named,
        };
        (container.id, enrichment(kind, name, container.image))
    };
    let containers = Containerd::connect(engine, namespace).await?.containers().await?;
    Ok(containers.into_iter().map(of_containerd).collect())
}

fn named(namespace: &str, labels: &HashMap<String, String>) -> (EngineKind, String) {
    if let Some(name) = labels.get(nerdctl::NAME_LABEL) {
        return (EngineKind::Nerdctl, name.clone());
    }
    if let (Some(pod), Some(container)) = (labels.get(POD), labels.get(POD_CONTAINER)) {
        return (EngineKind::Cri, format!("{pod}/{container}"));
    }
    (EngineKind::of_namespace(namespace), String::new())
}

/// What the annotations in its spec call a container of a pod; empty for a pause container, which has only the pod's name.
fn annotated(container: &Container) -> String {
    let Ok(spec) = container.spec() else {
        return String::new();
    };
    in_pod(&spec)
}

fn in_pod(spec: &Value) -> String {
    let annotation = |name: &str| spec.get("annotations")?.get(name)?.as_str();
    match (annotation(CRI_POD), annotation(CRI_CONTAINER)) {
        (Some(pod), Some(container)) => format!("{pod}/{container}"),
        _ => String::new(),
    }
}

fn enrichment(engine: EngineKind, name: String, image: String) -> Enrichment {
    Enrichment {
        engine_name: Some(engine),
        name: Some(name).filter(|name| !name.is_empty()),
        image: Some(image).filter(|image| !image.is_empty()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn clients_keep_their_names_in_labels() {
        for (namespace, labels, engine, name) in [
            ("default", &[][..], EngineKind::Containerd, ""),
            ("default", &[("nerdctl/name", "web")], EngineKind::Nerdctl, "web"),
            (
                "k8s.io",
                &[(POD, "shop"), (POD_CONTAINER, "db")],
                EngineKind::Cri,
                "shop/db",
            ),
            ("k8s.io", &[(POD, "shop")], EngineKind::Cri, ""),
        ] {
            let labels = labels
                .iter()
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                .collect();
            assert_eq!(named(namespace, &labels), (engine, name.to_owned()));
        }
    }

    #[test]
    fn containers_that_no_kubelet_made_have_names_in_their_specs() {
        for (spec, name) in [
            (
                json!({"annotations": {CRI_POD: "shop", CRI_CONTAINER: "db"}}),
                "shop/db",
            ),
            (json!({"annotations": {CRI_POD: "shop"}}), ""),
            (json!({"annotations": {CRI_POD: 7, CRI_CONTAINER: "db"}}), ""),
            (json!({}), ""),
        ] {
            assert_eq!(in_pod(&spec), name, "{spec}");
        }
    }
}
