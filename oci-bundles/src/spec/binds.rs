//! What a client mounts into a container from the host.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{CONFIG_FILE, SpecError, null_is_default, read_config};

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Mounts {
    #[serde(deserialize_with = "null_is_default")]
    annotations: BTreeMap<String, String>,
    #[serde(deserialize_with = "null_is_default")]
    mounts: Vec<Mount>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Mount {
    destination: PathBuf,
    #[serde(rename = "type", deserialize_with = "null_is_default")]
    kind: String,
    #[serde(deserialize_with = "null_is_default")]
    source: PathBuf,
    #[serde(deserialize_with = "null_is_default")]
    options: Vec<String>,
}

/// Something of the host in a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bind {
    /// What the host calls it.
    pub source: PathBuf,
    /// The container's annotations.
    pub annotations: BTreeMap<String, String>,
}

/// What `<bundle>/config.json` binds to this place in the container; the last one is what is seen there.
///
/// # Errors
/// It cannot be read, or is none.
pub fn bind_at(bundle: &Path, destination: &Path) -> Result<Option<Bind>, SpecError> {
    let all: Mounts = serde_json::from_slice(&read_config(&bundle.join(CONFIG_FILE))?)?;
    let last = all
        .mounts
        .into_iter()
        .rfind(|mount| mount.destination == destination);
    let is_bind = |mount: &Mount| {
        mount.kind == "bind"
            || mount
                .options
                .iter()
                .any(|option| option == "bind" || option == "rbind")
    };
    Ok(last.filter(is_bind).map(|mount| Bind {
        source: mount.source,
        annotations: all.annotations,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_mount_at_a_place_is_what_is_there() {
        let dir = tempfile::tempdir().expect("a directory");
        let shm = |text: &str| {
            std::fs::write(dir.path().join(CONFIG_FILE), text).expect("a file");
            let bind = bind_at(dir.path(), Path::new("/dev/shm")).expect("parsed");
            bind.map(|bind| bind.source.display().to_string())
        };
        let bind = r#"{"destination":"/dev/shm","type":"bind","source":"/a","options":["rbind"]}"#;
        let tmpfs = r#"{"destination":"/dev/shm","type":"tmpfs","source":"shm","options":null}"#;
        for (text, wanted) in [
            (format!(r#"{{"mounts":[{bind}]}}"#), Some("/a")),
            (format!(r#"{{"mounts":[{tmpfs},{bind}]}}"#), Some("/a")),
            (format!(r#"{{"mounts":[{bind},{tmpfs}]}}"#), None),
            (r#"{"mounts":null}"#.to_owned(), None),
        ] {
            assert_eq!(shm(&text).as_deref(), wanted, "{text}");
        }
    }
}
