//! Which checkpoints go. Nothing here looks at a disk.

use std::collections::BTreeMap;
use std::time::Duration;

use jobs::record::Key;

/// A checkpoint, as far as rules look at it.
#[derive(Debug, Clone, Copy)]
pub struct One<'a> {
    /// Whose it is.
    pub job: &'a Key,
    /// When it was made, in milliseconds since 1970.
    pub at: u64,
    /// Bytes it takes.
    pub size: u64,
    /// It looks whole.
    pub is_good: bool,
}

/// What somebody said.
#[derive(Debug, Clone, Copy, Default)]
pub struct Rules {
    /// So many good ones of each job stay, the newest; alone, nothing else does.
    pub keep: Option<usize>,
    /// Those that are older go.
    pub older_than: Option<Duration>,
    /// The oldest go until all take no more than this, in bytes.
    pub max_bytes: Option<u64>,
    /// The last good one of a job is like any other.
    pub all: bool,
}

/// Why one goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// There are enough newer ones.
    Number,
    /// It does not look whole, and does not count as one.
    Broken,
    /// It is too old.
    Age,
    /// All together are too large.
    Size,
}

impl Why {
    /// For people.
    pub fn text(self) -> &'static str {
        match self {
            Self::Number => "newer ones are kept",
            Self::Broken => "it is not whole",
            Self::Age => "it is too old",
            Self::Size => "all together are too large",
        }
    }
}

/// Which of them go, the oldest first: their places in the list.
pub fn plan(ones: &[One<'_>], rules: &Rules, now: u64) -> Vec<(usize, Why)> {
    let mut order: Vec<(usize, &One<'_>)> = ones.iter().enumerate().collect();
    order.sort_by_key(|(_, one)| one.at);
    let stay = kept(&order, rules);
    let may_go = order.iter().filter(|(at, _)| !stay.contains(at));
    let mut total: u64 = ones.iter().map(|one| one.size).fold(0, u64::saturating_add);
    let mut going = Vec::new();
    let by_number = rules.older_than.is_none() && rules.max_bytes.is_none();
    for (at, one) in may_go {
        let age = Duration::from_millis(now.saturating_sub(one.at));
        let why = if by_number && !one.is_good {
            Why::Broken
        } else if by_number {
            Why::Number
        } else if rules.older_than.is_some_and(|limit| age > limit) {
            Why::Age
        } else if rules.max_bytes.is_some_and(|limit| total > limit) {
            Why::Size
        } else {
            continue;
        };
        total = total.saturating_sub(one.size);
        going.push((*at, why));
    }
    going
}

/// The places of those that stay, whatever else is said.
fn kept(oldest_first: &[(usize, &One<'_>)], rules: &Rules) -> Vec<usize> {
    let least = if rules.all { 0 } else { 1 };
    let keep = rules.keep.unwrap_or(0).max(least);
    let mut counts: BTreeMap<&Key, usize> = BTreeMap::new();
    let good = oldest_first.iter().rev().filter(|(_, one)| one.is_good);
    let stays = good.filter(|(_, one)| {
        let count = counts.entry(one.job).or_default();
        *count += 1;
        *count <= keep
    });
    stays.map(|(at, _)| *at).collect()
}

/// `90s`, `30m`, `12h`, `7d`, `4w`.
pub fn time(text: &str) -> Result<Duration, String> {
    let units = [("s", 1), ("m", 60), ("h", 3600), ("d", 86_400), ("w", 7 * 86_400)];
    number(text, &units)
        .map(Duration::from_secs)
        .ok_or_else(|| "not a time such as 90s, 30m, 12h, 7d or 4w".to_owned())
}

/// `4096`, `500M`, `20G`, `1T`: powers of 1024.
pub fn bytes(text: &str) -> Result<u64, String> {
    let units = [
        ("", 1),
        ("K", 1 << 10),
        ("M", 1 << 20),
        ("G", 1 << 30),
        ("T", 1 << 40),
    ];
    number(text, &units).ok_or_else(|| "not a size such as 4096, 500M, 20G or 1T".to_owned())
}

fn number(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let (digits, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let (_, factor) = units.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit))?;
    digits.parse::<u64>().ok()?.checked_mul(*factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: u64 = 86_400_000;

    /// Goes with `days` since each was made, good or not; each takes 10 bytes. Returns the places of those that go.
    fn going(ones: &[(&Key, u64, bool)], rules: Rules) -> Vec<(usize, Why)> {
        let now = 1000 * DAY;
        let ones: Vec<One<'_>> = ones
            .iter()
            .map(|(job, days, is_good)| One {
                job,
                at: now - days * DAY,
                size: 10,
                is_good: *is_good,
            })
            .collect();
        plan(&ones, &rules, now)
    }

    fn key(id: &str) -> Key {
        Key {
            engine: "/run/c.sock".into(),
            namespace: "default".to_owned(),
            id: id.to_owned(),
        }
    }

    #[test]
    fn each_rule_does_what_it_says() {
        let (web, db) = (key("web"), key("db"));
        let ones = [(&web, 1, true), (&web, 5, true), (&web, 9, true), (&db, 20, true)];
        let (keep, days, bytes) = (
            |keep| Rules {
                keep: Some(keep),
                ..Rules::default()
            },
            |days: u64| Rules {
                older_than: Some(Duration::from_millis(days * DAY)),
                ..Rules::default()
            },
            |bytes| Rules {
                max_bytes: Some(bytes),
                ..Rules::default()
            },
        );
        use Why::{Age, Number, Size};
        for (rules, expected) in [
            (keep(2), vec![(2, Number)]),
            (keep(9), vec![]),
            (keep(0), vec![(2, Number), (1, Number)]),
            (days(4), vec![(2, Age), (1, Age)]),
            (days(6), vec![(2, Age)]),
            (days(30), vec![]),
            (bytes(30), vec![(2, Size)]),
            (bytes(0), vec![(2, Size), (1, Size)]),
            (bytes(40), vec![]),
            (
                Rules {
                    keep: Some(2),
                    ..days(4)
                },
                vec![(2, Age)],
            ),
            (
                Rules {
                    keep: Some(2),
                    ..bytes(0)
                },
                vec![(2, Size)],
            ),
            (
                Rules {
                    max_bytes: Some(25),
                    ..days(6)
                },
                vec![(2, Age), (1, Size)],
            ),
            (
                Rules {
                    all: true,
                    ..days(10)
                },
                vec![(3, Age)],
            ),
            (
                Rules { all: true, ..keep(0) },
                vec![(3, Number), (2, Number), (1, Number), (0, Number)],
            ),
        ] {
            assert_eq!(going(&ones, rules), expected, "{rules:?}");
        }
    }

    #[test]
    fn the_last_good_one_stays_and_a_broken_one_is_none() {
        let web = key("web");
        let keep = Rules {
            keep: Some(1),
            ..Rules::default()
        };
        let ones = [
            (&web, 1, false),
            (&web, 2, false),
            (&web, 3, true),
            (&web, 4, true),
        ];
        let gone = [(3, Why::Number), (1, Why::Broken), (0, Why::Broken)];
        assert_eq!(going(&ones, keep), gone);
        let broken = [(&web, 1, false)];
        assert_eq!(going(&broken, keep).len(), 1, "nothing is lost with it");
    }

    #[test]
    fn times_and_sizes_have_units() {
        for (text, seconds) in [
            ("90s", Some(90)),
            ("2h", Some(7200)),
            ("7d", Some(604_800)),
            ("1W", Some(604_800)),
            ("7", None),
            ("d", None),
            ("-1d", None),
            ("7days", None),
            ("99999999999999999999d", None),
            ("9999999999999999999d", None),
        ] {
            assert_eq!(time(text).ok().map(|time| time.as_secs()), seconds, "{text}");
        }
        for (text, count) in [
            ("0", Some(0)),
            ("4096", Some(4096)),
            ("1k", Some(1024)),
            ("3T", Some(3 << 40)),
            ("G", None),
            ("1.5G", None),
        ] {
            assert_eq!(bytes(text).ok(), count, "{text}");
        }
    }
}
