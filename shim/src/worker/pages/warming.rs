//! What can be done while CRIU works and nobody wants pages yet: files that are in the kernel's cache are mapped.
//!
//! It is a tenth of the work of giving them. A processor is free for it: CRIU restores one process on one.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use super::extents::Extent;
use super::images::Memory;
use super::source::Source;

/// What is mapped at once, in bytes: 0.1 ms.
const STEP: u64 = 2 * 1024 * 1024;

/// The most that is mapped, in bytes: what comes later is mapped as it is given. The kernel's tables for it are 8 MiB.
const BYTES_MAX: u64 = 4 << 30;

/// Runs that are looked at. So many short ones have little memory between them.
const RUNS_MAX: usize = 64 * 1024;

/// A thread that does it, until this is dropped.
#[derive(Debug)]
pub(super) struct Warming(Arc<AtomicBool>);

impl Warming {
    /// Starts it, in the order in which the memory is given.
    pub(super) fn start(memories: &[Memory]) -> Self {
        let stopped = Arc::new(AtomicBool::new(false));
        let pieces = pieces(memories);
        let is_stopped = Arc::clone(&stopped);
        let warm = move || {
            for (source, piece) in pieces {
                if is_stopped.load(Ordering::Relaxed) || !source.warm(piece) {
                    return;
                }
            }
        };
        // Without it all is given as well.
        let _started = thread::Builder::new().name("warm".to_owned()).spawn(warm);
        Self(stopped)
    }
}

impl Drop for Warming {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn pieces(memories: &[Memory]) -> Vec<(Arc<dyn Source>, Extent)> {
    let runs = memories
        .iter()
        .flat_map(|memory| memory.missing.iter().map(move |run| (&memory.pages, run)));
    let (mut pieces, mut sum) = (Vec::new(), 0);
    for (source, run) in runs.take(RUNS_MAX) {
        let mut done = 0;
        while done < run.len && sum < BYTES_MAX {
            let piece = Extent {
                start: run.start + done,
                len: STEP.min(run.len - done),
                offset: run.offset + done,
            };
            pieces.push((Arc::clone(source), piece));
            done += piece.len;
            sum += piece.len;
        }
    }
    pieces
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::super::extents::Extents;
    use super::super::source::PagesFile;
    use super::*;

    #[test]
    fn all_runs_are_cut_into_steps_up_to_a_bound() {
        let file = File::open("/dev/null").expect("open");
        let pages: Arc<dyn Source> = Arc::new(PagesFile::new(file, 0));
        let memory = |runs: &[(u64, u64)]| {
            let mut missing = Extents::default();
            for &(start, len) in runs {
                assert!(missing.add(Extent {
                    start,
                    len,
                    offset: start
                }));
            }
            Memory {
                pid: 1,
                missing,
                file: std::path::PathBuf::new(),
                pages: Arc::clone(&pages),
            }
        };
        let found = pieces(&[memory(&[(0, 4096), (8192, STEP + 4096)]), memory(&[(STEP, STEP)])]);
        let found: Vec<_> = found.iter().map(|(_, piece)| (piece.offset, piece.len)).collect();
        assert_eq!(
            found,
            [(0, 4096), (8192, STEP), (8192 + STEP, 4096), (STEP, STEP)]
        );
        let large = pieces(&[memory(&[(0, 1 << 40)])]);
        assert_eq!(large.iter().map(|(_, piece)| piece.len).sum::<u64>(), BYTES_MAX);
        // What is not there stops it, and is no failure.
        drop(Warming::start(&[memory(&[(0, 4096)])]));
    }
}
