//! Feeds one parser, by its name in `CEDANA_FUZZ_TARGET`, with what libFuzzer makes up. `--list` names them all; every other
//! argument is libFuzzer's. `run` builds and runs all of it.

#![no_main]

use std::path::Path;
use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;

/// A parser.
type Target = fn(&[u8], &Path);

/// Chosen once.
static TARGET: OnceLock<Target> = OnceLock::new();

fn targets() -> impl Iterator<Item = (&'static str, Target)> {
    let all = [
        config::fuzzing::TARGETS,
        oci_bundles::fuzzing::TARGETS,
        shim::fuzzing::TARGETS,
    ];
    all.into_iter().flatten().copied()
}

fn choose() {
    if std::env::args().any(|argument| argument == "--list") {
        targets().for_each(|(name, _)| println!("{name}"));
        std::process::exit(0);
    }
    let wanted = std::env::var("CEDANA_FUZZ_TARGET").unwrap_or_default();
    let Some((_, target)) = targets().find(|(name, _)| *name == wanted) else {
        eprintln!("fuzz: CEDANA_FUZZ_TARGET={wanted:?} is no target; --list names them");
        std::process::exit(2);
    };
    let _ = TARGET.set(target);
}

fuzz_target!(
    init: choose(),
    |input: &[u8]| {
        let target = TARGET.get().expect("a target was chosen");
        let dir = tempfile::tempdir().expect("a directory for one input");
        target(input, dir.path());
    }
);
