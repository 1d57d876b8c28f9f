//! The one edit made to a `config.json`: annotations are set by splicing text, so numbers, order and fields that
//! we do not know stay as whoever wrote them meant them.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::{CONFIG_FILE, SpecError, read_config};

/// Sets annotations in `<bundle>/config.json`. Everything else stays byte for byte; the file keeps its mode and
/// owner, and is replaced by a rename, so a reader sees the old text or the new. It is not synced: a bundle does
/// not outlive a boot.
pub fn inject_annotations(bundle: &Path, annotations: &[(&str, &str)]) -> Result<(), SpecError> {
    let path = bundle.join(CONFIG_FILE);
    let old = read_config(&path)?;
    let new = with_annotations(&old, annotations)?;
    if new == old {
        return Ok(());
    }
    replace(&path, &new).map_err(|source| SpecError::Io {
        action: "replace",
        path,
        source,
    })
}

/// The text with annotations set; the part of [`inject_annotations`] that touches no file.
fn with_annotations(text: &[u8], annotations: &[(&str, &str)]) -> Result<Vec<u8>, SpecError> {
    let found: AnnotationsAt<'_> = serde_json::from_slice(text)?;
    let mut all: BTreeMap<String, String> = match found.value {
        Some(raw) => serde_json::from_str::<Option<_>>(raw.get())?.unwrap_or_default(),
        None => BTreeMap::new(),
    };
    let mut changed = false;
    for (key, value) in annotations {
        let before = all.insert((*key).to_owned(), (*value).to_owned());
        changed |= before.as_deref() != Some(*value);
    }
    if !changed {
        return Ok(text.to_vec());
    }
    let object = serde_json::to_string(&all)?;
    let (start, end, insert) = match found.value {
        Some(raw) => {
            let start = (raw.get().as_ptr() as usize).saturating_sub(text.as_ptr() as usize);
            (start, start + raw.get().len(), object)
        }
        None => {
            // The text parsed as an object, so its first byte that is not white space opens it.
            let start = text.iter().position(|byte| *byte == b'{').map_or(0, |at| at + 1);
            let comma = if found.is_empty { "" } else { "," };
            (start, start, format!("\"annotations\":{object}{comma}"))
        }
    };
    let mut new = Vec::with_capacity(text.len() + insert.len());
    new.extend_from_slice(text.get(..start).unwrap_or_default());
    new.extend_from_slice(insert.as_bytes());
    new.extend_from_slice(text.get(end..).unwrap_or_default());
    Ok(new)
}

/// Where the top-level `annotations` stand in a text. The raw value borrows from it.
#[derive(Default)]
struct AnnotationsAt<'a> {
    value: Option<&'a RawValue>,
    is_empty: bool,
}

impl<'de> Deserialize<'de> for AnnotationsAt<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Keys;
        impl<'de> Visitor<'de> for Keys {
            type Value = AnnotationsAt<'de>;

            fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                formatter.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut found = AnnotationsAt {
                    value: None,
                    is_empty: true,
                };
                while let Some(key) = map.next_key::<Key>()? {
                    found.is_empty = false;
                    match key {
                        Key::Annotations => found.value = Some(map.next_value()?),
                        Key::Other => drop(map.next_value::<IgnoredAny>()?),
                    }
                }
                Ok(found)
            }
        }
        deserializer.deserialize_map(Keys)
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Key {
    Annotations,
    #[serde(other)]
    Other,
}

fn replace(path: &Path, text: &[u8]) -> io::Result<()> {
    let before = fs::metadata(path)?;
    // One shim owns a bundle, so the pid keeps two rewrites apart; what a crash left is overwritten.
    let temporary = path.with_file_name(format!(".{CONFIG_FILE}.{}", std::process::id()));
    let written = write_new(&temporary, text, &before).and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        // Best effort: the first error is the one that tells something.
        drop(fs::remove_file(&temporary));
    }
    written
}

fn write_new(path: &Path, text: &[u8], like: &fs::Metadata) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .custom_flags(nix::libc::O_NOFOLLOW)
        .open(path)?;
    file.write_all(text)?;
    std::os::unix::fs::fchown(&file, Some(like.uid()), Some(like.gid()))?;
    file.set_permissions(fs::Permissions::from_mode(like.permissions().mode() & 0o7777))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::SpecView;

    const SPEC: &str = r#"{"process":{"args":["sh"]},"annotations":{"a":"1"}}"#;

    #[track_caller]
    fn check_injection(before: &str, after: &str) {
        let new = with_annotations(before.as_bytes(), &[("k", "v\"\n"), ("a", "2")]).unwrap();
        assert_eq!(String::from_utf8(new).unwrap(), after);
    }

    #[test]
    fn annotations_are_set_and_the_rest_stays_as_it_is() {
        check_injection(
            r#" { "z": 1.50e3,  "annotations" : {"a":"1","b":"0"}, "big":18446744073709551617 }"#,
            r#" { "z": 1.50e3,  "annotations" : {"a":"2","b":"0","k":"v\"\n"}, "big":18446744073709551617 }"#,
        );
        check_injection(
            r#"{"z":[{"annotations":{}}]}"#,
            r#"{"annotations":{"a":"2","k":"v\"\n"},"z":[{"annotations":{}}]}"#,
        );
        check_injection(
            r#"{"annotations":null}"#,
            r#"{"annotations":{"a":"2","k":"v\"\n"}}"#,
        );
        check_injection("{ }", r#"{"annotations":{"a":"2","k":"v\"\n"} }"#);
        assert!(with_annotations(b"[1]", &[("a", "b")]).is_err());
    }

    #[test]
    fn a_rewrite_keeps_the_mode_and_leaves_no_second_file() {
        let bundle = tempfile::tempdir().unwrap();
        let path = bundle.path().join(CONFIG_FILE);
        fs::write(&path, SPEC).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        inject_annotations(bundle.path(), &[("org.criu.config", "/x/criu.conf")]).unwrap();
        let spec = SpecView::read(bundle.path()).unwrap();
        assert_eq!(spec.annotation("org.criu.config"), Some("/x/criu.conf"));
        assert_eq!(spec.annotation("a"), Some("1"));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
        assert_eq!(fs::read_dir(bundle.path()).unwrap().count(), 1);
    }
}
