//! The registry is an index: whatever befalls it costs a warning, never a container.
#![expect(
    unused_results,
    reason = "a test acts through calls, and compares only the answers it is about"
)]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use integration::cedana::{Cedana, Job};
use integration::container::Container;
use integration::engine::run;
use integration::host::Host;
use integration::need;
use integration::registry;
use integration::workload::Workload;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::Value;

const SHIMS: usize = 50;
const COMMAND_LINES: usize = 10;
/// Containers that must not notice.
const RUNNING: usize = 10;
/// How long the registry is locked while containers start, stop and are dumped.
const LOCKED_FOR: Duration = Duration::from_secs(60);
/// What a command line may take when it cannot have the registry: it waits for a lock a little, and does without.
const WITHOUT_WITHIN: Duration = Duration::from_secs(5);

/// A containerd with a registry of its own: other tests of this program break theirs.
struct Machine {
    host: Host,
    database: PathBuf,
    cedana: Cedana,
    _dir: tempfile::TempDir,
}

impl Machine {
    fn new() -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("registry-").tempdir()?;
        let database = dir.path().join("jobs.db");
        let path = database.display().to_string();
        let host = Host::with_own_containerd_and(&[("CEDANA_DB_PATH", &path)])?;
        let cedana = Cedana::on(&host).registry(&database);
        Ok(Self {
            host,
            database,
            cedana,
            _dir: dir,
        })
    }

    fn start(&self, count: usize) -> Result<Vec<Container>> {
        (0..count)
            .map(|number| {
                self.host
                    .run_with(&format!("c{number:02}"), Workload::forever(), &Default::default())
            })
            .collect()
    }

    /// What the command line lists, whatever it warns of.
    fn listed(&self) -> Result<Vec<Job>> {
        let text = self.cedana.run(&["ps", "--json"])?.ok()?;
        serde_json::from_str(&text).with_context(|| format!("cedana ps says {text}"))
    }

    /// Every one of these is listed with its pid; a container starts, is dumped, ends, and the books are right.
    fn check_unharmed(&self, containers: &[Container]) -> Result<()> {
        let jobs = self.listed()?;
        for container in containers {
            let job = jobs.iter().find(|job| job.id == container.id());
            let job = job.with_context(|| format!("{} is not listed: {jobs:#?}", container.id()))?;
            assert_eq!(job.pid, Some(container.state()?.pid), "{}", container.id());
        }
        let extra = self
            .host
            .run_with("extra", Workload::forever(), &Default::default())?;
        ensure!(self.listed()?.iter().any(|job| job.id == "extra"));
        let into = self.host.dir().join("saved");
        let dump = ["dump", "job", "extra", "--dir"].map(str::to_owned);
        let dump: Vec<&str> = dump.iter().map(String::as_str).collect();
        let said = self
            .cedana
            .run(
                &[
                    &dump,
                    &[&self.host.dir().display().to_string(), "--name", "saved"][..],
                ]
                .concat(),
            )?
            .ok()?;
        ensure!(
            said.lines().last() == Some(&format!("Dumped to {}", into.display())),
            "{said}"
        );
        extra.wait()?;
        extra.delete()?;
        extra.remove()?;
        fs::remove_dir_all(into)?;
        Ok(())
    }
}

#[test]
fn fifty_shims_and_ten_command_lines_lose_nothing() -> Result<()> {
    need!(OurShim, "shims write to the registry");
    let machine = Machine::new()?;
    let done = AtomicBool::new(false);
    let containers = thread::scope(|scope| -> Result<Vec<Container>> {
        let lines: Vec<_> = (0..COMMAND_LINES)
            .map(|_| {
                scope.spawn(|| -> Result<usize> {
                    let mut calls = 0;
                    while !done.load(Ordering::Relaxed) {
                        machine.cedana.says(&["ps", "--all"])?;
                        calls += 1;
                    }
                    Ok(calls)
                })
            })
            .collect();
        let starters: Vec<_> = (0..5)
            .map(|part| {
                let machine = &machine;
                scope.spawn(move || -> Result<Vec<Container>> {
                    (0..SHIMS / 5)
                        .map(|number| {
                            let id = format!("c{part}-{number}");
                            machine
                                .host
                                .run_with(&id, Workload::forever(), &Default::default())
                        })
                        .collect()
                })
            })
            .collect();
        let started: Vec<Result<Vec<Container>>> = starters
            .into_iter()
            .map(|starter| {
                starter
                    .join()
                    .unwrap_or_else(|_| Err(anyhow!("a starter panicked")))
            })
            .collect();
        done.store(true, Ordering::Relaxed);
        for line in lines {
            let calls = line
                .join()
                .unwrap_or_else(|_| Err(anyhow!("a command line panicked")))?;
            ensure!(calls > 0, "a command line came too late");
        }
        Ok(started.into_iter().collect::<Result<Vec<_>>>()?.concat())
    })?;
    let jobs = machine.listed()?;
    assert_eq!(jobs.len(), SHIMS);
    for container in &containers {
        let job = jobs
            .iter()
            .find(|job| job.id == container.id())
            .context(container.id().to_owned())?;
        assert_eq!(job.pid, Some(container.state()?.pid), "{}", container.id());
    }
    let all: Vec<&Container> = containers.iter().collect();
    let ends: Result<Vec<()>> = thread::scope(|scope| {
        let parts: Vec<_> = all
            .chunks(SHIMS / 5)
            .map(|part| {
                scope.spawn(move || -> Result<()> {
                    for container in part {
                        container.kill_and_delete()?;
                    }
                    Ok(())
                })
            })
            .collect();
        parts
            .into_iter()
            .map(|part| part.join().unwrap_or_else(|_| Err(anyhow!("an ender panicked"))))
            .collect()
    });
    ends?;
    assert_eq!(machine.listed()?.len(), 0);
    let ended: Vec<Job> = machine.cedana.json(&["ps", "--all"])?;
    assert_eq!(ended.iter().filter(|job| job.status == "halted").count(), SHIMS);
    Ok(())
}

#[test]
fn a_deleted_cut_or_garbled_registry_is_made_again() -> Result<()> {
    need!(OurShim, "shims write to the registry");
    need!(Criu, "dumps");
    let machine = Machine::new()?;
    let containers = machine.start(RUNNING)?;
    machine.check_unharmed(&containers)?;
    type Harm = fn(&Path) -> Result<()>;
    let harms: [(&str, Harm); 3] = [
        ("deleted", registry::delete),
        ("cut", registry::truncate),
        ("garbled", registry::fill_with_noise),
    ];
    for (name, harm) in harms {
        harm(&machine.database)?;
        machine
            .check_unharmed(&containers)
            .with_context(|| format!("the registry was {name}"))?;
        machine
            .cedana
            .says(&["ps"])
            .with_context(|| format!("{name}, and mended by then"))?;
    }
    Ok(())
}

#[test]
fn a_checkpoint_is_found_again_without_the_registry() -> Result<()> {
    need!(OurShim, "shims write to the registry");
    need!(Criu, "dumps");
    let machine = Machine::new()?;
    let containers = machine.start(1)?;
    let into = machine.host.dir().display().to_string();
    let path = machine.cedana.dump(&["c00", "--leave-running", "--dir", &into])?;
    registry::delete(&machine.database)?;
    let known: Vec<Value> = machine.cedana.json(&["checkpoints", "c00"])?;
    assert_eq!(known.len(), 1);
    ensure!(
        known
            .iter()
            .any(|one| one.get("path").and_then(Value::as_str) == Some(&path))
    );
    machine.check_unharmed(&containers)
}

#[test]
fn a_locked_registry_is_done_without() -> Result<()> {
    need!(OurShim, "shims write to the registry");
    need!(Criu, "dumps");
    let machine = Machine::new()?;
    let containers = machine.start(RUNNING)?;
    machine.listed()?;
    let locked = registry::lock(&machine.database)?;
    let began = Instant::now();
    let said = machine.cedana.run(&["ps"])?;
    ensure!(began.elapsed() < WITHOUT_WITHIN, "it took {:?}", began.elapsed());
    ensure!(
        said.stderr.contains("warning") && said.stderr.contains("lock"),
        "{said:?}"
    );
    while began.elapsed() < LOCKED_FOR {
        machine.check_unharmed(&containers)?;
    }
    drop(locked);
    machine.check_unharmed(&containers)?;
    machine.cedana.says(&["ps"])?;
    Ok(())
}

#[test]
fn a_newer_registry_is_left_alone() -> Result<()> {
    need!(OurShim, "shims write to the registry");
    need!(Criu, "dumps");
    let machine = Machine::new()?;
    let containers = machine.start(2)?;
    machine.listed()?;
    registry::from_the_future(&machine.database)?;
    let said = machine.cedana.run(&["ps"])?;
    ensure!(
        said.stderr.contains("warning") && said.stderr.contains("newer"),
        "{said:?}"
    );
    machine.check_unharmed(&containers)?;
    ensure!(registry::future_is_untouched(&machine.database)?);
    Ok(())
}

/// The shims' own part: a directory of small files.
#[test]
fn without_a_place_for_their_records_containers_run() -> Result<()> {
    need!(OurShim, "shims write to the registry");
    let machine = Machine::new()?;
    let spool = machine.database.with_extension("d");
    let live = |id: &str| -> Result<()> {
        let container = machine
            .host
            .run_with(id, Workload::forever(), &Default::default())?;
        container.kill_and_delete()?;
        Ok(container.remove()?)
    };
    live("good")?;
    fs::remove_dir_all(&spool)?;
    fs::write(&spool, "a file")?;
    live("file").context("the spool is a file")?;
    fs::remove_file(&spool)?;
    fs::create_dir(&spool)?;
    // A file system so small that it is full with the first block.
    mount(
        Some("tmpfs"),
        &spool,
        Some("tmpfs"),
        MsFlags::empty(),
        Some("size=4k,mode=700"),
    )?;
    let _unmount = Unmount(&spool);
    fs::write(spool.join("filler"), vec![0; 4096])?;
    live("full").context("the spool is full")?;
    mount(
        None::<&str>,
        &spool,
        None::<&str>,
        MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY,
        None::<&str>,
    )?;
    live("read-only").context("the spool is read-only")?;
    let log = fs::read_to_string(machine.host.dir().join("containerd/log"))?;
    for id in ["file", "full", "read-only"] {
        let warned = log.lines().any(|line| {
            line.contains("level=warning")
                && line.contains(&format!("shim={id}"))
                && line.contains("not in the registry")
        });
        ensure!(warned, "no warning about {id} in the log");
    }
    let said = machine.cedana.run(&["ps"])?;
    assert_eq!(said.code, 0, "{said:?}");
    Ok(())
}

#[test]
fn a_full_disk_costs_a_warning() -> Result<()> {
    need!(OurShim, "shims write to the registry");
    need!(Criu, "dumps");
    let machine = Machine::new()?;
    let disk = machine.database.parent().context("a directory")?.to_owned();
    let size = Some("size=512k,mode=700");
    mount(Some("tmpfs"), &disk, Some("tmpfs"), MsFlags::empty(), size)?;
    let _unmount = Unmount(&disk);
    let containers = machine.start(3)?;
    machine
        .check_unharmed(&containers)
        .context("before the disk is full")?;
    let filler = disk.join("filler");
    let mut file = fs::File::create(&filler)?;
    while std::io::Write::write(&mut file, &[0; 4096]).is_ok_and(|written| written == 4096) {}
    // What lives already is known; of a new one its shim alone knows.
    let late = machine
        .host
        .run_with("late", Workload::forever(), &Default::default())?;
    let jobs = machine.listed()?;
    for container in &containers {
        let job = jobs.iter().find(|job| job.id == container.id());
        let job = job.with_context(|| format!("{} is not listed: {jobs:#?}", container.id()))?;
        assert_eq!(job.pid, Some(container.state()?.pid));
    }
    late.kill_and_delete()?;
    late.remove()?;
    drop(file);
    fs::remove_file(&filler)?;
    machine.check_unharmed(&containers).with_context(|| {
        format!(
            "with room again; cedana ps: {:?}",
            machine.cedana.run(&["ps", "--all"])
        )
    })
}

struct Unmount<'path>(&'path Path);

impl Drop for Unmount<'_> {
    fn drop(&mut self) {
        // What is not mounted need not be unmounted.
        let _gone = umount2(self.0, MntFlags::MNT_DETACH);
    }
}

#[test]
fn no_registry_is_no_registry() -> Result<()> {
    need!(OurShim, "shims write to the registry");
    let host = Host::with_own_containerd_and(&[("CEDANA_DB_PATH", "")])?;
    let container = host.run_with("c", Workload::forever(), &Default::default())?;
    let names = format!("{}@*", host.namespace());
    let found = run("find", &["/run", "/var/lib", "-name", &names])?;
    ensure!(found.stdout.is_empty(), "{}", found.stdout);
    container.kill_and_delete()?;
    Ok(())
}
