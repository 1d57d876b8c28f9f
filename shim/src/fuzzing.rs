//! What the fuzzer feeds here: the parsers of what came from somewhere else. In no build that ships.
//!
//! A target takes any bytes, and an empty directory of its own. It panics where something is wrong.
#![expect(
    clippy::expect_used,
    reason = "a panic is how a target tells of what is wrong"
)]

use std::fs;
use std::path::Path;

use crate::criu::{connections, images, manifest, telling};
use crate::options::{OPTIONS_FILE, Options};
use crate::{job_service, preflight, worker};

/// A parser under its name.
pub type Target = (&'static str, fn(&[u8], &Path));

/// All of them here.
pub const TARGETS: &[Target] = &[
    ("criu_images", criu_images),
    ("criu_log", criu_log),
    ("pagemap", |bytes, _| worker::fuzzing::images(bytes)),
    ("page_words", |bytes, _| worker::fuzzing::words(bytes)),
    ("restorer", |bytes, _| worker::fuzzing::restorer(bytes)),
    ("uffd", |bytes, _| worker::fuzzing::events(bytes)),
    ("connections", |bytes, _| {
        connections::read_any(&String::from_utf8_lossy(bytes));
    }),
    ("job_requests", |bytes, _| job_service::decode_any(bytes)),
    ("create_options", create_options),
    ("proc", |bytes, _| preflight::read_any(bytes)),
];

/// One image in the place of each that is read.
fn criu_images(bytes: &[u8], dir: &Path) {
    images::read_any(bytes);
    for name in ["inventory.img", "pstree.img", "core-1.img", manifest::NAME] {
        fs::write(dir.join(name), bytes).expect("write");
    }
    let _manifest = manifest::read(dir, None);
    let _summary = images::summarize(dir);
}

fn criu_log(bytes: &[u8], dir: &Path) {
    let log = dir.join("dump.log");
    fs::write(&log, bytes).expect("write");
    let said = telling::read(&log, &String::from_utf8_lossy(bytes));
    let _text = said.to_string();
}

/// What Create brings, and what it left in the bundle.
fn create_options(bytes: &[u8], dir: &Path) {
    for kind in ["containerd.runc.v1.Options", "runtimeoptions.v1.Options"] {
        let _options = Options::from_any(kind, bytes);
    }
    fs::write(dir.join(OPTIONS_FILE), bytes).expect("write");
    if let Ok(options) = Options::load(dir) {
        options.save(dir).expect("save");
        assert_eq!(Options::load(dir).ok(), Some(options));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the fuzzer once found, and what it begins with.
    #[test]
    fn every_input_that_is_kept_is_got_over() {
        for (name, target) in TARGETS {
            let inputs = Path::new("../integration/fuzz/inputs").join(name);
            let inputs =
                fs::read_dir(&inputs).unwrap_or_else(|error| panic!("{}: {error}", inputs.display()));
            for input in inputs {
                let dir = tempfile::tempdir().expect("a directory");
                target(
                    &fs::read(input.expect("an input").path()).expect("read"),
                    dir.path(),
                );
            }
        }
    }
}
