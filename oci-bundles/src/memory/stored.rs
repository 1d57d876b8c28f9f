//! A gzip stream that compresses nothing (RFC 1951, 3.2.4; RFC 1952).

use std::io::{self, Write};

use flate2::Crc;

/// Magic, deflate, no flags, no time, no level, made by Unix.
const HEADER: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3];

/// The most that a block has: its length takes 16 bits.
const BLOCK_BYTES: usize = 0xffff;

/// Blocks written at once: a megabyte takes as long for each byte as larger ones do, and stays in a processor's cache.
const BLOCKS: usize = 16;

/// Writes a gzip stream of blocks that are stored. Without [`Self::finish`] it is cut, and readers say so.
#[derive(Debug)]
pub struct Stored<W> {
    out: W,
    crc: Crc,
    buffer: Vec<u8>,
    /// Where the length of the block that is filled stands in the buffer.
    block: usize,
}

impl<W: Write> Stored<W> {
    /// A stream that goes there.
    ///
    /// # Errors
    /// It cannot be written to.
    pub fn new(mut out: W) -> io::Result<Self> {
        out.write_all(&HEADER)?;
        let mut stored = Self {
            out,
            crc: Crc::new(),
            buffer: Vec::with_capacity(BLOCKS * (BLOCK_BYTES + 5)),
            block: 0,
        };
        stored.begin_block();
        Ok(stored)
    }

    /// Ends the stream and gives back where it went.
    ///
    /// # Errors
    /// It cannot be written to.
    pub fn finish(mut self) -> io::Result<W> {
        self.end_block(true);
        let length = self.crc.amount();
        self.buffer.extend(self.crc.sum().to_le_bytes());
        self.buffer.extend(length.to_le_bytes());
        self.out.write_all(&self.buffer)?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn begin_block(&mut self) {
        self.block = self.buffer.len();
        self.buffer.extend([0; 5]);
    }

    fn filled(&self) -> usize {
        self.buffer.len() - self.block - 5
    }

    fn end_block(&mut self, last: bool) {
        // It fits: a block is never filled above its limit.
        let length = u16::try_from(self.filled()).unwrap_or(u16::MAX);
        let [low, high] = length.to_le_bytes();
        let head = [u8::from(last), low, high, !low, !high];
        if let Some(place) = self.buffer.get_mut(self.block..self.block + 5) {
            place.copy_from_slice(&head);
        }
    }
}

impl<W: Write> Write for Stored<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.filled() == BLOCK_BYTES {
            self.end_block(false);
            if self.buffer.len() >= BLOCKS * (BLOCK_BYTES + 5) {
                self.out.write_all(&self.buffer)?;
                self.buffer.clear();
            }
            self.begin_block();
        }
        let count = bytes.len().min(BLOCK_BYTES - self.filled());
        let taken = bytes.get(..count).unwrap_or_default();
        self.crc.update(taken);
        self.buffer.extend_from_slice(taken);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use flate2::read::GzDecoder;

    use super::*;

    #[test]
    fn what_is_stored_is_read_by_any_gzip() {
        for size in [
            0,
            1,
            BLOCK_BYTES - 1,
            BLOCK_BYTES,
            BLOCK_BYTES + 1,
            40 * BLOCK_BYTES + 7,
        ] {
            let data: Vec<u8> = (0..size).map(|at| (at * 7 % 251) as u8).collect();
            let mut stored = Stored::new(Vec::new()).expect("begun");
            stored.write_all(&data).expect("written");
            let stream = stored.finish().expect("ended");
            assert!(stream.len() <= size + 5 * (size / BLOCK_BYTES + 1) + 18, "{size}");
            let mut read = Vec::new();
            let _bytes = GzDecoder::new(&stream[..]).read_to_end(&mut read).expect("read");
            assert!(read == data, "{size}");
            let cut = &stream[..stream.len() - 1];
            assert!(GzDecoder::new(cut).read_to_end(&mut read).is_err(), "{size}");
        }
    }
}
