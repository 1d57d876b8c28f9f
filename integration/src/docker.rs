//! Docker as a test drives it: the testbed's daemon, or one of the test's own with our shim in the place of
//! containerd's.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use crate::daemon::Daemon;
use crate::engine::{self, Said};
use crate::host::IMAGE;
use crate::leftovers::Places;
use crate::need;
use crate::stdio::eventually;

/// dockerd needs a second or two when nothing else runs.
const UP_DEADLINE: Duration = Duration::from_secs(60);

/// Our shim, as the testbed installs it.
const OUR_SHIM: &str = "/usr/local/bin/containerd-shim-cedana-v1";

const SYSTEM_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A Docker daemon, and the runtime its containers are to have.
#[derive(Debug)]
pub struct Docker {
    address: Option<String>,
    runtime: Option<String>,
    // Dropped in this order: dockerd before the containerd it talks to, and the directory last.
    _dockerd: Option<Process>,
    _containerd: Option<Daemon>,
    dir: TempDir,
}

impl Docker {
    /// The testbed's daemon, with `--runtime` given as `runtime`.
    pub fn with_runtime(runtime: &str) -> Result<Self> {
        let dir = scratch()?;
        let runtime = Some(runtime.to_owned());
        Ok(Self {
            address: None,
            runtime,
            _dockerd: None,
            _containerd: None,
            dir,
        })
    }

    /// A daemon of the test's own that believes in containerd's runc shim, and gets ours: it is first on containerd's
    /// `PATH` under that name.
    pub fn with_our_shim_as_runc_v2() -> Result<Self> {
        let dir = scratch()?;
        let bin = dir.path().join("bin");
        fs::create_dir_all(&bin).context("make a directory for the shim")?;
        symlink(OUR_SHIM, bin.join("containerd-shim-runc-v2")).context("put the shim on the path")?;
        let path = format!("{}:{SYSTEM_PATH}", bin.display());
        let containerd = Daemon::start_with(dir.path(), &[("PATH", &path)])?;
        let address = format!("unix://{}/docker.sock", dir.path().display());
        let dockerd = start_dockerd(dir.path(), &address, &containerd.address())?;
        let docker = Self {
            address: Some(address),
            runtime: None,
            _dockerd: Some(dockerd),
            _containerd: Some(containerd),
            dir,
        };
        let answers = || docker.call(&["version"]).is_ok_and(|said| said.code == 0);
        let log = || fs::read_to_string(docker.dir.path().join("dockerd.log")).unwrap_or_default();
        eventually("dockerd answers", UP_DEADLINE, answers).with_context(|| format!("its log: {}", log()))?;
        docker.load_image()?;
        Ok(docker)
    }

    /// Runs the client.
    pub fn call(&self, args: &[&str]) -> Result<Said> {
        self.call_with_input(args, "")
    }

    /// Runs the client with text on its standard input.
    pub fn call_with_input(&self, args: &[&str], input: &str) -> Result<Said> {
        let address: Vec<&str> = self
            .address
            .iter()
            .flat_map(|address| ["--host", address])
            .collect();
        engine::run_with_input("docker", &[address.as_slice(), args].concat(), input)
    }

    /// `docker run` without a network, with these flags and this command.
    pub fn run(&self, flags: &[&str], command: &[&str]) -> Result<Said> {
        self.run_with_input(flags, command, "")
    }

    /// The same with text on standard input.
    pub fn run_with_input(&self, flags: &[&str], command: &[&str], input: &str) -> Result<Said> {
        let runtime: Vec<&str> = self.runtime.iter().flat_map(|name| ["--runtime", name]).collect();
        let all = [
            &["run", "--network", "none"],
            runtime.as_slice(),
            flags,
            &[IMAGE],
            command,
        ]
        .concat();
        self.call_with_input(&all, input)
    }

    /// Starts a container in the background.
    pub fn start(&self, flags: &[&str], command: &[&str]) -> Result<DockerContainer<'_>> {
        let id = self.run(&[&["--detach"], flags].concat(), command)?.ok()?;
        Ok(DockerContainer { docker: self, id })
    }

    fn load_image(&self) -> Result<()> {
        let root = self.dir.path().join("image");
        crate::workload::lay_rootfs(&root)?;
        let archive = self.dir.path().join("image.tar").display().to_string();
        let _said = engine::run("tar", &["-C", &root.display().to_string(), "-cf", &archive, "."])?.ok()?;
        let _said = self.call(&["import", &archive, IMAGE])?.ok()?;
        Ok(())
    }
}

/// A container in the background; it is removed when dropped.
#[derive(Debug)]
pub struct DockerContainer<'docker> {
    docker: &'docker Docker,
    id: String,
}

impl DockerContainer<'_> {
    /// Its id, 64 hexadecimal digits.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Runs a verb of the client that takes the container as its last argument.
    pub fn call(&self, args: &[&str]) -> Result<String> {
        self.docker.call(&[args, &[&self.id]].concat())?.ok()
    }

    /// Runs a command in it.
    pub fn exec(&self, command: &[&str]) -> Result<Said> {
        self.docker.call(&[&["exec", self.id.as_str()], command].concat())
    }

    /// A field of `docker inspect`, as a Go template.
    pub fn inspect(&self, template: &str) -> Result<String> {
        self.call(&["inspect", "--format", template])
    }

    /// Removes it, and fails if anything of it is still there.
    pub fn remove(self) -> Result<()> {
        let _said = self.call(&["rm", "--force"])?;
        let places = Places {
            state: PathBuf::new(),
            root: PathBuf::new(),
            namespace: self.id.clone(),
        };
        let found = places.settled(&[]);
        ensure!(found.is_empty(), "left behind: {found:#?}");
        Ok(())
    }
}

impl Drop for DockerContainer<'_> {
    fn drop(&mut self) {
        // Already removed is as good.
        let _said = self.call(&["rm", "--force"]);
    }
}

/// Name to be given to `docker run --runtime`: the runtime under test.
pub fn runtime() -> String {
    need::runtime()
}

#[derive(Debug)]
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.0.id()).unwrap_or_default());
        // dockerd unmounts its graph driver when it is asked to end, and leaves it mounted when it is killed.
        let _gone_already = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        let _status = self.0.wait();
    }
}

fn start_dockerd(dir: &Path, address: &str, containerd: &Path) -> Result<Process> {
    let log = fs::File::create(dir.join("dockerd.log")).context("make dockerd's log")?;
    let path = |name: &str| dir.join(name).display().to_string();
    let command = Command::new("dockerd")
        .args([
            "--host",
            address,
            "--containerd",
            &containerd.display().to_string(),
        ])
        .args([
            "--data-root",
            &path("docker"),
            "--exec-root",
            &path("docker-run"),
            "--pidfile",
            &path("docker.pid"),
        ])
        .args([
            "--config-file",
            "/dev/null",
            "--bridge=none",
            "--iptables=false",
            "--ip6tables=false",
        ])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn();
    Ok(Process(command.context("start dockerd")?))
}

fn scratch() -> Result<TempDir> {
    tempfile::Builder::new()
        .prefix("cedana-")
        .tempdir()
        .context("make a scratch directory")
}
