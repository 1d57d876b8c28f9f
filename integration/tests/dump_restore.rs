//! Checkpoint and restore by plain `ctr` commands: what comes back, and that it goes on.

use std::path::Path;

use anyhow::{Result, ensure};
use integration::by_ctr::{Talker, holds_images};
use integration::engine::run;
use integration::host::Host;
use integration::messages as msg;
use integration::messages::Status;
use integration::need;
use integration::spoken::{Spoken, counter, dump_and_kill, dump_in, dump_to_path_with_exit};
use integration::stdio::StreamNames;
use integration::workload::Workload;

const WORKLOAD: &str = env!("CARGO_BIN_EXE_workload");

#[test]
fn checkpoint_leaves_the_container_running() -> Result<()> {
    need!(Criu, "dumps");
    let host = Host::new()?;
    let first = Spoken::run(host.container("first", counter())?)?;
    first.says("one", "1 one")?;
    let printed = host.ctr(&["tasks", "checkpoint", "first"])?.ok()?;
    assert_eq!(first.container.status()?, Status::Running);
    first.says("two", "2 two")?;

    let second = Spoken::restore(host.container("second", counter())?, dump_in(&host, &printed)?)?;
    second.says("again", "2 again")?;
    first.says("three", "3 three")?;
    Ok(())
}

#[test]
fn checkpoint_with_exit_ends_the_container() -> Result<()> {
    need!(Criu, "dumps");
    need!(CheckpointOptions, "says what it wants by ctr");
    let host = Host::new()?;
    let events = host.events()?;
    let first = Spoken::run(host.container("c", counter())?)?;
    first.says("one", "1 one")?;
    let printed = host.ctr(&["tasks", "checkpoint", "--exit", "c"])?.ok()?;
    let _exit = events.find("c", |event| event.kind == "exit" && event.process.is_empty())?;
    let status = first.container.wait()?;
    assert_eq!(first.container.status()?, Status::Stopped);
    assert_eq!(first.container.delete()?, status);

    let again = Spoken::restore(first.container, dump_in(&host, &printed)?)?;
    again.says("two", "2 two")?;
    assert_eq!(again.container.kill_and_delete()?, 137);
    Ok(())
}

#[test]
fn whole_checkpoint_comes_back_under_another_id_and_under_its_own() -> Result<()> {
    need!(Criu, "dumps");
    need!(CriuSockets, "the tree listens");
    let host = Host::with_image()?;
    let mut first = Talker::run(&host, "first", WORKLOAD, &["tree"], &[])?;
    assert_eq!(first.check()?, 1);
    first.checkpoint("kept")?;
    assert_eq!(first.check()?, 2, "the dumped one goes on");
    // Both have the cgroup that the spec in the checkpoint names, so they cannot be there at once.
    first.remove()?;
    for id in ["second", "first"] {
        let mut restored = Talker::restore(&host, id, "kept")?;
        assert_eq!(restored.check()?, 2, "{id} goes on from the moment of the dump");
        restored.remove()?;
    }
    Ok(())
}

#[test]
fn restored_socket_accepts_connections() -> Result<()> {
    need!(Criu, "dumps");
    need!(CriuSockets, "the tree listens");
    let host = Host::with_image()?;
    let mut talker = Talker::run(&host, "c", WORKLOAD, &["tree"], &[])?;
    assert_eq!(talker.ask("connect")?, "ok 1");
    talker.checkpoint("kept")?;
    talker.remove()?;
    let mut talker = Talker::restore(&host, "c", "kept")?;
    // A network of the container's own is not in a checkpoint; who made its devices makes them again.
    let pid = talker.pid()?.to_string();
    let _said = run("nsenter", &["-t", &pid, "-n", "ip", "link", "set", "lo", "up"])?.ok()?;
    assert_eq!(talker.ask("connect")?, "ok 2");
    talker.remove()
}

#[test]
fn file_locks_are_held_again() -> Result<()> {
    need!(OurShim, "containerd's own shim restores no locks");
    need!(Criu, "dumps");
    let host = Host::with_image()?;
    let mut talker = Talker::run(&host, "c", WORKLOAD, &["locks"], &[])?;
    assert_eq!(talker.check()?, 1);
    talker.checkpoint("kept")?;
    talker.remove()?;
    let mut talker = Talker::restore(&host, "c", "kept")?;
    assert_eq!(talker.check()?, 2);
    talker.remove()
}

#[test]
fn file_locks_need_no_option() -> Result<()> {
    need!(OurShim, "ctr tasks checkpoint does not ask for locks");
    need!(Criu, "dumps");
    let host = Host::with_image()?;
    let talker = Talker::run(&host, "c", WORKLOAD, &["locks"], &[])?;
    let _printed = host.ctr(&["tasks", "checkpoint", "c"])?.ok()?;
    talker.remove()
}

#[test]
fn dump_restore_and_dump_again_five_times() -> Result<()> {
    need!(Criu, "dumps");
    need!(CriuSockets, "the tree listens");
    need!(CheckpointAgain, "dumps what was restored");
    let host = Host::with_image()?;
    let mut talker = Talker::run(&host, "c", WORKLOAD, &["tree"], &[])?;
    for round in 1..=5 {
        assert_eq!(talker.check()?, round, "answers before dump {round}");
        let image = format!("round-{round}");
        talker.checkpoint(&image)?;
        talker.remove()?;
        talker = Talker::restore(&host, "c", &image)?;
    }
    assert_eq!(talker.check()?, 6);
    talker.remove()
}

#[test]
fn image_path_gets_the_images_and_work_path_the_log() -> Result<()> {
    need!(Criu, "dumps");
    need!(CheckpointOptions, "says what it wants by ctr");
    let host = Host::with_image()?;
    let talker = Talker::run(&host, "c", WORKLOAD, &["memory", "1"], &[])?;
    let (images, work) = (host.dir().join("images"), host.dir().join("work"));
    checkpoint_to(&host, &images, &work)?;
    assert_eq!(talker.status()?, Status::Running);
    ensure!(holds_images(&images), "no images in {}", images.display());
    ensure!(work.join("dump.log").is_file(), "no log in {}", work.display());
    talker.remove()
}

fn checkpoint_to(host: &Host, images: &Path, work: &Path) -> Result<()> {
    let (images, work) = (images.display().to_string(), work.display().to_string());
    let args = [
        "tasks",
        "checkpoint",
        "--image-path",
        &images,
        "--work-path",
        &work,
        "c",
    ];
    let _said = host.ctr(&args)?.ok()?;
    Ok(())
}

#[test]
fn image_path_is_what_criu_image_path_restores_from() -> Result<()> {
    need!(Criu, "dumps");
    need!(CheckpointOptions, "says where the images are");
    let host = Host::new()?;
    let first = Spoken::run(host.container("c", counter())?)?;
    first.says("one", "1 one")?;
    let images = dump_to_path_with_exit(&first.container)?;
    let second = Spoken::restore_from(first.container, &images)?;
    second.says("two", "2 two")
}

#[test]
fn create_of_a_restore_knows_the_pid() -> Result<()> {
    need!(OurShim, "containerd's own shim restores in Start");
    need!(Criu, "dumps");
    let host = Host::new()?;
    let container = host.run(Workload::forever())?;
    let dump = dump_and_kill(&host, &container)?;
    let pid = container.create_from(&StreamNames::default(), dump)?;
    ensure!(
        Path::new(&format!("/proc/{pid}/ns/net")).exists(),
        "create says {pid}, which does not live"
    );
    assert_eq!(container.status()?, Status::Created);
    assert_eq!(container.start()?, pid);
    assert_eq!(container.status()?, Status::Running);
    assert_eq!(container.kill_and_delete()?, 137);
    Ok(())
}

#[test]
fn restore_that_is_never_started_goes_away() -> Result<()> {
    need!(Criu, "dumps");
    let host = Host::new()?;
    let container = host.run(Workload::forever())?;
    let dump = dump_and_kill(&host, &container)?;
    let _pid = container.create_from(&StreamNames::default(), dump)?;
    // Containerd's own shim has nothing to kill yet.
    if container.kill(9).is_ok() {
        let _status = container.wait()?;
    }
    let _status = container.delete()?;
    host.assert_clean()
}

#[test]
fn running_exec_goes_on_and_is_no_part_of_the_dump() -> Result<()> {
    need!(Criu, "dumps");
    let host = Host::new()?;
    let first = Spoken::run(host.container("c", counter())?)?;
    let exec = first
        .container
        .add_exec("shell", "while :; do sleep 1000; done")?;
    let _pid = exec.start()?;
    let printed = host.ctr(&["tasks", "checkpoint", "c"])?.ok()?;
    assert_eq!(exec.state()?.status(), Status::Running);
    first.says("one", "1 one")?;
    exec.kill(9)?;
    let _status = exec.wait()?;
    let _status = exec.delete()?;
    let _status = first.container.kill_and_delete()?;

    let second = Spoken::restore(first.container, dump_in(&host, &printed)?)?;
    second.says("one", "1 one")?;
    assert_eq!(
        host.api().pids("c")?.len(),
        1,
        "only the container's own process came back"
    );
    Ok(())
}

#[test]
fn terminal_comes_back() -> Result<()> {
    need!(Criu, "dumps");
    let host = Host::new()?;
    let script = "n=0; while read line; do n=$((n+1)); echo $n $(stty size) $(tty); done";
    let first = Spoken::run(host.container("c", Workload::shell(script).terminal())?)?;
    host.api().resize("c", "", 90, 30)?;
    first.says("one", "1 30 90 /dev/pts/0")?;
    let dump = dump_and_kill(&host, &first.container)?;
    let second = Spoken::restore(first.container, dump)?;
    second.says("two", "2 30 90 /dev/pts/0")?;
    host.api().resize("c", "", 100, 40)?;
    second.says("three", "3 40 100 /dev/pts/0")
}

#[test]
fn paused_container_is_dumped_and_stays_paused() -> Result<()> {
    need!(Criu, "dumps");
    need!(CheckpointOptions, "says where the images go");
    let host = Host::with_image()?;
    let mut talker = Talker::run(&host, "c", WORKLOAD, &["memory", "1"], &[])?;
    let images = host.dir().join("images");
    host.api().pause("c")?;
    let options = msg::CheckpointOptions {
        image_path: images.display().to_string(),
        file_locks: true,
        ..Default::default()
    };
    let _nothing = host.api().checkpoint("c", Some(&options))?;
    assert_eq!(talker.status()?, Status::Paused);
    ensure!(holds_images(&images), "no images in {}", images.display());
    host.api().resume("c")?;
    assert_eq!(talker.check()?, 1);
    talker.remove()
}

#[test]
fn checkpoint_is_an_event() -> Result<()> {
    need!(OurShim, "containerd's own shim publishes no checkpointed event");
    need!(Criu, "dumps");
    let host = Host::with_image()?;
    let events = host.events()?;
    let talker = Talker::run(&host, "c", WORKLOAD, &["memory", "1"], &[])?;
    talker.checkpoint("image")?;
    let seen = events.until("c", "checkpointed")?;
    assert_eq!(
        seen.iter().filter(|event| *event == "checkpointed").count(),
        1,
        "{seen:?}"
    );
    talker.remove()
}
