//! Digests of files whose runs come in whatever order.

use std::collections::BTreeMap;

use super::memory::Chunk;

/// A digest for each file.
pub(super) type Digests = BTreeMap<usize, blake3::Hasher>;

/// Takes chunks, and keeps each until all of it is digested.
#[derive(Debug, Default)]
pub(super) struct Digester<'m> {
    digests: Digests,
    /// How far each file is.
    reached: BTreeMap<usize, u64>,
    /// Runs that are still to be digested: the chunk, and the number of the run in it.
    runs: BTreeMap<(usize, u64), (u64, usize)>,
    /// Chunks by number, with how many of their runs are left.
    chunks: BTreeMap<u64, (Chunk<'m>, usize)>,
    count: u64,
}

impl<'m> Digester<'m> {
    /// Digests what follows without a gap on what was, and gives back chunks, emptied, that are not needed any more.
    pub(super) fn take(&mut self, chunk: Chunk<'m>, mut give_back: impl FnMut(Chunk<'m>)) {
        let number = self.count;
        self.count += 1;
        let mut runs = 0;
        for (index, (file, at, _)) in chunk.runs().enumerate() {
            let _none = self.runs.insert((file, at), (number, index));
            let _known = self.reached.entry(file).or_default();
            runs += 1;
        }
        let _none = self.chunks.insert(number, (chunk, runs));
        if runs == 0 {
            self.release(number, &mut give_back);
        }
        let files: Vec<usize> = self.reached.keys().copied().collect();
        for file in files {
            while self.digest_next(file, &mut give_back) {}
        }
    }

    fn digest_next(&mut self, file: usize, give_back: &mut impl FnMut(Chunk<'m>)) -> bool {
        let reached = self.reached.entry(file).or_default();
        let Some((number, index)) = self.runs.remove(&(file, *reached)) else {
            return false;
        };
        let Some((chunk, left)) = self.chunks.get_mut(&number) else {
            return false;
        };
        if let Some((_, _, bytes)) = chunk.runs().nth(index) {
            let _ = self.digests.entry(file).or_default().update(bytes);
            *reached += bytes.len() as u64;
        }
        *left -= 1;
        if *left == 0 {
            self.release(number, give_back);
        }
        true
    }

    fn release(&mut self, number: u64, give_back: &mut impl FnMut(Chunk<'m>)) {
        if let Some((mut chunk, _)) = self.chunks.remove(&number) {
            chunk.clear();
            give_back(chunk);
        }
    }

    /// What there is.
    pub(super) fn finish(self) -> Digests {
        self.digests
    }
}

#[cfg(test)]
mod tests {
    use super::super::memory::chunks;
    use super::*;

    #[test]
    fn runs_are_digested_in_the_order_of_their_files() {
        let mut space = vec![0; 4 << 20];
        let mut all = chunks(&mut space).into_iter();
        let mut chunk = |runs: &[(usize, u64, &[u8])]| {
            let mut chunk = all.next().expect("a chunk");
            for (file, at, bytes) in runs {
                chunk.room()[..bytes.len()].copy_from_slice(bytes);
                chunk.note(*file, *at, bytes.len());
            }
            chunk
        };
        let mut digester = Digester::default();
        let mut given = 0;
        let second = chunk(&[(0, 3, b"def"), (1, 0, b"x"), (0, 9, b"jkl")]);
        let first = chunk(&[(0, 0, b"abc"), (0, 6, b"ghi")]);
        digester.take(second, |_| given += 1);
        assert_eq!(given, 0, "a gap is before it");
        digester.take(chunk(&[]), |_| given += 1);
        assert_eq!(given, 1, "nothing is in it");
        digester.take(first, |_| given += 1);
        assert_eq!(given, 3);
        let digests = digester.finish();
        for (file, bytes) in [(0, &b"abcdefghijkl"[..]), (1, b"x")] {
            assert_eq!(digests[&file].finalize(), blake3::hash(bytes), "{file}");
        }
    }
}
