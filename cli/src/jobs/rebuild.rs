//! A registry that was made anew learns again what lies on disk, and what the shims that run can tell.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jobs::record::{Checkpoint, Origin};
use jobs::registry::{OnDisk, Registry};
use jobs::spool::Spool;
use jobs::wire::{self, StatusAnswer, Target};
use oci_bundles::checkpoint;
use oci_bundles::layout::{Layout, Shape};
use oci_bundles::manifest::Manifest;
use tokio::time::timeout;

use crate::context::Context;
use crate::engines::containerd::BUNDLES;
use crate::error::Error;
use crate::{output, shim};

/// Checkpoints that are looked at. Whoever keeps more of them in one directory names the others by their paths.
const CHECKPOINTS_MAX: usize = 10_000;

/// Files of a checkpoint whose sizes are added up; CRIU makes some ten for each process.
const FILES_MAX: usize = 100_000;

/// The file of a bundle in which a shim says where it listens.
const ADDRESS: &str = "address";

/// The path of a Unix socket has 108 bytes at most.
const ADDRESS_BYTES_MAX: u64 = 256;

/// Containers whose shims are asked.
const CONTAINERS_MAX: usize = 10_000;

/// A shim answers within milliseconds; all of them together are not waited for longer than this.
const SHIMS: Duration = Duration::from_secs(5);

/// One of them.
const SHIM: Duration = Duration::from_secs(1);

/// Takes in the checkpoints of the default directory, and jobs whose shims run while their records are gone. What cannot be read
/// or asked is not there: the registry is only an index.
///
/// # Errors
/// The registry is switched off.
pub async fn take_in(registry: &mut Registry, context: &Context) -> Result<(), Error> {
    let found = look(context.checkpoint_dir());
    if let Err(problem) = registry.rebuild_from(&found) {
        output::warning(&problem.to_string());
    }
    let spool = context.spool()?;
    let _too_many = timeout(SHIMS, ask_shims(&spool, Path::new(BUNDLES))).await;
    Ok(())
}

/// Has the shims tell what they have published, where that is gone.
async fn ask_shims(spool: &Spool, bundles: &Path) {
    let published: Vec<_> = spool
        .read_all()
        .records
        .into_iter()
        .map(|(record, _)| record.key)
        .collect();
    for (namespace, id, socket) in running(bundles) {
        if published
            .iter()
            .any(|key| key.namespace == namespace && key.id == id)
        {
            continue;
        }
        let target = Target { id };
        // Most of those that do not answer so are other shims.
        let asked = shim::call::<_, StatusAnswer>(&socket, wire::STATUS, &target, SHIM);
        if let Ok(Ok(answer)) = timeout(SHIM, asked).await
            // Since it answered, it may have published a newer one.
            && let Err(problem) = spool.publish_if_absent(&answer.record)
        {
            output::warning(&format!("failed to register {}: {problem}", target.id));
        }
    }
}

/// Namespace, id and socket of the containers that have a shim.
fn running(bundles: &Path) -> Vec<(String, String, PathBuf)> {
    let entries = |dir: &Path| {
        fs::read_dir(dir)
            .into_iter()
            .flatten()
            .flatten()
            .collect::<Vec<_>>()
    };
    let name = |entry: &fs::DirEntry| entry.file_name().into_string().ok();
    let mut found = Vec::new();
    for namespace in entries(bundles) {
        for bundle in entries(&namespace.path()) {
            let text = small(&bundle.path().join(ADDRESS), ADDRESS_BYTES_MAX);
            let text = text
                .and_then(|bytes| String::from_utf8(bytes).ok())
                .unwrap_or_default();
            if let (Some(namespace), Some(id), Some(socket)) = (
                name(&namespace),
                name(&bundle),
                text.trim().strip_prefix("unix://"),
            ) && found.len() < CONTAINERS_MAX
            {
                found.push((namespace, id, PathBuf::from(socket)));
            }
        }
    }
    found
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
        bundle: PathBuf::new(),
        checkpoint: Checkpoint {
            id: origin.checkpoint,
            path: path.to_owned(),
            at: origin.at,
            size: size(path),
            left_running: origin.left_running,
        },
    })
}

/// What a checkpoint, a directory or an archive, says of where it comes from.
pub fn origin(checkpoint: &Path) -> Option<Origin> {
    // A link is no checkpoint of this directory's.
    let kind = fs::symlink_metadata(checkpoint).ok()?.file_type();
    if !kind.is_dir() && !kind.is_file() {
        return None;
    }
    origin_in(&checkpoint::manifest(checkpoint).ok()??)
}

/// The same of its manifest.
pub fn origin_in(manifest: &Manifest) -> Option<Origin> {
    serde_json::from_value(manifest.origin.clone()?).ok()
}

/// A small regular file. A fifo in its place would hold us up for ever.
fn small(path: &Path, bytes_max: u64) -> Option<Vec<u8>> {
    if !fs::symlink_metadata(path).ok()?.is_file() {
        return None;
    }
    let mut text = Vec::new();
    let _bytes = File::open(path)
        .ok()?
        .take(bytes_max)
        .read_to_end(&mut text)
        .ok()?;
    Some(text)
}

/// The bytes of the files of a checkpoint.
pub fn size(path: &Path) -> u64 {
    if !path.is_dir() {
        return fs::metadata(path).map_or(0, |file| file.len());
    }
    let nested = Layout::find(path).filter(|layout| layout.shape() == Shape::Nested);
    let images = nested.map_or(0, |layout| size_of_files(&layout.images()));
    size_of_files(path).saturating_add(images)
}

fn size_of_files(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir).into_iter().flatten();
    entries
        .take(FILES_MAX)
        .flatten()
        .filter_map(|file| file.metadata().ok())
        .filter(fs::Metadata::is_file)
        .map(|file| file.len())
        .sum()
}

#[cfg(test)]
mod tests {
    use oci_bundles::archive;
    use oci_bundles::manifest::NAME as MANIFEST;
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
        let packed = dir.path().join("packed.tar.gz");
        let _packed = archive::pack(&mine, &packed, archive::Form::Gzip, &mut |_| {
            std::ops::ControlFlow::Continue(())
        })
        .expect("packed");
        let mut found = look(dir.path());
        found.sort_by(|a, b| a.checkpoint.path.cmp(&b.checkpoint.path));
        let paths: Vec<&Path> = found.iter().map(|one| one.checkpoint.path.as_path()).collect();
        assert_eq!(paths, [mine, packed]);
        for one in found {
            assert_eq!((one.key.id.as_str(), one.checkpoint.at), ("web", 7));
            assert!(one.checkpoint.size > 100, "{one:?}");
        }
        assert!(look(&dir.path().join("nowhere")).is_empty());
    }

    #[test]
    fn bundles_tell_where_their_shims_listen() {
        let dir = tempfile::tempdir().expect("a directory");
        for (bundle, address) in [
            ("default/web", "unix:///run/s/1"),
            ("moby/db", "vsock:1"),
            ("moby/old", ""),
        ] {
            fs::create_dir_all(dir.path().join(bundle)).expect("a directory");
            fs::write(dir.path().join(bundle).join(ADDRESS), address).expect("a file");
        }
        let expected = ("default".to_owned(), "web".to_owned(), PathBuf::from("/run/s/1"));
        assert_eq!(running(dir.path()), [expected]);
    }
}
