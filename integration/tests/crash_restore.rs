//! Whoever takes part in a restore is killed, or stands still, in each of its phases: the client is told, no half of a container
//! is left, the checkpoint is whole, and the next restore goes on from it.
//!
//! The container is restored in place, in a shim that has it already: so there is a shim to be met in each phase.
#![expect(clippy::print_stdout, reason = "each case is named as it begins")]
#![expect(
    unused_results,
    reason = "a test acts through calls, and compares only the answers it is about"
)]

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use integration::actors::Actor::{self, Criu, Runc, Shim, Worker};
use integration::cedana::Cedana;
use integration::cedana_counter::Counter;
use integration::host::Host;
use integration::need;
use integration::stdio::eventually;
use integration::tripwire::{Call, Follow, Tripwire, let_go};
use integration::workload::Workload;
use nix::sys::signal::{Signal, kill};

use Ends::{Dies, Gone, Refused};
use Fault::{Kill, Stall};

const ID: &str = "c";
const SOON: Duration = Duration::from_secs(20);

/// A call of a restore, and where the file is that it has to do with.
#[derive(Clone, Copy, Debug)]
struct Moment(&'static str, &'static str, Place);

#[derive(Clone, Copy, Debug)]
enum Place {
    Images(&'static str),
    Bundle(&'static str),
    /// In a directory that CRIU has open. Not later than it forks: it could not hold a process that strace follows
    /// (`crash_dump` has what comes then).
    Open(&'static str),
}

const READ: Moment = Moment("read images", "openat", Place::Images("checkpoint/inventory.img"));
const PREPARED: Moment = Moment("prepare directories", "mkdir", Place::Bundle("criu-work"));
const CONFIGURED: Moment = Moment("configure criu", "openat", Place::Bundle("criu.conf"));
const TREE: Moment = Moment("restore, the tree", "openat", Place::Open("pstree.img"));
const FILES: Moment = Moment("restore, the files", "openat", Place::Open("files.img"));
const PID: Moment = Moment("read pid", "openat", Place::Bundle("init.pid"));
const PUT_AWAY: Moment = Moment("put away", "unlinkat", Place::Bundle("criu-work"));

#[derive(Clone, Copy, Debug)]
enum Fault {
    Kill(Actor),
    Stall(Actor),
}

/// What has to have become of it.
#[derive(Clone, Copy, Debug)]
enum Ends {
    /// The client is told that it failed; the container is as it was, ended.
    Refused,
    /// Whatever the client was told, the container is dead soon: its memory is lost.
    Dies,
    /// The shim is dead, and nothing is left of the task.
    Gone,
}

fn run(cases: &[(Moment, Fault, Ends)]) -> Result<()> {
    for (number, case) in cases.iter().enumerate() {
        let name = format!("{:?} at {}", case.1, case.0.0);
        println!("case {number}: {name}");
        one(*case).with_context(|| format!("case {number}: {name}"))?;
    }
    Ok(())
}

fn one((moment, fault, ends): (Moment, Fault, Ends)) -> Result<()> {
    let host = Host::with_image()?;
    let cedana = Cedana::on(&host);
    let counter = Counter::run_large(&host, ID, &["--annotation", "cedana.restore.timeout=4s"])?;
    let (job, into) = (counter.job(), host.made_dir("into")?);
    let before = counter.seen()?;
    let images = cedana.dump(&[&job, "--dir", &into, "--name", "saved"])?;
    let ended = counter.seen()?;
    let container = host.known(ID, Workload::forever());
    let shim = container.shim_pid()?;
    let Moment(_, call, place) = moment;
    let (path, follow) = match place {
        Place::Images(name) => (Path::new(&images).join(name), Follow::Process),
        Place::Bundle(name) => (container.bundle().join(name), Follow::Process),
        Place::Open(name) => (name.into(), Follow::Programs),
    };
    let call = Call {
        name: call,
        path: path.display().to_string(),
        nth: 1,
    };
    let tripwire = Tripwire::set(shim, follow, &call)?;
    let mut client = cedana.start(&["restore", "job", &job, "--path", &images])?;
    let standing = tripwire.sprung().with_context(|| client.stderr())?;
    let (Kill(actor) | Stall(actor)) = fault;
    let victim = actor.find(shim)?;
    kill(
        victim,
        if matches!(fault, Kill(_)) {
            Signal::SIGKILL
        } else {
            Signal::SIGSTOP
        },
    )?;
    if matches!(fault, Kill(_)) || victim != standing {
        let_go(standing);
    }
    let status = client.wait()?;
    let said = client.stderr();
    let_go(victim);
    match ends {
        Refused => {
            ensure!(!status.success(), "the restore succeeded");
            counter.has_ended().with_context(|| said.clone())?;
        }
        Dies => eventually("the container to be dead", SOON, || counter.has_ended().is_ok())
            .with_context(|| said.clone())?,
        Gone => {
            ensure!(!status.success(), "the restore succeeded");
            eventually("the task to be gone", SOON, || host.api().get(ID, "").is_err())?;
            host.assert_clean()?;
        }
    }
    cedana.says(&["checkpoint", "verify", &images])?;
    cedana
        .restore(&[&job, "--path", &images])
        .with_context(|| format!("after {said}"))?;
    counter.continues(before, ended)?;
    counter.kill_and_delete()
}

#[test]
fn runc_and_criu_cost_the_restore_and_nothing_else() -> Result<()> {
    need!(OurShim, "restores in place");
    need!(Criu, "dumps");
    need!(Strace, "stops it in the middle");
    run(&[
        (TREE, Kill(Runc), Refused),
        (FILES, Kill(Runc), Refused),
        (TREE, Kill(Criu), Refused),
        (FILES, Kill(Criu), Refused),
        (TREE, Stall(Criu), Refused),
        (TREE, Stall(Runc), Refused),
    ])
}

#[test]
fn a_worker_costs_the_restore_and_nobody_sees_zeros() -> Result<()> {
    need!(OurShim, "its worker");
    need!(Criu, "dumps");
    need!(Strace, "stops it in the middle");
    run(&[(TREE, Kill(Worker), Refused), (PID, Kill(Worker), Dies)])
}

#[test]
fn a_shim_leaves_nothing_of_a_restore() -> Result<()> {
    need!(OurShim, "restores in place");
    need!(Criu, "dumps");
    need!(Strace, "stops it in the middle");
    run(&[
        (READ, Kill(Shim), Gone),
        (PREPARED, Kill(Shim), Gone),
        (CONFIGURED, Kill(Shim), Gone),
        (TREE, Kill(Shim), Gone),
        (FILES, Kill(Shim), Gone),
        (PID, Kill(Shim), Gone),
        (PUT_AWAY, Kill(Shim), Gone),
    ])
}
