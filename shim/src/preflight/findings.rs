//! The findings as they are gathered: bounded, however much a container holds.

use jobs::preflight::{FINDINGS_MAX, Finding, Holder, Severity};
use oci_bundles::manifest::Chosen;

use super::tree::Process;

/// More numbers than this would not be read by a person.
const SHOWN_MAX: usize = 5;

/// What was found so far, and what could not be seen.
#[derive(Debug, Default)]
pub(super) struct Findings {
    all: Vec<Finding>,
    dropped: usize,
    unseen: Vec<String>,
}

impl Findings {
    /// Adds something about the whole container.
    pub(super) fn add(&mut self, code: &str, severity: Severity, what: impl Into<String>, remedy: &str) {
        self.push(Finding {
            code: code.to_owned(),
            severity,
            what: what.into(),
            process: None,
            remedy: remedy.to_owned(),
        });
    }

    /// Adds something about a process; `what` goes on after its name.
    pub(super) fn add_of(
        &mut self,
        process: &Process,
        code: &str,
        severity: Severity,
        what: &str,
        remedy: &str,
    ) {
        self.push(Finding {
            code: code.to_owned(),
            severity,
            what: format!("process {} ({}) {what}", process.pid, process.name),
            process: Some(Holder {
                pid: process.pid,
                inner_pid: process.inner_pid,
                name: process.name.clone(),
            }),
            remedy: remedy.to_owned(),
        });
    }

    /// Adds what a dump decides by itself.
    pub(super) fn add_chosen(&mut self, chosen: &Chosen) {
        let what = format!(
            "a dump has {} {} by itself: {}",
            chosen.option, chosen.value, chosen.why
        );
        let remedy = format!("set dump.{} if that is not wanted", chosen.option);
        self.add("chosen", Severity::Note, what, &remedy);
    }

    /// Whether something of that kind was found of a process.
    pub(super) fn has(&self, process: &Process, code: &str) -> bool {
        let is_its = |finding: &Finding| finding.process.as_ref().is_some_and(|of| of.pid == process.pid);
        self.all
            .iter()
            .any(|finding| finding.code == code && is_its(finding))
    }

    /// Remembers what could not be looked at; each only once.
    pub(super) fn unseen(&mut self, what: impl Into<String>) {
        let what = what.into();
        if !self.unseen.contains(&what) && self.unseen.len() < FINDINGS_MAX {
            self.unseen.push(what);
        }
    }

    /// The findings, the worst first, and what could not be seen.
    pub(super) fn into_sorted(mut self) -> (Vec<Finding>, Vec<String>) {
        if self.dropped > 0 {
            self.unseen.push(format!("{} more findings", self.dropped));
        }
        self.all.sort_by(Finding::order);
        (self.all, self.unseen)
    }

    fn push(&mut self, finding: Finding) {
        if self.all.len() < FINDINGS_MAX {
            self.all.push(finding);
        } else {
            self.dropped += 1;
        }
    }
}

/// The first few of a list, and that there are more: `3, 4, …`.
pub(super) fn shown<T: ToString>(all: &[T]) -> String {
    let mut words: Vec<String> = all.iter().take(SHOWN_MAX).map(ToString::to_string).collect();
    if all.len() > SHOWN_MAX {
        words.push("…".to_owned());
    }
    words.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_cut_where_nobody_reads_on() {
        for (all, expected) in [
            (vec![], ""),
            (vec![1], "1"),
            (vec![1, 2, 3, 4, 5], "1, 2, 3, 4, 5"),
            (vec![1, 2, 3, 4, 5, 6], "1, 2, 3, 4, 5, …"),
        ] {
            assert_eq!(shown(&all), expected);
        }
    }

    #[test]
    fn no_more_is_kept_than_may_be_and_what_is_missing_is_said() {
        let mut findings = Findings::default();
        for _ in 0..FINDINGS_MAX + 3 {
            findings.add("x", Severity::Note, "w", "");
        }
        let (all, unseen) = findings.into_sorted();
        assert_eq!(
            (all.len(), unseen),
            (FINDINGS_MAX, vec!["3 more findings".to_owned()])
        );
    }
}
