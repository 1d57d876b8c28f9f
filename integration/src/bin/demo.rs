//! `make demo`: a counter of plain `ctr run` is saved, killed and brought back by `cedana`; the commands are shown as they
//! run. Fails when the count does not go on from where it was. Runs inside a testbed instance.
#![expect(clippy::print_stdout, reason = "the demo is what it prints")]

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use integration::engine;
use integration::stdio::eventually;

const IMAGE: &str = "localhost/cedana/busybox:latest";
const RUNTIME: &str = "io.containerd.cedana.v1";
/// A dump interrupts the `sleep`, which fails then: the loop must not depend on it.
const COUNTER: &str = "n=0; while :; do n=$((n+1)); echo $n; sleep 0.2; done";
/// Numbers shown before the dump, and after the restore.
const SHOWN: usize = 5;
/// Five numbers take a second; a machine of two busy cores takes longer.
const NUMBERS_WITHIN: Duration = Duration::from_secs(30);
const LOG: &str = "/tmp/demo.log";

fn main() -> Result<()> {
    println!("# a container that counts, started as ever:");
    let uri = format!("file://{LOG}");
    let run = ["run", "--detach", "--runtime", RUNTIME, "--log-uri", &uri];
    show("ctr", &[&run, &[IMAGE, "demo", "sh", "-c", COUNTER][..]].concat())?;
    let before = *numbers_from(0)?.last().context("no count")?;
    show("cedana", &["ps"])?;

    println!("# save it, let it go on, then kill it:");
    show("cedana", &["dump", "job", "demo", "--leave-running"])?;
    let after = *numbers()?.last().context("no count")?;
    let _more = numbers_from(numbers()?.len())?;
    show("cedana", &["kill", "demo"])?;
    show("cedana", &["ps"])?;

    println!("# bring it back:");
    let ended = numbers()?.len();
    show("cedana", &["restore", "job", "demo"])?;
    let next = *numbers_from(ended)?.first().context("no count")?;
    show("cedana", &["ps"])?;

    ensure!(
        before < next && next <= after + 1,
        "the count did not go on: {before} to {after} were seen around the dump, {next} after the restore"
    );
    println!("# the count went on: {before} was seen before the dump, {next} came after the restore");
    quietly("cedana", &["kill", "demo"])?;
    quietly("ctr", &["tasks", "delete", "--force", "demo"])?;
    quietly("ctr", &["containers", "delete", "demo"])?;
    quietly("cedana", &["delete", "demo", "--checkpoints", "--yes"])
}

fn show(program: &str, args: &[&str]) -> Result<()> {
    let words = args.iter().map(|word| {
        if word.contains(' ') {
            format!("'{word}'")
        } else {
            (*word).to_owned()
        }
    });
    println!("$ {program} {}", words.collect::<Vec<_>>().join(" "));
    let said = engine::run(program, args)?
        .ok()
        .with_context(|| program.to_owned())?;
    if !said.is_empty() {
        println!("{said}");
    }
    Ok(())
}

fn quietly(program: &str, args: &[&str]) -> Result<()> {
    let _said = engine::run(program, args)?
        .ok()
        .with_context(|| format!("{program} {}", args.join(" ")))?;
    Ok(())
}

/// What the container has counted so far: the whole lines of its log.
fn numbers() -> Result<Vec<u64>> {
    let text = fs::read_to_string(Path::new(LOG)).unwrap_or_default();
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    let numbers = whole
        .lines()
        .map(|line| line.parse().context("a line that is no number"));
    numbers.collect()
}

/// Waits for the next numbers after that many, shows and returns them.
fn numbers_from(skipped: usize) -> Result<Vec<u64>> {
    let counted = || numbers().is_ok_and(|all| all.len() >= skipped + SHOWN);
    eventually("it counts", NUMBERS_WITHIN, counted)?;
    let new: Vec<u64> = numbers()?.into_iter().skip(skipped).take(SHOWN).collect();
    println!("{}", new.iter().map(u64::to_string).collect::<Vec<_>>().join(" "));
    Ok(new)
}
