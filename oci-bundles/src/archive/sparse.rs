//! The two ways in which GNU tar says where a sparse file has data.

use tar::{GnuExtSparseHeader, GnuSparseHeader, Header};

use super::entry::Span;
use super::limits::SPARSE_PARTS_MAX;
use super::writer::BLOCK_BYTES;

/// Format 1.0: decimal lines in whole blocks before the data. The first is how many parts there are, then come a
/// place and a length for each.
#[derive(Debug, Default)]
pub struct TextMap {
    numbers: Vec<u64>,
    /// How many are to come in all.
    count: Option<u64>,
    digits: u64,
    has_digit: bool,
}

impl TextMap {
    /// Takes the next block in; true when the map is complete. `None`: it is no map.
    pub fn take(&mut self, block: &[u8; BLOCK_BYTES]) -> Option<bool> {
        for byte in block {
            if self.is_complete() {
                break;
            }
            match byte {
                b'0'..=b'9' => {
                    let digit = u64::from(byte - b'0');
                    self.digits = self.digits.checked_mul(10)?.checked_add(digit)?;
                    self.has_digit = true;
                }
                b'\n' if self.has_digit => {
                    match self.count {
                        None if self.digits > SPARSE_PARTS_MAX => return None,
                        None => self.count = Some(self.digits * 2),
                        Some(_) => self.numbers.push(self.digits),
                    }
                    (self.digits, self.has_digit) = (0, false);
                }
                _ => return None,
            }
        }
        Some(self.is_complete())
    }

    /// The parts of a file of that size with so much data.
    pub fn spans(&self, size: u64, stored: u64) -> Option<Vec<Span>> {
        spans(&self.numbers, size, stored)
    }

    fn is_complete(&self) -> bool {
        self.count.is_some_and(|count| self.numbers.len() as u64 == count)
    }
}

/// The older format, which `tar --sparse` writes to this day: four parts in the header, 21 in each block after it.
#[derive(Debug)]
pub struct OldMap {
    numbers: Vec<u64>,
    size: u64,
}

impl OldMap {
    /// What the header has, and whether a block follows.
    pub fn of(header: &Header) -> Option<(Self, bool)> {
        let header = header.as_gnu()?;
        let size = header.real_size().ok()?;
        let mut map = Self {
            numbers: Vec::new(),
            size,
        };
        map.add(&header.sparse)?;
        Some((map, header.is_extended()))
    }

    /// Takes the next block in; true if another follows. `None`: it is no map.
    pub fn take(&mut self, block: &[u8; BLOCK_BYTES]) -> Option<bool> {
        let mut header = GnuExtSparseHeader::new();
        header.as_mut_bytes().copy_from_slice(block);
        self.add(header.sparse())?;
        Some(header.is_extended())
    }

    /// The size of the file, and its parts with so much data.
    pub fn spans(&self, stored: u64) -> Option<(u64, Vec<Span>)> {
        Some((self.size, spans(&self.numbers, self.size, stored)?))
    }

    fn add(&mut self, parts: &[GnuSparseHeader]) -> Option<()> {
        for part in parts.iter().filter(|part| !part.is_empty()) {
            if self.numbers.len() as u64 >= SPARSE_PARTS_MAX * 2 {
                return None;
            }
            self.numbers.extend([part.offset().ok()?, part.length().ok()?]);
        }
        Some(())
    }
}

/// Pairs of numbers as parts of a file of that size with so much data: in order, apart from each other.
fn spans(numbers: &[u64], size: u64, stored: u64) -> Option<Vec<Span>> {
    let mut parts = Vec::with_capacity(numbers.len() / 2);
    let (mut end, mut sum) = (0u64, 0u64);
    for pair in numbers.chunks_exact(2) {
        let [at, len] = *pair else { return None };
        if at < end {
            return None;
        }
        end = at.checked_add(len)?;
        sum = sum.checked_add(len)?;
        // GNU tar marks a hole at the end by an empty part there.
        if len > 0 {
            parts.push(Span { at, len });
        }
    }
    (end <= size && sum == stored).then_some(parts)
}
