//! What the testbed and its agent in the guest say to each other: frames on one byte stream.
//!
//! One stream for everything, so that the exit status cannot overtake the last output. A frame is its kind (one
//! byte), the length of its body (four bytes, least significant first) and its body.

use std::io::{self, ErrorKind, Read, Write};

use serde::{Deserialize, Serialize};

/// A request holds a whole environment, whose limit the kernel sets at some MiB; output comes in far smaller pieces.
const BODY_BYTES_MAX: usize = 8 << 20;

/// As much output as travels at once.
pub const CHUNK_BYTES: usize = 64 << 10;

/// Kind, and length of the body.
const HEAD_BYTES: usize = 5;

/// Rows and columns of a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Size {
    /// Lines.
    pub rows: u16,
    /// Characters in a line.
    pub columns: u16,
}

/// A command to run. Names and arguments are bytes, since they need not be text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// The command and its arguments.
    pub command: Vec<Vec<u8>>,
    /// Its environment, without `PATH`, which is the suite's.
    pub environment: Vec<(Vec<u8>, Vec<u8>)>,
    /// Where it starts.
    pub directory: Vec<u8>,
    /// Host directories that are there inside at the same path.
    pub shared: Vec<Vec<u8>>,
    /// Host files that are copied to `/usr/local/bin`.
    pub programs: Vec<Vec<u8>>,
    /// What `TESTBED_SUITE` says inside.
    pub suite: String,
    /// Size of the terminal, if there is one.
    pub terminal: Option<Size>,
}

/// One message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// From the agent, first of all: it is there.
    Ready,
    /// To the agent, once.
    Request(Request),
    /// To the command's standard input.
    Input(Vec<u8>),
    /// Standard input has ended.
    InputEnd,
    /// The terminal has another size.
    Resize(Size),
    /// From the command's standard output, or its terminal.
    Output(Vec<u8>),
    /// From its standard error.
    Errors(Vec<u8>),
    /// Last: its exit status, as a shell tells it.
    Exit(u8),
    /// Last: it was not run, because …
    Failed(String),
}

impl Frame {
    /// Writes it, all or nothing as far as the stream allows.
    pub fn write(&self, to: &mut impl Write) -> io::Result<()> {
        let (kind, body) = self.encode()?;
        let length = u32::try_from(body.len()).map_err(|_| io::Error::from(ErrorKind::InvalidInput))?;
        let mut bytes = Vec::with_capacity(HEAD_BYTES + body.len());
        bytes.push(kind);
        bytes.extend(length.to_le_bytes());
        bytes.extend(body);
        to.write_all(&bytes)
    }

    /// Reads one; nothing when the stream has ended between two frames.
    pub fn read(from: &mut impl Read) -> io::Result<Option<Self>> {
        let mut head = [0; HEAD_BYTES];
        match from.read_exact(&mut head[..1]) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(None),
            Err(error) => return Err(error),
        }
        from.read_exact(&mut head[1..])?;
        let [kind, length @ ..] = head;
        let length = u32::from_le_bytes(length) as usize;
        if length > BODY_BYTES_MAX {
            return Err(invalid(&format!("a frame of kind {kind} with {length} bytes")));
        }
        let mut body = vec![0; length];
        from.read_exact(&mut body)?;
        Self::decode(kind, body).map(Some)
    }

    fn encode(&self) -> io::Result<(u8, Vec<u8>)> {
        Ok(match self {
            Self::Ready => (0, Vec::new()),
            Self::Request(request) => (1, serde_json::to_vec(request)?),
            Self::Input(bytes) => (2, bytes.clone()),
            Self::InputEnd => (3, Vec::new()),
            Self::Resize(size) => (4, serde_json::to_vec(size)?),
            Self::Output(bytes) => (5, bytes.clone()),
            Self::Errors(bytes) => (6, bytes.clone()),
            Self::Exit(status) => (7, vec![*status]),
            Self::Failed(why) => (8, why.clone().into_bytes()),
        })
    }

    fn decode(kind: u8, body: Vec<u8>) -> io::Result<Self> {
        Ok(match (kind, body.as_slice()) {
            (0, []) => Self::Ready,
            (1, json) => Self::Request(serde_json::from_slice(json)?),
            (2, _) => Self::Input(body),
            (3, []) => Self::InputEnd,
            (4, json) => Self::Resize(serde_json::from_slice(json)?),
            (5, _) => Self::Output(body),
            (6, _) => Self::Errors(body),
            (7, [status]) => Self::Exit(*status),
            (8, why) => Self::Failed(String::from_utf8_lossy(why).into_owned()),
            _ => {
                return Err(invalid(&format!(
                    "a frame of kind {kind} with {} bytes",
                    body.len()
                )));
            }
        })
    }
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> Request {
        Request {
            command: vec![b"sh".to_vec(), vec![0xff]],
            environment: vec![(b"A".to_vec(), b"b=c".to_vec())],
            directory: b"/work".to_vec(),
            shared: vec![b"/work".to_vec()],
            programs: Vec::new(),
            suite: "vm".to_owned(),
            terminal: Some(Size {
                rows: 24,
                columns: 80,
            }),
        }
    }

    #[test]
    fn what_is_written_is_read_in_order() {
        let frames = [
            Frame::Ready,
            Frame::Request(request()),
            Frame::Input(b"in".to_vec()),
            Frame::InputEnd,
            Frame::Resize(Size { rows: 1, columns: 2 }),
            Frame::Output(vec![0; CHUNK_BYTES]),
            Frame::Errors(Vec::new()),
            Frame::Exit(137),
            Frame::Failed("why".to_owned()),
        ];
        let mut stream = Vec::new();
        for frame in &frames {
            frame.write(&mut stream).unwrap();
        }
        let mut stream = stream.as_slice();
        for frame in &frames {
            assert_eq!(Frame::read(&mut stream).unwrap().as_ref(), Some(frame));
        }
        assert_eq!(Frame::read(&mut stream).unwrap(), None);
    }

    #[test]
    fn what_is_no_frame_is_an_error() {
        let cases: [&[u8]; 6] = [
            b"mount: no such device\n",
            &[0, 1, 0, 0, 0, 9],
            &[7, 0, 0, 0, 0],
            &[5, 255, 255, 255, 255],
            &[5, 9, 0, 0, 0, 1],
            &[9, 0, 0, 0, 0],
        ];
        for bytes in cases {
            assert!(Frame::read(&mut &*bytes).is_err(), "{bytes:?}");
        }
    }
}
