//! A disk that is full, or that hangs, in the middle of a dump to it: the application goes on, and soon.
#![expect(clippy::print_stdout, reason = "each case is named as it begins")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use integration::attached::Attached;
use integration::block::Disk;
use integration::dump_bed::{Bed, By, Moment, Place, at, is_whole, trip};
use integration::host::Host;
use integration::need;
use integration::stdio::eventually;
use integration::tripwire::let_go;

use By::{Cedana, CedanaLeaving, Ctr, CtrLeaving};
use Ends::{Fails, Late, Succeeds};

const WORKLOAD: &str = env!("CARGO_BIN_EXE_workload");

/// How long a dump may take.
const LIMIT: &str = "5s";

/// How long the application may stand: the limit, CRIU's grace, and a busy machine.
const STANDS_AT_MOST: Duration = Duration::from_secs(15);

/// How long it may where nothing that has to be read while it stands goes to that disk: a busy machine.
const STANDS_FOR_MEMORY: Duration = Duration::from_secs(5);

const STARTED: Moment = at("start capture", "openat", Place::Bundle("criu.conf"));
/// How long the removal may take of what a disk has got that hung.
const CLEARED_WITHIN: Duration = Duration::from_secs(5);

// Nothing of what CRIU writes itself is written.
const BEGUN: Moment = at("save, CRIU begins", "openat", Place::Open("dump.log")).by_program();
const ASKED: Moment = at("save, the last word", "write", Place::Bundle("hold-question")).by_program();
const MOVED: Moment = at("write out, an image", "openat", Place::Staging("cgroup.img"));
const DIGESTED: Moment = at("write out", "unlinkat", Place::Bundle("criu-images"));
const COMMITTED: Moment = at("commit", "rename", Place::Staging(""));
const PLACED: Moment = at("commit, the first file", "rename", Place::Staging("cgroup.img"));

/// What becomes of a dump.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ends {
    /// The client is told that it failed, and nothing is left.
    Fails,
    /// It is whole, and the client is told so.
    Succeeds,
    /// The client is told that it failed, as long as the disk hangs; it is whole when that answers.
    Late,
}

#[test]
fn a_full_disk_costs_the_dump_and_not_the_container() -> Result<()> {
    need!(OurShim, "containerd's own leaves the container paused");
    need!(Criu, "dumps");
    let host = Host::with_image()?;
    let mut bed = Bed::new(&host, WORKLOAD, "20s")?;
    // For nothing, for the manifest alone, for some of CRIU's images, for some pages, for all but the last of them.
    for (number, size) in ["4k", "12k", "64k", "8m", "40m"].into_iter().enumerate() {
        for by in [Cedana, CedanaLeaving, CtrLeaving] {
            println!("case {size}, {by:?}");
            let small = Small::mount(&host.dir().join(format!("small-{number}-{by:?}")), size)?;
            let said = bed.dump(by, &small.0.join("saved")).output()?;
            ensure!(!said.status.success(), "{size} were enough for a dump");
            bed.goes_on()
                .with_context(|| format!("{size}, {by:?}: {said:?}"))?;
            let left = fs::read_dir(&small.0)?.flatten().count();
            ensure!(left == 0, "{size}, {by:?}: {left} files are left; {said:?}");
        }
    }
    dump_elsewhere(&mut bed)?;
    bed.talker.remove()
}

#[test]
fn a_disk_that_hangs_does_not_keep_the_container() -> Result<()> {
    need!(OurShim, "its deadlines");
    need!(Criu, "dumps");
    need!(LoopDevices, "a file system that can hang");
    need!(Strace, "stops the dump when the disk is made to hang");
    let host = Host::with_image()?;
    let disk = Disk::mount(&host.dir().join("disk"), 200)?;
    let mut bed = Bed::new(&host, WORKLOAD, LIMIT)?;
    for (number, (moment, by, ends)) in [
        (STARTED, CedanaLeaving, Fails),
        (STARTED, Cedana, Fails),
        (BEGUN, Cedana, Fails),
        (BEGUN, Ctr, Fails),
        (BEGUN, CtrLeaving, Fails),
        (ASKED, Cedana, Fails),
        (MOVED, CtrLeaving, Fails),
        (DIGESTED, Ctr, Fails),
        (COMMITTED, CedanaLeaving, Succeeds),
        (PLACED, CtrLeaving, Late),
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("{}, {by:?}", moment.name);
        println!("case {number}: {name}");
        let stood =
            hang_at(&disk, &mut bed, moment, by, ends).with_context(|| format!("case {number}: {name}"))?;
        ensure!(
            stood < STANDS_AT_MOST,
            "case {number}: {name}: it stood for {stood:?}"
        );
    }
    dump_elsewhere(&mut bed)?;
    bed.talker.remove()
}

#[test]
fn a_container_goes_on_at_once_while_the_disk_hangs() -> Result<()> {
    need!(OurShim, "its images in memory");
    need!(Criu, "dumps");
    need!(LoopDevices, "a file system that can hang");
    need!(Strace, "stops the dump when the disk is made to hang");
    let host = Host::with_image()?;
    let disk = Disk::mount(&host.dir().join("disk"), 200)?;
    // What it has written is read, and goes to the disk, while it stands.
    let annotations = ["cedana.dump.timeout=60s", "cedana.dump.files=never"];
    let mut bed = Bed::with(&host, WORKLOAD, &annotations)?;
    for moment in [BEGUN, MOVED] {
        println!("case {}", moment.name);
        let stood = hang_at(&disk, &mut bed, moment, CedanaLeaving, Succeeds)
            .with_context(|| moment.name.to_owned())?;
        ensure!(
            stood < STANDS_FOR_MEMORY,
            "{}: it stood for {stood:?}",
            moment.name
        );
    }
    bed.talker.remove()
}

/// Has the disk hang, and work again once the container has gone on. Returns how long that took.
fn hang_at(disk: &Disk, bed: &mut Bed<'_>, moment: Moment, by: By, ends: Ends) -> Result<Duration> {
    let images = disk.path().join("saved");
    bed.goes_on().context("before")?;
    let tripwire = trip(bed.host, moment, by, &images)?;
    let mut client = Attached::start(&mut bed.dump(by, &images))?;
    let standing = tripwire.sprung().with_context(|| client.stderr())?;
    disk.hang()?;
    let_go(standing);
    let begin = Instant::now();
    bed.goes_on().context("while the disk hangs")?;
    let stood = begin.elapsed();
    disk.recover()?;
    let status = client.wait()?;
    let said = client.stderr();
    ensure!(status.success() == (ends == Succeeds), "{said}");
    bed.goes_on().context("after")?;
    if ends != Fails {
        eventually("the dump to be whole", CLEARED_WITHIN, || {
            is_whole(&images).is_ok()
        })?;
        fs::remove_dir_all(&images)?;
    }
    // What was asked of the disk while it hung is done now.
    eventually("nothing to be left", CLEARED_WITHIN, || !images.exists()).with_context(|| said.clone())?;
    ensure!(
        ends == Succeeds || said.contains("does not answer") || said.contains("within"),
        "it does not say why: {said}"
    );
    let in_memory = bed.container().bundle().join("criu-images");
    ensure!(!in_memory.exists(), "{} is left", in_memory.display());
    Ok(stood)
}

fn dump_elsewhere(bed: &mut Bed<'_>) -> Result<()> {
    let images = PathBuf::from(bed.host.made_dir("elsewhere")?).join("saved");
    let said = bed.dump(CedanaLeaving, &images).output()?;
    ensure!(said.status.success(), "the next dump: {said:?}");
    is_whole(&images)?;
    bed.goes_on()
}

/// A file system of its own, too small.
struct Small(PathBuf);

impl Small {
    fn mount(at: &Path, size: &str) -> Result<Self> {
        fs::create_dir(at)?;
        let options = format!("size={size}");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &options, "small"])
            .arg(at)
            .status()?;
        ensure!(mounted.success(), "mount {}", at.display());
        Ok(Self(at.to_owned()))
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        // A worker that was killed may still be on its way out.
        let ended = || {
            let said = Command::new("umount").arg(&self.0).output();
            said.is_ok_and(|said| said.status.success())
        };
        let _busy = eventually("the file system to be free", CLEARED_WITHIN, ended);
    }
}
