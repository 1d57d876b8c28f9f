//! One container is dumped and restored again and again while its memory changes: no increment of its counter is lost, none is
//! made twice, and nothing grows on the machine.
//!
//! `CEDANA_TEST_ROUNDS` says how often.
#![expect(
    clippy::print_stdout,
    reason = "how long it took and what grew is worth reading"
)]

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use integration::actors::{Actor, field};
use integration::by_ctr::binds;
use integration::cedana::Cedana;
use integration::cedana_counter::Counter;
use integration::host::Host;
use integration::leftovers::cgroups;
use integration::need;
use integration::stdio::eventually;
use integration::workload::Workload;
use serde_json::Value;

const LEDGER: &str = env!("CARGO_BIN_EXE_ledger");

/// As many as take half a minute.
const ROUNDS: usize = 20;

/// Rounds before anything is measured: what is learned once is learned then.
const WARM: usize = 5;

/// Memory of a shim may grow by so much in any number of rounds: the allocator keeps pages that were needed once.
const GROWS_KIB: i32 = 2048;

/// A worker that still fills the memory when the rounds end.
const SETTLES_WITHIN: Duration = Duration::from_secs(20);

/// How a round saves the container, and how it brings it back.
struct Round {
    leaves_first: bool,
    form: &'static str,
    eager: bool,
}

const KINDS: [Round; 5] = [
    Round {
        leaves_first: false,
        form: "none",
        eager: false,
    },
    Round {
        leaves_first: true,
        form: "none",
        eager: true,
    },
    Round {
        leaves_first: false,
        form: "zstd",
        eager: false,
    },
    Round {
        leaves_first: true,
        form: "tar",
        eager: false,
    },
    Round {
        leaves_first: false,
        form: "lz4",
        eager: true,
    },
];

/// What must not grow.
#[derive(Debug, PartialEq, Eq)]
struct Held {
    shims: usize,
    descriptors: usize,
    threads: Option<i32>,
    children: usize,
    cgroups: usize,
    mounts: usize,
    bundle: Vec<String>,
    records: usize,
    checkpoints: usize,
    unpacked: usize,
}

impl Held {
    fn now(host: &Host, counter: &Counter, shim: i32) -> Result<Self> {
        let all: Vec<Value> = Cedana::new().json(&["job", "checkpoints", &counter.job()])?;
        let bundle = host.known(counter.id(), Workload::forever()).bundle();
        let mut names: Vec<String> = entries(&bundle);
        names.sort();
        Ok(Self {
            shims: host.places().shims().len(),
            descriptors: entries(Path::new(&format!("/proc/{shim}/fd"))).len(),
            threads: field(shim, "Threads:"),
            children: [Actor::Worker, Actor::Runc]
                .into_iter()
                .filter_map(|actor| actor.now(shim))
                .count(),
            cgroups: cgroups(host.namespace()).len(),
            mounts: fs::read_to_string("/proc/self/mountinfo")?.lines().count(),
            bundle: names,
            records: entries(Path::new("/run/cedana/jobs.d")).len(),
            checkpoints: all.len(),
            unpacked: entries(Path::new("/var/lib/cedana/unpacked")).len(),
        })
    }
}

fn entries(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

#[test]
fn no_increment_is_lost_and_nothing_grows() -> Result<()> {
    need!(OurShim, "restores in place");
    need!(Criu, "dumps");
    let rounds = std::env::var("CEDANA_TEST_ROUNDS")
        .ok()
        .filter(|said| !said.is_empty());
    let rounds = rounds.map_or(Ok(ROUNDS), |said| said.parse())?;
    let host = Host::with_image()?;
    // A copy: a build that replaces the program must not pull it away under the container.
    let ledger = host.dir().join("ledger");
    let _bytes = fs::copy(LEDGER, &ledger)?;
    let mounts = binds(&ledger.display().to_string());
    let flags: Vec<&str> = mounts.iter().map(String::as_str).collect();
    let counter = Counter::run_script(&host, "c", host.runtime(), &flags, "exec /workload 40")?;
    let shim = host.known("c", Workload::forever()).shim_pid()?;
    let (begin, mut before) = (Instant::now(), None);
    for number in 0..rounds {
        let kind = KINDS.get(number % KINDS.len()).context("a kind")?;
        round(&host, &counter, kind).with_context(|| format!("round {number}, {}", kind.form))?;
        if number + 1 == WARM {
            before = Some((settled(&host, &counter, shim)?, field(shim, "VmRSS:")));
        }
        if (number + 1) % 50 == 0 {
            println!("{} rounds in {:?}", number + 1, begin.elapsed());
        }
    }
    let Some((before, memory_before)) = before else {
        return counter.kill_and_delete();
    };
    let (after, memory) = (settled(&host, &counter, shim)?, field(shim, "VmRSS:"));
    println!(
        "{rounds} rounds in {:?}; the shim's memory: {memory_before:?} and then {memory:?}",
        begin.elapsed()
    );
    println!("{after:?}");
    assert_eq!(after, before, "after {rounds} rounds");
    if let (Some(before), Some(after)) = (memory_before, memory) {
        ensure!(
            after - before <= GROWS_KIB,
            "the shim grew from {before} to {after} KiB"
        );
    }
    let counted = counter.seen()?.last();
    let numbers = counter.all()?;
    let gap = numbers
        .iter()
        .zip(1..)
        .find(|(number, wanted)| **number != *wanted);
    ensure!(
        gap.is_none(),
        "{gap:?} of {counted}: a number is missing, or there twice"
    );
    println!("{} numbers, each once", numbers.len());
    counter.kill_and_delete()
}

/// Once no worker is at work any more.
fn settled(host: &Host, counter: &Counter, shim: i32) -> Result<Held> {
    eventually("the workers to end", SETTLES_WITHIN, || {
        Actor::Worker.now(shim).is_none()
    })?;
    // A thread that had blocking work goes after ten seconds without.
    eventually("one thread to be left", SETTLES_WITHIN, || {
        field(shim, "Threads:") == Some(1)
    })?;
    Held::now(host, counter, shim)
}

fn round(host: &Host, counter: &Counter, kind: &Round) -> Result<()> {
    let cedana = Cedana::on(host);
    let (job, into) = (counter.job(), host.made_dir("into")?);
    let mut made = Vec::new();
    if kind.leaves_first {
        made.push(cedana.dump(&[
            &job,
            "--leave-running",
            "--dir",
            &into,
            "--compression",
            kind.form,
        ])?);
        counter.goes_on()?;
    }
    let seen = counter.seen()?;
    let path = cedana.dump(&[&job, "--dir", &into, "--compression", kind.form])?;
    let ended = counter.seen()?;
    let eager: &[&str] = if kind.eager { &["--eager"] } else { &[] };
    let _pid = cedana.restore(&[&[&job, "--path", &path], eager].concat())?;
    counter.continues(seen, ended)?;
    made.push(path);
    for path in &made {
        let _said = cedana.says(&["checkpoint", "verify", path])?;
        let _said = cedana.says(&["checkpoint", "rm", "--all", path])?;
    }
    ensure!(
        entries(Path::new(&into)).is_empty(),
        "left: {:?}",
        entries(Path::new(&into))
    );
    Ok(())
}
