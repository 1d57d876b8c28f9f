//! Dumps of containers with much memory, whose pages a worker takes: what comes back, and what becomes of a container when
//! something fails on the way.
#![expect(
    unused_results,
    reason = "a test acts through calls, and compares only the answers it is about"
)]

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use integration::by_ctr::{Talker, holds_images};
use integration::cedana::Cedana;
use integration::container::{Container, refused};
use integration::host::Host;
use integration::leftovers::command_line;
use integration::messages::Status;
use integration::need;
use integration::shim_api::call_job;
use integration::stdio::eventually;
use integration::task_api::Answer;
use integration::workload::Workload;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tonic::Code;

const WORKLOAD: &str = env!("CARGO_BIN_EXE_workload");
const SOON: Duration = Duration::from_secs(20);

/// Enough for a worker, and for a test to meet it at work.
const MEMORY_MIB: &str = "300";

/// Dumps that are given up late in one test.
const ROUNDS: usize = 6;

struct Bed {
    host: Host,
    id: &'static str,
}

impl Bed {
    fn new(id: &'static str) -> Result<Self> {
        let host = Host::new()?;
        let _image = host.load_image()?;
        Ok(Self { host, id })
    }

    fn run(&self) -> Result<Talker<'_>> {
        Talker::run(&self.host, self.id, WORKLOAD, &["memory", MEMORY_MIB], &[])
    }

    fn container(&self) -> Container {
        self.host.known(self.id, Workload::forever())
    }

    fn socket(&self) -> Result<PathBuf> {
        self.container().shim_socket().context("find the shim's socket")
    }

    fn dump(&self, path: &Path, leave_running: bool) -> Result<Answer<Value>> {
        let request = json!({ "id": self.id, "path": path, "leave_running": leave_running });
        Ok(call_job(&self.socket()?, "Dump", &request))
    }

    /// Into a file beside it, if that can be.
    fn dump_as_file(&self, path: &Path, form: &str, leave_running: bool) -> Result<Answer<Value>> {
        let archive = json!({ "path": packed(path), "form": form });
        let request =
            json!({ "id": self.id, "path": path, "leave_running": leave_running, "archive": archive });
        Ok(call_job(&self.socket()?, "Dump", &request))
    }

    /// The worker that takes the pages, once it does.
    fn worker(&self) -> Result<Pid> {
        let shim = self.container().shim_pid()?;
        let mut found = None;
        eventually("a worker takes pages", SOON, || {
            found = children(shim).into_iter().find(|pid| takes_pages(*pid));
            found.is_some()
        })?;
        Ok(Pid::from_raw(found.context("the worker")?))
    }
}

fn packed(path: &Path) -> PathBuf {
    path.with_extension("tar.zst")
}

/// What is in a directory.
fn names(dir: &Path) -> Result<Vec<String>> {
    let entries = fs::read_dir(dir)?.map(|entry| Ok(entry?.file_name().display().to_string()));
    entries.collect()
}

fn children(of: i32) -> Vec<i32> {
    let listed = fs::read_to_string(format!("/proc/{of}/task/{of}/children")).unwrap_or_default();
    listed
        .split_whitespace()
        .filter_map(|pid| pid.parse().ok())
        .collect()
}

/// It is one, and has read more than its plan.
fn takes_pages(pid: i32) -> bool {
    let is_worker = command_line(pid).is_some_and(|line| line.ends_with(" capture"));
    let read = fs::read_to_string(format!("/proc/{pid}/io")).unwrap_or_default();
    let bytes = read
        .lines()
        .find_map(|line| line.strip_prefix("rchar: ")?.parse::<u64>().ok());
    is_worker && bytes > Some(1 << 20)
}

#[test]
fn memory_comes_back_as_it_was_and_zeros_take_no_room() -> Result<()> {
    need!(OurShim, "talks to the shim itself");
    need!(Criu, "dumps");
    let bed = Bed::new("c")?;
    let mut talker = bed.run()?;
    talker.check()?;
    let path = bed.host.dir().join("kept");
    bed.dump(&path, true)??;
    talker.check()?;
    let manifest: Value = serde_json::from_slice(&fs::read(path.join("cedana.json"))?)?;
    let parts = manifest["parts"].as_array().context("the files")?;
    ensure!(
        parts.iter().any(|part| part["path"] == "checkpoint/pages-1.img"),
        "{manifest}"
    );
    for part in parts {
        let name = part["path"].as_str().context("a name")?;
        let metadata = fs::metadata(path.join(name))?;
        ensure!(metadata.is_file(), "{name} is a file");
        assert_eq!(Some(metadata.len()), part["size"].as_u64(), "{name}");
    }
    for entry in fs::read_dir(path.join("checkpoint"))? {
        let entry = entry?;
        ensure!(
            entry.file_type()?.is_file(),
            "{} is no file",
            entry.path().display()
        );
        ensure!(entry.metadata()?.blocks() * 512 <= entry.metadata()?.len() + 65536);
    }
    talker.checkpoint("whole")?;
    talker.remove()?;
    let mut again = Talker::restore(&bed.host, bed.id, "whole")?;
    again.check()?;
    again.remove()
}

#[test]
fn a_worker_that_is_killed_costs_the_dump_and_not_the_container() -> Result<()> {
    need!(OurShim, "talks to the shim itself");
    need!(Criu, "dumps");
    let bed = Bed::new("c")?;
    let mut talker = bed.run()?;
    for leave_running in [true, false] {
        let path = bed.host.dir().join("never");
        let answer = thread::scope(|scope| -> Result<_> {
            let dumping = scope.spawn(|| bed.dump(&path, leave_running));
            kill(bed.worker()?, Signal::SIGKILL)?;
            dumping
                .join()
                .map_err(|_| anyhow!("the dump's thread panicked"))?
        })?;
        refused(answer)?;
        assert_eq!(bed.container().status()?, Status::Running);
        talker.check()?;
        ensure!(!path.exists(), "{} is left", path.display());
    }
    bed.dump(&bed.host.dir().join("kept"), true)??;
    talker.check()?;
    talker.remove()
}

#[test]
fn a_container_that_was_to_end_goes_on_if_its_dump_does_not_fit() -> Result<()> {
    need!(OurShim, "talks to the shim itself");
    need!(Criu, "dumps");
    let bed = Bed::new("c")?;
    let mut talker = bed.run()?;
    let small = Small::mount(&bed.host.dir().join("small"), "64m")?;
    let answer = bed.dump(&small.0.join("kept"), false)?;
    let said = answer.as_ref().err().map(ToString::to_string).unwrap_or_default();
    ensure!(said.contains("No space left on device"), "{answer:?}");
    assert_eq!(bed.container().status()?, Status::Running);
    talker.check()?;
    assert_eq!(fs::read_dir(&small.0)?.count(), 0, "nothing is left");
    let path = bed.host.dir().join("kept");
    bed.dump(&path, false)??;
    talker.gone()?;
    ensure!(holds_images(&path), "no dump in {}", path.display());
    Ok(())
}

#[test]
fn a_file_is_made_of_what_is_in_memory() -> Result<()> {
    need!(OurShim, "talks to the shim itself");
    need!(Criu, "dumps");
    let bed = Bed::new("c")?;
    let mut talker = bed.run()?;
    let dir = bed.host.dir().join("files");
    fs::create_dir(&dir)?;
    for (name, leave_running) in [("first", true), ("second", false)] {
        let path = dir.join(name);
        let answer = bed.dump_as_file(&path, "zstd", leave_running)??;
        assert_eq!(answer["archived"], true, "{answer}");
        assert_eq!(answer["size"].as_u64(), Some(fs::metadata(packed(&path))?.len()));
        assert_eq!(names(&dir)?, [format!("{name}.tar.zst")], "nothing else is left");
        let file = packed(&path).display().to_string();
        let said = Cedana::new().run(&["checkpoint", "verify", &file])?;
        assert_eq!(said.code, 0, "{said:?}");
        fs::remove_file(file)?;
        if leave_running {
            talker.check()?;
        }
    }
    talker.gone()
}

#[test]
fn a_container_that_was_to_end_goes_on_if_its_file_does_not_fit() -> Result<()> {
    need!(OurShim, "talks to the shim itself");
    need!(Criu, "dumps");
    let bed = Bed::new("c")?;
    let mut talker = bed.run()?;
    let small = Small::mount(&bed.host.dir().join("small"), "64m")?;
    // What its memory holds would compress to next to nothing.
    let answer = bed.dump_as_file(&small.0.join("kept"), "tar", false)?;
    let said = answer.as_ref().err().map(ToString::to_string).unwrap_or_default();
    ensure!(said.contains("No space left on device"), "{answer:?}");
    assert_eq!(bed.container().status()?, Status::Running);
    talker.check()?;
    assert_eq!(names(&small.0)?, [""; 0], "nothing is left");
    talker.remove()
}

#[test]
fn a_dump_that_is_given_up_late_was_never_made_or_is_whole() -> Result<()> {
    need!(OurShim, "talks to the shim itself");
    need!(Criu, "dumps");
    let bed = Bed::new("c")?;
    let mut talker = bed.run()?;
    let socket = bed.socket()?;
    for round in 0..ROUNDS {
        let path = bed.host.dir().join(format!("round-{round}"));
        let staging = bed
            .host
            .dir()
            .join(format!(".round-{round}.cedana-partial/checkpoint"));
        let answer = thread::scope(|scope| -> Result<_> {
            let dumping = scope.spawn(|| bed.dump(&path, false));
            // Each round a little later: while it is written, as it is complete, when CRIU ends the container.
            let name = if round % 2 == 0 {
                "unfinished-0"
            } else {
                "pages-1.img"
            };
            eventually("the pages are written", SOON, || {
                dumping.is_finished() || fs::metadata(staging.join(name)).is_ok_and(|file| file.is_file())
            })?;
            let _too_late = call_job(&socket, "Cancel", &json!({ "id": bed.id }));
            dumping
                .join()
                .map_err(|_| anyhow!("the dump's thread panicked"))?
        })?;
        match answer {
            Ok(_) => {
                talker.gone()?;
                ensure!(
                    holds_images(&path),
                    "it ended, and no dump is in {}",
                    path.display()
                );
                return Ok(());
            }
            Err(refusal) => {
                assert_eq!(refusal.code(), Code::Cancelled, "{refusal:?}");
                assert_eq!(bed.container().status()?, Status::Running, "{refusal:?}");
                talker.check()?;
                ensure!(!path.exists(), "{} is left", path.display());
            }
        }
    }
    talker.remove()
}

#[test]
fn two_dumps_never_share_a_directory() -> Result<()> {
    need!(OurShim, "talks to the shim itself");
    need!(Criu, "dumps");
    let host = Host::new()?;
    let names = ["a", "b", "c", "d"];
    let containers = names
        .iter()
        .map(|id| {
            let container = host.container(id, counting())?;
            container.create()?;
            container.start()?;
            Ok(container)
        })
        .collect::<Result<Vec<_>>>()?;
    let path = host.dir().join("same");
    let answers = thread::scope(|scope| {
        let dumps = containers.iter().map(|container| {
            let (path, id) = (&path, container.id());
            scope.spawn(move || -> Result<_> {
                let socket = container.shim_socket().context("find the shim's socket")?;
                let request = json!({ "id": id, "path": path, "leave_running": false });
                Ok(call_job(&socket, "Dump", &request))
            })
        });
        let dumps: Vec<_> = dumps.collect();
        let joined = dumps
            .into_iter()
            .map(|dump| dump.join().map_err(|_| anyhow!("a thread panicked"))?);
        joined.collect::<Result<Vec<_>>>()
    })?;
    let dumped = answers.iter().filter(|answer| answer.is_ok()).count();
    assert_eq!(dumped, 1, "{answers:?}");
    ensure!(holds_images(&path), "the one that was made is there");
    for (container, answer) in containers.iter().zip(&answers) {
        let status = container.status()?;
        match answer {
            Ok(_) => container.wait().map(drop)?,
            Err(refusal) => {
                // The other one is under way, or complete.
                let code = refusal.code();
                ensure!(
                    [Code::FailedPrecondition, Code::AlreadyExists].contains(&code),
                    "{refusal:?}"
                );
                assert_eq!(status, Status::Running);
            }
        }
    }
    Ok(())
}

fn counting() -> Workload {
    Workload::shell("i=0; while :; do i=$((i+1)); sleep 0.02; done")
}

#[test]
fn a_container_that_is_killed_while_it_is_dumped_ends() -> Result<()> {
    need!(OurShim, "talks to the shim itself");
    need!(Criu, "dumps");
    let bed = Bed::new("c")?;
    for round in 0..ROUNDS {
        let mut talker = bed.run()?;
        let path = bed.host.dir().join(format!("round-{round}"));
        let (answer, ended) = thread::scope(|scope| -> Result<_> {
            let dumping = scope.spawn(|| bed.dump(&path, true));
            let pid = Pid::from_raw(i32::try_from(talker.pid()?)?);
            eventually("CRIU holds it", SOON, || dumping.is_finished() || is_traced(pid))?;
            bed.container().kill(9)?;
            let ended = bed.container().wait();
            Ok((
                dumping
                    .join()
                    .map_err(|_| anyhow!("the dump's thread panicked"))??,
                ended,
            ))
        })?;
        // `ctr run` deletes what has ended, perhaps before this asked.
        ensure!(
            ended
                .as_ref()
                .map_or_else(|gone| gone.code() == Code::NotFound, |code| *code == 137),
            "{ended:?}"
        );
        ensure!(
            answer.is_err() || answer.is_ok_and(|_| path.exists()),
            "round {round}"
        );
        talker.gone()?;
    }
    bed.host.assert_clean()
}

fn is_traced(pid: Pid) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    status.lines().any(|line| {
        line.strip_prefix("TracerPid:")
            .is_some_and(|pid| pid.trim() != "0")
    })
}

/// A file system of its own, too small.
struct Small(PathBuf);

impl Small {
    fn mount(at: &Path, size: &str) -> Result<Self> {
        fs::create_dir(at)?;
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "small"])
            .arg(at)
            .status()?;
        ensure!(mounted.success(), "mount {}", at.display());
        Ok(Self(at.to_owned()))
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ended = Command::new("umount").arg(&self.0).status();
    }
}
