//! Dumps and restores that fail: what is said, and that nothing is the worse for it.

use std::fs;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use integration::by_ctr::{Talker, holds_images, restore};
use integration::engine::run;
use integration::host::Host;
use integration::messages as msg;
use integration::messages::Status;
use integration::need;
use integration::spoken::{Spoken, counter, dump_to_path_with_exit, from_path};
use integration::stdio::StreamNames;

const WORKLOAD: &str = env!("CARGO_BIN_EXE_workload");

/// A workload that holds what CRIU refuses, with a directory of the host at `/host`.
fn holding<'host>(host: &'host Host, kind: &str) -> Result<Talker<'host>> {
    let shared = host.dir().join("shared");
    fs::create_dir_all(&shared)?;
    let mount = format!("type=bind,src={},dst=/host,options=rbind:rw", shared.display());
    Talker::run(host, "c", WORKLOAD, &["hold", kind], &["--mount", &mount])
}

/// Dumps a container that cannot be dumped, sees it go on, has it drop what is in the way, and dumps it. There is a
/// `line` of CRIU's unless it is refused before CRIU has a look.
fn check(kind: &str, line: Option<&str>, meaning: &str) -> Result<()> {
    let host = Host::with_image()?;
    let _listener = listener(&host)?;
    let mut talker = holding(&host, kind)?;
    let said = host.ctr(&["tasks", "checkpoint", "c"])?;
    ensure!(said.code != 0, "the dump of {kind} succeeded");
    assert_eq!(talker.status()?, Status::Running, "{kind}: {}", said.stderr);
    assert_eq!(talker.ask("ping")?, "pong 1", "{kind}: the application goes on");
    if need::met(
        kind,
        need::Need::OurShim,
        "containerd's own shim only names the log",
    )? {
        ensure!(
            said.stderr.contains(meaning),
            "{kind}: {} lacks {meaning:?}",
            said.stderr
        );
        if let Some(line) = line {
            check_line(&said.stderr, line)?;
        }
    }
    assert_eq!(talker.ask("drop")?, "dropped 2");
    let _printed = host
        .ctr(&["tasks", "checkpoint", "c"])?
        .ok()
        .with_context(|| format!("{kind} is dropped"))?;
    assert_eq!(talker.ask("ping")?, "pong 3");
    talker.remove()
}

/// CRIU's own line is in the error and in the log that the error names.
fn check_line(error: &str, line: &str) -> Result<()> {
    ensure!(error.contains(line), "{error} lacks CRIU's {line:?}");
    let log = kept_log(error)?;
    let text = fs::read_to_string(&log).with_context(|| format!("read {}", log.display()))?;
    ensure!(text.contains(line), "{} lacks {line:?}", log.display());
    Ok(())
}

/// The host's end of the socket that one of the workloads connects to.
fn listener(host: &Host) -> Result<UnixListener> {
    let shared = host.dir().join("shared");
    fs::create_dir_all(&shared)?;
    Ok(UnixListener::bind(shared.join("socket"))?)
}

/// The log that the error names.
fn kept_log(error: &str) -> Result<PathBuf> {
    let path = error
        .split("the log is ")
        .nth(1)
        .with_context(|| format!("no log named in {error}"))?;
    Ok(path
        .split([';', ':', '\n', '"'])
        .next()
        .unwrap_or(path)
        .trim()
        .into())
}

#[test]
fn established_connection_is_refused_and_explained() -> Result<()> {
    need!(Criu, "dumps");
    check("half-connection", None, "cedana.dump.tcp")
}

#[test]
fn io_uring_is_refused_and_explained() -> Result<()> {
    need!(Criu, "dumps");
    check("io-uring", Some("io_uring"), "uses io_uring")
}

#[test]
fn deleted_file_over_the_limit_is_refused_and_explained() -> Result<()> {
    need!(OurShim, "CRIU's own limit is what our setting replaces");
    need!(Criu, "dumps");
    let host = Host::with_image()?;
    let limit = ["--annotation", "cedana.dump.ghost-limit=1M"];
    let mut talker = Talker::run(&host, "c", WORKLOAD, &["hold", "ghost"], &limit)?;
    let said = host.ctr(&["tasks", "checkpoint", "c"])?;
    ensure!(said.code != 0, "a deleted file of 2 MiB passed a limit of 1 MiB");
    ensure!(said.stderr.contains("increase limit"), "{}", said.stderr);
    ensure!(said.stderr.contains("cedana.dump.ghost-limit"), "{}", said.stderr);
    assert_eq!(talker.ask("ping")?, "pong 1");
    talker.remove()?;

    let mut talker = Talker::run(&host, "c", WORKLOAD, &["hold", "ghost"], &[])?;
    talker.checkpoint("kept")?;
    talker.remove()?;
    talker = Talker::restore(&host, "c", "kept")?;
    assert_eq!(talker.ask("ping")?, "pong 1");
    talker.remove()
}

#[test]
fn connection_to_the_host_is_refused_and_explained() -> Result<()> {
    need!(Criu, "dumps");
    check("host-socket", Some("unix:"), "socket of the host")
}

#[test]
fn vsock_is_refused_and_explained() -> Result<()> {
    need!(Criu, "dumps");
    check("vsock", Some("Unknown socket collected (family 40)"), "vsock")
}

#[test]
fn nested_user_namespace_is_refused_and_explained() -> Result<()> {
    need!(Criu, "dumps");
    check(
        "user-namespace",
        Some("nested user namespace"),
        "nested namespace",
    )
}

#[test]
fn refused_dump_leaves_no_images() -> Result<()> {
    need!(
        OurShim,
        "containerd's own shim leaves what CRIU had written so far"
    );
    need!(Criu, "dumps");
    let host = Host::with_image()?;
    let talker = holding(&host, "vsock")?;
    let images = host.dir().join("images");
    // containerd passes no code on from this call, only the text.
    ensure!(
        host.api().checkpoint("c", Some(&to_path(&images))).is_err(),
        "the dump succeeded"
    );
    ensure!(!images.exists(), "something is left in {}", images.display());
    talker.remove()
}

fn to_path(images: &Path) -> msg::CheckpointOptions {
    msg::CheckpointOptions {
        image_path: images.display().to_string(),
        ..Default::default()
    }
}

#[test]
fn failed_dump_of_a_paused_container_leaves_it_paused() -> Result<()> {
    need!(Criu, "dumps");
    let host = Host::with_image()?;
    let mut talker = holding(&host, "half-connection")?;
    host.api().pause("c")?;
    let failed = host
        .api()
        .checkpoint("c", Some(&to_path(&host.dir().join("images"))));
    ensure!(failed.is_err(), "the dump succeeded");
    assert_eq!(talker.status()?, Status::Paused);
    host.api().resume("c")?;
    assert_eq!(talker.ask("ping")?, "pong 1");
    talker.remove()
}

#[test]
fn failed_dump_to_path_with_exit_ends_nothing() -> Result<()> {
    need!(Criu, "dumps");
    need!(CheckpointOptions, "says what it wants by ctr");
    let host = Host::with_image()?;
    let mut talker = holding(&host, "half-connection")?;
    let said = host.ctr(&["tasks", "checkpoint", "--exit", "c"])?;
    ensure!(said.code != 0, "the dump succeeded");
    assert_eq!(talker.status()?, Status::Running);
    assert_eq!(talker.ask("ping")?, "pong 1");
    talker.remove()
}

#[test]
fn full_disk_fails_the_dump_and_not_the_container() -> Result<()> {
    need!(Criu, "dumps");
    need!(CheckpointOptions, "says what it wants by ctr");
    let host = Host::with_image()?;
    let mut talker = Talker::run(&host, "c", WORKLOAD, &["memory", "16"], &[])?;
    let small = SmallDisk::mount(host.dir().join("small"))?;
    let images = small.0.join("images");
    let said = host.ctr(&[
        "tasks",
        "checkpoint",
        "--image-path",
        &images.display().to_string(),
        "c",
    ])?;
    ensure!(said.code != 0, "16 MiB went into 4 MiB");
    assert_eq!(talker.status()?, Status::Running);
    assert_eq!(talker.check()?, 1);
    if need::met(
        "full disk",
        need::Need::OurShim,
        "containerd's own shim says nothing and leaves the pieces",
    )? {
        ensure!(said.stderr.contains("No space left on device"), "{}", said.stderr);
        ensure!(said.stderr.contains("make room"), "{}", said.stderr);
        ensure!(
            !holds_images(&images),
            "a half dump stays in {}",
            images.display()
        );
    }
    drop(small);
    let elsewhere = host.dir().join("large");
    let _said = host
        .ctr(&[
            "tasks",
            "checkpoint",
            "--image-path",
            &elsewhere.display().to_string(),
            "c",
        ])?
        .ok()?;
    ensure!(holds_images(&elsewhere), "no images in {}", elsewhere.display());
    assert_eq!(talker.check()?, 2);
    talker.remove()
}

/// A file system of 4 MiB, unmounted when dropped.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: PathBuf) -> Result<Self> {
        fs::create_dir_all(&at)?;
        let _said = run(
            "mount",
            &["-t", "tmpfs", "-o", "size=4m", "small", &at.display().to_string()],
        )?
        .ok()?;
        Ok(Self(at))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _unmounted = nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH);
    }
}

#[test]
fn failed_restore_leaves_no_task_and_works_once_the_cause_is_gone() -> Result<()> {
    need!(Criu, "dumps");
    need!(CheckpointOptions, "spoils the images at their path");
    let host = Host::new()?;
    let first = Spoken::run(host.container("c", counter())?)?;
    first.says("one", "1 one")?;
    let images = dump_to_path_with_exit(&first.container)?;
    let hidden = images.with_extension("hidden");
    let core = images.join("core-1.img");
    fs::rename(&core, &hidden)?;
    for _again in 0..2 {
        let failed = restore_once(&host, &images);
        ensure!(
            failed.is_err(),
            "restored from images without the core of its init"
        );
        ensure!(
            host.api().get("c", "").is_err(),
            "a task stays after a restore that failed"
        );
        host.assert_clean()?;
    }
    fs::rename(&hidden, &core)?;
    let second = Spoken::restore_from(first.container, &images)?;
    second.says("two", "2 two")
}

fn restore_once(host: &Host, images: &Path) -> Result<()> {
    let container = host.known("c", counter());
    let _pid = container.create_with(&StreamNames::default(), Some(&from_path(images)))?;
    let started = container.start();
    if started.is_err() {
        // Containerd's own shim restores in Start: the task that Create made is the client's to delete.
        let _code = container.delete()?;
    }
    let _pid = started?;
    Ok(())
}

#[test]
fn same_ctr_command_restores_once_the_cause_is_gone() -> Result<()> {
    need!(Criu, "dumps");
    let host = Host::with_image()?;
    let _listener = listener(&host)?;
    let file = host.dir().join("shared/file");
    fs::write(&file, "of the host")?;
    let talker = holding(&host, "host-file")?;
    talker.checkpoint("kept")?;
    talker.remove()?;
    fs::remove_file(&file)?;
    for _again in 0..2 {
        let said = restore(&host, "c", "kept")?;
        ensure!(said.code != 0, "restored without a file that it has open");
        if need::met(
            "host-file",
            need::Need::OurShim,
            "containerd's own shim only names the log",
        )? {
            ensure!(
                said.stderr.contains("host/file"),
                "{} does not name the file",
                said.stderr
            );
            ensure!(
                kept_log(&said.stderr)?.is_file(),
                "the log is not where {} says",
                said.stderr
            );
        }
        // ctr leaves the container's record, as it does after any run that fails.
        let _said = host.ctr(&["containers", "delete", "c"])?.ok()?;
    }
    fs::write(&file, "of the host")?;
    let mut talker = Talker::restore(&host, "c", "kept")?;
    assert_eq!(talker.ask("ping")?, "pong 1");
    talker.remove()
}
