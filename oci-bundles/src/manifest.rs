//! What a checkpoint says of itself: the types of the second schema of `cedana.json`, and what makes one valid.
//!
//! ```text
//!  <checkpoint>/cedana.json     this, written last: without it a checkpoint is not complete
//!              /*.img, …        the parts that it lists, each with its size and digest
//! ```
//!
//! The first schema had the options of the dump and whose it is; those keep their names, so a manifest of the first
//! one is read as one of the second that lists no parts. Readers of the first refuse the second by its number, as
//! we refuse a third. Only text is handled here: whoever opens a file bounds it by [`BYTES_MAX`].
//!
//! A manifest may come from anywhere. It names files only below its own directory, and it can ask for nothing: what
//! a container may do is decided by the request that restores it.

mod processor;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Component, Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The name of the file.
pub const NAME: &str = "cedana.json";

/// What is written.
pub const SCHEMA: u32 = 2;

/// The most that is read of a manifest, in bytes: a part takes about 150, and large checkpoints have thousands.
pub const BYTES_MAX: u64 = 32 << 20;

/// Parts, and things not saved, that a manifest may list.
pub const LIST_MAX: usize = 200_000;

/// A checkpoint's manifest.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Manifest {
    /// [`SCHEMA`] of who wrote it.
    pub schema: u32,
    /// CRIU's version.
    pub criu: String,
    /// The dump took the terminal of a shell along.
    pub shell_job: bool,
    /// It left sockets out that were connected to the host.
    pub external_unix_sockets: bool,
    /// It closed the TCP connections.
    pub tcp_closed: bool,
    /// What CRIU was told, by whom or why.
    pub options: Vec<Chosen>,
    /// Processes that were stopped by a signal and that the images hold as running, by the container's own pids.
    pub stopped: Vec<i32>,
    /// Whose it is, in the words of the registry; nothing here looks into it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub origin: Option<serde_json::Value>,
    /// Versions of what took part, by name: `cedana`, `containerd`, `runc`, `kernel`.
    pub versions: BTreeMap<String, String>,
    /// The machine.
    pub host: Host,
    /// The image that the container was made from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<Image>,
    /// All files but this one.
    pub parts: Vec<Part>,
    /// What the container had that is not here.
    pub not_saved: Vec<NotSaved>,
    /// Where the time went, in the order of the phases.
    pub timings: Vec<Timing>,
    /// How long the processes stood still, in microseconds.
    pub frozen_us: u64,
}

/// What of a machine must be as good where a checkpoint is restored.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Host {
    /// `x86_64`, `aarch64`.
    pub architecture: String,
    /// The processor's model, for people.
    pub cpu: String,
    /// Features of the processor, as `/proc/cpuinfo` names them.
    pub cpu_features: BTreeSet<String>,
}

/// A container's image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// The name it was asked for by.
    pub name: String,
    /// The digest of its manifest, if the engine told.
    #[serde(default)]
    pub digest: String,
    /// The digest of its configuration, which is what Docker and podman call its id.
    #[serde(default)]
    pub id: String,
}

/// An option of a dump.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Chosen {
    /// Its setting, without the section: `tcp`.
    pub option: String,
    /// What it was.
    pub value: String,
    /// Who said so, or what was seen of the container.
    pub why: String,
}

/// A file of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// Its name below the checkpoint's directory: only goes down.
    pub path: PathBuf,
    /// Its bytes.
    pub size: u64,
    /// What they are.
    pub digest: Digest,
}

/// The kind of what is not saved that is one file of the writable layer, or a directory of it with all that is in it.
pub const FILE_NOT_SAVED: &str = "file";

/// Something that a restore finds as it is then, not as it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NotSaved {
    /// What it is: `bind`, `volume`, `device`, …
    pub kind: String,
    /// Where the container sees it.
    pub path: PathBuf,
    /// What the host calls it, if anything; of what could have been saved, why it was not.
    #[serde(default)]
    pub source: String,
}

/// How long a phase took.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timing {
    /// Its name.
    pub phase: String,
    /// In microseconds.
    pub us: u64,
}

/// A digest, written `blake3:` or `sha256:` and 64 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Digest {
    /// BLAKE3: what we write.
    Blake3([u8; 32]),
    /// SHA-256: what others write.
    Sha256([u8; 32]),
}

/// Why a manifest cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Written by a later version: use that.
    #[error("read {NAME}: schema {0} is newer than {SCHEMA}, the newest known here")]
    Newer(u32),
    /// Not a manifest, or a damaged one.
    #[error("read {NAME}: {0}")]
    Damaged(String),
    /// A name that leads out of the checkpoint, or stands twice.
    #[error("read {NAME}: part {path:?}: {why}")]
    Refused {
        /// The name.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
}

/// How a checkpoint differs from its manifest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Difference {
    /// A part is not there.
    #[error("{} is missing", .0.display())]
    Missing(PathBuf),
    /// A part has another size.
    #[error("{} has {found} bytes instead of {wanted}", path.display())]
    Size {
        /// The part.
        path: PathBuf,
        /// As the manifest has it.
        wanted: u64,
        /// As it is.
        found: u64,
    },
    /// A part has other bytes.
    #[error("{} was changed: its digest is {found} instead of {wanted}", path.display())]
    Digest {
        /// The part.
        path: PathBuf,
        /// As the manifest has it.
        wanted: Digest,
        /// As it is.
        found: Digest,
    },
    /// There is a file that the manifest does not list.
    #[error("{} does not belong to it", .0.display())]
    Extra(PathBuf),
}

impl Manifest {
    /// Single files that are missing in a writable layer that is saved.
    pub fn files_left_out(&self) -> impl Iterator<Item = &NotSaved> {
        self.not_saved.iter().filter(|one| one.kind == FILE_NOT_SAVED)
    }

    /// A manifest from its text, checked.
    pub fn parse(text: &[u8]) -> Result<Self, ManifestError> {
        // The number first: the rest of a later schema may be anything.
        let Schema { schema } = from_json(text)?;
        match schema {
            0 => return Err(ManifestError::Damaged("it has no schema".into())),
            1..=SCHEMA => {}
            _ => return Err(ManifestError::Newer(schema)),
        }
        let manifest: Self = from_json(text)?;
        if manifest.parts.len() > LIST_MAX || manifest.not_saved.len() > LIST_MAX {
            return Err(ManifestError::Damaged("it lists too much".into()));
        }
        let mut seen = BTreeSet::new();
        for part in &manifest.parts {
            let refused = |why| ManifestError::Refused {
                path: part.path.clone(),
                why,
            };
            let is_plain = |path: &Path| {
                let mut parts = path.components();
                parts.all(|part| matches!(part, Component::Normal(_)))
            };
            if part.path.as_os_str().is_empty() || !is_plain(&part.path) {
                return Err(refused("it leads out of the checkpoint"));
            }
            if !seen.insert(&part.path) {
                return Err(refused("it is there twice"));
            }
        }
        Ok(manifest)
    }

    /// The text of a manifest of [`SCHEMA`].
    pub fn text(&self) -> Result<Vec<u8>, serde_json::Error> {
        serde_json::to_vec(&Self {
            schema: SCHEMA,
            ..self.clone()
        })
    }

    /// The bytes of all parts.
    pub fn bytes(&self) -> u64 {
        let sizes = self.parts.iter().map(|part| part.size);
        sizes.fold(0, u64::saturating_add)
    }

    /// How the files that were found differ from those that this lists. A manifest that lists none, as of the first
    /// schema, vouches for nothing and finds no difference. The manifest itself is no part.
    pub fn compare(&self, found: &[Part]) -> Vec<Difference> {
        if self.parts.is_empty() {
            return Vec::new();
        }
        let found: BTreeMap<_, _> = found.iter().map(|part| (part.path.as_path(), part)).collect();
        let mut differences = Vec::new();
        for part in &self.parts {
            let path = part.path.clone();
            match found.get(part.path.as_path()) {
                None => differences.push(Difference::Missing(path)),
                Some(other) if other.size != part.size => differences.push(Difference::Size {
                    path,
                    wanted: part.size,
                    found: other.size,
                }),
                Some(other) if other.digest != part.digest => differences.push(Difference::Digest {
                    path,
                    wanted: part.digest,
                    found: other.digest,
                }),
                Some(_) => {}
            }
        }
        let listed: BTreeSet<_> = self.parts.iter().map(|part| part.path.as_path()).collect();
        let extra = |path: &&&Path| !listed.contains(**path) && **path != Path::new(NAME);
        let extra = found.keys().filter(extra);
        differences.extend(extra.map(|path| Difference::Extra(path.to_path_buf())));
        differences
    }

    /// The first part that is not there, or has another size: what can be known without reading any. `size_of` tells the size
    /// of a regular file by its name below the checkpoint's directory.
    pub fn misfit(&self, mut size_of: impl FnMut(&Path) -> Option<u64>) -> Option<Difference> {
        self.parts.iter().find_map(|part| match size_of(&part.path) {
            None => Some(Difference::Missing(part.path.clone())),
            Some(found) if found != part.size => Some(Difference::Size {
                path: part.path.clone(),
                wanted: part.size,
                found,
            }),
            Some(_) => None,
        })
    }

    /// What the processor of the dump had and this one lacks: instructions, or the architecture itself. A program that looked for them
    /// once uses them on, and dies here. A manifest without a machine wants nothing.
    pub fn lacking(&self, host: &Host) -> Vec<String> {
        let wanted = &self.host.architecture;
        if !wanted.is_empty() && *wanted != host.architecture {
            return vec![wanted.clone()];
        }
        let lacking = self.host.cpu_features.difference(&host.cpu_features);
        let counts = |feature: &&String| processor::is_instruction(wanted, feature);
        lacking.filter(counts).cloned().collect()
    }
}

impl Difference {
    /// It is about a file that the manifest does not know, which takes nothing from those that it does.
    pub fn is_extra(&self) -> bool {
        matches!(self, Self::Extra(_))
    }
}

#[derive(Deserialize)]
struct Schema {
    #[serde(default)]
    schema: u32,
}

fn from_json<'a, T: Deserialize<'a>>(text: &'a [u8]) -> Result<T, ManifestError> {
    serde_json::from_slice(text).map_err(|error| ManifestError::Damaged(error.to_string()))
}

impl fmt::Display for Digest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, bytes) = match self {
            Self::Blake3(bytes) => ("blake3", bytes),
            Self::Sha256(bytes) => ("sha256", bytes),
        };
        write!(formatter, "{name}:")?;
        bytes.iter().try_for_each(|byte| write!(formatter, "{byte:02x}"))
    }
}

/// The text is not a digest.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a digest: {0:?}")]
pub struct NotADigest(String);

impl FromStr for Digest {
    type Err = NotADigest;

    fn from_str(text: &str) -> Result<Self, NotADigest> {
        let fail = || NotADigest(text.chars().take(80).collect());
        let (name, digits) = text.split_once(':').ok_or_else(fail)?;
        let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if digits.len() != 64 || !digits.bytes().all(is_digit) {
            return Err(fail());
        }
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(digits.as_bytes().chunks_exact(2)) {
            let pair = std::str::from_utf8(pair).map_err(|_| fail())?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_| fail())?;
        }
        match name {
            "blake3" => Ok(Self::Blake3(bytes)),
            "sha256" => Ok(Self::Sha256(bytes)),
            _ => Err(fail()),
        }
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(path: &str, size: u64, byte: u8) -> Part {
        Part {
            path: path.into(),
            size,
            digest: Digest::Blake3([byte; 32]),
        }
    }

    fn full() -> Manifest {
        Manifest {
            schema: SCHEMA,
            criu: "4.2".into(),
            stopped: vec![7],
            origin: Some(serde_json::json!({"checkpoint": "1f"})),
            versions: [("runc".to_owned(), "1.3.6".to_owned())].into(),
            host: Host {
                architecture: "x86_64".into(),
                cpu: "a processor".into(),
                cpu_features: ["avx2".to_owned(), "sse4_2".to_owned()].into(),
            },
            image: Some(Image {
                name: "redis:7".into(),
                digest: String::new(),
                id: String::new(),
            }),
            parts: vec![part("pages-1.img", 4096, 1), part("rootfs/diff.tar", 7, 2)],
            not_saved: vec![NotSaved {
                kind: "bind".into(),
                path: "/data".into(),
                source: "/srv".into(),
            }],
            timings: vec![Timing {
                phase: "freeze".into(),
                us: 80,
            }],
            frozen_us: 900,
            ..Manifest::default()
        }
    }

    #[test]
    fn what_was_written_is_read() {
        let manifest = full();
        assert_eq!(Manifest::parse(&manifest.text().unwrap()).unwrap(), manifest);
        assert_eq!(manifest.bytes(), 4103);
    }

    #[test]
    fn old_ones_are_read_and_what_cannot_be_honoured_is_refused() {
        let digest = format!("blake3:{}", "0".repeat(64));
        let parts = |paths: &[&str]| {
            let all = paths
                .iter()
                .map(|path| format!(r#"{{"path":"{path}","size":1,"digest":"{digest}"}}"#));
            format!(
                r#"{{"schema":2,"parts":[{}]}}"#,
                all.collect::<Vec<_>>().join(",")
            )
        };
        for (text, error) in [
            (
                r#"{"schema":1,"criu":"4.2","shell_job":true,"stopped":[1]}"#.to_owned(),
                None,
            ),
            (r#"{"schema":2,"invented":[1]}"#.to_owned(), None),
            (parts(&["a", "b/c"]), None),
            (r#"{"schema":3,"parts":"another kind"}"#.to_owned(), Some("newer")),
            ("{}".to_owned(), Some("no schema")),
            (r#"{"schema":-1}"#.to_owned(), Some("invalid value")),
            (String::new(), Some("EOF")),
            (r#"{"schema":2,"parts":[{}]}"#.to_owned(), Some("missing field")),
            (parts(&["../a"]), Some("leads out")),
            (parts(&["./a"]), Some("leads out")),
            (parts(&["/a"]), Some("leads out")),
            (parts(&[""]), Some("leads out")),
            (parts(&["a/../../b"]), Some("leads out")),
            (parts(&["a", "a"]), Some("twice")),
        ] {
            match (Manifest::parse(text.as_bytes()), error) {
                (Ok(_), None) => {}
                (Err(said), Some(wanted)) => assert!(said.to_string().contains(wanted), "{text}: {said}"),
                (result, _) => panic!("{text}: {result:?}"),
            }
        }
    }

    #[test]
    fn digests_are_strict() {
        let digits = "0123456789abcdef".repeat(4);
        for (text, ok) in [
            (format!("blake3:{digits}"), true),
            (format!("sha256:{digits}"), true),
            (format!("md5:{digits}"), false),
            (format!("blake3:{}", digits.to_uppercase()), false),
            (format!("blake3:{digits}0"), false),
            (format!("blake3:+{}", &digits[1..]), false),
            (digits.clone(), false),
            (String::new(), false),
        ] {
            let digest = text.parse::<Digest>();
            assert_eq!(digest.is_ok(), ok, "{text}");
            assert!(digest.is_err() || digest.unwrap().to_string() == text);
        }
    }

    #[test]
    fn every_difference_is_told() {
        let manifest = full();
        let changed = |parts: &[Part]| manifest.compare(parts);
        let (pages, diff, own) = (
            part("pages-1.img", 4096, 1),
            part("rootfs/diff.tar", 7, 2),
            part(NAME, 500, 9),
        );
        assert_eq!(changed(&[own.clone(), diff.clone(), pages.clone()]), []);
        assert_eq!(
            changed(&[
                part("pages-1.img", 4095, 1),
                part("rootfs/diff.tar", 7, 3),
                part("x", 1, 1)
            ]),
            [
                Difference::Size {
                    path: "pages-1.img".into(),
                    wanted: 4096,
                    found: 4095
                },
                Difference::Digest {
                    path: "rootfs/diff.tar".into(),
                    wanted: Digest::Blake3([2; 32]),
                    found: Digest::Blake3([3; 32])
                },
                Difference::Extra("x".into()),
            ]
        );
        assert_eq!(changed(&[pages]), [Difference::Missing("rootfs/diff.tar".into())]);
        assert_eq!(Manifest::default().compare(&[own]), []);
    }

    #[test]
    fn a_wrong_size_is_known_without_reading() {
        let manifest = full();
        let sizes = |pages, diff| {
            move |path: &Path| match path.to_str() {
                Some("pages-1.img") => pages,
                Some("rootfs/diff.tar") => diff,
                _ => None,
            }
        };
        assert_eq!(manifest.misfit(sizes(Some(4096), Some(7))), None);
        assert_eq!(
            manifest.misfit(sizes(Some(4096), None)),
            Some(Difference::Missing("rootfs/diff.tar".into()))
        );
        let cut = manifest.misfit(sizes(Some(4095), Some(7))).expect("cut");
        assert_eq!(cut.to_string(), "pages-1.img has 4095 bytes instead of 4096");
    }

    #[test]
    fn a_lesser_processor_is_noticed() {
        let mut here = Host {
            architecture: "x86_64".into(),
            cpu_features: ["sse4_2".to_owned(), "avx512f".to_owned()].into(),
            ..Host::default()
        };
        let mut there = full();
        let _new = there.host.cpu_features.insert("tsc_known_freq".into());
        assert_eq!(there.lacking(&here), ["avx2"]);
        here.architecture = "aarch64".into();
        assert_eq!(there.lacking(&here), ["x86_64"]);
        assert!(Manifest::default().lacking(&here).is_empty());
    }
}
