//! The last word before CRIU ends a container: it waits until the dump is on the disk, and takes everything back if that fails.
//!
//! ```text
//!   CRIU, all images written, tasks standing --post-dump--> script (this program) --asks--> dump: write out, sync
//!        ends the tasks, or lets them go on  <--exit 0|1---                       <--y|n---
//! ```
//!
//! Two fifos and not a socket: the path of a bundle is longer than a socket's may be.

use std::env;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::libc::O_NONBLOCK;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;

/// Names the directory of the fifos to the script. CRIU and runc pass their environment on.
const PLACE: &str = "CEDANA_HOLD";

/// How long the script waits at most, in seconds: as long as the dump may take.
const LIMIT: &str = "CEDANA_HOLD_SECONDS";

const QUESTION: &str = "hold-question";
const ANSWER: &str = "hold-answer";

const YES: u8 = b'y';

/// CRIU before 4.2 reads its configuration twice, and runs the script as often. Each of them takes one byte.
const ASKERS_MAX: usize = 16;

/// The dump's end of the fifos. Dropped, it answers no.
#[derive(Debug)]
pub(super) struct Hold {
    place: PathBuf,
    question: pipe::Receiver,
    answer: File,
}

impl Hold {
    /// Makes the fifos in a directory.
    pub(super) fn new(place: &Path) -> io::Result<Self> {
        let (question, answer) = (place.join(QUESTION), place.join(ANSWER));
        remove(place)?;
        for path in [&question, &answer] {
            mkfifo(path, Mode::S_IRUSR | Mode::S_IWUSR)?;
        }
        Ok(Self {
            // Open for writing as well, so that there is no end before somebody asks.
            question: pipe::OpenOptions::new()
                .read_write(true)
                .open_receiver(&question)?,
            answer: OpenOptions::new()
                .read(true)
                .write(true)
                .custom_flags(O_NONBLOCK)
                .open(&answer)?,
            place: place.to_owned(),
        })
    }

    /// What the script's environment needs.
    pub(super) fn environment(&self, limit: Duration) -> [(OsString, OsString); 2] {
        [
            (PLACE.into(), self.place.clone().into_os_string()),
            (LIMIT.into(), limit.as_secs().to_string().into()),
        ]
    }

    /// Resolves when CRIU asks.
    pub(super) async fn asked(&mut self) -> io::Result<()> {
        let mut byte = [0];
        let _ = self.question.read(&mut byte).await?;
        Ok(())
    }

    /// Lets CRIU end the container. The answer is there as long as this is.
    pub(super) fn agree(&mut self) -> io::Result<()> {
        self.answer.write_all(&[YES; ASKERS_MAX])
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        // They lie in a bundle, which goes with its container.
        let _ = remove(&self.place);
    }
}

fn remove(place: &Path) -> io::Result<()> {
    for name in [QUESTION, ANSWER] {
        match fs::remove_file(place.join(name)) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// Does what CRIU's script is for after a dump, if there is somebody to be asked.
///
/// # Errors
/// The answer is no, or there is none: CRIU then lets the container go on.
pub fn ask_as_script() -> io::Result<()> {
    match env::var_os(PLACE) {
        None => Ok(()),
        Some(place) => {
            let seconds = env::var(LIMIT).ok().and_then(|text| text.parse().ok());
            ask(Path::new(&place), Duration::from_secs(seconds.unwrap_or(60)))
        }
    }
}

fn ask(place: &Path, limit: Duration) -> io::Result<()> {
    // This one first: whoever is asked may answer at once, and end.
    let mut answer = OpenOptions::new()
        .read(true)
        .custom_flags(O_NONBLOCK)
        .open(place.join(ANSWER))?;
    // Fails if nobody has the other end any more.
    let mut question = OpenOptions::new()
        .write(true)
        .custom_flags(O_NONBLOCK)
        .open(place.join(QUESTION))?;
    question.write_all(b"?")?;
    let mut fds = [PollFd::new(answer.as_fd(), PollFlags::POLLIN)];
    let limit = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
    if poll(&mut fds, limit)? == 0 {
        return Err(ErrorKind::TimedOut.into());
    }
    let mut byte = [0];
    match answer.read(&mut byte)? {
        1 if byte == [YES] => Ok(()),
        _ => Err(io::Error::other(
            "let the container end: its dump is not on the disk",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn ask_beside(place: &Path) -> io::Result<()> {
        let place = place.to_owned();
        let asking = tokio::task::spawn_blocking(move || ask(&place, Duration::from_secs(10)));
        asking.await.expect("no panic")
    }

    #[tokio::test]
    async fn the_answer_is_yes_or_it_is_no() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let place = directory.path();
        assert!(ask(place, Duration::ZERO).is_err(), "nobody is there");

        let mut hold = Hold::new(place).expect("fifos");
        let answered = async {
            hold.asked().await.expect("asked");
            hold.agree().expect("agreed");
        };
        let (asked, ()) = tokio::join!(ask_beside(place), answered);
        asked.expect("yes");
        ask_beside(place).await.expect("yes, whoever asks again");
        drop(hold);

        let mut hold = Hold::new(place).expect("fifos");
        let given_up = async {
            hold.asked().await.expect("asked");
            drop(hold);
        };
        let (asked, ()) = tokio::join!(ask_beside(place), given_up);
        assert!(asked.is_err(), "whoever was asked is gone");
        assert_eq!(fs::read_dir(place).expect("read").count(), 0);
    }

    #[test]
    fn an_answer_that_does_not_come_is_no() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.expect("a runtime");
        let _inside = runtime.enter();
        let _hold = Hold::new(directory.path()).expect("fifos");
        let asked = ask(directory.path(), Duration::from_millis(1));
        assert_eq!(asked.expect_err("no answer").kind(), ErrorKind::TimedOut);
    }
}
