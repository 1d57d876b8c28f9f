//! Containers of the Task API that are spoken to, line by line, and dumped and restored by it.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::container::Container;
use crate::host::Host;
use crate::messages as msg;
use crate::stdio::{Fifos, Output, StreamNames};
use crate::task_api::Answer;
use crate::workload::Workload;

/// How the type of a dump in the content store ends.
pub const DUMP_TYPE: &str = "checkpoint.criu.tar";

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

/// Dumps by the Task API into the content store, and deletes the task that the dump ended.
///
/// # Errors
/// The dump fails or the task does not end.
pub fn dump_with_exit(host: &Host, container: &Container) -> Result<msg::Descriptor> {
    let options = msg::CheckpointOptions {
        exit: true,
        ..Default::default()
    };
    let parts = container.api().checkpoint(container.id(), Some(&options))?;
    let dump = parts
        .into_iter()
        .find(|part| part.media_type.ends_with(DUMP_TYPE));
    let dump = dump.context("no dump among what the checkpoint left in the content store")?;
    // Nothing refers to it yet, and what nothing refers to is collected as garbage.
    let _said = host
        .ctr(&["content", "label", &dump.digest, "containerd.io/gc.root=test"])?
        .ok()?;
    let _status = container.wait()?;
    let _status = container.delete()?;
    Ok(dump)
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
