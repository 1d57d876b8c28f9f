//! The index of a Zstandard file whose frames can be read alone, and a reader that uses it on all processors.
//!
//! It is the seekable format of the Zstandard project: a skippable frame at the end, which every decoder passes over.
//!
//! ```text
//!  frame 0 | frame 1 | … | 5e 2a 4d 18, length | packed, raw | packed, raw | … | count, descriptor, b1 ea 92 8f
//! ```

use std::cell::Cell;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::rc::Rc;
use std::sync::Arc;

use zstd::bulk::Decompressor;

use super::crew::Crew;

const SKIPPABLE_MAGIC: u32 = 0x184d_2a5e;
const SEEKABLE_MAGIC: u32 = 0x8f92_eab1;
const FOOTER_BYTES: u64 = 9;
const SKIPPABLE_HEADER_BYTES: u64 = 8;

/// Frames in an index; with frames of 256 KiB that is a checkpoint of 4 TiB. An entry takes 16 bytes of memory here.
const FRAMES_MAX: u64 = 1 << 24;

/// The largest frame that is read as one, in bytes before and after compression: some of these are in memory for
/// each processor. A file with larger ones is read as a stream.
const FRAME_BYTES_MAX: u32 = 16 << 20;

/// One frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame {
    /// Its bytes in the file.
    packed: u32,
    /// The bytes it gives.
    raw: u32,
}

impl Frame {
    /// A frame of that many bytes in the file that gives so many.
    pub fn new(packed: usize, raw: usize) -> io::Result<Self> {
        let fits = |size: usize| u32::try_from(size).map_err(|_| invalid("a frame of 4 GiB or more"));
        Ok(Self {
            packed: fits(packed)?,
            raw: fits(raw)?,
        })
    }

    /// Its bytes in the file.
    pub fn packed(self) -> u64 {
        u64::from(self.packed)
    }

    /// The bytes it gives.
    pub fn raw(self) -> u64 {
        u64::from(self.raw)
    }
}

/// The index as it stands in the file.
pub fn index(frames: &[Frame]) -> io::Result<Vec<u8>> {
    let too_many = || invalid("too many frames for an index");
    let count = u32::try_from(frames.len()).map_err(|_| too_many())?;
    let length = u64::from(count) * 8 + FOOTER_BYTES;
    let length = u32::try_from(length).map_err(|_| too_many())?;
    let mut bytes = Vec::new();
    bytes.extend(SKIPPABLE_MAGIC.to_le_bytes());
    bytes.extend(length.to_le_bytes());
    for frame in frames {
        bytes.extend(frame.packed.to_le_bytes());
        bytes.extend(frame.raw.to_le_bytes());
    }
    bytes.extend(count.to_le_bytes());
    // No checksums in the index: the frames have their own.
    bytes.push(0);
    bytes.extend(SEEKABLE_MAGIC.to_le_bytes());
    Ok(bytes)
}

/// The index of a file, if it has one with frames that can be read as one each. Everything in it is checked against
/// the file's length, so that the frames cover it without a gap: what is read by it is what a decoder reads that
/// does not know of it.
pub fn find_index(file: &File) -> io::Result<Option<Vec<Frame>>> {
    let len = file.metadata()?.len();
    let Some(footer_at) = len.checked_sub(FOOTER_BYTES) else {
        return Ok(None);
    };
    let mut footer = [0; FOOTER_BYTES as usize];
    file.read_exact_at(&mut footer, footer_at)?;
    let [c0, c1, c2, c3, descriptor, m0, m1, m2, m3] = footer;
    if u32::from_le_bytes([m0, m1, m2, m3]) != SEEKABLE_MAGIC {
        return Ok(None);
    }
    let count = u64::from(u32::from_le_bytes([c0, c1, c2, c3]));
    // The highest bit: each entry has a checksum too. The next five are for later formats.
    if descriptor & 0x7c != 0 || count > FRAMES_MAX {
        return Ok(None);
    }
    let entry_bytes = if descriptor & 0x80 == 0 { 8 } else { 12 };
    let table_bytes = count * entry_bytes;
    let index_bytes = SKIPPABLE_HEADER_BYTES + table_bytes + FOOTER_BYTES;
    let index_at = len
        .checked_sub(index_bytes)
        .ok_or_else(|| invalid("its index is longer than the file"))?;
    let mut table = vec![0; (SKIPPABLE_HEADER_BYTES + table_bytes) as usize];
    file.read_exact_at(&mut table, index_at)?;
    parse_index(&table, entry_bytes as usize, index_at)
}

/// The frames of an index, without its footer, that stands at an offset.
fn parse_index(index: &[u8], entry_bytes: usize, index_at: u64) -> io::Result<Option<Vec<Frame>>> {
    let number = |bytes: &[u8]| bytes.first_chunk().map(|bytes| u32::from_le_bytes(*bytes));
    let (header, table) = index.split_at(index.len().min(SKIPPABLE_HEADER_BYTES as usize));
    let length = header.get(4..).and_then(number).map(u64::from);
    if number(header) != Some(SKIPPABLE_MAGIC) || length != Some(table.len() as u64 + FOOTER_BYTES) {
        return Err(invalid("its index does not begin where it should"));
    }
    let mut frames = Vec::with_capacity(table.len() / entry_bytes);
    let mut covered = 0u64;
    for entry in table.chunks_exact(entry_bytes) {
        let (Some(packed), Some(raw)) = (number(entry), entry.get(4..).and_then(number)) else {
            return Err(invalid("its index is cut"));
        };
        if packed > FRAME_BYTES_MAX || raw > FRAME_BYTES_MAX {
            return Ok(None);
        }
        covered += u64::from(packed);
        frames.push(Frame { packed, raw });
    }
    if covered != index_at {
        return Err(invalid("its index does not cover its frames"));
    }
    Ok(Some(frames))
}

/// What a frame gives that is there in a file, its checksum compared. `packed` is room.
pub fn open(
    frame: Frame,
    at: u64,
    file: &File,
    decompressor: &mut Decompressor<'_>,
    packed: &mut Vec<u8>,
) -> io::Result<Vec<u8>> {
    packed.resize(frame.packed as usize, 0);
    file.read_exact_at(packed, at)?;
    let raw = decompressor.decompress(packed, frame.raw as usize)?;
    if raw.len() != frame.raw as usize {
        return Err(invalid("a frame is not as long as the index says"));
    }
    Ok(raw)
}

/// The end of a frame in the file, and its decompressed bytes.
type Opened = (u64, Vec<u8>);

/// Reads all frames one after the other, decompressed ahead by all processors.
pub struct FrameReader {
    frames: std::vec::IntoIter<Frame>,
    next_at: u64,
    /// Takes where a frame is, gives where it ends and what is in it.
    crew: Crew<(u64, Frame), io::Result<Opened>>,
    current: Vec<u8>,
    used: usize,
    position: Rc<Cell<u64>>,
}

impl FrameReader {
    /// A reader of a file with that index. `position` is kept at the bytes of the file that were used.
    pub fn new(file: File, frames: Vec<Frame>, position: Rc<Cell<u64>>) -> io::Result<Self> {
        let file = Arc::new(file);
        let crew = Crew::new(|| {
            let file = Arc::clone(&file);
            let mut decompressor = Decompressor::new()?;
            let mut packed = Vec::new();
            Ok(Box::new(move |(at, frame): (u64, Frame)| {
                let raw = open(frame, at, &file, &mut decompressor, &mut packed)?;
                Ok((at + frame.packed(), raw))
            }))
        })?;
        Ok(Self {
            frames: frames.into_iter(),
            next_at: 0,
            crew,
            current: Vec::new(),
            used: 0,
            position,
        })
    }

    /// Passes over bytes that it would give; frames that lie within them are not read, unless they are already.
    pub fn pass(&mut self, bytes: u64) -> io::Result<()> {
        let mut rest = bytes;
        while rest > 0 {
            let here = self.current.len() - self.used;
            if here > 0 {
                let passed = usize::try_from(rest).unwrap_or(usize::MAX).min(here);
                self.used += passed;
                rest -= passed as u64;
                continue;
            }
            if self.take()? {
                continue;
            }
            while let Some(frame) = self.frames.as_slice().first()
                && frame.raw() <= rest
            {
                rest -= frame.raw();
                self.next_at += frame.packed();
                let _passed = self.frames.next();
            }
            self.position.set(self.next_at);
            if rest > 0 && !self.advance()? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(())
    }

    /// Makes the next frame with something in it the current one; false at the end.
    fn advance(&mut self) -> io::Result<bool> {
        while self.used == self.current.len() {
            while !self.crew.is_full()
                && let Some(frame) = self.frames.next()
            {
                self.crew.give((self.next_at, frame))?;
                self.next_at += frame.packed();
            }
            if !self.take()? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Makes the next of those that are under way the current one; false if there are none.
    fn take(&mut self) -> io::Result<bool> {
        let Some(result) = self.crew.take()? else {
            return Ok(false);
        };
        let (end, raw) = result?;
        self.position.set(end);
        self.current = raw;
        self.used = 0;
        Ok(true)
    }
}

impl Read for FrameReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() || !self.advance()? {
            return Ok(0);
        }
        let mut rest = self.current.get(self.used..).unwrap_or_default();
        let count = rest.read(buffer)?;
        self.used += count;
        Ok(count)
    }
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// The index of any bytes: every frame that it names is among them.
#[cfg(any(test, fuzzing))]
pub fn read_any(bytes: &[u8], dir: &std::path::Path) {
    let file = crate::fuzzing::file_of(bytes, dir);
    if let Ok(Some(found)) = find_index(&file) {
        let packed: u64 = found.iter().map(|frame| u64::from(frame.packed)).sum();
        assert!(packed <= bytes.len() as u64, "{packed}");
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    /// A file of two frames, one of them empty, and what an index says of them.
    fn with_index(index: &[u8]) -> (File, Vec<u8>) {
        let mut bytes = zstd::bulk::compress(&[7; 5000], 1).unwrap();
        bytes.extend(zstd::bulk::compress(&[], 1).unwrap());
        bytes.extend(zstd::bulk::compress(b"the end", 1).unwrap());
        bytes.extend(index);
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&bytes).unwrap();
        (file, bytes)
    }

    fn true_frames() -> Vec<Frame> {
        let one = |raw: &[u8]| Frame::new(zstd::bulk::compress(raw, 1).unwrap().len(), raw.len()).unwrap();
        vec![one(&[7; 5000]), one(&[]), one(b"the end")]
    }

    fn read(file: File, frames: Vec<Frame>) -> io::Result<Vec<u8>> {
        let mut all = Vec::new();
        let position = Rc::new(Cell::new(0));
        let _count = FrameReader::new(file, frames, position)?.read_to_end(&mut all)?;
        Ok(all)
    }

    #[test]
    fn an_index_is_found_as_it_was_written() {
        let frames = true_frames();
        let (file, bytes) = with_index(&index(&frames).unwrap());
        assert_eq!(find_index(&file).unwrap(), Some(frames.clone()));
        let all = read(file, frames).unwrap();
        assert_eq!(all, [&[7; 5000], &b"the end"[..]].concat());
        // A decoder that does not know of it reads the same.
        assert_eq!(zstd::stream::decode_all(&bytes[..]).unwrap(), all);
        assert_eq!(find_index(&with_index(b"").0).unwrap(), None);
        assert_eq!(find_index(&tempfile::tempfile().unwrap()).unwrap(), None);
    }

    #[test]
    fn an_index_that_lies_is_an_error() {
        let lies: [fn(&mut Vec<Frame>); 4] = [
            |frames| frames[0].packed += 1,
            |frames| frames[0].raw += 1,
            |frames| frames[2].raw -= 1,
            |frames| frames[0].raw = 0,
        ];
        for (number, lie) in lies.into_iter().enumerate() {
            let mut frames = true_frames();
            lie(&mut frames);
            let (file, _) = with_index(&index(&frames).unwrap());
            let result = find_index(&file).and_then(|frames| read(file, frames.unwrap()));
            assert!(result.is_err(), "lie {number}");
        }
        // Borders between frames that are none.
        let mut frames = true_frames();
        frames[0].packed += 1;
        frames[1].packed -= 1;
        let (file, _) = with_index(&index(&frames).unwrap());
        assert!(read(file, frames).is_err());
    }

    #[test]
    fn an_index_is_bounded_by_its_file() {
        let good = index(&true_frames()).unwrap();
        let changed = |at_from_end: usize, byte: u8| {
            let mut bytes = good.clone();
            let at = bytes.len() - at_from_end;
            bytes[at] = byte;
            find_index(&with_index(&bytes).0)
        };
        // The magic, reserved bits, a count beyond all bounds: no index of ours.
        assert_eq!(changed(1, 0).unwrap(), None);
        assert_eq!(changed(5, 0x04).unwrap(), None);
        assert_eq!(changed(6, 0x7f).unwrap(), None);
        // A count past the file's beginning, one that fits but is wrong, checksums that are not there.
        assert!(changed(8, 0x7f).is_err());
        assert!(changed(9, 2).is_err());
        assert!(changed(5, 0x80).is_err());
        // The skippable frame that it must be in.
        assert!(changed(good.len(), 0).is_err());
        assert!(changed(good.len() - 4, 0).is_err());
        // Frames too large to be taken whole are read as a stream.
        let mut frames = true_frames();
        frames[0].raw = FRAME_BYTES_MAX + 1;
        let (file, _) = with_index(&index(&frames).unwrap());
        assert_eq!(find_index(&file).unwrap(), None);
    }
}
