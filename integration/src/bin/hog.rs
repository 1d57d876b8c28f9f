//! The program of the dump figures: so much memory, and a tick each millisecond. It answers lines on stdin, each with the
//! number of the answer.
//!
//! ```text
//! hog MIB random|text|half-zero
//! ```
//! `ready` first; then `gap`: the largest time between two ticks since the last `gap`, as `gap N MICROSECONDS`; and `check`: whether
//! every page holds what it should, as `ok N` or `bad: REASON`.
#![expect(
    clippy::print_stdout,
    reason = "stdout is how the program speaks to its bench"
)]

use std::io::BufRead;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};

const TICK: Duration = Duration::from_millis(1);
/// Memory is filled and checked a page at a time.
const PAGE_WORDS: usize = 4096 / size_of::<u64>();
const PAGES_PER_MIB: usize = 256;

/// What the text is made of: enough words that no two pages are alike, and few enough that they compress as logs do.
const WORDS: [&[u8]; 16] = [
    b"request ",
    b"from ",
    b"10.0.0.7 ",
    b"took ",
    b"31 ms ",
    b"and ",
    b"was ",
    b"answered\n",
    b"error: ",
    b"retry ",
    b"of ",
    b"connection ",
    b"cache ",
    b"miss ",
    b"status=200 ",
    b"user=17 ",
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Content {
    /// What nothing compresses.
    Random,
    /// What compresses to a fraction.
    Text,
    /// Every second page zero, and written, so that it is there.
    HalfZero,
}

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [mib, content] = words.as_slice() else {
        bail!("usage: hog MIB random|text|half-zero");
    };
    let content = match content.as_str() {
        "random" => Content::Random,
        "text" => Content::Text,
        "half-zero" => Content::HalfZero,
        other => bail!("no such content: {other}"),
    };
    let words = mib.parse::<usize>()? * PAGES_PER_MIB * PAGE_WORDS;
    let mut space = vec![0_u64; words + PAGE_WORDS];
    // From the beginning of a page: a page that is half another's is never zero.
    let offset = space.as_ptr().align_offset(4096);
    let memory = space.get_mut(offset..offset + words).unwrap_or_default();
    for (number, page) in memory.chunks_mut(PAGE_WORDS).enumerate() {
        content.fill(number as u64, page);
    }
    let ticks = Ticks::start();
    println!("ready");
    for (number, line) in (1_u64..).zip(std::io::stdin().lock().lines()) {
        match line?.trim() {
            "gap" => println!("gap {number} {}", ticks.gap()),
            _ => match check(memory, content) {
                Ok(()) => println!("ok {number}"),
                Err(error) => println!("bad: {error:#}"),
            },
        }
    }
    Ok(())
}

/// A thread that ticks.
#[derive(Clone, Default)]
struct Ticks {
    count: Arc<AtomicU64>,
    /// In microseconds.
    largest: Arc<AtomicU64>,
}

impl Ticks {
    fn start() -> Self {
        let ticks = Self::default();
        let own = ticks.clone();
        let _thread = std::thread::spawn(move || own.run());
        ticks
    }

    fn run(&self) {
        let mut last = Instant::now();
        loop {
            std::thread::sleep(TICK);
            let now = Instant::now();
            let gap = u64::try_from((now - last).as_micros()).unwrap_or(u64::MAX);
            let _before = self.largest.fetch_max(gap, Ordering::SeqCst);
            let _before = self.count.fetch_add(1, Ordering::SeqCst);
            last = now;
        }
    }

    /// The largest gap since the last call. Waits for a tick: whoever asks may be awake before the thread that stood still as long.
    fn gap(&self) -> u64 {
        let count = self.count.load(Ordering::SeqCst);
        while self.count.load(Ordering::SeqCst) == count {
            std::thread::sleep(TICK);
        }
        self.largest.swap(0, Ordering::SeqCst)
    }
}

fn check(memory: &[u64], content: Content) -> Result<()> {
    let mut expected = [0; PAGE_WORDS];
    for (number, page) in memory.chunks(PAGE_WORDS).enumerate() {
        content.fill(number as u64, &mut expected);
        ensure!(page == expected, "page {number} changed");
    }
    Ok(())
}

impl Content {
    /// Writes every word of the page of this number.
    fn fill(self, number: u64, page: &mut [u64]) {
        let mut state = (number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        match self {
            Self::HalfZero if number.is_multiple_of(2) => page.fill(std::hint::black_box(0)),
            Self::Random | Self::HalfZero => page.fill_with(|| next(&mut state)),
            Self::Text => {
                let mut text = std::iter::repeat_with(|| word(next(&mut state))).flatten();
                page.fill_with(|| {
                    let mut bytes = [0; size_of::<u64>()];
                    bytes.fill_with(|| text.next().copied().unwrap_or_default());
                    u64::from_ne_bytes(bytes)
                });
            }
        }
    }
}

/// Xorshift: not for secrets, but nothing compresses it.
fn next(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

fn word(number: u64) -> &'static [u8] {
    // The high bits are the better ones.
    let index = usize::try_from(number >> 60).unwrap_or_default();
    WORDS.get(index).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_that_changed_is_noticed() {
        for content in [Content::Random, Content::Text, Content::HalfZero] {
            let mut memory = vec![7; 3 * PAGE_WORDS];
            for (number, page) in memory.chunks_mut(PAGE_WORDS).enumerate() {
                content.fill(number as u64, page);
            }
            assert!(check(&memory, content).is_ok(), "{content:?}");
            memory[2 * PAGE_WORDS + 3] ^= 1;
            assert!(check(&memory, content).is_err(), "{content:?}");
        }
    }

    #[test]
    fn half_of_half_zero_is_zero_and_none_of_the_others() {
        for (content, expected) in [(Content::Random, 0), (Content::Text, 0), (Content::HalfZero, 8)] {
            let mut page = [7; PAGE_WORDS];
            let zero = (0..16)
                .filter(|number| {
                    content.fill(*number, &mut page);
                    page == [0; PAGE_WORDS]
                })
                .count();
            assert_eq!(zero, expected, "{content:?}");
        }
    }
}
