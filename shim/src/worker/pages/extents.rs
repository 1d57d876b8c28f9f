//! Which pages of a process are still to come, and where in the file of pages they lie.

use std::collections::BTreeMap;

/// A run of pages that lie one after another in memory and in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Extent {
    /// Where it belongs, in the memory of the process.
    pub(super) start: u64,
    /// Its length in bytes, never zero.
    pub(super) len: u64,
    /// Where it lies, in the file.
    pub(super) offset: u64,
}

/// All that is still to come of one process. What is in here is missing there; what is not is either there or to be zero.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Extents {
    /// By start; none overlaps another.
    runs: BTreeMap<u64, (u64, u64)>,
}

impl Extents {
    /// Adds a run; false, and nothing is added, if it overlaps one that is there or goes past the end of the addresses.
    #[must_use]
    pub(super) fn add(&mut self, extent: Extent) -> bool {
        let Some(end) = extent.start.checked_add(extent.len) else {
            return false;
        };
        if extent.len == 0 || extent.offset.checked_add(extent.len).is_none() {
            return false;
        }
        let before = self.runs.range(..end).next_back();
        if before.is_some_and(|(start, (len, _))| start + len > extent.start) {
            return false;
        }
        let _ = self.runs.insert(extent.start, (extent.len, extent.offset));
        true
    }

    /// Nothing is missing any more.
    pub(super) fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// Every run, by address.
    pub(super) fn iter(&self) -> impl Iterator<Item = Extent> {
        self.runs
            .iter()
            .map(|(&start, &(len, offset))| Extent { start, len, offset })
    }

    /// What is missing at this very address and behind it without a gap.
    pub(super) fn at(&self, address: u64) -> Option<Extent> {
        let (&start, &(len, offset)) = self.runs.range(..=address).next_back()?;
        let skipped = address - start;
        (skipped < len).then(|| Extent {
            start: address,
            len: len - skipped,
            offset: offset + skipped,
        })
    }

    /// What is missing next: at this address, behind it, else from the beginning.
    pub(super) fn next(&self, address: u64) -> Option<Extent> {
        let run = |(&start, &(len, offset)): (&u64, &(u64, u64))| Extent { start, len, offset };
        self.at(address)
            .or_else(|| self.runs.range(address..).next().map(run))
            .or_else(|| self.runs.iter().next().map(run))
    }

    /// Forgets this range, and returns what of it was missing.
    pub(super) fn remove(&mut self, start: u64, end: u64) -> Vec<Extent> {
        let mut removed = Vec::new();
        if start >= end {
            return removed;
        }
        while let Some((at, len, offset)) = self
            .runs
            .range(..end)
            .next_back()
            .map(|(&at, &(len, offset))| (at, len, offset))
            .filter(|(at, len, _)| at + len > start)
        {
            let _ = self.runs.remove(&at);
            let (from, to) = (at.max(start), (at + len).min(end));
            if at < from {
                let _ = self.runs.insert(at, (from - at, offset));
            }
            if to < at + len {
                let _ = self.runs.insert(to, (at + len - to, offset + (to - at)));
            }
            removed.push(Extent {
                start: from,
                len: to - from,
                offset: offset + (from - at),
            });
        }
        removed
    }

    /// Memory moved: what was missing there is missing here. What was missing here before is gone.
    pub(super) fn shift(&mut self, from: u64, to: u64, len: u64) {
        let moved = self.remove(from, from.saturating_add(len));
        let _ = self.remove(to, to.saturating_add(len));
        for extent in moved {
            let start = (extent.start - from).checked_add(to);
            // Out of the room just made it cannot fall: the kernel moves within the addresses there are.
            let _ = start.is_some_and(|start| self.add(Extent { start, ..extent }));
        }
    }

    /// How many bytes are missing at the same addresses in both.
    pub(super) fn shared(&self, other: &Self) -> u64 {
        let (mut left, mut right) = (self.iter().peekable(), other.iter().peekable());
        let mut shared = 0;
        while let (Some(a), Some(b)) = (left.peek(), right.peek()) {
            let (a_end, b_end) = (a.start + a.len, b.start + b.len);
            shared += a_end.min(b_end).saturating_sub(a.start.max(b.start));
            if a_end <= b_end {
                let _ = left.next();
            } else {
                let _ = right.next();
            }
        }
        shared
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extents(runs: &[(u64, u64, u64)]) -> Extents {
        let mut extents = Extents::default();
        for &(start, len, offset) in runs {
            assert!(extents.add(Extent { start, len, offset }), "{start} {len}");
        }
        extents
    }

    fn runs(extents: &Extents) -> Vec<(u64, u64, u64)> {
        extents
            .iter()
            .map(|run| (run.start, run.len, run.offset))
            .collect()
    }

    #[test]
    fn runs_that_overlap_are_refused() {
        let mut all = extents(&[(10, 10, 0), (30, 10, 10)]);
        for (start, len) in [
            (10, 1),
            (19, 2),
            (5, 6),
            (0, 100),
            (29, 2),
            (20, 0),
            (u64::MAX, 2),
        ] {
            assert!(
                !all.add(Extent {
                    start,
                    len,
                    offset: 0
                }),
                "{start} {len}"
            );
        }
        assert_eq!(runs(&all), [(10, 10, 0), (30, 10, 10)]);
        assert!(all.add(Extent {
            start: 20,
            len: 10,
            offset: 20
        }));
    }

    #[test]
    fn a_page_is_found_with_what_follows_it() {
        let all = extents(&[(10, 10, 100), (30, 10, 200)]);
        for (address, want) in [
            (9, None),
            (10, Some((10, 10, 100))),
            (19, Some((19, 1, 109))),
            (20, None),
            (35, Some((35, 5, 205))),
        ] {
            assert_eq!(all.at(address).map(|run| (run.start, run.len, run.offset)), want);
        }
        let next = |address| all.next(address).map(|run| run.start);
        assert_eq!(
            [next(0), next(15), next(20), next(40)],
            [Some(10), Some(15), Some(30), Some(10)]
        );
        assert_eq!(Extents::default().next(0), None);
    }

    #[test]
    fn what_is_removed_leaves_its_neighbours() {
        for (from, to, left) in [
            (0, 10, vec![(10, 10, 100), (30, 10, 200)]),
            (12, 14, vec![(10, 2, 100), (14, 6, 104), (30, 10, 200)]),
            (15, 35, vec![(10, 5, 100), (35, 5, 205)]),
            (10, 20, vec![(30, 10, 200)]),
            (0, 100, vec![]),
            (20, 30, vec![(10, 10, 100), (30, 10, 200)]),
            (14, 14, vec![(10, 10, 100), (30, 10, 200)]),
        ] {
            let mut all = extents(&[(10, 10, 100), (30, 10, 200)]);
            let _ = all.remove(from, to);
            assert_eq!(runs(&all), left, "{from}..{to}");
        }
    }

    #[test]
    fn what_moves_keeps_its_place_in_the_file() {
        let mut all = extents(&[(10, 10, 100), (30, 10, 200)]);
        all.shift(15, 115, 20);
        assert_eq!(
            runs(&all),
            [(10, 5, 100), (35, 5, 205), (115, 5, 105), (130, 5, 200)]
        );
        // Onto what was missing there, which is gone.
        let mut all = extents(&[(10, 10, 100), (30, 10, 200)]);
        all.shift(10, 30, 10);
        assert_eq!(runs(&all), [(30, 10, 100)]);
    }

    #[test]
    fn what_two_have_at_the_same_addresses_is_counted() {
        let left = extents(&[(10, 10, 0), (30, 10, 10)]);
        let right = extents(&[(0, 12, 0), (15, 20, 12), (38, 100, 32)]);
        assert_eq!(left.shared(&right), 2 + 5 + 5 + 2);
        assert_eq!(right.shared(&left), 14);
        assert_eq!(left.shared(&left), 20);
        assert_eq!(left.shared(&Extents::default()), 0);
    }
}
