//! One test's share of a machine with containerd: a containerd namespace of its own, and the proof at the end that
//! nothing is left of it.
//!
//! ```text
//! let host = Host::new()?;                              // own namespace, own scratch directory
//! let container = host.run(Workload::shell("exit 7"))?; // created and started
//! assert_eq!(container.wait()?, 7);
//! container.delete()?;
//! // drop(host): removes what the test left, fails it if the runtime left anything behind that
//! ```

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::container::{Container, runc_options, shim_socket};
use crate::daemon::Daemon;
use crate::engine::{self, Said};
use crate::events::Events;
use crate::leftovers::Places;
use crate::messages as msg;
use crate::messages::Status;
use crate::need;
use crate::stdio::{Output, StreamNames, eventually};
use crate::task_api::{Answer, TaskApi, json_any};
use crate::workload::{Workload, lay_rootfs};

/// The image that the testbed makes, and loads into containerd's namespace `default`.
pub const IMAGE: &str = "localhost/cedana/busybox:latest";

/// Where the testbed keeps it. (`ctr images export` from `default` gives a short archive now and then.)
const IMAGES: &str = "/usr/share/cedana-testbed/images.tar";

/// Where shims say what they know of their containers: in memory.
const LIVE_RECORDS: &str = "/run/cedana/jobs.d";

const SPEC_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/Spec";
const KILL: u32 = 9;

/// An init reaps at once; a busy machine lets it run some time later.
const BURIED_WITHIN: Duration = Duration::from_secs(20);

/// A containerd, and a namespace in it for one test.
#[derive(Debug)]
pub struct Host {
    inner: Arc<Inner>,
    daemon: Option<Daemon>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) api: TaskApi,
    pub(crate) places: Places,
    pub(crate) dir: TempDir,
    address: PathBuf,
    runtime: String,
    sockets: Mutex<Vec<PathBuf>>,
    sockets_forgiven: AtomicBool,
}

impl Host {
    /// A namespace in the containerd that the testbed started.
    pub fn new() -> Result<Self> {
        let from = |name: &str, default: &str| {
            PathBuf::from(std::env::var(name).unwrap_or_else(|_| default.to_owned()))
        };
        let dir = scratch()?;
        let places = Places {
            state: from("CEDANA_TEST_CONTAINERD_STATE", "/run/containerd"),
            root: from("CEDANA_TEST_CONTAINERD_ROOT", "/var/lib/containerd"),
            namespace: name_of(&dir),
        };
        let address = from("CONTAINERD_ADDRESS", "/run/containerd/containerd.sock");
        Ok(Self {
            inner: Inner::new(dir, places, address)?,
            daemon: None,
        })
    }

    /// The same, with the test image in it, for `ctr run`.
    pub fn with_image() -> Result<Self> {
        let host = Self::new()?;
        let _image = host.load_image()?;
        Ok(host)
    }

    /// A containerd of the test's own, which it may kill and start again.
    pub fn with_own_containerd() -> Result<Self> {
        Self::with_own_containerd_and(&[])
    }

    /// The same, with variables for it and for its shims.
    pub fn with_own_containerd_and(variables: &[(&str, &str)]) -> Result<Self> {
        let dir = scratch()?;
        let daemon = Daemon::start_with(dir.path(), variables)?;
        let places = Places {
            state: daemon.state(),
            root: daemon.root(),
            namespace: name_of(&dir),
        };
        let address = daemon.address();
        Ok(Self {
            inner: Inner::new(dir, places, address)?,
            daemon: Some(daemon),
        })
    }

    /// For tests that kill a shim: containerd's own then leaves its socket, which is not held against it.
    #[must_use]
    pub fn forgiving_sockets(self) -> Self {
        let _before = self
            .inner
            .sockets_forgiven
            .swap(self.runtime() != need::OUR_RUNTIME, Ordering::Relaxed);
        self
    }

    /// The test's own containerd.
    pub fn daemon(&mut self) -> Result<&mut Daemon> {
        self.daemon
            .as_mut()
            .context("use a containerd of its own: the test has none")
    }

    /// The socket of its containerd.
    pub fn address(&self) -> &Path {
        &self.inner.address
    }

    /// What a power cut does to the test's own containerd, as far as it can be had without one: all that runs is dead,
    /// what was mounted is not, what lies in memory is gone. What is on disk stays. `daemon().restart()` is the boot.
    pub fn power_off(&mut self) -> Result<()> {
        self.daemon()?.kill()?;
        let state = self.inner.places.state.clone();
        let killed = self.inner.places.processes();
        self.inner.places.sweep();
        // A dead process is a zombie until init has heard of it, and has a pid that long.
        let gone = || {
            killed
                .iter()
                .all(|(pid, _)| !Path::new(&format!("/proc/{pid}")).exists())
        };
        eventually("the dead are buried", BURIED_WITHIN, gone)?;
        fs::remove_dir_all(&state).with_context(|| format!("remove {}", state.display()))?;
        let of_this = format!("{}@", self.namespace());
        for record in fs::read_dir(LIVE_RECORDS).into_iter().flatten().flatten() {
            if record.file_name().to_string_lossy().starts_with(&of_this) {
                fs::remove_file(record.path()).context("remove a record")?;
            }
        }
        Ok(())
    }

    /// The connection, speaking for the test's namespace.
    pub fn api(&self) -> &TaskApi {
        &self.inner.api
    }

    /// Name of the test's containerd namespace.
    pub fn namespace(&self) -> &str {
        &self.inner.places.namespace
    }

    /// Name of the runtime under test.
    pub fn runtime(&self) -> &str {
        &self.inner.runtime
    }

    /// Where the things of the test's containers are.
    pub fn places(&self) -> &Places {
        &self.inner.places
    }

    /// A directory that goes with the test.
    pub fn dir(&self) -> &Path {
        self.inner.dir.path()
    }

    /// The namespace's events from now on.
    pub fn events(&self) -> Result<Events> {
        Events::subscribe(&self.inner.api)
    }

    /// Registers a container; nothing runs yet.
    pub fn container(&self, id: &str, workload: Workload) -> Result<Container> {
        self.container_with(id, workload, None)
    }

    /// A container that is registered already.
    pub fn known(&self, id: &str, workload: Workload) -> Container {
        Container {
            host: Arc::clone(&self.inner),
            id: id.to_owned(),
            workload,
        }
    }

    /// Registers a container with runtime options, as `ctr run` sends them to the runc shims.
    pub fn container_with(
        &self,
        id: &str,
        workload: Workload,
        options: Option<&msg::RuncOptions>,
    ) -> Result<Container> {
        let spec = workload.spec(self.namespace(), id);
        self.inner.api.create_container(msg::ContainerRecord {
            id: id.to_owned(),
            labels: workload.labels().collect(),
            runtime: Some(msg::Runtime {
                name: self.inner.runtime.clone(),
                options: options.map(runc_options),
            }),
            spec: Some(json_any(SPEC_TYPE, &spec)),
        })?;
        Ok(Container {
            host: Arc::clone(&self.inner),
            id: id.to_owned(),
            workload,
        })
    }

    /// Registers, creates and starts a container named `c`, without stdio.
    pub fn run(&self, workload: Workload) -> Result<Container> {
        self.run_with("c", workload, &StreamNames::default())
    }

    /// Registers, creates and starts a container with these streams.
    pub fn run_with(&self, id: &str, workload: Workload, streams: &StreamNames) -> Result<Container> {
        let container = self.container(id, workload)?;
        let _pid = container.create_with(streams, None)?;
        let _pid = container.start()?;
        Ok(container)
    }

    /// Like `run`, with fifos for its output; returns when it has said `ready`, with its standard output so far.
    pub fn run_until_ready(&self, workload: Workload) -> Result<(Container, Output)> {
        let container = self.container("c", workload)?;
        let fifos = container.fifos("init")?;
        let (stdout, _stderr) = fifos.read();
        let _pid = container.create_with(&fifos.names(false), None)?;
        let _pid = container.start()?;
        stdout.wait_for("ready\n")?;
        Ok((container, stdout))
    }

    /// Runs `ctr` in the test's namespace.
    pub fn ctr(&self, args: &[&str]) -> Result<Said> {
        self.ctr_with_input(args, "")
    }

    /// The arguments that make a `ctr` speak to the test's containerd and namespace, and then `args`.
    pub fn ctr_args(&self, args: &[&str]) -> Vec<String> {
        let address = self.inner.address.display().to_string();
        let mut all = vec![
            "--address".to_owned(),
            address,
            "--namespace".to_owned(),
            self.namespace().to_owned(),
        ];
        all.extend(args.iter().map(|&arg| arg.to_owned()));
        all
    }

    /// Runs `ctr` in the test's namespace with text on its standard input.
    pub fn ctr_with_input(&self, args: &[&str], input: &str) -> Result<Said> {
        let address = self.inner.address.display().to_string();
        let mut all = vec!["--address", &address, "--namespace", self.namespace()];
        all.extend(args);
        engine::run_with_input("ctr", &all, input)
    }

    /// A directory in the scratch directory; made, if it is not there.
    pub fn made_dir(&self, name: &str) -> Result<String> {
        let path = self.dir().join(name);
        fs::create_dir_all(&path).with_context(|| format!("make {}", path.display()))?;
        Ok(path.display().to_string())
    }

    /// Brings the test image into the test's namespace, for `ctr run`.
    pub fn load_image(&self) -> Result<&'static str> {
        let _said = self
            .ctr(&["images", "import", IMAGES])?
            .ok()
            .context("import the test image")?;
        Ok(IMAGE)
    }

    /// What is there of the test's containers now that would not be if they had never run.
    pub fn leftovers(&self) -> Vec<String> {
        self.inner.places.settled(&self.inner.sockets())
    }

    /// Fails if anything of the test's containers is still there.
    pub fn assert_clean(&self) -> Result<()> {
        let found = self.leftovers();
        anyhow::ensure!(found.is_empty(), "left behind: {found:#?}");
        Ok(())
    }
}

impl Drop for Host {
    #[expect(clippy::panic, reason = "a guard has no other way to fail its test")]
    fn drop(&mut self) {
        if let Some(daemon) = &mut self.daemon {
            daemon.revive();
        }
        let trouble = self
            .inner
            .clear()
            .err()
            .map(|error| format!("clear the namespace: {error:#}"));
        let mut found = self.leftovers();
        found.extend(trouble);
        self.inner.places.sweep();
        self.forget_namespace();
        if !found.is_empty() && !std::thread::panicking() {
            panic!("left behind after {}: {found:#?}", self.namespace());
        }
    }
}

impl Host {
    /// Images first: a namespace that holds anything cannot be removed. Best effort: an empty namespace harms nobody.
    fn forget_namespace(&self) {
        let Ok(names) = self.ctr(&["images", "ls", "--quiet"]).and_then(Said::ok) else {
            return;
        };
        if !names.is_empty() {
            let remove: Vec<&str> = ["images", "rm", "--sync"]
                .into_iter()
                .chain(names.lines())
                .collect();
            let _said = self.ctr(&remove);
            let _said = self.ctr(&["namespaces", "rm", self.namespace()]);
        }
    }
}

impl Inner {
    fn new(dir: TempDir, places: Places, address: PathBuf) -> Result<Arc<Self>> {
        let api = TaskApi::new(&address, &places.namespace)?;
        lay_rootfs(&dir.path().join("rootfs"))?;
        let (sockets, sockets_forgiven) = Default::default();
        Ok(Arc::new(Self {
            api,
            places,
            dir,
            address,
            runtime: need::runtime(),
            sockets,
            sockets_forgiven,
        }))
    }

    pub(crate) fn bundle(&self, id: &str) -> PathBuf {
        self.places
            .state
            .join("io.containerd.runtime.v2.task")
            .join(&self.places.namespace)
            .join(id)
    }

    pub(crate) fn upper(&self, id: &str) -> PathBuf {
        self.dir.path().join("layers").join(id).join("upper")
    }

    /// The rootfs mount of a container, as a snapshotter would hand it out.
    pub(crate) fn overlay(&self, id: &str) -> Result<msg::Mount> {
        let upper = self.upper(id);
        let work = upper.with_file_name("work");
        for dir in [&upper, &work] {
            fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
        }
        let lower = self.dir.path().join("rootfs");
        let option = |key: &str, path: &Path| format!("{key}={}", path.display());
        Ok(msg::Mount {
            r#type: "overlay".to_owned(),
            source: "overlay".to_owned(),
            target: String::new(),
            options: vec![
                option("lowerdir", &lower),
                option("upperdir", &upper),
                option("workdir", &work),
            ],
        })
    }

    /// Remembers a shim's socket, to see later that it has gone.
    pub(crate) fn note_socket(&self, bundle: &Path) {
        if let Some(socket) = shim_socket(bundle) {
            self.sockets
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(socket);
        }
    }

    fn sockets(&self) -> Vec<PathBuf> {
        if self.sockets_forgiven.load(Ordering::Relaxed) {
            return Vec::new();
        }
        self.sockets
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Removes every container of the namespace the way a client does.
    fn clear(&self) -> Answer<()> {
        for id in self.api.containers()? {
            self.stop(&id);
            let _without_task = self.api.delete(&id, "");
            self.api.delete_container(&id)?;
        }
        Ok(())
    }

    /// Best effort: what this does not stop is found by the look at what is left.
    fn stop(&self, id: &str) {
        let Ok(task) = self.api.get(id, "") else { return };
        if task.status() == Status::Paused {
            let _resumed = self.api.resume(id);
        }
        if task.status() != Status::Stopped {
            let _killed = self.api.kill(id, "", KILL, true);
            let _status = self.api.wait(id, "");
        }
    }
}

fn scratch() -> Result<TempDir> {
    tempfile::Builder::new()
        .prefix("cedana-")
        .tempdir()
        .context("make a scratch directory")
}

/// The random part of the directory's name makes the namespace unique, also among instances of the testbed.
fn name_of(dir: &TempDir) -> String {
    dir.path()
        .file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default()
}
