//! `make bench`: prints the table of figures and writes `target/bench.json`. Runs inside a testbed instance.
//!
//! ```text
//! bench [--only KEY]… [--runs N] [--out PATH] [--strict]     --strict: fail when a figure is over its limit
//! bench --beside [--runs N]                                  a gigabyte saved by cedana, podman and docker
//! bench --profile [--runs N]                                 where the time of `run` goes
//! ```
#![expect(clippy::print_stdout, reason = "the table is what the program is for")]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail, ensure};
use integration::bench::dump::{HalfZero, Large, Text};
use integration::bench::figure::{FIGURES, Figure};
use integration::bench::fill::Fill;
use integration::bench::jobs::{Ps, RunRegistry};
use integration::bench::measure::{Dump, Exec, Measure, Run, ShimAtRest};
use integration::bench::report::{Line, json, table};
use integration::bench::restore::{Restore, Size};
use integration::bench::shm::Shm;
use integration::bench::{beside, profile, sampling};

/// Samples a side where `--runs` says nothing: a median of fewer moves from run to run.
const RUNS: u32 = 20;

/// Each dump beside others takes seconds.
const BESIDE_RUNS_MAX: u32 = 3;

struct Args {
    only: Vec<String>,
    runs: u32,
    out: PathBuf,
    strict: bool,
    profile: bool,
    beside: bool,
}

impl Args {
    fn parse(mut words: impl Iterator<Item = String>) -> Result<Self> {
        let out = PathBuf::from("target/bench.json");
        let mut args = Self {
            only: Vec::new(),
            runs: RUNS,
            out,
            strict: false,
            profile: false,
            beside: false,
        };
        while let Some(word) = words.next() {
            let mut value = || words.next().with_context(|| format!("{word} needs a value"));
            match word.as_str() {
                "--only" => args.only.push(value()?),
                "--runs" => args.runs = value()?.parse().context("--runs is a number")?,
                "--out" => args.out = value()?.into(),
                "--strict" => args.strict = true,
                "--profile" => args.profile = true,
                "--beside" => args.beside = true,
                _ => bail!(
                    "usage: bench [--only KEY]… [--runs N] [--out PATH] [--strict] | --profile|--beside [--runs N]"
                ),
            }
        }
        let known = |key: &String| FIGURES.iter().any(|figure| figure.key == key);
        ensure!(
            args.only.iter().all(known),
            "no such figure among {:?}",
            args.only
        );
        ensure!(args.runs > 0, "--runs must be at least 1");
        Ok(args)
    }

    fn wants(&self, keys: &[Figure]) -> bool {
        self.only.is_empty()
            || keys
                .iter()
                .any(|figure| self.only.iter().any(|key| key == figure.key))
    }
}

fn main() -> Result<ExitCode> {
    let args = Args::parse(std::env::args().skip(1))?;
    if args.profile {
        print!("{}", profile::profile(args.runs)?);
        return Ok(ExitCode::SUCCESS);
    }
    if args.beside {
        print!("{}", beside::beside(args.runs.min(BESIDE_RUNS_MAX))?);
        return Ok(ExitCode::SUCCESS);
    }
    let lines = measure(&args)?;
    let ordered = FIGURES
        .iter()
        .filter_map(|figure| Some((figure.key, lines.get(figure.key)?)));
    print!("{}", table(ordered));
    std::fs::write(&args.out, json(&lines)?).with_context(|| format!("write {}", args.out.display()))?;
    let over = lines.values().any(Line::over);
    Ok(if over && args.strict {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

type Prepare = fn() -> Result<Box<dyn Measure>>;

fn measure(args: &Args) -> Result<BTreeMap<&'static str, Line>> {
    let [
        run,
        exec,
        rss,
        dirty,
        threads,
        dump,
        freeze,
        floor,
        dump_1g,
        text,
        text_size,
        half_zero,
        shm,
        memory,
        restore,
        restore_1g,
        restore_1g_zstd,
        restore_4g,
        fill,
        registry,
        ps,
    ] = FIGURES;
    let measures: [(&[Figure], Prepare); 15] = [
        (&[run], || Ok(Box::new(Run))),
        (&[exec], || Ok(Box::new(Exec::prepare()?))),
        (&[rss, dirty, threads], || Ok(Box::new(ShimAtRest))),
        (&[dump], || Ok(Box::new(Dump::prepare()?))),
        (&[freeze, floor, dump_1g, memory], || {
            Ok(Box::new(Large::prepare()?))
        }),
        (&[text, text_size], || Ok(Box::new(Text::prepare()?))),
        (&[half_zero], || Ok(Box::new(HalfZero::prepare()?))),
        (&[shm], || Ok(Box::new(Shm::prepare()?))),
        (&[restore], || Ok(Box::new(Restore::prepare(Size::Small)?))),
        (&[restore_1g], || {
            Ok(Box::new(Restore::prepare(Size::Large(1024))?))
        }),
        (&[restore_1g_zstd], || {
            Ok(Box::new(Restore::prepare(Size::Archived(1024))?))
        }),
        (&[restore_4g], || {
            Ok(Box::new(Restore::prepare(Size::Grown(4096, 1024))?))
        }),
        (&[fill], || Ok(Box::new(Fill::prepare()?))),
        (&[registry], || Ok(Box::new(RunRegistry::prepare()?))),
        (&[ps], || Ok(Box::new(Ps::prepare()?))),
    ];
    let mut lines = BTreeMap::new();
    for (figures, prepare) in measures.into_iter().filter(|(figures, _)| args.wants(figures)) {
        let samples = sampling::take(prepare()?.as_mut(), args.runs)?;
        for figure in figures {
            let line = samples
                .get(figure.key)
                .and_then(|samples| Line::new(*figure, samples));
            let _first = lines.insert(
                figure.key,
                line.with_context(|| format!("no samples of {}", figure.key))?,
            );
        }
    }
    Ok(lines)
}
