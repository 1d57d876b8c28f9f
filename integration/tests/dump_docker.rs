//! `docker checkpoint create` and `docker start --checkpoint`, with our runtime's name and with our binary in the
//! place of containerd's own shim.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use integration::daemon::Daemon;
use integration::engine::run;
use integration::need;
use integration::stdio::eventually;

const IMAGE: &str = "localhost/cedana/busybox:latest";
const IMAGES: &str = "/usr/share/cedana-testbed/images.tar";
const OUR_SHIM: &str = "/usr/local/bin/containerd-shim-cedana-v1";
/// A dump interrupts the `sleep`; the loop must not depend on it.
const COUNTER: &str = "n=0; while :; do n=$((n+1)); echo $n; sleep 0.1; done";
/// Docker does each of its steps in a second, more on a loaded machine.
const DOCKER_DEADLINE: Duration = Duration::from_secs(30);

/// A docker client of one daemon.
struct Docker {
    host: String,
}

impl Docker {
    /// The daemon that the testbed started.
    fn of_testbed() -> Self {
        Self {
            host: "unix:///run/docker.sock".to_owned(),
        }
    }

    fn run(&self, args: &[&str]) -> Result<String> {
        let mut all = vec!["--host", &self.host];
        all.extend(args);
        run("docker", &all)?
            .ok()
            .with_context(|| format!("docker {}", args.join(" ")))
    }
}

/// A container that counts into docker's log; removed when dropped.
struct Counter<'docker> {
    docker: &'docker Docker,
    name: String,
}

impl<'docker> Counter<'docker> {
    fn run(docker: &'docker Docker, name: &str, more: &[&str]) -> Result<Self> {
        let counter = Self {
            docker,
            name: name.to_owned(),
        };
        let mut args = vec!["run", "--detach", "--name", name];
        args.extend(more);
        args.extend([IMAGE, "sh", "-c", COUNTER]);
        let _id = docker.run(&args)?;
        counter.wait_for_numbers(3)?;
        Ok(counter)
    }

    /// What it has counted so far.
    fn numbers(&self) -> Result<Vec<u64>> {
        let log = self.docker.run(&["logs", &self.name])?;
        log.lines()
            .map(|line| line.parse().with_context(|| format!("a number in {line:?}")))
            .collect()
    }

    fn wait_for_numbers(&self, count: usize) -> Result<()> {
        let what = format!("{count} numbers of {}", self.name);
        eventually(&what, DOCKER_DEADLINE, || {
            self.numbers().is_ok_and(|numbers| numbers.len() >= count)
        })
    }

    fn is_running(&self) -> Result<bool> {
        Ok(self
            .docker
            .run(&["inspect", "--format", "{{.State.Running}}", &self.name])?
            == "true")
    }

    /// Starts it from a checkpoint, and sees it count on from where it was.
    fn check_restore(&self, checkpoint: &str, counted_at_dump: u64) -> Result<()> {
        let before = self.numbers()?;
        // Docker up to 26 uploads the checkpoint anew and takes it for a failure if containerd has not yet collected the
        // same content of the dump.
        let start = || {
            self.docker
                .run(&["start", "--checkpoint", checkpoint, &self.name])
        };
        let is_there_still = |error: &anyhow::Error| format!("{error:#}").contains("already exists");
        let mut started = start();
        let until = std::time::Instant::now() + DOCKER_DEADLINE;
        while started.as_ref().is_err_and(is_there_still) && std::time::Instant::now() < until {
            started = start();
        }
        let _name = started?;
        self.wait_for_numbers(before.len() + 3)?;
        let after = self.numbers()?;
        let (first, last) = (after.get(before.len()).copied(), before.last().copied());
        let (first, last) = (
            first.context("no number after")?,
            last.context("no number before")?,
        );
        ensure!(
            counted_at_dump < first && first <= last + 1,
            "{first} follows {last}, dumped after {counted_at_dump}"
        );
        ensure!(self.is_running()?, "docker does not think it runs");
        Ok(())
    }

    fn kill(&self) -> Result<()> {
        let _name = self.docker.run(&["kill", &self.name])?;
        eventually("docker to see the end", DOCKER_DEADLINE, || {
            self.is_running().is_ok_and(|running| !running)
        })
    }

    fn last(&self) -> Result<u64> {
        self.numbers()?.last().copied().context("it has not counted")
    }
}

impl Drop for Counter<'_> {
    fn drop(&mut self) {
        // A container that was never made cannot be removed; the rest goes with the instance.
        let _removed = self.docker.run(&["rm", "--force", &self.name]);
    }
}

/// By the name of our runtime, under which docker sends no options: what it wants is said by an annotation.
fn check_by_name(name: &str, network: &str) -> Result<()> {
    need!(OurShim, "is about our name");
    need!(Docker, "runs containers by docker");
    need!(Criu, "dumps");
    let docker = Docker::of_testbed();
    let counter = Counter::run(
        &docker,
        name,
        &["--runtime", "io.containerd.cedana.v1", "--network", network],
    )?;
    let counted = counter.last()?;
    let _name = docker.run(&["checkpoint", "create", "--leave-running", name, "first"])?;
    ensure!(counter.is_running()?, "the container did not go on");
    counter.wait_for_numbers(counter.numbers()?.len() + 2)?;
    counter.kill()?;
    counter.check_restore("first", counted)?;

    let counted = counter.last()?;
    let _name = docker.run(&["checkpoint", "create", "--leave-running", name, "second"])?;
    counter.kill()?;
    counter.check_restore("second", counted)
}

#[test]
fn by_our_name_without_a_network() -> Result<()> {
    check_by_name("by-name-none", "none")
}

#[test]
fn by_our_name_with_the_network_of_the_host() -> Result<()> {
    check_by_name("by-name-host", "host")
}

#[test]
fn by_our_name_an_annotation_ends_the_container_with_the_dump() -> Result<()> {
    need!(OurShim, "is about our name");
    need!(Docker, "runs containers by docker");
    need!(Criu, "dumps");
    let docker = Docker::of_testbed();
    let more = [
        "--runtime",
        "cedana",
        "--network",
        "none",
        "--annotation",
        "cedana.dump.leave-running=false",
    ];
    let counter = Counter::run(&docker, "annotated", &more)?;
    let counted = counter.last()?;
    let _name = docker.run(&["checkpoint", "create", "annotated", "kept"])?;
    eventually("the container to end", DOCKER_DEADLINE, || {
        counter.is_running().is_ok_and(|running| !running)
    })?;
    counter.check_restore("kept", counted)
}

/// A dockerd of our own on a containerd of our own; ended when dropped.
struct Engines {
    _containerd: Daemon,
    dockerd: Child,
    docker: Docker,
}

impl Engines {
    /// With our binary first in containerd's `PATH` under the name of containerd's own shim.
    fn with_our_binary(dir: &Path) -> Result<Self> {
        let shims = dir.join("shims");
        std::fs::create_dir_all(&shims)?;
        std::os::unix::fs::symlink(OUR_SHIM, shims.join("containerd-shim-runc-v2"))?;
        let path = format!("{}:{}", shims.display(), std::env::var("PATH")?);
        let containerd = Daemon::start_with(dir, &[("PATH", &path)])?;
        let socket = dir.join("docker.sock");
        let mut dockerd = start_dockerd(dir, &containerd.address(), &socket)?;
        let docker = Docker {
            host: format!("unix://{}", socket.display()),
        };
        let up = eventually("dockerd to answer", DOCKER_DEADLINE, || {
            docker.run(&["version"]).is_ok()
        });
        if up.is_err() {
            let _ended = dockerd.kill().and_then(|()| dockerd.wait());
        }
        up.with_context(|| std::fs::read_to_string(dir.join("dockerd.log")).unwrap_or_default())?;
        let _said = docker.run(&["load", "--quiet", "--input", IMAGES])?;
        Ok(Self {
            _containerd: containerd,
            dockerd,
            docker,
        })
    }
}

fn start_dockerd(dir: &Path, containerd: &Path, socket: &Path) -> Result<Child> {
    let log = File::create(dir.join("dockerd.log"))?;
    let flag = |name: &str, path: PathBuf| format!("--{name}={}", path.display());
    Command::new("dockerd")
        .arg(flag("containerd", containerd.to_owned()))
        .arg(flag("data-root", dir.join("data")))
        .arg(flag("exec-root", dir.join("exec")))
        .arg(flag("pidfile", dir.join("dockerd.pid")))
        .arg(format!("--host=unix://{}", socket.display()))
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .context("start dockerd")
}

impl Drop for Engines {
    fn drop(&mut self) {
        // Ended in an orderly way it stops its containers and unmounts what it mounted.
        if let Ok(pid) = i32::try_from(self.dockerd.id()) {
            let _gone =
                nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGTERM);
        }
        let ended = eventually("dockerd to end", DOCKER_DEADLINE, || {
            !matches!(self.dockerd.try_wait(), Ok(None))
        });
        if ended.is_err() {
            let _killed = self.dockerd.kill().and_then(|()| self.dockerd.wait());
        }
    }
}

#[test]
fn in_the_place_of_containerds_own_shim_docker_says_what_it_wants() -> Result<()> {
    need!(OurShim, "is about our binary");
    need!(Docker, "runs containers by docker");
    need!(Criu, "dumps");
    let dir = tempfile::Builder::new().prefix("docker-").tempdir()?;
    let engines = Engines::with_our_binary(dir.path())?;
    for network in ["none", "host"] {
        let counter = Counter::run(&engines.docker, network, &["--network", network])?;
        let counted = counter.last()?;
        let _name = engines.docker.run(&["checkpoint", "create", network, "kept"])?;
        eventually("the container to end", DOCKER_DEADLINE, || {
            counter.is_running().is_ok_and(|running| !running)
        })?;
        counter.check_restore("kept", counted)?;
        ensure!(
            shim_of(&engines.docker, network)? == OUR_SHIM,
            "another shim serves the container"
        );
    }
    Ok(())
}

/// The binary of the shim that serves a container: the parent of its init.
fn shim_of(docker: &Docker, name: &str) -> Result<String> {
    let init = docker.run(&["inspect", "--format", "{{.State.Pid}}", name])?;
    let status = std::fs::read_to_string(format!("/proc/{init}/status"))?;
    let parent = status
        .lines()
        .find_map(|line| line.strip_prefix("PPid:"))
        .context("no parent")?;
    Ok(std::fs::read_link(format!("/proc/{}/exe", parent.trim()))?
        .display()
        .to_string())
}
