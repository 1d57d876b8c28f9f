//! A container whose program is the hog (`src/bin/hog.rs`): much memory, and a tick each millisecond.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::ctr::{NAMESPACE, remove};
use super::figure::Side;
use crate::messages as msg;
use crate::stdio::{Fifos, Output};
use crate::task_api::{TaskApi, json_any};
use crate::workload::{Workload, lay_rootfs};

const SOCKET: &str = "/run/containerd/containerd.sock";
const SPEC_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/Spec";
/// The libraries of the machine, which the program needs in its container.
pub(super) const LIBRARIES: [(&str, &str); 2] = [
    ("/usr/lib/x86_64-linux-gnu", "/lib/x86_64-linux-gnu"),
    ("/usr/lib64", "/lib64"),
];

/// A running hog; dropped, it is killed and forgotten.
#[derive(Debug)]
pub struct Hog {
    api: TaskApi,
    /// Its id.
    pub id: String,
    /// The pid of its init, in our pid namespace.
    pub pid: u32,
    stdin: File,
    stdout: Output,
    answers: u64,
}

impl Hog {
    /// Starts one with so many MiB of this content, and waits until they are filled. `dir` takes its root and its fifos.
    ///
    /// # Errors
    /// It cannot be run.
    pub fn start(dir: &Path, side: Side, name: &str, mib: u32, content: &str) -> Result<Self> {
        let id = format!("{name}-{}", side.word());
        let rootfs = dir.join(format!("rootfs-{}", side.word()));
        lay_rootfs(&rootfs)?;
        let fifos = Fifos::make(&dir.join(format!("fifos-{}", side.word())))?;
        let (stdout, _stderr) = fifos.read();
        // Both ways, so that opening does not wait for a reader.
        let stdin = File::options().read(true).write(true).open(fifos.path("stdin"))?;
        let api = TaskApi::new(Path::new(SOCKET), NAMESPACE)?;
        api.create_container(msg::ContainerRecord {
            id: id.clone(),
            runtime: Some(msg::Runtime {
                name: side.runtime().to_owned(),
                options: None,
            }),
            spec: Some(json_any(SPEC_TYPE, &spec(&id, mib, content)?)),
            ..Default::default()
        })?;
        let mut hog = Self {
            api,
            id: id.clone(),
            pid: 0,
            stdin,
            stdout,
            answers: 0,
        };
        let names = fifos.names(false);
        hog.pid = hog.api.create(msg::CreateTaskRequest {
            container_id: id.clone(),
            rootfs: vec![msg::Mount {
                r#type: "bind".to_owned(),
                source: rootfs.display().to_string(),
                target: String::new(),
                options: vec!["rbind".to_owned(), "rw".to_owned()],
            }],
            stdin: names.stdin,
            stdout: names.stdout,
            stderr: names.stderr,
            ..Default::default()
        })?;
        let _pid = hog.api.start(&id, "")?;
        hog.stdout
            .wait_for("ready\n")
            .context("wait until the memory is filled")?;
        Ok(hog)
    }

    /// The largest time between two ticks since it was last asked, in milliseconds.
    ///
    /// # Errors
    /// It does not answer.
    pub fn gap(&mut self) -> Result<f64> {
        self.answers += 1;
        let answer = format!("gap {} ", self.answers);
        self.stdin.write_all(b"gap\n").context("ask for the gap")?;
        self.stdout.wait_for(&answer)?;
        let text = self.stdout.text();
        let (_, rest) = text.rsplit_once(&answer).context("the gap it said")?;
        let microseconds: f64 = rest
            .trim()
            .parse()
            .with_context(|| format!("a gap in {rest:?}"))?;
        Ok(microseconds / 1000.0)
    }

    /// Dumps it into this directory while it runs on, as containerd's service does it for any client.
    ///
    /// # Errors
    /// The dump fails.
    pub fn checkpoint(&self, images: &Path) -> Result<()> {
        let options = msg::CheckpointOptions {
            image_path: images.display().to_string(),
            ..Default::default()
        };
        let _descriptors = self.api.checkpoint(&self.id, Some(&options))?;
        Ok(())
    }
}

impl Drop for Hog {
    fn drop(&mut self) {
        remove(&self.id);
    }
}

fn spec(id: &str, mib: u32, content: &str) -> Result<Value> {
    let args = ["/hog".to_owned(), mib.to_string(), content.to_owned()];
    let mut spec = Workload::command(args).spec(NAMESPACE, id);
    let program = std::env::current_exe()?.with_file_name("hog");
    let bind = |source: &str, destination: &str| json!({"destination": destination, "type": "bind", "source": source, "options": ["rbind", "ro"]});
    let mounts = spec.get_mut("mounts").and_then(Value::as_array_mut);
    let mounts = mounts.context("mounts in the spec")?;
    mounts.push(bind(&program.display().to_string(), "/hog"));
    mounts.extend(LIBRARIES.iter().map(|(source, target)| bind(source, target)));
    Ok(spec)
}
