//! Where the parts of a checkpoint lie: the one place that knows.
//!
//! ```text
//!   nested, as podman, CRI-O and checkpointctl have it      flat, as containerd's Task API asks for it
//!
//!   <root>/cedana.json                                      <root>/cedana.json
//!         /config.dump, spec.dump                                 /*.img, descriptors.json
//!         /checkpoint/*.img, descriptors.json                     /rootfs-diff.tar
//!         /rootfs-diff.tar, deleted.files                         /devshm-checkpoint.tar
//!         /devshm-checkpoint.tar
//!         /dump.log, stats-dump
//! ```
//!
//! Only the process images move: everything else lies at the root in both shapes. `cedana dump` writes the nested one, into a
//! directory of its own; the flat one may be a directory of a user's, with files of theirs in it.
//!
//! A layout is found by what is there, never by a name. Whatever is there may come from anywhere: a `checkpoint` that is a link is none.

use std::fs;
use std::path::{Path, PathBuf};

use crate::manifest;

/// The file that every set of process images has, and that CRIU writes last.
pub const INVENTORY: &str = "inventory.img";

/// The directory of the images in the nested shape.
pub const IMAGES: &str = "checkpoint";

/// How the parts lie.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Shape {
    /// The images among the rest.
    #[default]
    Flat,
    /// The images in a directory of their own.
    Nested,
}

/// A part that is no process image. All of them lie at the root, by the names that podman gave them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extra {
    /// Our manifest.
    Manifest,
    /// What container it was, as podman tells it.
    Config,
    /// Its `config.json`.
    Spec,
    /// Its addresses.
    Network,
    /// Its writable layer.
    RootfsDiff,
    /// Files of the image that are gone from the writable layer.
    DeletedFiles,
    /// What was in `/dev/shm`, where the host mounts that.
    DevShm,
    /// CRIU's log of the dump.
    DumpLog,
    /// CRIU's statistics of the dump.
    Statistics,
}

impl Extra {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Manifest,
        Self::Config,
        Self::Spec,
        Self::Network,
        Self::RootfsDiff,
        Self::DeletedFiles,
        Self::DevShm,
        Self::DumpLog,
        Self::Statistics,
    ];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Manifest => manifest::NAME,
            Self::Config => "config.dump",
            Self::Spec => "spec.dump",
            Self::Network => "network.status",
            Self::RootfsDiff => "rootfs-diff.tar",
            Self::DeletedFiles => "deleted.files",
            Self::DevShm => "devshm-checkpoint.tar",
            Self::DumpLog => "dump.log",
            Self::Statistics => "stats-dump",
        }
    }

    /// Whether a file of this name at the root is a part.
    pub fn is_name(name: &Path) -> bool {
        Self::ALL.iter().any(|extra| name == Path::new(extra.name()))
    }
}

/// A checkpoint's directory, and how its parts lie in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    root: PathBuf,
    shape: Shape,
}

impl Shape {
    /// In the order in which they are looked for: a flat checkpoint may lie in a directory that has something else called
    /// `checkpoint`, while the root of a nested one has no images.
    pub const ALL: [Self; 2] = [Self::Flat, Self::Nested];

    /// What an image of this name is called from the root, as the manifest and an archive name it.
    pub fn image(self, name: impl AsRef<Path>) -> PathBuf {
        match self {
            Self::Flat => name.as_ref().to_owned(),
            Self::Nested => Path::new(IMAGES).join(name),
        }
    }

    /// The shape of a checkpoint with these files, named from its root; none if there are no images.
    pub fn of_names<'a>(names: impl IntoIterator<Item = &'a Path>) -> Option<Self> {
        let mut nested = None;
        for name in names {
            if name == Self::Flat.image(INVENTORY) {
                return Some(Self::Flat);
            }
            if name == Self::Nested.image(INVENTORY) {
                nested = Some(Self::Nested);
            }
        }
        nested
    }
}

impl Layout {
    /// One that is to be made.
    pub fn new(root: impl Into<PathBuf>, shape: Shape) -> Self {
        let root = root.into();
        Self { root, shape }
    }

    /// The one of what is there; none if there are no process images.
    pub fn find(root: &Path) -> Option<Self> {
        Shape::ALL
            .into_iter()
            .map(|shape| Self::new(root, shape))
            .find(Self::has_images)
    }

    /// Whether there are process images, in files that are no links.
    pub fn has_images(&self) -> bool {
        let is = |path: &Path, wanted: fn(&fs::Metadata) -> bool| {
            fs::symlink_metadata(path).is_ok_and(|metadata| wanted(&metadata))
        };
        // The root is the caller's own, and may be reached through a link.
        let images = match self.shape {
            Shape::Flat => true,
            Shape::Nested => is(&self.images(), fs::Metadata::is_dir),
        };
        images && is(&self.image(INVENTORY), fs::Metadata::is_file)
    }

    /// Whether another engine made it (podman, CRI-O, containerd's CRI), which keeps a container's files in its own way: it is nested, and
    /// has no manifest of ours.
    pub fn is_foreign(&self) -> bool {
        self.shape == Shape::Nested && fs::symlink_metadata(self.extra(Extra::Manifest)).is_err()
    }

    /// Whether there is such a part, in a file that is no link.
    pub fn has(&self, extra: Extra) -> bool {
        fs::symlink_metadata(self.extra(extra)).is_ok_and(|metadata| metadata.is_file())
    }

    /// The checkpoint's directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// How the parts lie.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// The directory of the process images: what runc is given.
    pub fn images(&self) -> PathBuf {
        match self.shape {
            Shape::Flat => self.root.clone(),
            Shape::Nested => self.root.join(IMAGES),
        }
    }

    /// An image of this name.
    pub fn image(&self, name: impl AsRef<Path>) -> PathBuf {
        self.images().join(name)
    }

    /// Another part.
    pub fn extra(&self, extra: Extra) -> PathBuf {
        self.root.join(extra.name())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn with(files: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("a directory");
        for file in files {
            let path = dir.path().join(file);
            fs::create_dir_all(path.parent().expect("a parent")).expect("a directory");
            fs::write(path, "").expect("a file");
        }
        dir
    }

    #[test]
    fn a_layout_is_found_by_what_is_there() {
        for (files, shape) in [
            (&["inventory.img", "core-1.img"][..], Some(Shape::Flat)),
            (&["checkpoint/inventory.img", "config.dump"], Some(Shape::Nested)),
            (&["inventory.img", "checkpoint/inventory.img"], Some(Shape::Flat)),
            (&["checkpoint/core-1.img", "config.dump"], None),
            (&["core-1.img", "checkpoint"], None),
            (&[], None),
        ] {
            let dir = with(files);
            let found = Layout::find(dir.path());
            assert_eq!(found.map(|layout| layout.shape()), shape, "{files:?}");
            let names = files.iter().map(Path::new);
            assert_eq!(Shape::of_names(names), shape, "{files:?}");
        }
    }

    #[test]
    fn another_engine_has_no_manifest_of_ours() {
        for (files, foreign) in [
            (&["checkpoint/inventory.img", "rootfs-diff.tar"][..], true),
            (&["checkpoint/inventory.img", "cedana.json"], false),
            (&["inventory.img", "rootfs-diff.tar"], false),
        ] {
            let dir = with(files);
            let layout = Layout::find(dir.path()).expect("images");
            assert_eq!(layout.is_foreign(), foreign, "{files:?}");
            assert_eq!(layout.has(Extra::RootfsDiff), files.contains(&"rootfs-diff.tar"));
        }
    }

    #[test]
    fn links_are_no_images() {
        let (dir, other) = (with(&["a"]), with(&["inventory.img"]));
        symlink(other.path(), dir.path().join(IMAGES)).expect("a link");
        assert_eq!(Layout::find(dir.path()), None);
        symlink(other.path().join(INVENTORY), dir.path().join(INVENTORY)).expect("a link");
        assert_eq!(Layout::find(dir.path()), None);
        symlink(other.path(), dir.path().join("c")).expect("a link");
        assert!(Layout::find(&dir.path().join("c")).is_some(), "the caller's own");
    }

    #[test]
    fn only_the_images_move() {
        let [flat, nested] = Shape::ALL.map(|shape| Layout::new("/c", shape));
        assert_eq!(flat.images(), Path::new("/c"));
        assert_eq!(nested.image("core-1.img"), Path::new("/c/checkpoint/core-1.img"));
        assert_eq!(Shape::Nested.image("a"), Path::new("checkpoint/a"));
        for extra in Extra::ALL {
            assert_eq!(flat.extra(extra), nested.extra(extra));
            assert!(Extra::is_name(Path::new(extra.name())));
        }
        assert!(!Extra::is_name(Path::new("checkpoint/config.dump")));
    }
}
