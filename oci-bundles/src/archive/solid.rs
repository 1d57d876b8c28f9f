//! What is nothing but zeros, and files without it.

use std::fs::File;
use std::os::unix::fs::FileExt;

/// The stretch of zeros, in bytes, that becomes a hole instead of data: a page, and a file system's block.
pub const HOLE_BYTES: usize = 4096;

/// There is nothing but zeros in it.
pub fn is_zero(bytes: &[u8]) -> bool {
    // Seen as wide words the compiler makes it as fast as memory.
    let mut words = bytes.chunks_exact(64);
    words.all(|word| word.iter().fold(0, |all, byte| all | byte) == 0)
        && words.remainder().iter().all(|byte| *byte == 0)
}

/// Writes data at an offset without its zero pages; the bytes that were written.
pub fn write_solid(file: &File, data: &[u8], at: u64) -> std::io::Result<u64> {
    let mut written = 0;
    let mut start = 0;
    while start < data.len() {
        let rest = data.get(start..).unwrap_or_default();
        let pages = |rest: &[u8], zero: bool| {
            let run = rest.chunks(HOLE_BYTES).take_while(|page| is_zero(page) == zero);
            run.map(<[u8]>::len).sum::<usize>()
        };
        let hole = pages(rest, true);
        let rest = rest.get(hole..).unwrap_or_default();
        let solid = pages(rest, false);
        let begin = at + (start + hole) as u64;
        file.write_all_at(rest.get(..solid).unwrap_or_default(), begin)?;
        written += solid as u64;
        start += hole + solid;
    }
    Ok(written)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_are_known_wherever_the_one_other_byte_is() {
        for len in [0, 1, 63, 64, 65, 4096, 5000] {
            let mut bytes = vec![0; len];
            assert!(is_zero(&bytes), "{len}");
            for at in 0..len {
                bytes[at] = 1;
                assert!(!is_zero(&bytes), "{at} of {len}");
                bytes[at] = 0;
            }
        }
    }
}
