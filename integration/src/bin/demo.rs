//! `make demo`: a counter is checkpointed, killed, and restored, by plain `ctr` commands that are shown as they run.
//! Fails when the count does not go on from where it was. Runs inside a testbed instance.
#![expect(clippy::print_stdout, reason = "the demo is what it prints")]

use std::process::Command;

use anyhow::{Context, Result, ensure};
use integration::attached::Attached;

const IMAGE: &str = "localhost/cedana/busybox:latest";
const RUNTIME: &str = "io.containerd.cedana.v1";
/// A dump interrupts the `sleep`, which fails then: the loop must not depend on it.
const COUNTER: &str = "n=0; while :; do n=$((n+1)); echo $n; sleep 0.2; done";
/// Numbers shown before the checkpoint, and after the restore.
const SHOWN: usize = 5;

fn main() -> Result<()> {
    println!("# a container that counts:");
    let running = attach(&["run", "--runtime", RUNTIME, IMAGE, "demo", "sh", "-c", COUNTER])?;
    let before = numbers(&running)?;
    println!("{}", spaced(&before));

    println!("# checkpoint it, then kill and remove it:");
    run(&[
        "containers",
        "checkpoint",
        "--task",
        "--rw",
        "demo",
        "demo-checkpoint",
    ])?;
    run(&["tasks", "kill", "--signal", "KILL", "demo"])?;
    let dumped_before = last_of(running)?.max(before.last().copied().unwrap_or_default());
    run(&["containers", "delete", "demo"])?;

    println!("# restore it:");
    run(&[
        "containers",
        "restore",
        "--rw",
        "--live",
        "demo",
        "demo-checkpoint",
    ])?;
    let restored = attach(&["tasks", "attach", "demo"])?;
    let after = numbers(&restored)?;
    println!("{}", spaced(&after));

    let (last, next) = (
        before.last().context("no count")?,
        after.first().context("no count")?,
    );
    ensure!(
        last < next && *next <= dumped_before + 1,
        "the count did not go on: {last} was seen before the checkpoint, {next} after the restore"
    );
    println!("# the count went on: {last} before the checkpoint, {next} after the restore");
    run_quietly(&["tasks", "kill", "--signal", "KILL", "demo"])?;
    let _last = last_of(restored)?;
    run_quietly(&["containers", "delete", "demo"])?;
    run_quietly(&["images", "delete", "demo-checkpoint"])
}

fn shown(args: &[&str]) {
    let words = args.iter().map(|word| {
        if word.contains(' ') {
            format!("'{word}'")
        } else {
            (*word).to_owned()
        }
    });
    println!("$ ctr {}", words.collect::<Vec<_>>().join(" "));
}

fn attach(args: &[&str]) -> Result<Attached> {
    shown(args);
    Attached::start(Command::new("ctr").args(args))
}

fn run(args: &[&str]) -> Result<()> {
    shown(args);
    run_quietly(args)
}

fn run_quietly(args: &[&str]) -> Result<()> {
    let mut command = Attached::start(Command::new("ctr").args(args))?;
    let status = command
        .wait()
        .with_context(|| format!("ctr {}", args.join(" ")))?;
    ensure!(
        status.success(),
        "ctr {}: {status}; {}",
        args.join(" "),
        command.stderr()
    );
    Ok(())
}

fn numbers(counter: &Attached) -> Result<Vec<u64>> {
    (0..SHOWN)
        .map(|_| counter.line()?.parse().context("a line that is no number"))
        .collect()
}

/// Reads on to the end of a killed counter; the last number it said.
fn last_of(mut counter: Attached) -> Result<u64> {
    let mut last = 0;
    while let Ok(line) = counter.line() {
        last = line.parse().context("a line that is no number")?;
    }
    let _killed = counter.wait()?;
    Ok(last)
}

fn spaced(numbers: &[u64]) -> String {
    numbers.iter().map(u64::to_string).collect::<Vec<_>>().join(" ")
}
