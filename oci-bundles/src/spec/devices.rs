//! Which devices a container may have, by the request that made it: what somebody's archive brings must be one of these.

use std::path::Path;

use serde::Deserialize;

use super::{CONFIG_FILE, SpecError, null_is_default, read_config};

/// What every container has, by the runtime specification: null, zero, full, random, urandom, tty, console, ptmx.
const OF_ALL: [(u32, u32); 8] = [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1), (5, 2)];

/// The devices of a container.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Devices {
    #[serde(deserialize_with = "null_is_default")]
    linux: Linux,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Linux {
    #[serde(deserialize_with = "null_is_default")]
    devices: Vec<Node>,
    #[serde(deserialize_with = "null_is_default")]
    resources: Resources,
}

/// A device that is made for the container.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Node {
    #[serde(rename = "type")]
    kind: String,
    major: i64,
    minor: i64,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Resources {
    #[serde(deserialize_with = "null_is_default")]
    devices: Vec<Rule>,
}

/// What the device cgroup says of some; the last that fits counts.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Rule {
    allow: bool,
    #[serde(rename = "type", deserialize_with = "null_is_default")]
    kind: String,
    major: Option<i64>,
    minor: Option<i64>,
    #[serde(deserialize_with = "null_is_default")]
    access: String,
}

impl Devices {
    /// Those that `<bundle>/config.json` has, at most 16 MiB of it.
    ///
    /// # Errors
    /// It cannot be read, or is none.
    pub fn read(bundle: &Path) -> Result<Self, SpecError> {
        Self::parse(&read_config(&bundle.join(CONFIG_FILE))?)
    }

    /// Those of the text of a `config.json`.
    ///
    /// # Errors
    /// It is none.
    pub fn parse(text: &[u8]) -> Result<Self, SpecError> {
        Ok(serde_json::from_slice(text)?)
    }

    /// Whether the container may open this one. One that it may only make, as most may any, is of no use to it.
    pub fn allow(&self, is_block: bool, major: u32, minor: u32) -> bool {
        let kind = if is_block { "b" } else { "c" };
        let (wide_major, wide_minor) = (i64::from(major), i64::from(minor));
        let is_it = |node: &Node| {
            let same_kind = node.kind == kind || node.kind == "u" && !is_block;
            same_kind && (node.major, node.minor) == (wide_major, wide_minor)
        };
        let fits = |rule: &&Rule| {
            let any =
                |number: Option<i64>, wanted| number.is_none_or(|number| number < 0 || number == wanted);
            let opens = !rule.allow || rule.access.is_empty() || rule.access.contains(['r', 'w']);
            let same_kind = rule.kind.is_empty() || rule.kind == "a" || rule.kind == kind;
            same_kind && opens && any(rule.major, wide_major) && any(rule.minor, wide_minor)
        };
        let rules = &self.linux.resources.devices;
        !is_block && OF_ALL.contains(&(major, minor))
            || self.linux.devices.iter().any(is_it)
            || rules.iter().rev().find(fits).is_some_and(|rule| rule.allow)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_has_the_devices_of_its_own_request() {
        let usual = r#"{"linux":{"devices":[{"path":"/dev/fuse","type":"c","major":10,"minor":229}],"resources":{"devices":[
            {"allow":false,"access":"rwm"},
            {"allow":true,"type":"c","access":"m"},{"allow":true,"type":"b","access":"m"},
            {"allow":true,"type":"c","major":136,"access":"rwm"},
            {"allow":true,"type":"b","major":8,"minor":16,"access":"r"}]}}}"#;
        let privileged =
            r#"{"linux":{"devices":null,"resources":{"devices":[{"allow":true,"access":"rwm"}]}}}"#;
        let revoked = r#"{"linux":{"resources":{"devices":[{"allow":true},{"allow":false,"type":"b"}]}}}"#;
        for (text, is_block, number, allowed) in [
            ("{}", false, (1, 3), true),
            ("{}", true, (1, 3), false),
            ("{}", false, (1, 1), false),
            (usual, false, (10, 229), true),
            (usual, true, (10, 229), false),
            (usual, false, (136, 4), true),
            (usual, true, (8, 0), false),
            (usual, true, (8, 16), true),
            (privileged, true, (8, 0), true),
            (revoked, true, (8, 0), false),
            (revoked, false, (1, 1), true),
        ] {
            let devices = Devices::parse(text.as_bytes()).expect("parsed");
            let (major, minor) = number;
            assert_eq!(
                devices.allow(is_block, major, minor),
                allowed,
                "{text} {is_block} {number:?}"
            );
        }
        assert!(Devices::parse(b"[").is_err());
    }
}
