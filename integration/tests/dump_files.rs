//! Files of a container that CRIU does not save, or slowly: its writable layer, tmpfs, and `/dev/shm` from the host.
#![expect(
    unused_results,
    reason = "a test acts through calls, and compares only the answers it is about"
)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use integration::calls::Tracing;
use integration::cedana::{Cedana, code};
use integration::cedana_counter::Counter;
use integration::docker::runtime;
use integration::dump_bed::let_criu_learn;
use integration::engine::run;
use integration::host::{Host, IMAGE};
use integration::need;
use integration::stdio::eventually;
use integration::workload::Workload;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// What a container does to its files: new ones, deleted ones, all kinds.
const LIVE: &str = "mkdir -p /data/d && echo one > /data/d/a && ln /data/d/a /data/second && rm /bin/yes && \
    ln -s /etc/passwd /data/link && mknod /data/null c 1 3 && mkfifo /data/fifo && chmod 4711 /data/d/a && \
    dd if=/dev/zero of=/data/sparse bs=1 count=1 seek=1G 2>/dev/null && rm -r /etc && mkdir /etc && echo new > /etc/only";
/// And what it does afterwards.
const CHANGE: &str = "echo two > /data/d/a; echo later > /data/later; echo back > /bin/yes; rm /data/link";
/// What is seen of them.
const LOOK: &str = "cat /data/second /etc/only; readlink /data/link; ls /etc /data; ls /bin/yes 2>&1; \
    stat -c '%F %a %h' /data/d/a /data/null /data/fifo; stat -c '%s' /data/sparse; \
    test $(stat -c %b /data/sparse) -lt 100 && echo holes";

/// A command of a shell in a container; each has a name of its own.
fn shell(host: &Host, id: &str, name: &str, script: &str) -> Result<String> {
    host.ctr(&["tasks", "exec", "--exec-id", name, id, "sh", "-c", script])?
        .ok()
}

fn manifest(dump: &str) -> Result<serde_json::Value> {
    Ok(serde_json::from_slice(&fs::read(
        Path::new(dump).join("cedana.json"),
    )?)?)
}

#[test]
fn the_writable_layer_comes_back_in_place_and_in_another_container() -> Result<()> {
    need!(OurShim, "saves the layer");
    need!(Criu, "dumps");
    let (host, cedana) = (Host::with_image()?, Cedana::new());
    let counter = Counter::run(&host, "layered")?;
    shell(&host, "layered", "live", LIVE)?;
    let was = shell(&host, "layered", "look", LOOK)?;
    ensure!(was.contains("holes"), "{was}");
    let dump = cedana.dump(&["layered", "--leave-running", "--dir", &host.made_dir("dumps")?])?;
    let not_saved = manifest(&dump)?["not_saved"].clone();
    assert_eq!(not_saved, serde_json::json!([]), "all is saved");

    shell(&host, "layered", "change", CHANGE)?;
    counter.kill()?;
    cedana.restore(&["layered"])?;
    assert_eq!(shell(&host, "layered", "again", LOOK)?, was);
    counter.goes_on()?;

    let other = Counter::run(&host, "another")?;
    other.kill()?;
    let said = cedana.run(&["restore", "job", "another", "--path", &dump])?;
    ensure!(said.code == 0, "{said:?}");
    assert_eq!(shell(&host, "another", "look", LOOK)?, was);
    other.goes_on()
}

#[test]
fn a_name_that_a_layer_cannot_say_is_left_out_alone_and_told_of() -> Result<()> {
    need!(OurShim, "saves the layer");
    need!(Criu, "dumps");
    let (host, cedana) = (Host::with_image()?, Cedana::new());
    let counter = Counter::run(&host, "odd")?;
    shell(
        &host,
        "odd",
        "live",
        "mkdir /data; echo kept > /data/kept; echo odd > /data/.wh.odd",
    )?;
    let why = "a layer has another meaning for names that begin with .wh.";
    let warning = format!("cedana: warning: /data/.wh.odd is not in the checkpoint: {why}\n");
    let into = host.made_dir("dumps")?;
    for form in ["none", "zstd"] {
        let dump = [
            "dump",
            "job",
            "odd",
            "--leave-running",
            "--dir",
            &into,
            "--compression",
            form,
        ];
        let said = cedana.run(&dump)?;
        ensure!((said.code, &said.stderr) == (0, &warning), "{said:?}");
        let path = said.stdout.trim().strip_prefix("Dumped to ").context("a path")?;
        let inspected = cedana.says(&["checkpoint", "inspect", path])?;
        ensure!(
            inspected.contains(&format!("  /data/.wh.odd: file: {why}\n")),
            "{inspected}"
        );
        let verified = cedana.says(&["checkpoint", "verify", path])?;
        ensure!(
            verified.contains("good") && verified.contains("/data/.wh.odd was not saved"),
            "{verified}"
        );
    }
    counter.kill()?;
    let said = cedana.run(&["restore", "job", "odd"])?;
    ensure!((said.code, &said.stderr) == (0, &warning), "{said:?}");
    assert_eq!(
        shell(&host, "odd", "look", "ls -A /data; cat /data/kept")?.trim(),
        "kept\nkept"
    );
    counter.goes_on()
}

#[test]
fn a_layer_that_would_do_harm_is_refused_and_the_old_one_is_there() -> Result<()> {
    need!(OurShim, "saves the layer");
    need!(Criu, "dumps");
    let (host, cedana) = (Host::with_image()?, Cedana::new());
    let counter = Counter::run(&host, "hostile")?;
    let dumps = host.made_dir("dumps")?;
    shell(&host, "hostile", "live", "echo mine > /mine")?;
    let good = cedana.dump(&["hostile", "--dir", &dumps])?;
    let bad = format!("{dumps}/bad");
    run("cp", &["-a", &good, &bad])?.ok()?;
    let (diff, escaped) = (format!("{bad}/rootfs-diff.tar"), host.dir().join("escaped"));
    fs::write(&escaped, "")?;
    // An absolute name: what tar writes is what an attacker would.
    let escaped = escaped.display().to_string();
    run(
        "tar",
        &["--create", "--absolute-names", "--file", &diff, &escaped],
    )?
    .ok()?;
    fs::remove_file(&escaped)?;
    let mut told = manifest(&bad)?;
    let parts = told["parts"].as_array_mut().context("parts")?;
    let part = parts.iter_mut().find(|part| part["path"] == "rootfs-diff.tar");
    part.context("the layer")?["size"] = fs::metadata(&diff)?.len().into();
    fs::write(format!("{bad}/cedana.json"), told.to_string())?;
    cedana.fails(
        &["restore", "job", "hostile", "--path", &bad],
        code::TOOL,
        "its name is absolute",
    )?;
    ensure!(!Path::new(&escaped).exists(), "it got out");
    let aside = run("find", &["/var/lib/containerd", "-name", "*.cedana-before"])?.ok()?;
    ensure!(aside.is_empty(), "{aside}");
    cedana.restore(&["hostile", "--path", &good])?;
    assert_eq!(shell(&host, "hostile", "look", "cat /mine")?.trim(), "mine");
    counter.goes_on()
}

#[test]
fn what_is_left_of_a_replaced_layer_does_not_come_back_with_the_next_start() -> Result<()> {
    need!(OurShim, "saves the layer");
    need!(Criu, "dumps");
    let (host, cedana) = (Host::with_image()?, Cedana::new());
    let counter = Counter::run(&host, "remnant")?;
    let mark = format!("mark-{}", std::process::id());
    shell(&host, "remnant", "mark", &format!("echo old > /{mark}"))?;
    let found = run("find", &["/var/lib/containerd", "-path", &format!("*/fs/{mark}")])?.ok()?;
    let upper = Path::new(found.trim()).parent().context("the layer")?;
    let snapshot = upper.parent().context("the snapshot")?;
    cedana.dump(&["remnant", "--leave-running", "--dir", &host.made_dir("dumps")?])?;
    counter.kill()?;
    // As a removal leaves it that a kill has cut short.
    fs::create_dir_all(snapshot.join(".fs.cedana-gone/part"))?;
    cedana.restore(&["remnant"])?;
    counter.goes_on()?;
    shell(&host, "remnant", "live", &format!("echo live > /{mark}"))?;
    counter.kill()?;
    host.ctr(&["tasks", "delete", "remnant"])?.ok()?;
    fs::create_dir_all(snapshot.join(".fs.cedana-gone/part"))?;
    host.ctr(&["tasks", "start", "--detach", "--null-io", "remnant"])?
        .ok()?;
    let look = shell(&host, "remnant", "look", &format!("cat /{mark}"))?;
    assert_eq!(look.trim(), "live");
    eventually("what was left is removed", Duration::from_secs(10), || {
        let names = fs::read_dir(snapshot).into_iter().flatten().flatten();
        !names
            .into_iter()
            .any(|entry| entry.file_name().to_string_lossy().contains("cedana"))
    })
}

/// A small file system, which goes with the test.
struct Small(PathBuf);

impl Small {
    fn at(path: PathBuf) -> Result<Self> {
        fs::create_dir(&path)?;
        mount(
            Some("tmpfs"),
            &path,
            Some("tmpfs"),
            MsFlags::empty(),
            Some("size=2m"),
        )?;
        Ok(Self(path))
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _gone = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

#[test]
fn a_disk_that_is_full_of_files_fails_the_dump_and_the_container_goes_on() -> Result<()> {
    need!(OurShim, "saves the layer");
    need!(Criu, "dumps");
    let (host, cedana) = (Host::with_image()?, Cedana::new());
    let counter = Counter::run(&host, "large")?;
    let small = Small::at(host.dir().join("small"))?;
    let into = small.0.display().to_string();
    shell(
        &host,
        "large",
        "fill",
        "dd if=/dev/urandom of=/large bs=1M count=4 2>/dev/null",
    )?;
    for flags in [&["--leave-running"][..], &[]] {
        let args = [&["dump", "job", "large", "--dir", &into][..], flags].concat();
        let said = cedana.run(&args)?;
        ensure!(
            said.code != 0 && said.stderr.to_lowercase().contains("no space left"),
            "{said:?}"
        );
        counter.goes_on()?;
        assert_eq!(fs::read_dir(&small.0)?.count(), 0, "nothing is left of it");
    }
    // The same in memory, which CRIU has packed.
    shell(
        &host,
        "large",
        "move",
        "rm /large; dd if=/dev/urandom of=/dev/shm/large bs=1M count=4 2>/dev/null",
    )?;
    let said = cedana.run(&["dump", "job", "large", "--dir", &into])?;
    ensure!(said.code != 0, "{said:?}");
    counter.goes_on()?;
    shell(&host, "large", "clear", "rm /dev/shm/large")?;
    cedana.dump(&["large", "--leave-running", "--dir", &into])?;
    counter.goes_on()
}

#[test]
fn a_tmpfs_comes_back_and_is_packed_without_the_hosts_tar() -> Result<()> {
    need!(OurShim, "packs it itself");
    need!(Criu, "dumps");
    let (host, cedana) = (Host::with_image()?, Cedana::new());
    let tmpfs = "type=tmpfs,dst=/memory,options=rw";
    let counter = Counter::run_with(&host, "memory", host.runtime(), &["--mount", tmpfs])?;
    let live = "cd /memory && mkdir d && yes text | head -c 4194304 > d/a && ln d/a b && mkfifo p && \
        dd if=/dev/zero of=s bs=1 count=1 seek=1G 2>/dev/null && touch .wh.name && echo x > /dev/shm/y";
    let look = "cd /memory && md5sum d/a b && ls -a && stat -c '%F %s %h' d/a p s && cat /dev/shm/y; \
        test $(stat -c %b s) -lt 100 && echo holes";
    shell(&host, "memory", "live", live)?;
    let was = shell(&host, "memory", "look", look)?;
    let dump = cedana.dump(&["memory", "--dir", &host.made_dir("dumps")?])?;
    // Text that gzip would make a thousandth of.
    let images = fs::read_dir(Path::new(&dump).join("checkpoint"))?;
    let sizes = images
        .map(|image| Ok(image?.metadata()?.len()))
        .collect::<Result<Vec<u64>>>()?;
    ensure!(sizes.iter().any(|size| *size > 4 << 20), "{sizes:?}");
    for image in fs::read_dir(Path::new(&dump).join("checkpoint"))? {
        let path = image?.path();
        if path.display().to_string().ends_with(".tar.gz.img") {
            let listed = Command::new("tar").arg("-tzf").arg(&path).output()?;
            ensure!(listed.status.success(), "{}", path.display());
        }
    }
    cedana.restore(&["memory"])?;
    assert_eq!(shell(&host, "memory", "again", look)?, was);
    counter.goes_on()
}

#[test]
fn a_large_tmpfs_goes_to_the_disk_and_not_into_memory_once_more() -> Result<()> {
    need!(OurShim, "where its images go");
    need!(Criu, "dumps");
    need!(Strace, "sees where");
    let (host, cedana) = (Host::with_image()?, Cedana::new());
    let tmpfs = "type=tmpfs,dst=/memory,options=rw";
    let counter = Counter::run_with(&host, "larger", host.runtime(), &["--mount", tmpfs])?;
    let into = host.made_dir("dumps")?;
    let shim = host.known("larger", Workload::forever()).shim_pid()?;
    let_criu_learn()?;
    for (mib, in_memory) in [("1", true), ("80", false)] {
        let fill = format!("dd if=/dev/zero of=/memory/fill bs=1M count={mib} 2>/dev/null");
        shell(&host, "larger", &format!("fill-{mib}"), &fill)?;
        let tracing = Tracing::follow(shim, &host.dir().join("trace"))?;
        let _dump = cedana.dump(&["larger", "--leave-running", "--dir", &into])?;
        let made = tracing.made()?;
        let was = made.iter().any(|call| call.args.contains("/criu-images"));
        ensure!(was == in_memory, "{mib} MiB: in memory: {was}");
        counter.goes_on()?;
    }
    counter.kill_and_delete()
}

#[test]
fn dockers_shm_and_layer_come_back() -> Result<()> {
    need!(OurShim, "saves them");
    need!(Criu, "dumps");
    need!(Docker, "mounts /dev/shm from the host");
    let cedana = Cedana::new();
    let docker = |args: &[&str]| run("docker", args)?.ok();
    let loops = "echo shm > /dev/shm/f; echo layer > /f; while :; do sleep 1; done";
    let args = [
        "run",
        "--detach",
        "--ipc",
        "shareable",
        "--runtime",
        &runtime(),
        IMAGE,
        "sh",
        "-c",
        loops,
    ];
    let id = docker(&args)?.trim().to_owned();
    let dir = tempfile::tempdir()?;
    let into = dir.path().display().to_string();
    let done = || -> Result<()> {
        let dump = cedana.dump(&[&id, "--dir", &into])?;
        let parts = manifest(&dump)?["parts"].to_string();
        ensure!(
            parts.contains("devshm-checkpoint.tar") && parts.contains("rootfs-diff.tar"),
            "{parts}"
        );
        cedana.restore(&[&id])?;
        let both = docker(&["exec", &id, "cat", "/dev/shm/f", "/f"])?;
        assert_eq!(both.split_whitespace().collect::<Vec<_>>(), ["shm", "layer"]);
        // The host's own is nobody's.
        let args = [
            "run",
            "--detach",
            "--ipc",
            "host",
            "--runtime",
            &runtime(),
            IMAGE,
            "sh",
            "-c",
            "while :; do sleep 1; done",
        ];
        let other = docker(&args)?.trim().to_owned();
        let dumped = cedana.dump(&[&other, "--leave-running", "--dir", &into]);
        docker(&["rm", "--force", &other])?;
        if let Ok(dump) = dumped {
            let told = manifest(&dump)?["not_saved"].to_string();
            ensure!(told.contains("the host's own"), "{told}");
        }
        Ok(())
    }();
    docker(&["rm", "--force", &id])?;
    done
}
