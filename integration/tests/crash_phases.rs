//! Whoever takes part in a dump is killed, or stands still, in each of its phases: the application goes on or its checkpoint is
//! whole, the client is told which, nothing is left, and the next dump works.
//!
//! A case is a line of a table; `crash/mod.rs` drives it.
#![expect(clippy::print_stdout, reason = "each case is named as it begins")]

mod crash;

use anyhow::{Context, Result, ensure};
use crash::{Case, Ends, Fault, run};
use integration::actors::Actor::{Criu, Runc, Script, Shim, Worker};
use integration::cedana;
use integration::cedana_counter::Counter;
use integration::dump_bed::{By, ID, Moment, Place, at, is_whole, trip};
use integration::host::Host;
use integration::need;
use integration::tripwire::let_go;

use By::{Cedana, CedanaLeaving, CedanaPacked, Ctr, CtrLeaving};
use Ends::{AsTold, GoesOn, Gone, Kept, KeptAside};
use Fault::{Kill, Stall};

// In the order of a dump. With exit, all is written out before CRIU may end the container.
const PREPARED: Moment = at("prepare directories", "mkdir", Place::Staging(""));
const TAKES: Moment = at(
    "start capture",
    "mknodat",
    Place::Bundle("criu-images/pages-1.img"),
)
.by_program();
const FROZEN: Moment = at("freeze", "write", Place::Freezer("freezer.state"));
const CONFIGURED: Moment = at("configure criu", "openat", Place::Bundle("criu.conf"));
const BEGUN: Moment = at("save", "rename", Place::Staging(".cedana.json"));
const PAGES: Moment = at("save, the first page", "openat", Place::Open("pages-1.img")).by_program();
const IMAGED: Moment = at("save, the last image", "openat", Place::Open("inventory.img")).by_program();
const ASKED: Moment = at("save, the last word", "write", Place::Bundle("hold-question")).by_program();
const AGREED: Moment = at("save, the answer", "write", Place::Bundle("hold-answer"));
const TAKEN: Moment = at("write pages", "openat", Place::Staging("unfinished-0")).by_program();
const ON_DISK: Moment = at("sync pages", "fsync", Place::Staging("unfinished-0")).by_program();
const LOOKED_AT: Moment = at("verify", "openat", Place::Bundle("criu-images/inventory.img"));
const THAWED: Moment = at("let go on", "write", Place::Freezer("freezer.state")).again();
const WRITTEN: Moment = at("write out, an image", "openat", Place::Staging("cgroup.img"));
const DIGESTED: Moment = at("write out", "unlinkat", Place::Bundle("criu-images"));
const SYNCED: Moment = at("write out, sync", "fsync", Place::Staging("cgroup.img"));
const COMMITTED: Moment = at("commit", "rename", Place::Staging(""));
// Where the dump becomes one file.
const PACKING: Moment = at("pack", "openat", Place::Staging("archive.unfinished")).by_program();
const PACKED: Moment = at("commit, the archive", "renameat2", Place::Staging("archive"));
// Where the dump is moved file by file.
const MOVED: Moment = at("commit, the first file", "rename", Place::Staging("cgroup.img"));
const NAMED: Moment = at("commit, the last file", "rename", Place::Staging("cedana.json"));
const PUT_AWAY: Moment = at("put away", "unlinkat", Place::Bundle("criu-work"));

/// Longer than a dump takes on a busy machine.
const LONG: &str = "20s";
/// How long somebody has to stand still before he is given up.
const SHORT: &str = "5s";

const fn case(at: Moment, fault: Fault, by: By, ends: Ends) -> Case {
    Case {
        at,
        fault,
        by,
        ends,
        always: true,
    }
}

/// One that runs only when all do.
const fn more(at: Moment, fault: Fault, by: By, ends: Ends) -> Case {
    Case {
        at,
        fault,
        by,
        ends,
        always: false,
    }
}

#[test]
fn a_worker_costs_the_dump_and_not_the_container() -> Result<()> {
    need!(OurShim, "its worker");
    need!(Criu, "dumps");
    need!(Strace, "stops it in the middle");
    let cases = [
        case(TAKES, Kill(Worker), Cedana, GoesOn),
        more(FROZEN, Kill(Worker), Cedana, GoesOn),
        more(BEGUN, Kill(Worker), Cedana, GoesOn),
        case(PAGES, Kill(Worker), CedanaLeaving, GoesOn),
        case(PAGES, Kill(Worker), CtrLeaving, GoesOn),
        more(IMAGED, Kill(Worker), Cedana, GoesOn),
        case(ASKED, Kill(Worker), Cedana, GoesOn),
        more(TAKEN, Kill(Worker), Cedana, GoesOn),
        case(TAKEN, Kill(Worker), CedanaLeaving, GoesOn),
        more(ON_DISK, Kill(Worker), Ctr, GoesOn),
    ];
    run(&cases, LONG)
}

#[test]
fn runc_costs_the_dump_and_not_the_container() -> Result<()> {
    need!(OurShim, "containerd's own leaves CRIU behind");
    need!(Criu, "dumps");
    need!(Strace, "stops it in the middle");
    let cases = [
        case(PAGES, Kill(Runc), Cedana, GoesOn),
        more(PAGES, Kill(Runc), CedanaLeaving, GoesOn),
        more(IMAGED, Kill(Runc), CtrLeaving, GoesOn),
        case(ASKED, Kill(Runc), Cedana, AsTold),
        more(ASKED, Kill(Runc), Ctr, AsTold),
    ];
    run(&cases, LONG)
}

#[test]
fn criu_costs_the_dump_and_not_the_container() -> Result<()> {
    need!(OurShim, "containerd's own leaves the container paused");
    need!(Criu, "dumps");
    need!(Strace, "stops it in the middle");
    let cases = [
        more(PAGES, Kill(Criu), Cedana, GoesOn),
        case(PAGES, Kill(Criu), CedanaLeaving, GoesOn),
        more(IMAGED, Kill(Criu), CtrLeaving, GoesOn),
        case(ASKED, Kill(Criu), Cedana, GoesOn),
        case(ASKED, Kill(Script), Cedana, GoesOn),
    ];
    run(&cases, LONG)
}

#[test]
fn whoever_stands_still_is_given_up() -> Result<()> {
    need!(OurShim, "its deadlines");
    need!(Criu, "dumps");
    need!(Strace, "stops it in the middle");
    let cases = [
        more(PAGES, Stall(Worker), CedanaLeaving, GoesOn),
        case(IMAGED, Stall(Worker), CedanaLeaving, GoesOn),
        more(TAKEN, Stall(Worker), CedanaLeaving, GoesOn),
        more(ON_DISK, Stall(Worker), Cedana, GoesOn),
        more(PAGES, Stall(Runc), CedanaLeaving, GoesOn),
        case(PAGES, Stall(Criu), Cedana, GoesOn),
        more(IMAGED, Stall(Criu), CedanaLeaving, GoesOn),
        more(ASKED, Stall(Script), Cedana, GoesOn),
    ];
    run(&cases, SHORT)
}

#[test]
fn a_shim_leaves_nothing_or_a_whole_checkpoint() -> Result<()> {
    need!(OurShim, "what it leaves");
    need!(Criu, "dumps");
    need!(Strace, "stops it in the middle");
    let cases = [
        case(PREPARED, Kill(Shim), Cedana, Gone),
        more(TAKES, Kill(Shim), Cedana, Gone),
        case(FROZEN, Kill(Shim), CedanaLeaving, Gone),
        more(CONFIGURED, Kill(Shim), CedanaLeaving, Gone),
        more(BEGUN, Kill(Shim), Cedana, Gone),
        case(PAGES, Kill(Shim), Cedana, Gone),
        more(IMAGED, Kill(Shim), CedanaLeaving, Gone),
        more(ASKED, Kill(Shim), Cedana, Gone),
        case(AGREED, Kill(Shim), Cedana, Kept),
        more(PACKING, Kill(Shim), CedanaPacked, Gone),
        case(AGREED, Kill(Shim), CedanaPacked, Kept),
        more(PACKED, Kill(Shim), CedanaPacked, Kept),
        more(TAKEN, Kill(Shim), CedanaLeaving, Gone),
        more(LOOKED_AT, Kill(Shim), CedanaLeaving, Gone),
        more(THAWED, Kill(Shim), CedanaLeaving, Gone),
        case(WRITTEN, Kill(Shim), Cedana, Gone),
        more(DIGESTED, Kill(Shim), Cedana, KeptAside),
        more(SYNCED, Kill(Shim), CedanaLeaving, Kept),
        case(COMMITTED, Kill(Shim), CedanaLeaving, Kept),
        case(MOVED, Kill(Shim), CtrLeaving, Kept),
        more(COMMITTED, Kill(Shim), Cedana, Kept),
        more(NAMED, Kill(Shim), Ctr, Kept),
        more(PUT_AWAY, Kill(Shim), CedanaLeaving, Kept),
    ];
    run(&cases, LONG)
}

#[test]
fn containerd_costs_nothing() -> Result<()> {
    need!(OurShim, "dumps without containerd");
    need!(Criu, "dumps");
    need!(Strace, "stops it in the middle");
    let mut host = Host::with_own_containerd()?;
    let _image = host.load_image()?;
    let counter = Counter::run_large(&host, ID, &[])?;
    let cedana = cedana::Cedana::on(&host);
    let (job, into) = (counter.job(), host.made_dir("into")?);
    for (name, moment) in [("a", PAGES), ("b", DIGESTED), ("c", COMMITTED)] {
        println!("case {}", moment.name);
        let images = host.dir().join("into").join(name);
        let tripwire = trip(&host, moment, CedanaLeaving, &images)?;
        let mut client = cedana.start(&[
            "dump",
            "job",
            &job,
            "--leave-running",
            "--dir",
            &into,
            "--name",
            name,
        ])?;
        let standing = tripwire.sprung().with_context(|| client.stderr())?;
        host.daemon()?.kill()?;
        let_go(standing);
        ensure!(client.wait()?.success(), "{}", client.stderr());
        is_whole(&images)?;
        host.daemon()?.restart()?;
        counter.goes_on()?;
    }
    counter.kill_and_delete()
}
