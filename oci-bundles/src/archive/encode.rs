//! From the bytes of a tar to the bytes of an archive.
//!
//! gzip, LZ4 and Zstandard let compressed pieces follow each other, and every tool reads on over the seams. So the
//! tar is cut into pieces that all processors compress at once. zlib has no such thing and goes through one thread.

use std::fs::File;
use std::io::{self, Write};

use flate2::Compression;
use flate2::write::{GzEncoder, ZlibEncoder};
use lz4_flex::frame::{BlockMode, BlockSize, FrameEncoder, FrameInfo};
use zstd::zstd_safe::CParameter;

use super::crew::{Crew, Worker};
use super::form::Form;
use super::frames::{self, Frame};
use super::solid::is_zero;

/// Bytes of the tar in a piece: small, so that single pages of memory are quick to get. At the levels below, larger
/// ones save nothing: 1 GiB of text-like memory becomes 0.373 GiB in pieces of 256 KiB and of 4 MiB.
const PIECE_BYTES: usize = 256 << 10;

/// Zstandard's level. Checkpoints are written once and mostly never read: what counts is to be quick.
const ZSTD_LEVEL: i32 = 1;

/// The shortest repetition that Zstandard looks for: its longest choice. Most of its time goes into noting down repetitions, and so they are fewer and
/// longer: text-like memory is a twelfth quicker and a twentieth smaller than with the level's own, that of a compiler as large.
const ZSTD_MIN_MATCH: u32 = 7;

/// gzip's and zlib's level. The first is half as quick again, and so simple that random bytes become 5 % more.
const DEFLATE_LEVEL: u32 = 2;

/// A piece of which Zstandard leaves more than this, in hundredths, is stored by gzip: deflate tries at 45 MiB/s on what
/// Zstandard gives up at a hundred times the speed.
const DENSE_PERCENT: usize = 97;

/// Takes a tar and writes an archive.
pub enum Encoder {
    /// As it is.
    Plain(File),
    /// Through one thread.
    Zlib(Box<ZlibEncoder<File>>),
    /// In pieces.
    Pieces(Pieces),
}

impl Encoder {
    /// An encoder of a form; a directory is none, and taken as a plain tar.
    pub fn new(form: Form, file: File) -> io::Result<Self> {
        Ok(match form {
            Form::Directory | Form::Tar => Self::Plain(file),
            Form::Zlib => Self::Zlib(Box::new(ZlibEncoder::new(file, Compression::new(DEFLATE_LEVEL)))),
            Form::Gzip => Self::Pieces(Pieces::new(file, false, || {
                let mut taster = zstd::bulk::Compressor::new(ZSTD_LEVEL)?;
                Ok(keep_zeros(move |piece| {
                    let is_dense = taster.compress(piece)?.len() * 100 > piece.len() * DENSE_PERCENT;
                    let level = if is_dense { 0 } else { DEFLATE_LEVEL };
                    gzip(piece, Compression::new(level))
                }))
            })?),
            Form::Lz4 => Self::Pieces(Pieces::new(file, false, || Ok(keep_zeros(lz4)))?),
            Form::Zstd => Self::Pieces(Pieces::new(file, true, || {
                let mut compressor = zstd::bulk::Compressor::new(ZSTD_LEVEL)?;
                compressor.include_checksum(true)?;
                compressor.set_parameter(CParameter::MinMatch(ZSTD_MIN_MATCH))?;
                Ok(keep_zeros(move |piece| compressor.compress(piece)))
            })?),
        })
    }

    /// Writes what is still held back, and gives the file back.
    pub fn finish(self) -> io::Result<File> {
        match self {
            Self::Plain(file) => Ok(file),
            Self::Zlib(encoder) => encoder.finish(),
            Self::Pieces(pieces) => pieces.finish(),
        }
    }
}

impl Write for Encoder {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(file) => file.write(bytes),
            Self::Zlib(encoder) => encoder.write(bytes),
            Self::Pieces(pieces) => pieces.write(bytes),
        }
    }

    /// Does nothing: what is held back is written by [`Encoder::finish`].
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A piece after its compression.
struct Packed {
    bytes: Vec<u8>,
    raw: usize,
}

/// The pieces of an archive that are being filled, compressed and written.
pub struct Pieces {
    file: File,
    crew: Crew<Vec<u8>, io::Result<Packed>>,
    piece: Vec<u8>,
    /// The index that is to stand at the end; absent for forms without.
    frames: Option<Vec<Frame>>,
}

impl Pieces {
    fn new(
        file: File,
        indexed: bool,
        make_worker: impl Fn() -> io::Result<Worker<Vec<u8>, io::Result<Packed>>>,
    ) -> io::Result<Self> {
        Ok(Self {
            file,
            crew: Crew::new(make_worker)?,
            piece: Vec::with_capacity(PIECE_BYTES),
            frames: indexed.then(Vec::new),
        })
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let (now, _later) = bytes.split_at(bytes.len().min(PIECE_BYTES - self.piece.len()));
        self.piece.extend_from_slice(now);
        if self.piece.len() == PIECE_BYTES {
            self.send()?;
        }
        Ok(now.len())
    }

    fn send(&mut self) -> io::Result<()> {
        if self.crew.is_full() {
            let _was_one = self.write_oldest()?;
        }
        let next = Vec::with_capacity(PIECE_BYTES);
        self.crew.give(std::mem::replace(&mut self.piece, next))
    }

    /// Writes the oldest piece that is under way; false when there is none.
    fn write_oldest(&mut self) -> io::Result<bool> {
        let Some(packed) = self.crew.take()? else {
            return Ok(false);
        };
        let packed = packed?;
        self.file.write_all(&packed.bytes)?;
        if let Some(frames) = &mut self.frames {
            frames.push(Frame::new(packed.bytes.len(), packed.raw)?);
        }
        Ok(true)
    }

    fn finish(mut self) -> io::Result<File> {
        if !self.piece.is_empty() {
            self.send()?;
        }
        while self.write_oldest()? {}
        if let Some(frames) = &self.frames {
            self.file.write_all(&frames::index(frames)?)?;
        }
        Ok(self.file)
    }
}

/// A worker that compresses; pieces that are all zeros, as half of the memory of many a process is, are
/// compressed once.
fn keep_zeros(
    mut compress: impl FnMut(&[u8]) -> io::Result<Vec<u8>> + Send + 'static,
) -> Worker<Vec<u8>, io::Result<Packed>> {
    let mut zeros: Option<Vec<u8>> = None;
    Box::new(move |piece: Vec<u8>| {
        let raw = piece.len();
        let bytes = if raw == PIECE_BYTES && is_zero(&piece) {
            match &zeros {
                Some(zeros) => zeros.clone(),
                None => zeros.insert(compress(&piece)?).clone(),
            }
        } else {
            compress(&piece)?
        };
        Ok(Packed { bytes, raw })
    })
}

fn gzip(piece: &[u8], level: Compression) -> io::Result<Vec<u8>> {
    let packed = Vec::with_capacity(piece.len() / 2);
    let mut encoder = GzEncoder::new(packed, level);
    encoder.write_all(piece)?;
    encoder.finish()
}

fn lz4(piece: &[u8]) -> io::Result<Vec<u8>> {
    let info = FrameInfo::new()
        .block_mode(BlockMode::Independent)
        .block_size(BlockSize::Max256KB)
        .content_checksum(true)
        .content_size(Some(piece.len() as u64));
    let packed = Vec::with_capacity(piece.len() / 2);
    let mut encoder = FrameEncoder::with_frame_info(info, packed);
    encoder.write_all(piece)?;
    encoder.finish().map_err(io::Error::from)
}
