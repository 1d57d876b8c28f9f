//! From the bytes of an archive to the bytes of its tar.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::rc::Rc;

use flate2::bufread::{MultiGzDecoder, ZlibDecoder};
use lz4_flex::frame::FrameDecoder;

use super::form::Form;
use super::frames::{self, FrameReader};

/// Bytes read of an archive at once.
const READ_BYTES: usize = 256 << 10;

/// Zstandard's largest window, as a power of two: 128 MiB, what its own tool takes unasked. A file may ask for more,
/// and that is memory.
const WINDOW_LOG_MAX: u32 = 27;

/// Reads the tar in an archive. An end of this reader is an end of the file too: what follows the compressed part
/// is an error.
pub struct Decoder {
    inner: Inner,
    position: Rc<Cell<u64>>,
    /// Bytes of the tar that were read or passed over.
    used: u64,
}

enum Inner {
    Stream(Box<dyn Read>),
    Plain(BufReader<Counted>),
    Frames(FrameReader),
}

impl Decoder {
    /// A reader of a file of a form; a directory is none, and taken as a plain tar.
    pub fn new(form: Form, file: File) -> io::Result<Self> {
        let position = Rc::new(Cell::new(0));
        if form == Form::Zstd
            && let Some(frames) = frames::find_index(&file)?
        {
            let inner = Inner::Frames(FrameReader::new(file, frames, Rc::clone(&position))?);
            return Ok(Self::of(inner, position));
        }
        let counted = Counted {
            file,
            is_at_end: false,
            position: Rc::clone(&position),
        };
        let reader = BufReader::with_capacity(READ_BYTES, counted);
        let stream: Box<dyn Read> = match form {
            Form::Directory | Form::Tar => return Ok(Self::of(Inner::Plain(reader), position)),
            Form::Gzip => Box::new(MultiGzDecoder::new(reader)),
            Form::Zlib => Box::new(Zlib(ZlibDecoder::new(reader))),
            Form::Lz4 => Box::new(Lz4 {
                decoder: FrameDecoder::new(reader),
                is_in_frame: false,
            }),
            Form::Zstd => {
                let mut decoder = zstd::stream::read::Decoder::with_buffer(reader)?;
                decoder.window_log_max(WINDOW_LOG_MAX)?;
                Box::new(decoder)
            }
        };
        Ok(Self::of(Inner::Stream(stream), position))
    }

    fn of(inner: Inner, position: Rc<Cell<u64>>) -> Self {
        Self {
            inner,
            position,
            used: 0,
        }
    }

    /// Whether [`Decoder::pass`] is possible: what it passes over needs not be read.
    pub fn can_pass(&self) -> bool {
        !matches!(self.inner, Inner::Stream(_))
    }

    /// Passes over bytes of the tar without looking at them. Past the end of a plain tar it is the next read that says so.
    pub fn pass(&mut self, bytes: u64) -> io::Result<()> {
        match &mut self.inner {
            Inner::Stream(_) => return Err(io::ErrorKind::Unsupported.into()),
            Inner::Plain(reader) => {
                let buffered = reader.buffer().len();
                let consumed = usize::try_from(bytes).unwrap_or(usize::MAX).min(buffered);
                reader.consume(consumed);
                reader.get_mut().pass(bytes - consumed as u64)?;
            }
            Inner::Frames(frames) => frames.pass(bytes)?,
        }
        self.used = self.used.saturating_add(bytes);
        Ok(())
    }

    /// Bytes of the tar that were read or passed over.
    pub fn used(&self) -> u64 {
        self.used
    }

    /// Bytes of the archive used so far.
    pub fn position(&self) -> u64 {
        self.position.get()
    }
}

impl Read for Decoder {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = match &mut self.inner {
            Inner::Stream(stream) => stream.read(buffer),
            Inner::Plain(reader) => reader.read(buffer),
            Inner::Frames(frames) => frames.read(buffer),
        }?;
        self.used += count as u64;
        Ok(count)
    }
}

/// Counts what is read of a file.
struct Counted {
    file: File,
    /// A read has found nothing more.
    is_at_end: bool,
    position: Rc<Cell<u64>>,
}

impl Counted {
    fn pass(&mut self, bytes: u64) -> io::Result<()> {
        let by = i64::try_from(bytes).map_err(|_| io::ErrorKind::InvalidData)?;
        let _at = self.file.seek(SeekFrom::Current(by))?;
        self.position.set(self.position.get().saturating_add(bytes));
        Ok(())
    }
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read(buffer)?;
        self.is_at_end = count == 0 && !buffer.is_empty();
        self.position.set(self.position.get() + count as u64);
        Ok(count)
    }
}

/// One zlib stream, and nothing after it.
struct Zlib(ZlibDecoder<BufReader<Counted>>);

impl Read for Zlib {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.0.read(buffer)?;
        if count == 0 && !buffer.is_empty() && !self.0.get_mut().fill_buf()?.is_empty() {
            return Err(trailing());
        }
        Ok(count)
    }
}

/// LZ4 frames one after the other.
struct Lz4 {
    decoder: FrameDecoder<BufReader<Counted>>,
    is_in_frame: bool,
}

impl Read for Lz4 {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        // The decoder stops at the end of each frame, and goes on with the next when asked again. Each turn uses
        // at least the header of a frame, so this ends with the file.
        while !buffer.is_empty() {
            if !self.is_in_frame && self.decoder.get_mut().fill_buf()?.is_empty() {
                return Ok(0);
            }
            self.is_in_frame = true;
            let count = self.decoder.read(buffer)?;
            if count > 0 {
                return Ok(count);
            }
            // It stops at the end of the file too, and calls that an end. A whole frame ends without looking past
            // itself, so a frame that came upon the file's end is cut.
            if self.decoder.get_ref().get_ref().is_at_end {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.is_in_frame = false;
        }
        Ok(0)
    }
}

fn trailing() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "something follows its end")
}
