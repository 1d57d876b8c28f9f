//! Checkpoints as earlier versions made them, in `tests/old`: each change of the format adds one, and all stay readable.
#![expect(clippy::expect_used, reason = "a test fails where it stands")]

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use oci_bundles::archive::{self, Limits};
use oci_bundles::checkpoint;
use oci_bundles::layout::{Layout, Shape};
use oci_bundles::manifest::Manifest;

fn old(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/old").join(name)
}

/// Its manifest, after it was found whole, and unpacked.
fn read(name: &str, shape: Shape) -> Manifest {
    let path = old(name);
    let quiet = &mut |_| ControlFlow::Continue(());
    let manifest = checkpoint::look(&path).expect("whole").expect("a manifest");
    let verdict = checkpoint::verify(&path, &Limits::default(), quiet).expect("readable");
    assert!(verdict.problems.is_empty(), "{:?}", verdict.problems);
    let temporary = tempfile::tempdir().expect("a directory");
    let place = temporary.path().join("unpacked");
    let _unpacked = archive::unpack(&path, &place, &Limits::default(), quiet).expect("unpacked");
    let layout = Layout::find(&place).expect("images");
    assert_eq!(layout.shape(), shape, "{name}");
    assert_eq!(verdict.is_vouched_for(), !manifest.parts.is_empty());
    manifest
}

#[test]
fn the_first_schema_listed_no_parts() {
    let manifest = read("schema-1-flat.tar.gz", Shape::Flat);
    assert_eq!((manifest.schema, manifest.criu.as_str()), (1, "4.1.1"));
    assert!(manifest.shell_job && manifest.parts.is_empty() && manifest.image.is_none());
    assert_eq!(manifest.stopped, [1]);
}

#[test]
fn the_second_lists_them_flat_and_nested() {
    for (name, shape) in [
        ("schema-2-flat.tar.gz", Shape::Flat),
        ("schema-2-nested.tar.gz", Shape::Nested),
    ] {
        let manifest = read(name, shape);
        assert_eq!(manifest.schema, 2);
        assert_eq!(manifest.parts.len(), 4, "{name}");
    }
}

#[test]
fn a_damaged_one_is_told_from_a_good_one() {
    let quiet = &mut |_| ControlFlow::Continue(());
    let path = old("schema-2-damaged.tar.gz");
    let verdict = checkpoint::verify(&path, &Limits::default(), quiet).expect("readable");
    let said: Vec<String> = verdict.problems.iter().map(ToString::to_string).collect();
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(said[0].starts_with("pages-1.img was changed"), "{said:?}");
}
