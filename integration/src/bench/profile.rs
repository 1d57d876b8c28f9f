//! Where the time of one `ctr run --rm … true` goes: the programs it executes one after the other, and the waits
//! between them.
//!
//! The kernel's own trace of process starts and ends (tracefs) gives the times: it costs the traced programs next to
//! nothing, where a wrapper around runc or a debugger would double what they take. The trace is of the whole machine,
//! so other containers started meanwhile would spoil it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::figure::Side;
use super::measure::{Measure, Run};
use super::sampling::median;

/// The tracepoints, below `events/sched`.
const TRACEPOINTS: [&str; 2] = ["sched_process_exec", "sched_process_exit"];
/// Runs tried for each one wanted: some are spoilt by what else the machine does.
const TRIES_PER_RUN: u32 = 3;

/// Runs the command `runs` times a side and returns, a side, the steps with their median times in milliseconds.
///
/// # Errors
/// The kernel has no tracefs, a run failed, or the machine was too busy with other containers.
pub fn profile(runs: u32) -> Result<String> {
    let trace = Trace::open()?;
    let mut text = String::new();
    for side in [Side::Ours, Side::Theirs] {
        let samples = samples(&trace, side, runs)?;
        text += &format!(
            "{}: where the time of `run` goes, ms, medians of {runs}\n",
            side.word()
        );
        for (place, (name, _)) in samples.first().context("no run")?.iter().enumerate() {
            let values: Vec<f64> = samples
                .iter()
                .filter_map(|run| run.get(place))
                .map(|(_, ms)| *ms)
                .collect();
            text += &format!("  {name:<20} {:>6.1}\n", median(&values).unwrap_or_default());
        }
    }
    Ok(text)
}

fn samples(trace: &Trace, side: Side, runs: u32) -> Result<Vec<Vec<(String, f64)>>> {
    let mut samples: Vec<Vec<(String, f64)>> = Vec::new();
    let _warm = Run.sample(side)?;
    for _try in 0..runs * TRIES_PER_RUN {
        trace.clear()?;
        let _ms = Run.sample(side)?;
        let Some(steps) = steps(&spans(&trace.text()?)) else {
            continue;
        };
        // Others' containers may also look like one run; with ours they do not make the same steps.
        if samples.first().is_none_or(|first| same_steps(first, &steps)) {
            samples.push(steps);
        }
        if samples.len() == runs as usize {
            return Ok(samples);
        }
    }
    bail!("only {} of {runs} runs were alone on the machine", samples.len())
}

fn same_steps(one: &[(String, f64)], other: &[(String, f64)]) -> bool {
    one.iter()
        .map(|(name, _)| name)
        .eq(other.iter().map(|(name, _)| name))
}

/// A tracing instance of our own, gone when dropped.
#[derive(Debug)]
struct Trace {
    mount: PathBuf,
    instance: PathBuf,
}

impl Trace {
    fn open() -> Result<Self> {
        let mount_at = PathBuf::from(format!("/tmp/bench-trace.{}", std::process::id()));
        fs::create_dir(&mount_at).context("make a directory for tracefs")?;
        mount(
            Some("tracefs"),
            &mount_at,
            Some("tracefs"),
            MsFlags::empty(),
            None::<&str>,
        )
        .context("mount tracefs")?;
        let trace = Self {
            instance: mount_at.join("instances/cedana-bench"),
            mount: mount_at,
        };
        if !trace.instance.exists() {
            fs::create_dir(&trace.instance).context("make a tracing instance")?;
        }
        for point in TRACEPOINTS {
            trace.set(Path::new("events/sched").join(point).join("enable"), "1")?;
        }
        Ok(trace)
    }

    fn set(&self, file: impl AsRef<Path>, value: &str) -> Result<()> {
        let path = self.instance.join(file);
        fs::write(&path, value).with_context(|| format!("write {}", path.display()))
    }

    fn clear(&self) -> Result<()> {
        self.set("trace", "")
    }

    fn text(&self) -> Result<String> {
        fs::read_to_string(self.instance.join("trace")).context("read the trace")
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        // What cannot be undone here is undone with the testbed instance, except the tracing instance, which the
        // next bench takes over.
        let _removed = fs::remove_dir(&self.instance);
        let _unmounted = umount2(&self.mount, MntFlags::MNT_DETACH);
        let _gone = fs::remove_dir(&self.mount);
    }
}

/// One program from its exec to its end, in seconds of the trace's clock.
#[derive(Debug, Clone, PartialEq)]
struct Span {
    program: String,
    start: f64,
    end: Option<f64>,
}

/// The programs in a trace, in the order of their start.
fn spans(trace: &str) -> Vec<Span> {
    let mut spans: Vec<Span> = Vec::new();
    let mut running: BTreeMap<&str, usize> = BTreeMap::new();
    for line in trace.lines().filter(|line| !line.starts_with('#')) {
        let Some((head, event)) = line.split_once(": sched_process_") else {
            continue;
        };
        let Some(at) = head.rsplit(' ').next().and_then(|at| at.parse::<f64>().ok()) else {
            continue;
        };
        let Some(pid) = value(event, "pid=") else { continue };
        // The exit of the first thread, whose id is the process's; the others follow within microseconds.
        if let Some(span) = running.remove(pid).and_then(|place| spans.get_mut(place)) {
            span.end = Some(at);
        }
        if let Some(path) = event
            .strip_prefix("exec:")
            .and_then(|event| value(event, "filename="))
        {
            let program = path.rsplit('/').next().unwrap_or(path).to_owned();
            let _replaced = running.insert(pid, spans.len());
            spans.push(Span {
                program,
                start: at,
                end: None,
            });
        }
    }
    spans
}

fn value<'a>(event: &'a str, name: &str) -> Option<&'a str> {
    event.split_whitespace().find_map(|word| word.strip_prefix(name))
}

/// The steps of one run and the waits between them, in order, in milliseconds. Nothing when the programs are not
/// those of one run: the trace is of the whole machine, and somebody else's container came in between.
fn steps(spans: &[Span]) -> Option<Vec<(String, f64)>> {
    let of = |program: &str| {
        spans
            .iter()
            .filter(|span| span.program.starts_with(program))
            .collect::<Vec<_>>()
    };
    let (clients, calls, shims) = (of("ctr"), of("runc"), of("containerd-shim"));
    let [client] = clients.as_slice() else { return None };
    // The server, which the first one starts, may be executed under another name.
    let ([shim_start, .., shim_delete], true) = (shims.as_slice(), shims.len() <= 3) else {
        return None;
    };
    let called: &[&str] = match calls.len() {
        // Our shim does by itself what is simple about a start and a delete.
        1 => &["runc create"],
        2 => &["runc create", "runc delete"],
        // A fourth call is made within the delete of containerd's own shim.
        3 | 4 => &["runc create", "runc start", "runc delete"],
        _ => return None,
    };
    let mut named = vec![("shim start", *shim_start)];
    named.extend(called.iter().copied().zip(calls));
    named.push(("shim delete", *shim_delete));
    let mut at = client.start;
    let mut steps = Vec::new();
    for (name, span) in named {
        let end = span.end?;
        steps.push((format!("until {name}"), (span.start - at).max(0.0) * 1000.0));
        steps.push((name.to_owned(), (end - span.start.max(at)).max(0.0) * 1000.0));
        at = at.max(end);
    }
    steps.push(("until ctr ends".to_owned(), (client.end? - at) * 1000.0));
    Some(steps)
}

#[cfg(test)]
mod tests {
    use super::{Span, spans, steps};

    fn span(program: &str, start: f64, end: f64) -> Span {
        Span {
            program: program.into(),
            start,
            end: Some(end),
        }
    }

    #[test]
    fn trace_becomes_programs_with_start_and_end() {
        let trace = "# tracer: nop\n\
            ctr-7 [001] ..... 10.5: sched_process_exec: filename=/usr/bin/ctr pid=7 old_pid=7\n\
            ctr-9 [001] ..... 10.6: sched_process_exit: comm=ctr pid=9 prio=120 group_dead=false\n\
            sh-8 [000] .N... 10.7: sched_process_exec: filename=/bin/sh pid=8 old_pid=8\n\
            runc-8 [000] .N... 10.8: sched_process_exec: filename=/sbin/runc pid=8 old_pid=8\n\
            ctr-7 [001] ..... 11.0: sched_process_exit: comm=ctr pid=7 prio=120 group_dead=false\n";
        let expected = [
            span("ctr", 10.5, 11.0),
            span("sh", 10.7, 10.8),
            Span {
                program: "runc".into(),
                start: 10.8,
                end: None,
            },
        ];
        assert_eq!(spans(trace), expected);
    }

    #[test]
    fn steps_and_waits_make_up_the_whole() {
        let run = [
            span("ctr", 0.0, 0.100),
            span("containerd-shim-x-v1", 0.010, 0.015),
            Span {
                program: "containerd-shim-x-v1".into(),
                start: 0.012,
                end: None,
            },
            span("runc", 0.020, 0.040),
            span("runc", 0.050, 0.060),
            span("runc", 0.070, 0.080),
            span("containerd-shim-x-v1", 0.090, 0.092),
        ];
        let steps = steps(&run).unwrap();
        let whole: f64 = steps.iter().map(|(_, ms)| ms).sum();
        assert!((whole - 100.0).abs() < 0.001, "{whole}");
        let names: Vec<&str> = steps
            .iter()
            .map(|(name, _)| name.as_str())
            .filter(|name| !name.starts_with("until"))
            .collect();
        assert_eq!(
            names,
            [
                "shim start",
                "runc create",
                "runc start",
                "runc delete",
                "shim delete"
            ]
        );
    }
}
