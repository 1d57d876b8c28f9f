//! CRIU, as it restores with pages that come late: it connects to `lazy-pages.socket` in its working directory, and sends, for
//! each process, the pid that the process has in the container (i32; negative for one without memory) and then a byte with
//! the process's userfaultfd. When all processes go on as themselves it sends a last number and closes.

use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};

use super::message;

/// CRIU's name of the socket.
pub(super) const SOCKET: &str = "lazy-pages.socket";

/// Says that the restore is complete.
const FINISHED: i32 = 0x5253_5446;

/// What CRIU has said.
#[derive(Debug)]
pub(super) enum Said {
    /// Nothing more, for now.
    Nothing,
    /// The memory of this process is to be served.
    Process(i32, OwnedFd),
    /// All processes are restored.
    Finished,
    /// It is gone without having finished.
    Gone,
}

/// CRIU's end of it, before and after it has connected.
#[derive(Debug)]
pub(super) struct Restorer {
    listener: UnixListener,
    stream: Option<UnixStream>,
    /// The process whose descriptor comes next.
    pid: Option<i32>,
}

impl Restorer {
    /// Binds the socket in the current directory: CRIU names it so too, and a longer name might not fit an address.
    ///
    /// # Errors
    /// What the file system says.
    pub(super) fn listen() -> io::Result<Self> {
        match std::fs::remove_file(SOCKET) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(SOCKET)?;
        listener.set_nonblocking(true)?;
        Ok(Self {
            listener,
            stream: None,
            pid: None,
        })
    }

    /// One that has connected already.
    ///
    /// # Errors
    /// What the kernel says.
    #[cfg(any(test, fuzzing))]
    pub(super) fn connected(stream: UnixStream) -> io::Result<Self> {
        // Never accepted from: any socket does.
        let (listener, _other) = UnixStream::pair()?;
        stream.set_nonblocking(true)?;
        Ok(Self {
            listener: UnixListener::from(OwnedFd::from(listener)),
            stream: Some(stream),
            pid: None,
        })
    }

    /// What to wait at for the next word.
    pub(super) fn socket(&self) -> BorrowedFd<'_> {
        match &self.stream {
            Some(stream) => stream.as_fd(),
            None => self.listener.as_fd(),
        }
    }

    /// It has connected.
    pub(super) fn is_connected(&self) -> bool {
        self.stream.is_some()
    }

    /// Takes the next word.
    ///
    /// # Errors
    /// What the kernel says, or that it is no word of CRIU's.
    pub(super) fn hear(&mut self) -> io::Result<Said> {
        let Some(stream) = &self.stream else {
            return self.accept();
        };
        let mut word = [0; size_of::<i32>()];
        let size = if self.pid.is_some() { 1 } else { word.len() };
        let bytes = word.get_mut(..size).unwrap_or_default();
        let (length, descriptor) = match message::receive(stream.as_fd(), bytes) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(Said::Nothing),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(Said::Gone),
            received => received?,
        };
        if length == 0 {
            return Ok(Said::Gone);
        }
        let malformed = || io::Error::new(ErrorKind::InvalidData, "not what CRIU sends");
        match (self.pid.take(), descriptor, i32::from_ne_bytes(word)) {
            (Some(pid), Some(descriptor), _) => Ok(Said::Process(pid, descriptor)),
            (Some(_), None, _) => Err(malformed()),
            _ if length != word.len() => Err(malformed()),
            (None, _, FINISHED) => Ok(Said::Finished),
            (None, _, pid) => {
                self.pid = (pid > 0).then_some(pid);
                self.hear()
            }
        }
    }

    fn accept(&mut self) -> io::Result<Said> {
        match self.listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(true)?;
                self.stream = Some(stream);
                // Its work is done, and the directory is CRIU's.
                let _ = std::fs::remove_file(SOCKET);
                Ok(Said::Nothing)
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(Said::Nothing),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write;

    use super::*;

    fn restorer() -> (Restorer, UnixStream) {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        (Restorer::connected(ours).expect("connected"), theirs)
    }

    #[test]
    fn each_process_comes_with_its_descriptor_until_all_are_restored() {
        let (mut restorer, mut criu) = restorer();
        assert!(matches!(restorer.hear(), Ok(Said::Nothing)));
        criu.write_all(&(-1_i32).to_ne_bytes()).expect("write");
        criu.write_all(&7_i32.to_ne_bytes()).expect("write");
        assert!(matches!(restorer.hear(), Ok(Said::Nothing)));
        let file = File::open("/dev/null").expect("open");
        message::send(criu.as_fd(), b"F", Some(file.as_fd())).expect("send");
        assert!(matches!(restorer.hear(), Ok(Said::Process(7, _))));
        criu.write_all(&FINISHED.to_ne_bytes()).expect("write");
        assert!(matches!(restorer.hear(), Ok(Said::Finished)));
        drop(criu);
        assert!(matches!(restorer.hear(), Ok(Said::Gone)));
    }

    #[test]
    fn what_is_no_word_of_criu_is_an_error() {
        for bytes in [&[1, 0][..], &[1, 0, 0, 0, 9]] {
            let (mut restorer, mut criu) = restorer();
            criu.write_all(bytes).expect("write");
            assert!(restorer.hear().is_err(), "{bytes:?}");
        }
    }
}
