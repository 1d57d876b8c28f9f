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

/// What a container does to its files; the last two it still has open when it is saved.
const LIVE: &str = "mkdir -p /data/d && echo new > /data/d/a && ln /data/d/a /data/b && ln -s d/a /data/c && touch /data/.wh.a && \
    echo changed >> /etc/passwd && rm /bin/yes && rm -r /var && echo held > /dev/shm/held && exec 3< /data/d/a 4< /dev/shm/held";

/// What is seen of them.
const LOOK: &str = "cat /data/b /data/c /dev/shm/held; tail -n 1 /etc/passwd; ls -a /data; stat -c %h /data/b; \
    ls -d /bin/yes /var 2>/dev/null; true";

/// A container of podman's that has done this, saved; its archive.
fn saved_with_files(podman: &Podman, dir: &Path) -> Result<String> {
    let script = format!("{LIVE}; {COUNTER}");
    let run = ["run", "--detach", "--network", "none", "--name", "busy", IMAGE];
    podman.call(&[&run[..], &["sh", "-c", &script]].concat())?;
    eventually("it counts", SHORT, || podman.last("busy") > Some(3))?;
    let path = dir.join("busy.tar").display().to_string();
    let export = [
        "container",
        "checkpoint",
        "--compress",
        "none",
        "--export",
        &path,
        "busy",
    ];
    podman.call(&export)?;
    Ok(path)
}

/// A command of a shell in a container of containerd's.
fn shell(host: &Host, id: &str, name: &str, script: &str) -> Result<String> {
    host.ctr(&["tasks", "exec", "--exec-id", name, id, "sh", "-c", script])?
        .ok()
}

/// The same as a directory, in which something can be changed.
fn unpacked_with_files(host: &Host, podman: &Podman) -> Result<String> {
    let archive = saved_with_files(podman, host.dir())?;
    let path = host.made_dir("unpacked")?;
    run("tar", &["-xf", &archive, "-C", &path])?.ok()?;
    Ok(path)
}

/// Ends a task and removes its container.
fn remove(host: &Host, id: &str) -> Result<()> {
    host.api().kill(id, "", 9, true)?;
    host.api().wait(id, "")?;
    host.api().delete(id, "")?;
    let _said = host.ctr(&["containers", "rm", id])?.ok()?;
    Ok(())
}

#[test]
fn the_files_of_a_container_of_podman_are_there_under_us() -> Result<()> {
    need!(OurShim, "the shim's own service");
    need!(Podman, "dumps what is restored");
    need!(Criu, "dumps");
    let host = Host::with_image()?;
    let podman = Podman::new(host.dir())?;
    let cedana = Cedana::new();
    let path = saved_with_files(&podman, host.dir())?;
    let address = host.address().display().to_string();
    let log = host.dir().join("settled.log");
    let out = log.display().to_string();
    let to = [
        "--address",
        &address,
        "--namespace",
        host.namespace(),
        "--out",
        &out,
    ];
    let restore = ["restore", "containerd", "--id", "settled", "--path"];
    cedana.says(&[&restore[..], &[&path], &to].concat())?;
    eventually("it counts on", SHORT, || last_in(&log).is_some())?;
    let wanted = "new\nnew\nheld\nchanged\n.\n..\n.wh.a\nb\nc\nd\n2";
    assert_eq!(shell(&host, "settled", "look", LOOK)?.trim(), wanted);

    // Saved by us they come back, too, in what the shim made for its shared memory. That name only podman's diff can say.
    shell(&host, "settled", "rename", "rm /data/.wh.a")?;
    let wanted = wanted.replace(".wh.a\n", "");
    let dump = cedana.dump(&["settled", "--dir", &host.made_dir("dumps")?])?;
    let manifest = fs::read(Path::new(&dump).join("cedana.json"))?;
    let manifest: serde_json::Value = serde_json::from_slice(&manifest)?;
    let not_saved = manifest["not_saved"].as_array().context("a list")?;
    ensure!(
        !not_saved.iter().any(|one| one["path"] == "/dev/shm"),
        "{not_saved:?}"
    );
    cedana.restore(&["settled"])?;
    assert_eq!(shell(&host, "settled", "again", LOOK)?.trim(), wanted);
    remove(&host, "settled")
}

#[test]
fn files_of_podman_that_would_do_harm_are_refused_and_nothing_is_changed() -> Result<()> {
    need!(OurShim, "the shim's own service");
    need!(Podman, "dumps what is restored");
    need!(Criu, "dumps");
    let host = Host::with_image()?;
    let podman = Podman::new(host.dir())?;
    let cedana = Cedana::new();
    let path = unpacked_with_files(&host, &podman)?;
    // A container that is there, and has files of its own.
    let create = ["containers", "create", "--runtime", host.runtime(), IMAGE, "own"];
    host.ctr(&create)?.ok()?;
    let address = host.address().display().to_string();
    let to = ["--address", &address, "--namespace", host.namespace()];
    // That one makes its shared memory itself.
    let (both, fresh) = (&["own", "fresh"][..], &["fresh"][..]);
    for (part, text, told, ids) in [
        ("deleted.files", r#"["/etc/../../outside"]"#, "goes up", both),
        ("deleted.files", "{}", "no list of paths", both),
        ("rootfs-diff.tar", "not a tar", "cut", both),
        ("devshm-checkpoint.tar", "not a tar", "cut", fresh),
    ] {
        let file = Path::new(&path).join(part);
        let good = fs::read(&file)?;
        fs::write(&file, text)?;
        for id in ids {
            let restore = ["restore", "containerd", "--path", &path, "--id", id];
            cedana.fails(&[&restore[..], &to].concat(), code::TOOL, told)?;
        }
        fs::write(&file, good)?;
        assert_eq!(host.ctr(&["containers", "ls", "--quiet"])?.ok()?.trim(), "own");
        assert_eq!(host.ctr(&["tasks", "ls", "--quiet"])?.ok()?, "");
    }
    host.ctr(&["tasks", "start", "--detach", "own"])?.ok()?;
    let seen = shell(
        &host,
        "own",
        "look",
        "ls -d /data /bin/yes /var 2>/dev/null; true",
    )?;
    assert_eq!(seen.trim(), "/bin/yes\n/var");
    remove(&host, "own")?;
    host.assert_clean()
}

#[test]
fn an_archive_whose_words_are_of_another_kind_leaves_nothing_behind() -> Result<()> {
    need!(OurShim, "the shim's own service");
    need!(Podman, "dumps what is restored");
    need!(Criu, "dumps");
    let host = Host::with_image()?;
    let podman = Podman::new(host.dir())?;
    let cedana = Cedana::new();
    let path = unpacked_with_files(&host, &podman)?;
    let address = host.address().display().to_string();
    let restore = ["restore", "containerd", "--path", &path, "--id", "odd"];
    let to = ["--address", &address, "--namespace", host.namespace()];
    let restore = [&restore[..], &to].concat();
    for (part, field, value) in [
        ("spec.dump", "/process/args", serde_json::json!(7)),
        ("spec.dump", "/process/env", serde_json::json!({"A": "b"})),
        ("spec.dump", "/process/cwd", serde_json::json!(["/"])),
        ("spec.dump", "/process/user", serde_json::json!("root")),
        ("spec.dump", "/process/user/uid", serde_json::json!(-1)),
        ("spec.dump", "/process/terminal", serde_json::json!("yes")),
        ("spec.dump", "/process", serde_json::json!([])),
        ("config.dump", "/rootfsImageName", serde_json::json!(7)),
        ("config.dump", "/name", serde_json::json!({})),
    ] {
        let file = Path::new(&path).join(part);
        let good = fs::read(&file)?;
        let mut words: serde_json::Value = serde_json::from_slice(&good)?;
        let (parent, name) = field.rsplit_once('/').context("a field")?;
        let parent = words
            .pointer_mut(parent)
            .and_then(serde_json::Value::as_object_mut);
        parent
            .with_context(|| format!("{field} is there"))?
            .insert(name.to_owned(), value);
        fs::write(&file, words.to_string())?;
        cedana.fails(&restore, code::FAILED, part)?;
        fs::write(&file, good)?;
        assert_eq!(host.ctr(&["containers", "ls", "--quiet"])?.ok()?, "", "{field}");
        assert_eq!(host.ctr(&["tasks", "ls", "--quiet"])?.ok()?, "", "{field}");
    }
    host.assert_clean()
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
