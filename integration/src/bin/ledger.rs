//! A program whose memory changes all the time, and that keeps account of it: with each increment of its counter it writes the
//! number into another page, and prints it. What is printed must be every number once; what is in memory, the numbers of the
//! last increments, which it looks through again and again.
//!
//! ```text
//! ledger MIB       `1`, `2`, …; `bad: REASON` if a page is not as it was left
//! ```

use std::io::Write;
use std::time::Duration;

use anyhow::{Context, Result};

const PAGE: usize = 4096;
const PAGES_PER_MIB: usize = (1 << 20) / PAGE;

/// Numbers in a page: the one that counts stands first.
const WORDS: usize = PAGE / size_of::<u64>();

const TICK: Duration = Duration::from_millis(2);

/// Increments between two looks through all pages.
const LOOK_EVERY: u64 = 500;

fn main() -> Result<()> {
    let mib = std::env::args().nth(1).context("usage: ledger MIB")?;
    let pages = mib.parse::<usize>()? * PAGES_PER_MIB;
    // Of several values, or the kernel may make one page of all.
    let mut memory: Vec<u64> = (0..pages * WORDS).map(|at| (at % 251) as u64 + 1).collect();
    let mut out = std::io::stdout().lock();
    let mut last = vec![0; pages];
    for number in 1_u64.. {
        let page = usize::try_from(number)? * 7919 % pages;
        if let Some(word) = memory.get_mut(page * WORDS) {
            *word = number;
        }
        if let Some(word) = last.get_mut(page) {
            *word = number;
        }
        writeln!(out, "{number}")?;
        out.flush()?;
        if number % LOOK_EVERY == 0
            && let Some(page) = wrong(&memory, &last)
        {
            writeln!(out, "bad: page {page} at {number}")?;
        }
        std::thread::sleep(TICK);
    }
    Ok(())
}

/// A page that is not as it was left.
fn wrong(memory: &[u64], last: &[u64]) -> Option<usize> {
    memory.chunks(WORDS).zip(last).position(|(page, last)| {
        let first = page.first().copied().unwrap_or_default();
        *last != 0 && first != *last || page.get(1..).is_some_and(|rest| rest.contains(&0))
    })
}
