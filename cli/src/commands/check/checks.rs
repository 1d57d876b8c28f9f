//! What was checked of this host, and how it is shown.

use serde::Serialize;

use crate::output::table::{Cell, Colour, Side, Table};

/// How one thing is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Good,
    /// Not there, and not needed to save containers.
    Absent,
    /// Some containers cannot be saved, or something does not work as it should.
    Warning,
    /// Nothing can be saved.
    Error,
}

impl Level {
    fn mark(self) -> (&'static str, Colour) {
        match self {
            Self::Good => ("✔", Colour::Green),
            Self::Absent => ("-", Colour::Grey),
            Self::Warning => ("!", Colour::Yellow),
            Self::Error => ("✖", Colour::Red),
        }
    }
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What it belongs to: `criu`.
    pub component: &'static str,
    /// What it is: `version`.
    pub feature: &'static str,
    /// How it is.
    pub level: Level,
    /// What was found.
    pub found: String,
    /// What to do about it; empty if nothing needs to be done.
    pub remedy: String,
}

/// All that was looked at, in order.
#[derive(Debug, Default)]
pub struct Checks(Vec<Check>);

impl Checks {
    /// Something that is as it should be.
    pub fn good(&mut self, component: &'static str, feature: &'static str, found: impl Into<String>) {
        self.add(component, feature, Level::Good, found, "");
    }

    /// Something that is not there, and need not be.
    pub fn absent(&mut self, component: &'static str, feature: &'static str, found: impl Into<String>) {
        self.add(component, feature, Level::Absent, found, "");
    }

    /// Something with which some containers cannot be saved.
    pub fn warning(
        &mut self,
        component: &'static str,
        feature: &'static str,
        found: impl Into<String>,
        remedy: &str,
    ) {
        self.add(component, feature, Level::Warning, found, remedy);
    }

    /// Something with which nothing can be saved.
    pub fn error(
        &mut self,
        component: &'static str,
        feature: &'static str,
        found: impl Into<String>,
        remedy: &str,
    ) {
        self.add(component, feature, Level::Error, found, remedy);
    }

    fn add(
        &mut self,
        component: &'static str,
        feature: &'static str,
        level: Level,
        found: impl Into<String>,
        remedy: &str,
    ) {
        self.0.push(Check {
            component,
            feature,
            level,
            found: found.into(),
            remedy: remedy.to_owned(),
        });
    }

    /// All, in order.
    pub fn all(&self) -> &[Check] {
        &self.0
    }

    /// How many keep this host from saving anything.
    pub fn errors(&self) -> usize {
        self.count(Level::Error)
    }

    /// How many keep it from saving some containers.
    pub fn warnings(&self) -> usize {
        self.count(Level::Warning)
    }

    fn count(&self, level: Level) -> usize {
        self.0.iter().filter(|check| check.level == level).count()
    }

    /// The table, what to do, and the verdict.
    pub fn text(&self, colours: bool) -> String {
        let mut table = Table::new(&[
            ("", Side::Left),
            ("COMPONENT", Side::Left),
            ("FEATURE", Side::Left),
            ("FOUND", Side::Left),
        ]);
        for check in &self.0 {
            let (mark, colour) = check.level.mark();
            table.row(vec![
                Cell::new(mark, colour),
                check.component.into(),
                check.feature.into(),
                check.found.as_str().into(),
            ]);
        }
        let mut text = table.text(colours);
        text.push('\n');
        for check in self.0.iter().filter(|check| !check.remedy.is_empty()) {
            let (mark, _) = check.level.mark();
            text.push_str(&format!(
                "{mark} {} {}: {}\n",
                check.component, check.feature, check.remedy
            ));
        }
        text.push_str(&self.verdict());
        text.push('\n');
        text
    }

    fn verdict(&self) -> String {
        match (self.errors(), self.warnings()) {
            (0, 0) => "All good.".to_owned(),
            (0, warnings) => format!("Looks good, with {}.", counted(warnings, "warning")),
            (errors, 0) => format!("Failed with {}.", counted(errors, "error")),
            (errors, warnings) => format!(
                "Failed with {} and {}.",
                counted(errors, "error"),
                counted(warnings, "warning")
            ),
        }
    }
}

fn counted(number: usize, word: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {word}{plural}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_verdict_counts_what_is_wrong() {
        for (errors, warnings, expected) in [
            (0, 0, "All good."),
            (0, 1, "Looks good, with 1 warning."),
            (0, 2, "Looks good, with 2 warnings."),
            (1, 0, "Failed with 1 error."),
            (2, 1, "Failed with 2 errors and 1 warning."),
        ] {
            let mut checks = Checks::default();
            checks.good("a", "b", "c");
            checks.absent("a", "b", "c");
            (0..errors).for_each(|_| checks.error("a", "b", "c", "d"));
            (0..warnings).for_each(|_| checks.warning("a", "b", "c", "d"));
            assert_eq!(checks.verdict(), expected);
        }
    }

    #[test]
    fn what_to_do_stands_below_the_table() {
        let mut checks = Checks::default();
        checks.good("runc", "version", "1.3.6");
        checks.error("criu", "binary", "not found", "install CRIU 4.2 or later");
        assert_eq!(
            checks.text(false),
            "   COMPONENT  FEATURE  FOUND\n\
             ✔  runc       version  1.3.6\n\
             ✖  criu       binary   not found\n\
             \n\
             ✖ criu binary: install CRIU 4.2 or later\n\
             Failed with 1 error.\n"
        );
    }
}
