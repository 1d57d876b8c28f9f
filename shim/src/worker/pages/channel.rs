//! What the server of pages tells its shim, over the socket that is its standard input: one message, one word. The shim says one, too:
//! that it should hurry.
//!
//! The shim is given a copy of every descriptor by which pages are served. The kernel makes what is still missing zero as
//! soon as the last copy is closed: were the server the only one that holds it, its death would be found out by nobody but an
//! application that reads zeros. So the shim keeps the copies until the server is done or the container is dead.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::sys::socket::{setsockopt, sockopt::SendTimeout};
use nix::sys::time::TimeVal;

use super::message;

/// No word is longer; a reason that is gets cut.
const WORD_SIZE_MAX: usize = 1024;

/// A shim that takes nothing for so long is as good as gone.
const SEND_SECONDS_MAX: i64 = 5;

/// One message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::worker) enum Word {
    /// CRIU may be started.
    Listening,
    /// Memory has to be restored at once, for this reason.
    Unsuitable(String),
    /// A descriptor comes along, to be kept under this number.
    Keep(u64),
    /// The descriptor of that number is needed no longer.
    Forget(u64),
    /// All memory is there: so many bytes.
    Filled(u64),
    /// The server cannot go on.
    Failed(String),
    /// The one word of the shim's: somebody waits for all memory, and no limit holds any more.
    Hurry,
}

impl fmt::Display for Word {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Listening => f.write_str("listening"),
            Self::Unsuitable(reason) => write!(f, "unsuitable {reason}"),
            Self::Keep(number) => write!(f, "keep {number}"),
            Self::Forget(number) => write!(f, "forget {number}"),
            Self::Filled(bytes) => write!(f, "filled {bytes}"),
            Self::Failed(reason) => write!(f, "failed {reason}"),
            Self::Hurry => f.write_str("hurry"),
        }
    }
}

impl Word {
    /// The word of a message, if it is one.
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        let text = String::from_utf8_lossy(bytes);
        let (word, rest) = text.split_once(' ').unwrap_or((&text, ""));
        let number = || rest.parse().ok();
        Some(match word {
            "listening" => Self::Listening,
            "unsuitable" => Self::Unsuitable(rest.to_owned()),
            "keep" => Self::Keep(number()?),
            "forget" => Self::Forget(number()?),
            "filled" => Self::Filled(number()?),
            "failed" => Self::Failed(rest.to_owned()),
            "hurry" => Self::Hurry,
            _ => return None,
        })
    }
}

/// The server's end.
#[derive(Debug)]
pub(super) struct Channel(Option<OwnedFd>);

impl Channel {
    pub(super) fn new(socket: OwnedFd) -> Self {
        // Without the limit a shim that hangs would stop its container; that it cannot be set is no reason to stop.
        let _ = setsockopt(&socket, SendTimeout, &TimeVal::new(SEND_SECONDS_MAX, 0));
        Self(Some(socket))
    }

    /// Tells the shim. The death of a shim ends its container by containerd's hand; until then pages are served on.
    pub(super) fn say(&mut self, word: &Word, descriptor: Option<BorrowedFd<'_>>) {
        let Some(socket) = &self.0 else { return };
        let text = word.to_string();
        let bytes = text.as_bytes();
        let bytes = bytes.get(..WORD_SIZE_MAX).unwrap_or(bytes);
        if message::send(socket.as_fd(), bytes, descriptor).is_err() {
            self.0 = None;
        }
    }

    /// To be told of its hang-up; none once it has.
    pub(super) fn socket(&self) -> Option<BorrowedFd<'_>> {
        self.0.as_ref().map(AsFd::as_fd)
    }

    /// The shim is gone.
    pub(super) fn close(&mut self) {
        self.0 = None;
    }
}

/// The shim's side: one word, and the descriptor that came with it. `None` when the server has ended.
///
/// # Errors
/// What the kernel says; `WouldBlock` if nothing is there; `InvalidData` for no word.
pub(in crate::worker) fn hear(socket: BorrowedFd<'_>) -> io::Result<Option<(Word, Option<OwnedFd>)>> {
    let mut bytes = [0; WORD_SIZE_MAX];
    let (length, descriptor) = message::receive(socket, &mut bytes)?;
    if length == 0 {
        return Ok(None);
    }
    let word = Word::parse(bytes.get(..length).unwrap_or_default());
    let word =
        word.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "not a word of a page server"))?;
    Ok(Some((word, descriptor)))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use super::*;

    #[test]
    fn what_is_said_is_heard() {
        let (ours, theirs) = UnixDatagram::pair().expect("a pair");
        let mut channel = Channel::new(ours.into());
        for word in [
            Word::Listening,
            Word::Unsuitable("read it: no".to_owned()),
            Word::Keep(u64::MAX),
            Word::Forget(0),
            Word::Filled(1 << 40),
            Word::Failed(String::new()),
            Word::Hurry,
        ] {
            let sends = matches!(word, Word::Keep(_));
            let file = std::fs::File::open("/dev/null").expect("open");
            channel.say(&word, sends.then(|| file.as_fd()));
            let (heard, descriptor) = hear(theirs.as_fd()).expect("receive").expect("a word");
            assert_eq!((heard, descriptor.is_some()), (word, sends));
        }
        channel.say(&Word::Failed("x".repeat(WORD_SIZE_MAX)), None);
        assert!(matches!(hear(theirs.as_fd()), Ok(Some((Word::Failed(_), None)))));
        drop(theirs);
        channel.say(&Word::Listening, None);
        assert!(channel.socket().is_none());
    }

    #[test]
    fn what_is_no_word_is_none() {
        for text in ["", "keep", "keep x", "keep -1", "Listening", "filled 1.5"] {
            assert_eq!(Word::parse(text.as_bytes()), None, "{text:?}");
        }
    }
}
