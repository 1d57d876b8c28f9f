//! The two files by which podman and checkpointctl know a checkpoint: written so that they can use ours, and read of theirs.
//!
//! ```text
//!   config.dump   libpod's `ContainerConfig`: who it is, of which image; podman makes its container of it
//!   spec.dump     the container's `config.json`, as podman passes it on to its runtime
//! ```
//!
//! Podman 5 wants an image by name and by id, a network that needs none of its own making, and a specification that names nothing of
//! this machine. So what only our engine could fulfil is left out of what is written: hooks, the place of CRIU's options, an AppArmor
//! profile that our engine had loaded. Fields that a later podman adds get their zero, as in any archive that is older than it.
//!
//! Both may come from anywhere when they are read, and then they are names and wishes, not orders: see [`Foreign`].

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::manifest::Image;

/// The most that is read of either, in bytes: as of a `config.json`.
pub const BYTES_MAX: u64 = 16 << 20;

/// Ours, and of this machine.
const CRIU_ANNOTATION: &str = "org.criu.config";

/// By this checkpointctl names a container that podman did not make.
const NAME_ANNOTATION: &str = "io.kubernetes.cri.container-name";

/// Docker's and podman's default for `/dev/shm`, in bytes.
const SHM_BYTES: u64 = 64 << 20;

/// A header of a tar, and the two empty blocks that end it.
const TAR_BYTES: usize = 3 * 512;

/// What our engine knows of a container.
#[derive(Debug, Clone, Copy)]
pub struct Known<'a> {
    /// Its id.
    pub id: &'a str,
    /// What people call it.
    pub name: &'a str,
    /// Its image.
    pub image: Option<&'a Image>,
    /// When it was made, in milliseconds since 1970.
    pub created: u64,
    /// When it was saved.
    pub saved: u64,
}

/// What another tool's checkpoint says of its container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Foreign {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Its image, by name.
    #[serde(rename = "rootfsImageName")]
    pub image: String,
    /// The digest of the image's manifest, as CRI writes it after the name.
    #[serde(rename = "rootfsImageRef")]
    pub image_reference: String,
    /// The id of the image: the digest of its configuration.
    #[serde(rename = "rootfsImageID")]
    pub image_id: String,
    /// Its runtime, by name.
    pub runtime: String,
    /// When it was made.
    #[serde(rename = "createdTime")]
    pub created: String,
}

impl Foreign {
    /// Reads a `config.dump`.
    ///
    /// # Errors
    /// It is not what podman or CRI writes.
    pub fn parse(text: &[u8]) -> serde_json::Result<Self> {
        serde_json::from_slice(text)
    }
}

/// The text of `config.dump`.
pub fn config_dump(known: &Known<'_>, config: &Value) -> Vec<u8> {
    let terminal = config.pointer("/process/terminal").and_then(Value::as_bool);
    let mut dump = json!({
        "id": known.id,
        "name": known.name,
        "createdTime": rfc3339(known.created),
        "checkpointedTime": rfc3339(known.saved),
        // The one that wrote the images, and that can read all that is in them.
        "runtime": "runc",
        "idMappingsOptions": {"HostUIDMapping": true, "HostGIDMapping": true},
        // Without networks that is an empty one, with which podman makes the files of names that others would find there. The processes
        // have the one that CRIU saved, which has a loopback.
        "createNetNS": true,
        "networkMode": "none",
        "shmSize": SHM_BYTES,
        "stdin": terminal.unwrap_or(false),
        "stopSignal": 15,
        "stopTimeout": 10,
        "logDriver": "k8s-file",
        "restart_policy": "no",
        "sdnotifyMode": "container",
    });
    if let (Some(image), Value::Object(fields)) = (known.image, &mut dump) {
        let id = image.id.strip_prefix("sha256:").unwrap_or(&image.id);
        let _none = fields.insert("rootfsImageName".to_owned(), json!(image.name));
        if !id.is_empty() {
            let _none = fields.insert("rootfsImageID".to_owned(), json!(id));
        }
        if !image.digest.is_empty() {
            let _none = fields.insert("rootfsImageRef".to_owned(), json!(image.digest));
        }
    }
    dump.to_string().into_bytes()
}

/// The text of `spec.dump`: a `config.json` without what only the engine it was made for can fulfil.
pub fn spec_dump(config: &Value, name: &str) -> Vec<u8> {
    let mut spec = config.clone();
    if let Value::Object(fields) = &mut spec {
        let _hooks = fields.remove("hooks");
        let annotations = fields.entry("annotations").or_insert_with(|| json!({}));
        if !annotations.is_object() {
            *annotations = json!({});
        }
        if let Value::Object(annotations) = annotations {
            let _ours = annotations.remove(CRIU_ANNOTATION);
            let _theirs = annotations.entry(NAME_ANNOTATION).or_insert_with(|| json!(name));
        }
    }
    if let Some(Value::Object(process)) = spec.get_mut("process") {
        let _profile = process.remove("apparmorProfile");
    }
    spec.to_string().into_bytes()
}

/// A tar of a root directory and nothing in it. Podman gives it mode 555 where other engines give it 755, and CRIU compares it with what
/// it was when a process has it open, as its working directory for one.
pub fn root_alone(mode: u32, uid: u32, gid: u32) -> Vec<u8> {
    // Of a header: where each field begins, and its text. All the others are zero.
    let octal = |value: u32, digits: usize| format!("{value:0digits$o}");
    let mut tar = vec![0; TAR_BYTES];
    let mut put = |at: usize, text: &str| {
        let field = tar.get_mut(at..at + text.len()).unwrap_or_default();
        field.copy_from_slice(text.as_bytes());
    };
    for (at, text) in [
        // Unpackers pass over `./`, and take this for the same.
        (0, "/"),
        (100, octal(mode & 0o7777, 7).as_str()),
        (108, octal(uid & 0o7_777_777, 7).as_str()),
        (116, octal(gid & 0o7_777_777, 7).as_str()),
        (124, "00000000000"),
        (136, "00000000000"),
        // The sum is made as if it were spaces.
        (148, "        "),
        (156, "5"),
        (257, "ustar"),
        (263, "00"),
    ] {
        put(at, text);
    }
    let sum: u32 = tar.iter().map(|byte: &u8| u32::from(*byte)).sum();
    if let Some(field) = tar.get_mut(148..156) {
        field.copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
    tar
}

/// A point in time as Go's JSON has it, to the second.
fn rfc3339(millis: u64) -> String {
    let seconds = millis / 1000;
    let (days, of_day) = (seconds / 86_400, seconds % 86_400);
    // Howard Hinnant's "days to civil", for days since 1970: eras of 400 years that begin in March.
    let shifted = days + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 {
        from_march + 3
    } else {
        from_march - 9
    };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image() -> Image {
        Image {
            name: "docker.io/library/redis:7".to_owned(),
            digest: format!("sha256:{}", "1".repeat(64)),
            id: format!("sha256:{}", "2".repeat(64)),
        }
    }

    #[test]
    fn what_is_written_says_who_it_is() {
        let image = image();
        let known = Known {
            id: "db",
            name: "redis",
            image: Some(&image),
            created: 1_709_210_096_000,
            saved: 0,
        };
        let config = json!({"process": {"terminal": true}});
        let text = config_dump(&known, &config);
        let read = Foreign::parse(&text).expect("our own");
        let expected = Foreign {
            id: "db".to_owned(),
            name: "redis".to_owned(),
            image: image.name.clone(),
            image_reference: image.digest.clone(),
            image_id: "2".repeat(64),
            runtime: "runc".to_owned(),
            created: "2024-02-29T12:34:56Z".to_owned(),
        };
        assert_eq!(read, expected);
        let fields: Value = serde_json::from_slice(&text).expect("JSON");
        assert_eq!(fields["stdin"], true);
        assert_eq!(fields["checkpointedTime"], "1970-01-01T00:00:00Z");
        let none = Known { image: None, ..known };
        let read = Foreign::parse(&config_dump(&none, &json!(null))).expect("our own");
        assert_eq!((read.image.as_str(), read.image_id.as_str()), ("", ""));
    }

    #[test]
    fn a_specification_goes_without_what_is_of_this_machine() {
        let config = json!({
            "ociVersion": "1.0.2",
            "process": {"args": ["sleep"], "apparmorProfile": "docker-default"},
            "hooks": {"prestart": [{"path": "/usr/bin/dockerd"}]},
            "annotations": {"org.criu.config": "/run/x", "mine": "kept"},
        });
        let spec: Value = serde_json::from_slice(&spec_dump(&config, "web")).expect("JSON");
        let expected = json!({
            "ociVersion": "1.0.2",
            "process": {"args": ["sleep"]},
            "annotations": {"mine": "kept", "io.kubernetes.cri.container-name": "web"},
        });
        assert_eq!(spec, expected);
        let bare: Value = serde_json::from_slice(&spec_dump(&json!({}), "web")).expect("JSON");
        assert_eq!(bare["annotations"]["io.kubernetes.cri.container-name"], "web");
    }

    #[cfg(feature = "archive")]
    #[test]
    fn a_root_alone_is_a_tar_as_others_read_it() {
        let text = root_alone(0o40755, 7, 8);
        let mut archive = tar::Archive::new(text.as_slice());
        let entries: Vec<_> = archive
            .entries()
            .expect("a tar")
            .map(|entry| entry.expect("whole"))
            .collect();
        assert_eq!(entries.len(), 1);
        let header = entries[0].header();
        assert_eq!(header.entry_type(), tar::EntryType::Directory);
        assert_eq!(header.path().expect("a path").to_str(), Some("/"));
        let numbers = (header.mode().ok(), header.uid().ok(), header.gid().ok());
        assert_eq!(numbers, (Some(0o755), Some(7), Some(8)));
    }

    #[test]
    fn days_are_those_of_the_calendar() {
        for (seconds, expected) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_868_800, "2000-03-01T00:00:00Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
            (1_798_761_599, "2026-12-31T23:59:59Z"),
        ] {
            assert_eq!(rfc3339(seconds * 1000), expected);
        }
    }
}
