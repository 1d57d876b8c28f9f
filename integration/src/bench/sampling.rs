//! Both sides in turn, the first of each pair alternating.

use std::collections::BTreeMap;

use anyhow::{Context, Result};

use super::figure::Side;
use super::measure::Measure;

/// Samples of one figure.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Samples {
    /// Of our shim.
    pub ours: Vec<f64>,
    /// Of containerd's own.
    pub theirs: Vec<f64>,
}

/// Takes `runs` samples of each side, or what the measure makes of that, after one of each that is thrown away: the first run after a start reads
/// binaries from disk.
///
/// # Errors
/// The first failure of the measure, which says what was being done.
pub fn take(measure: &mut dyn Measure, runs: u32) -> Result<BTreeMap<&'static str, Samples>> {
    let mut all: BTreeMap<&'static str, Samples> = BTreeMap::new();
    for run in 0..=measure.runs(runs) {
        for side in order(run) {
            let values = measure
                .sample(side)
                .with_context(|| format!("measure {}", side.word()))?;
            if run == 0 {
                continue;
            }
            for (figure, value) in values {
                let samples = all.entry(figure.key).or_default();
                match side {
                    Side::Ours => samples.ours.push(value),
                    Side::Theirs => samples.theirs.push(value),
                }
            }
        }
    }
    Ok(all)
}

fn order(run: u32) -> [Side; 2] {
    if run.is_multiple_of(2) {
        [Side::Ours, Side::Theirs]
    } else {
        [Side::Theirs, Side::Ours]
    }
}

/// The middle value, or the mean of the two middle ones; nothing for no values.
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    let upper = *sorted.get(middle)?;
    if sorted.len() % 2 == 1 {
        return Some(upper);
    }
    sorted
        .get(middle.checked_sub(1)?)
        .map(|lower| f64::midpoint(*lower, upper))
}

#[cfg(test)]
mod tests {
    use anyhow::Result;

    use super::super::figure::{Figure, RUN, Side};
    use super::{Measure, Samples, median, take};

    #[test]
    fn median_is_the_middle() {
        for (values, expected) in [
            (vec![], None),
            (vec![3.0], Some(3.0)),
            (vec![9.0, 1.0, 2.0], Some(2.0)),
            (vec![4.0, 1.0, 2.0, 9.0], Some(3.0)),
        ] {
            assert_eq!(median(&values), expected, "{values:?}");
        }
    }

    struct Counter(f64);

    impl Measure for Counter {
        fn sample(&mut self, _side: Side) -> Result<Vec<(Figure, f64)>> {
            self.0 += 1.0;
            Ok(vec![(RUN, self.0)])
        }
    }

    #[test]
    fn sides_alternate_and_the_first_pair_is_thrown_away() {
        let all = take(&mut Counter(0.0), 2).unwrap();
        assert_eq!(
            all["run"],
            Samples {
                ours: vec![4.0, 5.0],
                theirs: vec![3.0, 6.0]
            }
        );
    }
}
