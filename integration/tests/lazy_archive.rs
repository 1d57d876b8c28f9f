//! Restores of a job out of one file: its memory stays there until somebody wants it.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use integration::cedana::Cedana;
use integration::cedana_counter::{COUNTER, Counter};
use integration::host::Host;
use integration::need;
use integration::stdio::eventually;

/// So slow that nothing of it is there unless it is asked for.
const SLOWLY: [&str; 2] = ["--annotation", "cedana.restore.fill-rate=64K"];

const UNPACKED: &str = "/var/lib/cedana/unpacked";
const SOON: Duration = Duration::from_secs(30);
const USR1: u32 = 10;

/// What it holds, in bytes, at least: random, and so written that it compresses a little.
const MEMORY_BYTES: u64 = 60 << 20;

/// A container that counts, holds memory, and says what that is when it is asked.
fn holder(host: &Host, id: &str, flags: &[&str]) -> Result<Counter> {
    let script = format!(
        "x=$(head -c 48000000 /dev/urandom | base64 -w0); trap 'printf %s \"$x\" | md5sum > /sum; mv /sum /said' USR1; {COUNTER}"
    );
    Counter::run_script(host, id, host.runtime(), flags, &script)
}

/// What it says its memory is.
fn says(host: &Host, counter: &Counter) -> Result<String> {
    let said = PathBuf::from(format!("/proc/{}/root/said", counter.pid()?));
    let _old = fs::remove_file(&said);
    host.api().kill(counter.id(), "", USR1, false)?;
    eventually("it says what its memory is", SOON, || said.exists())?;
    Ok(fs::read_to_string(&said)?)
}

/// Whether a server of pages has this open.
fn is_served(archive: &Path) -> Result<bool> {
    for entry in fs::read_dir("/proc")? {
        let path = entry?.path();
        let line = fs::read(path.join("cmdline")).unwrap_or_default();
        if !String::from_utf8_lossy(&line).contains("serve-pages") {
            continue;
        }
        let Ok(open) = fs::read_dir(path.join("fd")) else {
            continue;
        };
        let mut targets = open.flatten().filter_map(|fd| fs::read_link(fd.path()).ok());
        let is_open = |target: PathBuf| {
            let name = target.to_string_lossy().into_owned();
            Path::new(name.trim_end_matches(" (deleted)")) == archive
        };
        if targets.any(is_open) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Files of pages below a directory: the lengths of all of them, and the disk that they take.
fn pages_below(dir: &Path, sum: &mut (u64, u64)) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            pages_below(&path, sum);
        } else if entry.file_name().to_string_lossy().starts_with("pages-")
            && let Ok(found) = fs::metadata(&path)
        {
            sum.0 += found.len();
            sum.1 += found.blocks() * 512;
        }
    }
}

/// The same for what is unpacked of one archive: other tests unpack theirs beside it.
fn pages_of(archive: &str) -> (u64, u64) {
    let mut sum = (0, 0);
    for dir in fs::read_dir(UNPACKED).into_iter().flatten().flatten() {
        let list = fs::read_to_string(dir.path().join("left")).unwrap_or_default();
        if list.contains(archive) {
            pages_below(&dir.path(), &mut sum);
        }
    }
    sum
}

/// Restores, and returns the most that its files of pages were long, and took, meanwhile.
fn restore_watched(cedana: &Cedana, id: &str, archive: &str) -> Result<(u64, u64)> {
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let watch = scope.spawn(|| {
            let mut most = (0, 0);
            while !done.load(Ordering::Relaxed) {
                let now = pages_of(archive);
                most = (most.0.max(now.0), most.1.max(now.1));
                thread::sleep(Duration::from_millis(1));
            }
            most
        });
        let restored = cedana.restore(&[id, "--path", archive]);
        done.store(true, Ordering::Relaxed);
        let most = watch.join().ok().context("the watch panicked")?;
        restored.map(|_pid| most)
    })
}

fn resident_bytes(pid: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let number = line.and_then(|line| line.split_whitespace().next());
    Ok(number.context("RssAnon")?.parse::<u64>()? << 10)
}

/// Dumps a holder, which ends, to an archive.
fn dumped(host: &Host, cedana: &Cedana, counter: &Counter, form: &str) -> Result<PathBuf> {
    let into = host.made_dir("checkpoints")?;
    Ok(cedana
        .dump(&[counter.id(), "--dir", &into, "--compression", form])?
        .into())
}

#[test]
fn memory_stays_in_the_archive_until_it_is_wanted() -> Result<()> {
    need!(OurShim, "the shim's own service");
    need!(Criu, "dumps");
    let host = Host::with_image()?;
    let cedana = Cedana::new();
    for form in ["tar", "zstd"] {
        let counter = holder(&host, &format!("left-{form}"), &SLOWLY)?;
        let sum = says(&host, &counter)?;
        let before = counter.seen()?;
        let archive = dumped(&host, &cedana, &counter, form)?;
        let ended = counter.seen()?;
        let path = archive.display().to_string();
        let (len, taken) = restore_watched(&cedana, counter.id(), &path)?;
        ensure!(len > MEMORY_BYTES, "{form}: only {len} bytes of pages were seen");
        ensure!(
            taken < MEMORY_BYTES / 8,
            "{form}: {taken} bytes of them were unpacked"
        );
        ensure!(is_served(&archive)?, "{form}: nobody reads the archive");
        fs::remove_file(&archive)?;
        let there = resident_bytes(counter.pid()?)?;
        ensure!(
            there < MEMORY_BYTES / 2,
            "{form}: {there} bytes are there already"
        );
        counter.continues(before, ended)?;
        assert_eq!(says(&host, &counter)?, sum, "{form}");
        counter.kill()?;
        eventually("its server goes with it", SOON, || {
            matches!(is_served(&archive), Ok(false))
        })?;
    }
    Ok(())
}

#[test]
fn what_came_out_of_an_archive_is_dumped_again() -> Result<()> {
    need!(OurShim, "the shim's own service");
    need!(Criu, "dumps");
    need!(CheckpointAgain, "dumps what was restored");
    let host = Host::with_image()?;
    let cedana = Cedana::new();
    // A second or two: the dump comes in the middle, and waits.
    let counter = holder(&host, "again", &["--annotation", "cedana.restore.fill-rate=32M"])?;
    let sum = says(&host, &counter)?;
    for _round in 0..2 {
        let before = counter.seen()?;
        let archive = dumped(&host, &cedana, &counter, "zstd")?;
        let ended = counter.seen()?;
        let pid = cedana.restore(&[counter.id(), "--path", &archive.display().to_string()])?;
        assert_eq!(counter.pid()?, pid);
        counter.continues(before, ended)?;
    }
    assert_eq!(says(&host, &counter)?, sum);
    counter.kill()
}

#[test]
fn who_is_to_have_all_memory_first_has_it_out_of_the_archive() -> Result<()> {
    need!(OurShim, "the shim's own service");
    need!(Criu, "dumps");
    let host = Host::with_image()?;
    let cedana = Cedana::new();
    // Said by the command, it is unpacked; said by the container, its shim takes it out.
    let eager = ["--annotation", "cedana.restore.lazy=false"];
    for (id, flags, said) in [("flag", &[][..], &["--eager"][..]), ("annotation", &eager, &[])] {
        let counter = holder(&host, id, flags)?;
        let sum = says(&host, &counter)?;
        let archive = dumped(&host, &cedana, &counter, "zstd")?;
        let path = archive.display().to_string();
        let pid = cedana.restore(&[&[id, "--path", &path], said].concat())?;
        ensure!(!is_served(&archive)?, "{id}: a server of pages");
        ensure!(resident_bytes(pid)? > MEMORY_BYTES, "{id}: not all is there");
        assert_eq!(says(&host, &counter)?, sum, "{id}");
        counter.kill()?;
    }
    Ok(())
}

/// It is killed since its memory cannot be had, and why is kept.
fn is_killed_for(host: &Host, cedana: &Cedana, counter: &Counter, why: &str) -> Result<()> {
    let exit = host.api().wait(counter.id(), "")?;
    assert_eq!(exit.exit_status, 137, "{why}");
    let told = || {
        let list = cedana.says(&["job", "inspect", counter.id()]).unwrap_or_default();
        list.contains("read pages of process") && list.contains(why)
    };
    eventually("the reason is kept", SOON, told)
}

#[test]
fn a_damaged_archive_is_found_out_and_ends_the_job() -> Result<()> {
    need!(OurShim, "the shim's own service");
    need!(Criu, "dumps");
    let host = Host::with_image()?;
    let cedana = Cedana::new();
    let counter = holder(&host, "spoilt", &[])?;
    let archive = dumped(&host, &cedana, &counter, "zstd")?;
    let path = archive.display().to_string();
    let file = fs::File::options().write(true).open(&archive)?;
    file.write_all_at(&[0x55; 64], file.metadata()?.len() / 2)?;
    let _pid = cedana.restore(&[counter.id(), "--path", &path])?;
    is_killed_for(&host, &cedana, &counter, "the archive is damaged")?;
    // Taken out before the job runs, nothing of it runs.
    let said = cedana.run(&["restore", "job", counter.id(), "--path", &path, "--eager"])?;
    ensure!(said.code != 0 && said.stderr.contains("damaged"), "{said:?}");
    counter.has_ended()
}

#[test]
fn an_archive_that_is_written_to_while_memory_is_in_it_ends_the_job() -> Result<()> {
    need!(OurShim, "the shim's own service");
    need!(Criu, "dumps");
    let host = Host::with_image()?;
    let cedana = Cedana::new();
    for form in ["tar", "zstd"] {
        let counter = holder(&host, &format!("written-{form}"), &SLOWLY)?;
        let archive = dumped(&host, &cedana, &counter, form)?;
        let _pid = cedana.restore(&[counter.id(), "--path", &archive.display().to_string()])?;
        let file = fs::File::options().write(true).open(&archive)?;
        file.write_all_at(&[0x55; 64], file.metadata()?.len() - 64)?;
        is_killed_for(&host, &cedana, &counter, "the archive was changed").context(form)?;
        counter.has_ended()?;
    }
    Ok(())
}

#[test]
fn an_archive_that_was_replaced_on_the_way_is_not_taken() -> Result<()> {
    need!(OurShim, "the shim's own service");
    need!(Criu, "dumps");
    let host = Host::with_image()?;
    let cedana = Cedana::new();
    let counter = holder(&host, "replaced", &[])?;
    let archive = dumped(&host, &cedana, &counter, "zstd")?;
    let path = archive.display().to_string();
    let done = AtomicBool::new(false);
    let said = thread::scope(|scope| {
        // Its time of change is another one all the while.
        let _touch = scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let file = fs::File::options().write(true).open(&archive);
                let _touched = file.and_then(|file| file.set_modified(std::time::SystemTime::now()));
            }
        });
        let said = cedana.run(&["restore", "job", counter.id(), "--path", &path]);
        done.store(true, Ordering::Relaxed);
        said
    })?;
    ensure!(
        said.code != 0 && said.stderr.contains("was changed while"),
        "{said:?}"
    );
    counter.has_ended()?;
    let pid = cedana.restore(&[counter.id(), "--path", &path])?;
    assert_eq!(counter.pid()?, pid);
    counter.kill()
}
