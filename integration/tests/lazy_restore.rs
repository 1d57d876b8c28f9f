//! Restores whose memory comes behind the processes: what these do meanwhile, and what becomes of them if it never comes.
//!
//! `cedana.restore.fill-rate` keeps the memory from being there before a test can do something: what a test sees then was
//! served because it was touched.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use integration::by_ctr::Talker;
use integration::host::Host;
use integration::messages::Status;
use integration::need;

const STIR: &str = env!("CARGO_BIN_EXE_stir");

/// Enough to be served late.
const MIB: &str = "64";

/// So slow that nothing of it is there unless it is asked for.
const SLOWLY: &str = "cedana.restore.fill-rate=64K";

/// How long the kernel and the shim may take for what they do at once.
const SOON: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Runs the program, dumps it and brings it back under `id`, with these annotations.
fn restored<'host>(host: &'host Host, id: &str, annotations: &[&str]) -> Result<Talker<'host>> {
    restored_as(host, id, &[MIB], annotations)
}

/// The same with these words for the program.
fn restored_as<'host>(
    host: &'host Host,
    id: &str,
    words: &[&str],
    annotations: &[&str],
) -> Result<Talker<'host>> {
    let more: Vec<&str> = annotations
        .iter()
        .flat_map(|said| ["--annotation", said])
        .collect();
    let mut talker = Talker::run(host, id, STIR, words, &more)?;
    assert_eq!(talker.check()?, 1);
    talker.checkpoint(id)?;
    talker.remove()?;
    Talker::restore(host, id, id)
}

/// The server of pages of a container: its pid.
fn server(host: &Host, id: &str) -> Result<Option<i32>> {
    let work = format!("/{}/{id}/", host.namespace());
    for entry in fs::read_dir("/proc")? {
        let path = entry?.path();
        let line = fs::read(path.join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if line.contains("serve-pages") && line.contains(&work) {
            let pid = path.file_name().and_then(|name| name.to_str()).context("a pid")?;
            return Ok(Some(pid.parse()?));
        }
    }
    Ok(None)
}

fn until(what: &str, is_so: impl Fn() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + SOON;
    while !is_so()? {
        ensure!(Instant::now() < deadline, "{what}: not within {SOON:?}");
        std::thread::sleep(LOOK_EVERY);
    }
    Ok(())
}

/// What of the container's own memory is there, in KiB.
fn resident_kib(pid: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let number = line
        .and_then(|line| line.split_whitespace().next())
        .context("RssAnon")?;
    Ok(number.parse()?)
}

#[test]
fn processes_run_before_their_memory_is_there() -> Result<()> {
    need!(OurShim, "containerd's own shim restores all memory first");
    need!(Criu, "dumps");
    let host = Host::with_image()?;
    let mut talker = restored(&host, "c", &[SLOWLY])?;
    assert_eq!(talker.ask("ping")?, "ok 2");
    let there = resident_kib(talker.pid()?)?;
    ensure!(there < 32 * 1024, "{there} KiB are there already");
    assert_eq!(talker.ask("touch")?, "ok 3");
    assert_eq!(talker.check()?, 4);
    until("the server ends when all is there", || {
        Ok(server(&host, "c")?.is_none())
    })?;
    assert_eq!(talker.check()?, 5);
    talker.remove()
}

#[test]
fn memory_comes_by_itself_and_its_server_goes() -> Result<()> {
    need!(OurShim, "containerd's own shim restores all memory first");
    need!(Criu, "dumps");
    let host = Host::with_image()?;
    let mut talker = restored(&host, "c", &[])?;
    until("the server ends", || Ok(server(&host, "c")?.is_none()))?;
    let there = resident_kib(talker.pid()?)?;
    ensure!(there >= 64 * 1024, "only {there} KiB are there");
    assert_eq!(talker.check()?, 2);
    talker.remove()
}

#[test]
fn what_a_process_does_with_memory_that_is_not_there_is_done() -> Result<()> {
    need!(OurShim, "containerd's own shim restores all memory first");
    need!(Criu, "dumps");
    let host = Host::with_image()?;
    let mut talker = restored(&host, "c", &[SLOWLY])?;
    // Each answer is right at once, and again when everything has come.
    for (number, act) in ["move", "forget", "unmap", "touch", "fork", "check", "fork"]
        .iter()
        .enumerate()
    {
        assert_eq!(talker.ask(act)?, format!("ok {}", number + 2), "{act}");
    }
    until("the server ends when all is there", || {
        Ok(server(&host, "c")?.is_none())
    })?;
    assert_eq!(talker.check()?, 9);
    talker.remove()
}

#[test]
fn dump_waits_for_memory_that_is_not_there() -> Result<()> {
    need!(OurShim, "containerd's own shim restores all memory first");
    need!(Criu, "dumps");
    need!(CheckpointAgain, "dumps what was restored");
    let host = Host::with_image()?;
    // A quarter of an hour, did the limit hold although somebody waits.
    let mut talker = restored(&host, "c", &[SLOWLY])?;
    assert!(
        server(&host, "c")?.is_some(),
        "all is there too early for this test"
    );
    talker.checkpoint("again")?;
    assert!(
        server(&host, "c")?.is_none(),
        "it was dumped before all was there"
    );
    assert_eq!(talker.check()?, 2);
    talker.remove()?;
    let mut again = Talker::restore(&host, "c", "again")?;
    assert_eq!(again.check()?, 2, "nothing was left out");
    again.remove()
}

#[test]
fn container_whose_memory_never_comes_is_killed() -> Result<()> {
    need!(OurShim, "containerd's own shim restores all memory first");
    need!(Criu, "dumps");
    let host = Host::with_image()?;
    let events = host.events()?;
    let mut talker = restored(&host, "c", &[SLOWLY])?;
    let server = server(&host, "c")?.context("a server of pages")?;
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(server),
        nix::sys::signal::Signal::SIGKILL,
    )?;
    let ended = events.find("c", |event| event.kind == "exit" && event.status == Some(137))?;
    drop(ended);
    talker.gone()
}

#[test]
fn killed_container_takes_its_server_along() -> Result<()> {
    need!(OurShim, "containerd's own shim restores all memory first");
    need!(Criu, "dumps");
    let host = Host::with_image()?;
    let talker = restored(&host, "c", &[SLOWLY])?;
    assert_eq!(talker.status()?, Status::Running);
    ensure!(server(&host, "c")?.is_some(), "no server");
    talker.remove()?;
    until("the server ends", || Ok(server(&host, "c")?.is_none()))
}

#[test]
fn container_is_restored_all_at_once_if_asked() -> Result<()> {
    need!(OurShim, "the annotation is ours");
    need!(Criu, "dumps");
    let host = Host::with_image()?;
    let mut talker = restored(&host, "c", &["cedana.restore.lazy=false", SLOWLY])?;
    ensure!(server(&host, "c")?.is_none(), "a server of pages");
    let there = resident_kib(talker.pid()?)?;
    ensure!(there >= 64 * 1024, "only {there} KiB are there");
    assert_eq!(talker.check()?, 2);
    talker.remove()
}

#[test]
fn memory_of_every_kind_is_right_late_and_at_once() -> Result<()> {
    need!(OurShim, "containerd's own shim restores all memory first");
    need!(Criu, "dumps");
    let host = Host::with_image()?;
    for (id, how) in [("late", SLOWLY), ("once", "cedana.restore.lazy=false")] {
        let mut talker = restored_as(&host, id, &[MIB, "kinds"], &[how])?;
        assert_eq!(server(&host, id)?.is_some(), id == "late");
        for (number, act) in ["share", "move", "check", "forget", "fork", "share", "check"]
            .iter()
            .enumerate()
        {
            assert_eq!(talker.ask(act)?, format!("ok {}", number + 2), "{act}, {id}");
        }
        until("the server ends when all is there", || {
            Ok(server(&host, id)?.is_none())
        })?;
        assert_eq!(talker.check()?, 9, "{id}");
        talker.remove()?;
    }
    Ok(())
}

#[test]
fn container_ends_with_its_shim_while_its_memory_comes() -> Result<()> {
    need!(OurShim, "containerd's own shim restores all memory first");
    need!(Criu, "dumps");
    let host = Host::with_image()?;
    let talker = restored(&host, "c", &[SLOWLY])?;
    let (init, worker) = (talker.pid()?, server(&host, "c")?.context("a server of pages")?);
    let stat = fs::read_to_string(format!("/proc/{init}/stat"))?;
    let parent = stat
        .rsplit_once(") ")
        .and_then(|(_, rest)| rest.split(' ').nth(1));
    let shim = nix::unistd::Pid::from_raw(parent.context("a parent")?.parse()?);
    nix::sys::signal::kill(shim, nix::sys::signal::Signal::SIGKILL)?;
    // Nobody is left who waits for a page for ever, and nobody who reads zeros: containerd has the rest removed.
    for pid in [init.to_string(), worker.to_string()] {
        until("it ends with its shim", || {
            Ok(!std::path::Path::new("/proc").join(&pid).exists())
        })?;
    }
    Ok(())
}

#[test]
fn container_whose_pages_are_cut_under_it_is_killed() -> Result<()> {
    need!(OurShim, "containerd's own shim restores all memory first");
    need!(Criu, "dumps");
    let host = Host::with_image()?;
    let events = host.events()?;
    let mut talker = restored(&host, "c", &[SLOWLY])?;
    let server = server(&host, "c")?.context("a server of pages")?;
    let mut cut = false;
    for entry in fs::read_dir(format!("/proc/{server}/fd"))? {
        let path = entry?.path();
        let is_pages = fs::read_link(&path).is_ok_and(|target| target.to_string_lossy().contains("/pages-"));
        if is_pages {
            fs::File::options().write(true).open(&path)?.set_len(0)?;
            cut = true;
        }
    }
    ensure!(cut, "the server has no pages open");
    let ended = events.find("c", |event| event.kind == "exit" && event.status == Some(137))?;
    drop(ended);
    talker.gone()
}
