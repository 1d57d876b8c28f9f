//! What stands in the way of a dump, found without touching the container: what `containerd-shim-cedana-v1 preflight` prints
//! and `cedana check JOB` shows. JSON; a reader passes over fields that it does not know.

use std::cmp::Ordering;

use serde::{Deserialize, Serialize};

/// The largest report that is read, in bytes: [`FINDINGS_MAX`] findings of some hundred bytes, several times over.
pub const REPORT_BYTES_MAX: u64 = 1 << 20;

/// More findings than this are not listed.
pub const FINDINGS_MAX: usize = 200;

/// How bad a finding is; the worst first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// A dump fails, and no setting helps.
    Blocks,
    /// A dump fails unless a setting says what to do.
    NeedsSetting,
    /// A dump succeeds, and this is not part of it.
    NotSaved,
    /// Worth knowing: it may make a dump slow, or a restore fail.
    Note,
}

/// The process that holds or is what was found.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Holder {
    /// Its pid on the host.
    pub pid: i32,
    /// Its pid in the container.
    pub inner_pid: i32,
    /// What it calls itself.
    pub name: String,
}

/// One thing found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// What kind, for programs: `io-uring`, `tcp-established` …
    pub code: String,
    /// How bad.
    pub severity: Severity,
    /// What, for people: a sentence without its full stop, which names the process.
    pub what: String,
    /// Which process; none for what belongs to the whole container.
    #[serde(default)]
    pub process: Option<Holder>,
    /// What to do about it; empty if there is nothing to do.
    #[serde(default)]
    pub remedy: String,
}

impl Finding {
    /// The order in which findings are shown: the worst first, then by kind and process.
    pub fn order(&self, other: &Self) -> Ordering {
        let key = |finding: &Self| {
            (
                finding.severity,
                finding.code.clone(),
                finding.process.as_ref().map(|process| process.pid),
            )
        };
        key(self).cmp(&key(other))
    }
}

/// All that was found in a container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Report {
    /// Its init, on the host.
    pub pid: i32,
    /// How many processes a dump takes.
    pub processes: usize,
    /// Their memory that is present, in bytes; about what a dump writes.
    pub memory: u64,
    /// How many network sockets (IPv4, IPv6, packet) they hold; an old CRIU fails on the first one.
    pub network_sockets: usize,
    /// What was found, the worst first.
    pub findings: Vec<Finding>,
    /// What could not be looked at, and why.
    pub unseen: Vec<String>,
}

impl Report {
    /// Whether nothing was found that makes a dump fail.
    pub fn can_be_dumped(&self) -> bool {
        !self
            .findings
            .iter()
            .any(|finding| matches!(finding.severity, Severity::Blocks | Severity::NeedsSetting))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(severity: Severity, code: &str, pid: i32) -> Finding {
        Finding {
            code: code.to_owned(),
            severity,
            what: String::new(),
            process: Some(Holder {
                pid,
                inner_pid: 1,
                name: "sh".to_owned(),
            }),
            remedy: String::new(),
        }
    }

    #[test]
    fn a_dump_fails_by_what_blocks_and_by_what_lacks_a_setting() {
        for (severity, expected) in [
            (Severity::Blocks, false),
            (Severity::NeedsSetting, false),
            (Severity::NotSaved, true),
            (Severity::Note, true),
        ] {
            let report = Report {
                findings: vec![finding(severity, "x", 1)],
                ..Report::default()
            };
            assert_eq!(report.can_be_dumped(), expected, "{severity:?}");
        }
        assert!(Report::default().can_be_dumped());
    }

    #[test]
    fn the_worst_is_shown_first() {
        let mut findings = [
            finding(Severity::Note, "a", 1),
            finding(Severity::Blocks, "b", 2),
            finding(Severity::Blocks, "b", 1),
            finding(Severity::Blocks, "a", 3),
        ];
        findings.sort_by(Finding::order);
        let order: Vec<_> = findings
            .iter()
            .map(|f| (f.code.as_str(), f.process.as_ref().map_or(0, |p| p.pid)))
            .collect();
        assert_eq!(order, [("a", 3), ("b", 1), ("b", 2), ("a", 1)]);
    }

    #[test]
    fn a_report_of_a_newer_shim_is_read() {
        let text = r#"{"pid":7,"new":true,"findings":[{"code":"io-uring","severity":"blocks","what":"w","more":1}]}"#;
        let report: Report = serde_json::from_str(text).unwrap();
        assert_eq!((report.pid, report.findings.len()), (7, 1));
        assert!(!report.can_be_dumped());
    }
}
