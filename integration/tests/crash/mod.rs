//! A fault in the middle of a dump, and what has to be true afterwards whatever it was.
#![expect(clippy::print_stdout, reason = "each case is named as it begins")]

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use integration::actors::Actor;
use integration::attached::Attached;
use integration::dump_bed::{Bed, By, ID, Moment, is_whole, trip};
use integration::host::Host;
use integration::stdio::eventually;
use integration::tripwire::let_go;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const WORKLOAD: &str = env!("CARGO_BIN_EXE_workload");

/// How long containerd may take to clear away what a dead shim has left.
const GONE_WITHIN: Duration = Duration::from_secs(20);

/// Set, all cases run, and not only those of each commit.
const ALL: &str = "CEDANA_TEST_FULL";

/// What happens at the moment of a case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It is killed.
    Kill(Actor),
    /// It stands still until the answer is there, or it is gone.
    Stall(Actor),
}

/// What has to have become of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ends {
    /// The client was told that it failed, the container goes on, nothing is left.
    GoesOn,
    /// The client was told that it succeeded, and it has.
    Saved,
    /// One of the two, as the client was told: who is first is a matter of milliseconds.
    AsTold,
    /// The shim is dead, and the container with it, as containerd has it; nothing is left.
    Gone,
    /// The shim is dead; the checkpoint is whole.
    Kept,
    /// The shim is dead; the images are all there, but nobody has vouched for them: they lie under another name.
    KeptAside,
}

/// A line of the table.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// When.
    pub at: Moment,
    /// What.
    pub fault: Fault,
    /// In which dump.
    pub by: By,
    /// With what outcome.
    pub ends: Ends,
    /// With each commit, and not only when all cases run.
    pub always: bool,
}

/// Runs the cases one after the other, on as few containers as they leave alive, and names each.
pub fn run(cases: &[Case], limit: &str) -> Result<()> {
    let host = Host::with_image()?;
    let all = std::env::var_os(ALL).is_some_and(|set| !set.is_empty());
    let mut bed = None;
    for (number, case) in cases.iter().enumerate().filter(|(_, case)| all || case.always) {
        let name = format!("{:?} at {}, {:?}", case.fault, case.at.name, case.by);
        println!("case {number}: {name}");
        let alive = match bed.take() {
            Some(alive) => alive,
            None => Bed::new(&host, WORKLOAD, limit)?,
        };
        bed = one(alive, case, number).with_context(|| format!("case {number}: {name}"))?;
    }
    if let Some(bed) = bed {
        bed.talker.remove()?;
    }
    host.assert_clean()
}

/// Runs one case. Returns the container, if it still lives.
fn one<'host>(mut bed: Bed<'host>, case: &Case, number: usize) -> Result<Option<Bed<'host>>> {
    let into = PathBuf::from(bed.host.made_dir(&format!("into-{number}"))?);
    let images = into.join("saved");
    bed.goes_on().context("before the fault")?;
    let shim = bed.container().shim_pid()?;
    let tripwire = trip(bed.host, case.at, case.by, &images)?;
    let mut client = Attached::start(&mut bed.dump(case.by, &images))?;
    let standing = tripwire.sprung().with_context(|| client.stderr())?;
    let stalled = strike(case.fault, shim, standing)?;
    let status = client.wait()?;
    let said = client.stderr();
    if let Some(stalled) = stalled {
        let_go(stalled);
    }
    let ends = match (case.ends, status.success()) {
        (Ends::AsTold, true) => Ends::Saved,
        (Ends::AsTold, false) => Ends::GoesOn,
        (ends, _) => ends,
    };
    let lives = judge(
        &mut bed,
        (ends, case.by),
        &case.by.makes(&images),
        status.success(),
    )
    .with_context(|| said.clone())?;
    let aside = into.join("saved.cedana-kept-1");
    let made = case.by.makes(&images);
    let left = match ends {
        Ends::Saved | Ends::Kept => Some(&made),
        Ends::KeptAside => Some(&aside),
        Ends::GoesOn | Ends::AsTold | Ends::Gone => None,
    };
    check_left(&into, left).with_context(|| said.clone())?;
    fs::remove_dir_all(&into)?;
    if !lives {
        return Ok(None);
    }
    check_next(&mut bed)?;
    Ok(Some(bed))
}

/// Does it, and lets the one go on who was stopped for it. Returns who stands still for good.
fn strike(fault: Fault, shim: i32, standing: Pid) -> Result<Option<Pid>> {
    match fault {
        Fault::Kill(actor) => {
            kill(actor.find(shim)?, Signal::SIGKILL).context("kill it")?;
            let_go(standing);
            Ok(None)
        }
        Fault::Stall(actor) => {
            let victim = actor.find(shim)?;
            kill(victim, Signal::SIGSTOP).context("stop it")?;
            if victim != standing {
                let_go(standing);
            }
            Ok(Some(victim))
        }
    }
}

/// The outcome is what it has to be. Returns whether the container lives.
fn judge(bed: &mut Bed<'_>, (ends, by): (Ends, By), images: &Path, succeeded: bool) -> Result<bool> {
    match ends {
        Ends::GoesOn | Ends::AsTold => {
            ensure!(!succeeded, "the dump succeeded");
            bed.goes_on()?;
            return Ok(true);
        }
        Ends::Saved => {
            ensure!(succeeded, "the dump failed");
            is_whole(images)?;
            if !by.exits() {
                bed.goes_on()?;
                return Ok(true);
            }
        }
        Ends::Gone | Ends::Kept | Ends::KeptAside => {
            // containerd clears up after the shim, and then takes the bundle away.
            let bundle = bed.container().bundle();
            eventually("containerd to have cleared up", GONE_WITHIN, || !bundle.exists())?;
            ensure!(bed.host.api().get(ID, "").is_err(), "the task is still there");
            if ends == Ends::Kept {
                is_whole(images)?;
            }
        }
    }
    bed.talker.gone()?;
    Ok(false)
}

/// Nothing is in the directory but the checkpoint, if there has to be one.
fn check_left(dir: &Path, checkpoint: Option<&PathBuf>) -> Result<()> {
    let left: Vec<PathBuf> = fs::read_dir(dir)?.flatten().map(|entry| entry.path()).collect();
    ensure!(left.iter().eq(checkpoint), "left in {}: {left:?}", dir.display());
    if let Some(checkpoint) = checkpoint.filter(|checkpoint| checkpoint.is_dir()) {
        let strange = fs::read_dir(checkpoint)?.flatten().find(|entry| {
            let name = entry.file_name();
            name.to_string_lossy().contains("partial") || name.to_string_lossy().contains("unfinished")
        });
        ensure!(strange.is_none(), "left in the checkpoint: {strange:?}");
    }
    Ok(())
}

/// The next dump works.
fn check_next(bed: &mut Bed<'_>) -> Result<()> {
    let images = PathBuf::from(bed.host.made_dir("again")?).join("saved");
    let next = bed.dump(By::CedanaLeaving, &images).output()?;
    ensure!(next.status.success(), "the next dump: {next:?}");
    is_whole(&images)?;
    fs::remove_dir_all(&images)?;
    bed.goes_on().context("after the next dump")
}
