//! From the bytes of an archive to the bytes of its tar.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
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
    inner: Box<dyn Read>,
    position: Rc<Cell<u64>>,
}

impl Decoder {
    /// A reader of a file of a form; a directory is none, and taken as a plain tar.
    pub fn new(form: Form, file: File) -> io::Result<Self> {
        let position = Rc::new(Cell::new(0));
        if form == Form::Zstd
            && let Some(frames) = frames::find_index(&file)?
        {
            let inner = Box::new(FrameReader::new(file, frames, Rc::clone(&position))?);
            return Ok(Self { inner, position });
        }
        let counted = Counted {
            file,
            is_at_end: false,
            position: Rc::clone(&position),
        };
        let reader = BufReader::with_capacity(READ_BYTES, counted);
        let inner: Box<dyn Read> = match form {
            Form::Directory | Form::Tar => Box::new(reader),
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
        Ok(Self { inner, position })
    }

    /// Bytes of the archive used so far.
    pub fn position(&self) -> u64 {
        self.position.get()
    }
}

impl Read for Decoder {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.inner.read(buffer)
    }
}

/// Counts what is read of a file.
struct Counted {
    file: File,
    /// A read has found nothing more.
    is_at_end: bool,
    position: Rc<Cell<u64>>,
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
