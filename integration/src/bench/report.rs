//! The table a person reads and the JSON a machine reads.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Serialize;

use super::figure::Figure;
use super::sampling::{Samples, median};

/// One figure as it goes into `target/bench.json`, under its key.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Line {
    /// Median of our shim.
    pub ours: f64,
    /// Median of containerd's own.
    pub theirs: f64,
    /// `ours / theirs`.
    pub ratio: f64,
    /// Unit of `ours` and `theirs`.
    pub unit: &'static str,
    /// Samples of each side.
    pub runs: usize,
    /// Above this the ratio is over its budget; not part of the JSON, where only measured things are.
    #[serde(skip)]
    pub ratio_max: f64,
    /// Nor may it be below this.
    #[serde(skip)]
    pub ratio_min: f64,
    /// Nor may ours be above this; not part of the JSON either.
    #[serde(skip)]
    pub ours_max: Option<f64>,
}

impl Line {
    /// Nothing when a side has no samples.
    pub fn new(figure: Figure, samples: &Samples) -> Option<Self> {
        let (ours, theirs) = (median(&samples.ours)?, median(&samples.theirs)?);
        Some(Self {
            ours: rounded(ours),
            theirs: rounded(theirs),
            ratio: rounded(ours / theirs),
            unit: figure.unit,
            runs: samples.ours.len(),
            ratio_max: figure.ratio_max,
            ratio_min: figure.ratio_min(),
            ours_max: figure.ours_max,
        })
    }

    /// Whether ours costs more than it may.
    pub fn over(&self) -> bool {
        self.ratio > self.ratio_max
            || self.ratio < self.ratio_min
            || self.ours_max.is_some_and(|max| self.ours > max)
    }
}

fn rounded(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

/// The table, a line a figure, in the order given.
pub fn table<'a>(lines: impl IntoIterator<Item = (&'a str, &'a Line)>) -> String {
    let mut text = format!(
        "{:<14} {:>10} {:>10} {:<8} {:>6} {:>6}\n",
        "figure", "ours", "theirs", "unit", "ratio", "limit"
    );
    for (key, line) in lines {
        let verdict = if line.over() { "  over" } else { "" };
        let limit = if line.ratio_min > 0.0 {
            line.ratio_min
        } else {
            line.ratio_max
        };
        // Writing to a String cannot fail.
        let _written = writeln!(
            text,
            "{key:<14} {:>10.1} {:>10.1} {:<8} {:>6.2} {:>6.2}{verdict}",
            line.ours, line.theirs, line.unit, line.ratio, limit
        );
    }
    text
}

/// The JSON object, keys to lines.
///
/// # Errors
/// A ratio that is no number (theirs was zero).
pub fn json(lines: &BTreeMap<&str, Line>) -> serde_json::Result<String> {
    serde_json::to_string_pretty(lines)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::figure::{FILL_RATE, PS_1000, RUN};
    use super::{Line, Samples, json, table};

    fn line(ours: &[f64], theirs: &[f64]) -> Option<Line> {
        Line::new(
            RUN,
            &Samples {
                ours: ours.to_vec(),
                theirs: theirs.to_vec(),
            },
        )
    }

    #[test]
    fn ratio_is_of_the_medians() {
        let line = line(&[40.0, 50.0, 90.0], &[100.0, 80.0, 120.0]).unwrap();
        assert_eq!(
            (line.ours, line.theirs, line.ratio, line.runs),
            (50.0, 100.0, 0.5, 3)
        );
    }

    #[test]
    fn one_sided_figure_has_no_line() {
        assert_eq!(line(&[1.0], &[]), None);
    }

    #[test]
    fn some_figures_have_a_limit_of_their_own() {
        for (ours, over) in [(49.0, false), (51.0, true)] {
            let samples = Samples {
                ours: vec![ours],
                theirs: vec![1000.0],
            };
            assert_eq!(Line::new(PS_1000, &samples).unwrap().over(), over, "{ours}");
        }
    }

    #[test]
    fn a_rate_has_a_least() {
        for (ours, over) in [(2.4, true), (2.6, false)] {
            let samples = Samples {
                ours: vec![ours],
                theirs: vec![1.0],
            };
            assert_eq!(Line::new(FILL_RATE, &samples).unwrap().over(), over, "{ours}");
        }
    }

    #[test]
    fn json_has_the_agreed_names_and_no_others() {
        let lines = BTreeMap::from([("run", line(&[1.0], &[2.0]).unwrap())]);
        let value: serde_json::Value = serde_json::from_str(&json(&lines).unwrap()).unwrap();
        let expected =
            serde_json::json!({"run": {"ours": 1.0, "theirs": 2.0, "ratio": 0.5, "unit": "ms", "runs": 1}});
        assert_eq!(value, expected);
    }

    #[test]
    fn table_marks_what_is_over_its_limit() {
        let (within, over) = (line(&[1.0], &[2.0]).unwrap(), line(&[2.0], &[2.0]).unwrap());
        let text = table([("a", &within), ("b", &over)]);
        let marks: Vec<bool> = text.lines().skip(1).map(|line| line.ends_with("over")).collect();
        assert_eq!(marks, [false, true]);
    }
}
