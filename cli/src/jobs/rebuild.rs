//! A registry that was made anew learns again what lies on disk: each checkpoint says whose it is.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use jobs::record::{Checkpoint, Origin};
use jobs::registry::{OnDisk, Registry};
use serde::Deserialize;

use crate::context::Context;
use crate::output;

/// The shim's manifest in the directory of a checkpoint.
const MANIFEST: &str = "cedana.json";

/// A manifest has under 1 KiB, unless a thousand processes were stopped.
const MANIFEST_BYTES_MAX: u64 = 64 << 10;

/// Checkpoints that are looked at. Whoever keeps more of them in one directory names the others by their paths.
const CHECKPOINTS_MAX: usize = 10_000;

/// Files of a checkpoint whose sizes are added up; CRIU makes some ten for each process.
const FILES_MAX: usize = 100_000;

#[derive(Debug, Deserialize)]
struct Manifest {
    #[serde(default)]
    origin: Option<Origin>,
}

/// Takes in the checkpoints of the default directory. What cannot be read is not there: the registry is only an index.
pub fn take_in(registry: &mut Registry, context: &Context) {
    let found = look(context.checkpoint_dir());
    if found.is_empty() {
        return;
    }
    if let Err(problem) = registry.rebuild_from(&found) {
        output::warning(&problem.to_string());
    }
}

fn look(dir: &Path) -> Vec<OnDisk> {
    let Ok(entries) = fs::read_dir(dir) else {
        return Vec::new();
    };
    entries
        .take(CHECKPOINTS_MAX)
        .flatten()
        .filter_map(|entry| on_disk(&entry.path()))
        .collect()
}

fn on_disk(path: &Path) -> Option<OnDisk> {
    let origin = origin(path)?;
    Some(OnDisk {
        key: origin.key,
        name: origin.name,
        image: None,
        bundle: std::path::PathBuf::new(),
        checkpoint: Checkpoint {
            id: origin.checkpoint,
            path: path.to_owned(),
            at: origin.at,
            size: size(path),
            left_running: origin.left_running,
        },
    })
}

/// What the directory of a checkpoint says of where it comes from.
pub fn origin(checkpoint: &Path) -> Option<Origin> {
    let manifest = checkpoint.join(MANIFEST);
    // A fifo of that name would hold us up for ever.
    if !fs::symlink_metadata(&manifest).ok()?.is_file() {
        return None;
    }
    let mut text = Vec::new();
    let _bytes = File::open(manifest)
        .ok()?
        .take(MANIFEST_BYTES_MAX)
        .read_to_end(&mut text)
        .ok()?;
    serde_json::from_slice::<Manifest>(&text).ok()?.origin
}

fn size(dir: &Path) -> u64 {
    let files = fs::read_dir(dir).into_iter().flatten().take(FILES_MAX).flatten();
    files
        .filter_map(|file| file.metadata().ok())
        .filter(fs::Metadata::is_file)
        .map(|file| file.len())
        .sum()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn checkpoints_say_whose_they_are() {
        let dir = tempfile::tempdir().expect("a directory");
        let mine = dir.path().join("mine");
        let origin = json!({"key": {"engine": "/run/c.sock", "namespace": "default", "id": "web"},
            "checkpoint": "1f", "at": 7, "left_running": true});
        for (name, text) in [
            ("mine", json!({"schema": 1, "origin": origin}).to_string()),
            ("older", json!({"schema": 1}).to_string()),
            ("rubbish", "\0\0".to_owned()),
        ] {
            fs::create_dir(dir.path().join(name)).expect("a directory");
            fs::write(dir.path().join(name).join(MANIFEST), text).expect("a file");
        }
        fs::write(mine.join("pages-1.img"), [0; 1000]).expect("a file");
        let found = look(dir.path());
        let [one] = found.as_slice() else {
            panic!("{found:?}");
        };
        assert_eq!((one.key.id.as_str(), one.checkpoint.at), ("web", 7));
        assert_eq!(one.checkpoint.path, mine);
        assert!(one.checkpoint.size > 1000);
        assert!(look(&dir.path().join("nowhere")).is_empty());
    }
}
