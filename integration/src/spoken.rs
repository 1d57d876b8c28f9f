//! Containers of the Task API that are spoken to, line by line, and dumped and restored by it.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use crate::container::Container;
use crate::host::Host;
use crate::messages as msg;
use crate::stdio::{Fifos, Output, StreamNames};
use crate::task_api::Answer;
use crate::workload::Workload;

/// How the type of a dump in the content store ends.
const DUMP_TYPE: &str = "checkpoint.criu.tar";

/// A shell that answers each line with the number of lines so far, and the line.
pub fn counter() -> Workload {
    Workload::shell("n=0; while read line; do n=$((n+1)); echo $n $line; done")
}

/// The options of a create that restores from a path.
pub fn from_path(images: &Path) -> msg::RuncOptions {
    msg::RuncOptions {
        criu_image_path: images.display().to_string(),
        ..Default::default()
    }
}

/// A running container with its stdin and stdout.
#[derive(Debug)]
pub struct Spoken {
    /// The container.
    pub container: Container,
    stdin: File,
    stdout: Output,
}

impl Spoken {
    /// Creates and starts the container.
    ///
    /// # Errors
    /// It does not run.
    pub fn run(container: Container) -> Result<Self> {
        Self::create(container, |container, names| container.create_with(names, None))
    }

    /// Creates and starts the container from a dump in the content store.
    ///
    /// # Errors
    /// It is not restored.
    pub fn restore(container: Container, dump: msg::Descriptor) -> Result<Self> {
        Self::create(container, |container, names| container.create_from(names, dump))
    }

    /// Creates and starts the container from a dump at a path.
    ///
    /// # Errors
    /// It is not restored.
    pub fn restore_from(container: Container, images: &Path) -> Result<Self> {
        Self::create(container, |container, names| {
            container.create_with(names, Some(&from_path(images)))
        })
    }

    fn create(
        container: Container,
        create: impl FnOnce(&Container, &StreamNames) -> Answer<u32>,
    ) -> Result<Self> {
        let fifos = new_fifos(&container)?;
        let (stdout, _stderr) = fifos.read();
        let created = create(&container, &fifos.names(container.has_terminal()))?;
        let started = container.start()?;
        // Containerd's own shim restores in Start, and says 0 before.
        ensure!(
            created == 0 || created == started,
            "pid {created} at create, {started} at start"
        );
        Ok(Self {
            stdin: fifos.stdin()?,
            container,
            stdout,
        })
    }

    /// Sends a line and waits for the answer.
    ///
    /// # Errors
    /// Another answer, or none.
    pub fn says(&self, line: &str, answer: &str) -> Result<()> {
        writeln!(&self.stdin, "{line}")?;
        self.stdout.wait_for(answer)
    }
}

/// Dumps by `ctr tasks checkpoint`, kills the container and deletes the task: what works under any runtime's name and
/// with any containerd.
///
/// # Errors
/// The dump fails or the task does not end.
pub fn dump_and_kill(host: &Host, container: &Container) -> Result<msg::Descriptor> {
    let printed = host.ctr(&["tasks", "checkpoint", container.id()])?.ok()?;
    let _status = container.kill_and_delete()?;
    dump_in(host, &printed)
}

/// The dump in the image that `ctr tasks checkpoint` made, whose name it prints.
///
/// # Errors
/// There is no such image, or no dump in it.
pub fn dump_in(host: &Host, printed: &str) -> Result<msg::Descriptor> {
    let name = printed.lines().next().context("no name of an image printed")?;
    let images = host.ctr(&["images", "list"])?.ok()?;
    let line = images
        .lines()
        .find(|line| line.starts_with(name))
        .with_context(|| format!("no {name} in {images}"))?;
    let digest = line
        .split_whitespace()
        .nth(2)
        .with_context(|| format!("no digest in {line}"))?;
    let index: Index = serde_json::from_str(&host.ctr(&["content", "get", digest])?.ok()?)?;
    let dump = index
        .manifests
        .into_iter()
        .find(|part| part.media_type.ends_with(DUMP_TYPE));
    let Part {
        media_type,
        digest,
        size,
    } = dump.with_context(|| format!("no dump in {name}"))?;
    Ok(msg::Descriptor {
        media_type,
        digest,
        size,
    })
}

/// An OCI index, as far as it matters here.
#[derive(Deserialize)]
struct Index {
    manifests: Vec<Part>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Part {
    media_type: String,
    digest: String,
    size: i64,
}

/// Dumps by the Task API to a path, which it returns, and deletes the task that the dump ended.
///
/// # Errors
/// The dump fails or the task does not end.
pub fn dump_to_path_with_exit(container: &Container) -> Result<PathBuf> {
    let images = container.scratch("images");
    let options = msg::CheckpointOptions {
        exit: true,
        image_path: images.display().to_string(),
        ..Default::default()
    };
    let _nothing = container.api().checkpoint(container.id(), Some(&options))?;
    let _status = container.wait()?;
    let _status = container.delete()?;
    Ok(images)
}

/// Fifos under a name that no earlier run of the container used.
fn new_fifos(container: &Container) -> Result<Fifos> {
    let mut run = 0;
    loop {
        let name = format!("run-{run}");
        match container.fifos(&name) {
            Err(error) if is_taken(&error) => run += 1,
            made => return made,
        }
    }
}

fn is_taken(error: &anyhow::Error) -> bool {
    error.downcast_ref::<nix::Error>() == Some(&nix::Error::EEXIST)
}
