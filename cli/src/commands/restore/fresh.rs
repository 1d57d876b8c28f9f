//! A new container for a checkpoint whose own container is not here: another tool's, or another machine's.
//!
//! ```text
//!   image             --ctr--> a container as ctr makes it: its devices, namespaces, capabilities, cgroup
//!   spec.dump         --wishes--> what it runs and sees, as far as that gives it nothing of this machine
//! ```
//!
//! A checkpoint may come from anywhere, so what it says is taken as a wish: see [`wishes`].

mod wishes;

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use oci_bundles::checkpoint;
use oci_bundles::layout::Extra;
use oci_bundles::podman::{self, Foreign};
use serde_json::Value;

use crate::engines::containerd::{Container, Containerd};
use crate::engines::{RUNTIME, client};
use crate::error::Error;

/// Unpacking a large image takes its time.
const CREATE_LIMIT: Duration = Duration::from_secs(600);

/// What a checkpoint says of its container, and what the user says.
#[derive(Debug, Default)]
pub struct Wanted {
    /// The image's name.
    pub image: Option<String>,
    /// The network namespace that it gets, if it is to have one that is there.
    pub network: Option<std::path::PathBuf>,
    /// Its `config.json`, if the checkpoint has it.
    spec: Option<Value>,
}

impl Wanted {
    /// Reads what the checkpoint in a directory says. The user's image wins.
    ///
    /// # Errors
    /// One of its files is damaged.
    pub fn read(directory: &Path, image: Option<&str>, network: Option<&Path>) -> Result<Self, Error> {
        let damaged = |extra: Extra, source: serde_json::Error| {
            Error::failed(format!(
                "failed to read {} of {}: {source}",
                extra.name(),
                directory.display()
            ))
        };
        let read = |extra| checkpoint::extra(directory, extra, podman::BYTES_MAX);
        let known = match read(Extra::Config)? {
            Some(text) => Foreign::parse(&text).map_err(|source| damaged(Extra::Config, source))?,
            None => Foreign::default(),
        };
        let spec: Option<Value> = read(Extra::Spec)?
            .map(|text| serde_json::from_slice(&text))
            .transpose()
            .map_err(|source| damaged(Extra::Spec, source))?;
        if let Some(wished) = &spec {
            wishes::check(wished).map_err(|source| damaged(Extra::Spec, source))?;
        }
        let named = Some(known.image).filter(|name| !name.is_empty());
        Ok(Self {
            image: image.map(str::to_owned).or(named),
            network: network.map(Path::to_owned),
            spec,
        })
    }
}

/// Makes the container.
///
/// # Errors
/// The image is not there, `ctr` cannot make it, or the checkpoint needs what it may not ask for. Nothing is left then.
pub async fn create(engine: &Containerd, id: &str, image: &str, wanted: &Wanted) -> Result<Container, Error> {
    if engine.image(image).await?.is_none() {
        let namespace = engine.namespace();
        return Err(Error::not_found(format!(
            "the checkpoint is of image {image}, which containerd does not have (namespace {namespace})"
        ))
        .hint(format!(
            "pull or import it: ctr -n {namespace} images pull {image}; one of another name is given with --image"
        )));
    }
    let mut command = Command::new("ctr");
    let _ = command
        .arg("--address")
        .arg(engine.address())
        .args(["--namespace", engine.namespace(), "containers", "create"])
        .args(["--runtime", RUNTIME, image, id]);
    let _made = client(command, CREATE_LIMIT).await?;
    let made = engine
        .container(id)
        .await?
        .ok_or_else(|| Error::tool(format!("ctr made no container {id}")))?;
    match adapt(engine, &made, wanted).await {
        Ok(adapted) => Ok(adapted),
        Err(error) => Err(super::copy::undo(engine, &made, error).await),
    }
}

/// Grants the wishes that can be granted.
async fn adapt(engine: &Containerd, made: &Container, wanted: &Wanted) -> Result<Container, Error> {
    let mut spec = made.spec()?;
    if let Some(wished) = &wanted.spec {
        wishes::grant(&mut spec, wished).map_err(|problem| {
            Error::unsupported(format!("the checkpoint cannot be restored into a new container: {problem}"))
                .hint("make the container with what it needs, unstarted (ctr containers create …), and name it: --id ID")
        })?;
    }
    if let Some(network) = &wanted.network {
        wishes::join_network(&mut spec, network);
    }
    let adapted = made.copy(&made.id, &spec, &made.snapshot)?;
    engine.update_spec(&adapted).await?;
    Ok(adapted)
}
