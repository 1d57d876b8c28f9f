//! What the fuzzer feeds here: the parsers of what came from somewhere else. In no build that ships.
//!
//! A target takes any bytes, and an empty directory of its own. It panics where something is wrong.
#![expect(
    clippy::expect_used,
    reason = "a panic is how a target tells of what is wrong"
)]

use std::fs::{self, File};
use std::io::{Cursor, Write};
use std::ops::ControlFlow;
use std::path::Path;

use crate::archive::reader::Reader;
use crate::archive::{self, Limits, Progress};
use crate::checkpoint;
use crate::manifest::{Manifest, NAME, SCHEMA};
use crate::rootfs::Tree;
use crate::rootfs::apply::{Allowed, apply_to};
use crate::rootfs::deleted;
use crate::spec::SpecView;

/// A parser under its name.
pub type Target = (&'static str, fn(&[u8], &Path));

/// All of them here.
pub const TARGETS: &[Target] = &[
    ("archive", any_archive),
    ("tar", tar),
    ("zstd_index", archive::frames::read_any),
    ("checkpoint", any_checkpoint),
    ("manifest", manifest),
    ("rootfs_diff", rootfs_diff),
    ("deleted_files", deleted_files),
    ("spec", spec),
];

/// So much is unpacked of what the fuzzer makes.
const BYTES_MAX: u64 = 4 << 20;

/// A file that is beside whatever is unpacked, and stays as it is.
const OUTSIDE: &str = "outside";

fn limits() -> Limits {
    Limits {
        entries_max: 1000,
        bytes_max: BYTES_MAX,
        ratio_from: 1 << 20,
        ..Limits::default()
    }
}

fn quiet(_: Progress) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// An archive in any of the forms: what is read of it is what is unpacked, and beside that nothing.
fn any_archive(bytes: &[u8], dir: &Path) {
    let (path, dest) = (dir.join("archive"), dir.join("unpacked"));
    fs::write(&path, bytes).expect("write the archive");
    fs::write(dir.join(OUTSIDE), OUTSIDE).expect("write");
    let read = archive::verify(&path, &limits(), &mut quiet);
    let unpacked = archive::unpack(&path, &dest, &limits(), &mut quiet);
    assert_eq!(dest.exists(), unpacked.is_ok(), "{unpacked:?}");
    if let Ok(unpacked) = &unpacked {
        assert_eq!(read.as_ref().ok(), Some(unpacked), "read: {read:?}");
    }
    let rest = dir.join("rest");
    let left = archive::unpack_without_memory(&path, &rest, &limits(), &mut quiet);
    assert!(left.is_ok() || unpacked.is_err(), "{left:?}");
    if let Ok(left) = left.as_ref()
        && !left.is_empty()
    {
        let made = left.open().and_then(|contents| contents.make_all());
        assert!(made.is_ok() || unpacked.is_err(), "{made:?}");
    }
    is_alone(dir, &["archive", OUTSIDE, "unpacked", "rest"]);
}

/// The entries of a tar, with their extended headers and sparse maps.
fn tar(bytes: &[u8], _: &Path) {
    let mut reader = Reader::new(Cursor::new(bytes));
    let mut buffer = [0; 4096];
    let mut sum = 0;
    while let Ok(Some(entry)) = reader.next_entry() {
        assert!(entry.path.is_relative(), "{:?}", entry.path);
        while let Ok(count @ 1..) = reader.data(&mut buffer) {
            sum += count;
        }
    }
    assert!(sum <= bytes.len());
}

/// Whatever lies where a checkpoint should: an archive, or the manifest of a directory.
fn any_checkpoint(bytes: &[u8], dir: &Path) {
    let (file, flat) = (dir.join("file"), dir.join("flat"));
    fs::create_dir(&flat).expect("make a directory");
    for path in [&file, &flat.join(NAME)] {
        fs::write(path, bytes).expect("write");
    }
    for path in [&file, &flat] {
        let _looked = checkpoint::look(path);
        let _verdict = checkpoint::verify(path, &limits(), &mut quiet);
    }
    is_alone(dir, &["file", "flat"]);
}

fn manifest(text: &[u8], _: &Path) {
    let Ok(manifest) = Manifest::parse(text) else {
        return;
    };
    for part in &manifest.parts {
        assert!(part.path.is_relative(), "{:?}", part.path);
    }
    let _bytes = manifest.bytes();
    let _differences = manifest.compare(&manifest.parts);
    let text = manifest.text().expect("a manifest that was read");
    let schema = SCHEMA;
    assert_eq!(Manifest::parse(&text).ok(), Some(Manifest { schema, ..manifest }));
}

/// A diff goes into its directory and nowhere else.
fn rootfs_diff(bytes: &[u8], dir: &Path) {
    let upper = dir.join("upper");
    fs::create_dir_all(upper.join("there")).expect("make directories");
    fs::write(dir.join(OUTSIDE), OUTSIDE).expect("write");
    for (link, target) in [("up", ".."), ("out", "../outside"), ("root", "/")] {
        std::os::unix::fs::symlink(target, upper.join(link)).expect("link");
    }
    let allowed = Allowed {
        limits: limits(),
        device: &|_| false,
    };
    let _applied = apply_to(
        Tree::Upper,
        Cursor::new(bytes),
        Path::new("diff"),
        &upper,
        &allowed,
        &mut quiet,
    );
    is_alone(dir, &["upper", OUTSIDE]);
}

/// What another engine lists as deleted goes from its root, and nothing else.
fn deleted_files(text: &[u8], dir: &Path) {
    let root = dir.join("root");
    fs::create_dir_all(root.join("etc")).expect("make directories");
    fs::write(dir.join(OUTSIDE), OUTSIDE).expect("write");
    for (link, target) in [("up", ".."), ("out", "../outside")] {
        std::os::unix::fs::symlink(target, root.join(link)).expect("link");
    }
    if let Ok(paths) = deleted::parse(text, Path::new("list")) {
        let _removed = deleted::remove(&root, &paths);
    }
    assert!(root.exists(), "the root itself");
    is_alone(dir, &["root", OUTSIDE]);
}

fn spec(text: &[u8], _: &Path) {
    if let Ok(spec) = SpecView::parse(text) {
        let _owner = spec.mapped_owner();
        let _pids = spec.has_private_pid_namespace();
        let _systemd = spec.has_systemd_cgroup();
        let _terminal = spec.terminal();
    }
}

/// Nothing is in a directory but this, and what was outside is as it was.
fn is_alone(dir: &Path, known: &[&str]) {
    for entry in fs::read_dir(dir).expect("list").flatten() {
        let name = entry.file_name();
        assert!(known.iter().any(|known| name == *known), "{name:?} was made");
    }
    if known.contains(&OUTSIDE) {
        let text = fs::read(dir.join(OUTSIDE)).expect("read what is outside");
        assert_eq!(text, OUTSIDE.as_bytes());
    }
}

/// A file with these bytes, for what reads files.
pub(crate) fn file_of(bytes: &[u8], dir: &Path) -> File {
    let path = dir.join("file");
    let mut file = File::create_new(&path).expect("create");
    file.write_all(bytes).expect("write");
    File::open(path).expect("open")
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
