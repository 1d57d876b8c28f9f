//! Checkpoints of ours under podman, and podman's under us. What goes on counting has come through whole.
#![expect(
    unused_results,
    reason = "a test acts through calls, and compares only the answers it is about"
)]

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use integration::cedana::{Cedana, code};
use integration::cedana_counter::{COUNTER, Counter};
use integration::docker::{Docker, runtime};
use integration::engine::run;
use integration::host::{Host, IMAGE};
use integration::need;
use integration::stdio::eventually;

const SHORT: Duration = Duration::from_secs(20);

/// The test images, as `docker save` wrote them.
const IMAGES: &str = "/usr/share/cedana-testbed/images.tar";

/// Podman with a store of its own, which has the test images. Its runtime is runc: crun does not run on cgroups of two versions.
struct Podman {
    dir: PathBuf,
}

impl Podman {
    fn new(dir: &Path) -> Result<Self> {
        let podman = Self {
            dir: dir.join("podman"),
        };
        fs::create_dir(&podman.dir)?;
        podman.call(&["load", "--input", IMAGES])?;
        Ok(podman)
    }

    fn call(&self, args: &[&str]) -> Result<String> {
        let place = |name: &str| self.dir.join(name).display().to_string();
        let (root, run_root) = (place("root"), place("run"));
        let own = ["--root", &root, "--runroot", &run_root, "--runtime", "runc"];
        run("podman", &[&own, args].concat())?
            .ok()
            .with_context(|| format!("podman {args:?}"))
    }

    /// The last number that a container wrote.
    fn last(&self, name: &str) -> Option<u64> {
        let logs = self.call(&["logs", "--tail", "1", name]).ok()?;
        logs.lines().last()?.trim().parse().ok()
    }

    /// A restored counter began where it was saved, and goes on.
    fn goes_on(&self, name: &str, saved: u64) -> Result<()> {
        eventually("it counts on", SHORT, || self.last(name) > Some(saved + 3))?;
        let first = self.call(&["logs", name])?;
        let first: u64 = first.lines().next().context("a line")?.trim().parse()?;
        ensure!(first >= saved, "it began at {first}, and was saved at {saved}");
        Ok(())
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        let _gone = self.call(&["rm", "--all", "--force", "--time", "0"]);
        let _gone = self.call(&["rmi", "--all", "--force"]);
    }
}

fn last_in(log: &Path) -> Option<u64> {
    fs::read_to_string(log).ok()?.lines().last()?.trim().parse().ok()
}

#[test]
fn a_container_of_ctr_goes_on_under_podman() -> Result<()> {
    need!(OurShim, "the shim's own service");
    need!(Podman, "restores what was dumped");
    need!(Criu, "dumps");
    let host = Host::with_image()?;
    let podman = Podman::new(host.dir())?;
    let cedana = Cedana::new();
    let counter = Counter::run(&host, "migrant")?;
    let into = host.made_dir("checkpoints")?;
    let log = host.dir().join("migrant.log");
    for form in ["zstd", "gzip", "tar"] {
        let saved = last_in(&log).context("a number")?;
        let path = cedana.dump(&[
            "migrant",
            "--leave-running",
            "--dir",
            &into,
            "--compression",
            form,
            "--name",
            form,
        ])?;
        podman.call(&["container", "restore", "--import", &path, "--name", form])?;
        podman.goes_on(form, saved)?;
        podman.call(&["rm", "--force", "--time", "0", form])?;
    }
    counter.goes_on()?;
    counter.kill_and_delete()
}

#[test]
fn a_container_of_docker_goes_on_under_podman() -> Result<()> {
    need!(OurShim, "the shim's own service");
    need!(Docker, "runs a container by docker");
    need!(Podman, "restores what was dumped");
    need!(Criu, "dumps");
    let dir = tempfile::tempdir()?;
    let podman = Podman::new(dir.path())?;
    let docker = Docker::with_runtime(&runtime())?;
    let container = docker.start(&["--name", "emigrant"], &["sh", "-c", COUNTER])?;
    let last = || -> Option<u64> { container.call(&["logs", "--tail", "1"]).ok()?.parse().ok() };
    eventually("it counts", SHORT, || last() > Some(3))?;
    let saved = last().context("a number")?;
    let into = dir.path().display().to_string();
    let path = Cedana::new().dump(&["emigrant", "--dir", &into, "--compression", "zstd"])?;
    podman.call(&["container", "restore", "--import", &path, "--name", "arrived"])?;
    podman.goes_on("arrived", saved)?;
    container.remove()
}

#[test]
fn a_container_of_podman_goes_on_under_us() -> Result<()> {
    need!(OurShim, "the shim's own service");
    need!(Podman, "dumps what is restored");
    need!(Criu, "dumps");
    let host = Host::with_image()?;
    let podman = Podman::new(host.dir())?;
    let cedana = Cedana::new();
    podman.call(&[
        "run",
        "--detach",
        "--network",
        "none",
        "--name",
        "theirs",
        IMAGE,
        "sh",
        "-c",
        COUNTER,
    ])?;
    eventually("it counts", SHORT, || podman.last("theirs") > Some(3))?;
    for (form, suffix) in [("zstd", "tar.zst"), ("gzip", "tar.gz"), ("none", "tar")] {
        let saved = podman.last("theirs").context("a number")?;
        let path = host.dir().join(format!("theirs.{suffix}")).display().to_string();
        let export = [
            "container",
            "checkpoint",
            "--leave-running",
            "--compress",
            form,
            "--export",
            &path,
        ];
        podman.call(&[&export[..], &["theirs"]].concat())?;
        let said = cedana.says(&["checkpoint", "inspect", &path])?;
        ensure!(said.contains("name: theirs") && said.contains(IMAGE), "{said}");
        let said = cedana.says(&["checkpoint", "verify", &path])?;
        ensure!(said.contains("unverifiable"), "{said}");
        let (id, log) = (format!("ours-{form}"), host.dir().join(format!("{form}.log")));
        let out = log.display().to_string();
        let address = host.address().display().to_string();
        let to = [
            "--address",
            &address,
            "--namespace",
            host.namespace(),
            "--out",
            &out,
        ];
        let restore = ["restore", "containerd", "--path", &path, "--id", &id];
        cedana.says(&[&restore[..], &to].concat())?;
        eventually("it counts on", SHORT, || last_in(&log) > Some(saved + 3))?;
        let first = fs::read_to_string(&log)?;
        let first: u64 = first.lines().next().context("a line")?.trim().parse()?;
        ensure!(
            first >= saved,
            "{form}: it began at {first}, and was saved at {saved}"
        );
        host.api().kill(&id, "", 9, true)?;
        host.api().wait(&id, "")?;
        host.api().delete(&id, "")?;
        host.ctr(&["containers", "rm", &id])?.ok()?;
    }
    Ok(())
}

#[test]
fn what_an_archive_may_not_ask_for_is_refused_and_nothing_is_left() -> Result<()> {
    need!(OurShim, "the shim's own service");
    need!(Podman, "dumps what is restored");
    need!(Criu, "dumps");
    let host = Host::with_image()?;
    let podman = Podman::new(host.dir())?;
    let share = host.made_dir("share")?;
    let volume = format!("{share}:/data");
    let run = [
        "run",
        "--detach",
        "--network",
        "none",
        "--name",
        "greedy",
        "--volume",
        &volume,
    ];
    podman.call(&[&run[..], &[IMAGE, "sh", "-c", COUNTER]].concat())?;
    let path = host.dir().join("greedy.tar").display().to_string();
    podman.call(&[
        "container",
        "checkpoint",
        "--compress",
        "none",
        "--export",
        &path,
        "greedy",
    ])?;
    let address = host.address().display().to_string();
    let restore = ["restore", "containerd", "--path", &path, "--id", "taken"];
    let to = ["--address", &address, "--namespace", host.namespace()];
    let cedana = Cedana::new();
    cedana.fails(&[&restore[..], &to].concat(), code::UNSUPPORTED, &share)?;
    let missing = [&restore[..], &to, &["--image", "localhost/nowhere:1"]].concat();
    cedana.fails(&missing, code::NOT_FOUND, "localhost/nowhere:1")?;
    assert_eq!(host.ctr(&["containers", "ls", "--quiet"])?.ok()?, "");
    host.assert_clean()
}
