//! Moving bytes between a client's fifo and a container's pipe or terminal.

use std::future::Future;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::pin;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::output::Output;

/// Bytes moved at once: half of a pipe, so that the container can fill the other half meanwhile. Allocated only while
/// there is something to move, so idle streams cost nothing.
const BUFFER_BYTES: usize = 32 * 1024;

/// What a pipe holds: the most that can be moved at once.
const PIPE_BYTES: usize = 64 * 1024;

/// Reads before others get their turn on the one thread: a container that only prints must not make the service wait.
const BURST_READS: usize = 16;

/// Moves after a read that filled the buffer; with [`BURST_READS`] of these a turn is over after 5 MB, about 2 ms.
const BULK_MOVES: usize = 4;

/// Whether more is to come.
#[derive(PartialEq, Eq)]
enum Burst {
    MayGoOn,
    Ended,
}

/// Copies a container's output until it ends. Once `stop` has resolved, only what is already there is still copied.
pub(super) async fn copy_output(
    source: &AsyncFd<OwnedFd>,
    output: &mut Output,
    stop: impl Future<Output = ()>,
) {
    let mut stop = pin!(stop);
    loop {
        tokio::select! {
            biased;
            () = &mut stop => {
                let _ = output_burst(source, output).await;
                return;
            }
            ready = source.readable() => match ready {
                Ok(mut ready) => ready.retain_ready(),
                Err(_) => return,
            },
        }
        if output_burst(source, output).await == Burst::Ended {
            return;
        }
        tokio::task::yield_now().await;
    }
}

async fn output_burst(source: &AsyncFd<OwnedFd>, output: &mut Output) -> Burst {
    let mut buffer = vec![0; BUFFER_BYTES];
    for _ in 0..BURST_READS {
        match read(source, &mut buffer) {
            Ok([]) => return Burst::Ended,
            Ok(data) => {
                let plenty = data.len() == BUFFER_BYTES;
                output.write(data).await;
                if plenty {
                    move_bulk(source, output);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // EIO: nobody has the terminal open any more. That is how a terminal's output ends.
            Err(_) => return Burst::Ended,
        }
    }
    Burst::MayGoOn
}

/// Moves pages instead of copying them, which halves the processor time of bulk output.
///
/// Not for lines: moved as they are, each would take one of a fifo's 16 places, and a fifo that nobody reads would be full
/// after so many.
fn move_bulk(source: &AsyncFd<OwnedFd>, output: &Output) {
    for _ in 0..BULK_MOVES {
        if output.splice(source.as_fd(), PIPE_BYTES) < BUFFER_BYTES {
            return;
        }
    }
}

/// Copies a client's input to a pipe or a terminal, until no client and no holder has the fifo open, or nobody can read
/// the other side any more.
pub(super) async fn copy_input(reader: &AsyncFd<OwnedFd>, sink: &AsyncFd<OwnedFd>) {
    loop {
        match reader.readable().await {
            Ok(mut ready) => ready.retain_ready(),
            Err(_) => return,
        }
        match input_burst(reader, sink).await {
            Ok(Burst::MayGoOn) => tokio::task::yield_now().await,
            // EPIPE and EIO: the process closed its input or has ended; the client will learn it from writing.
            Ok(Burst::Ended) | Err(_) => return,
        }
    }
}

async fn input_burst(reader: &AsyncFd<OwnedFd>, sink: &AsyncFd<OwnedFd>) -> io::Result<Burst> {
    let mut buffer = vec![0; BUFFER_BYTES];
    for _ in 0..BURST_READS {
        match read(reader, &mut buffer) {
            Ok([]) => return Ok(Burst::Ended),
            Ok(data) => write_all(sink, data).await?,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(Burst::MayGoOn)
}

async fn write_all(sink: &AsyncFd<OwnedFd>, mut data: &[u8]) -> io::Result<()> {
    while !data.is_empty() {
        match sink.try_io(Interest::WRITABLE, |fd| Ok(nix::unistd::write(fd, data)?)) {
            Ok(written) => data = data.get(written..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => sink.writable().await?.retain_ready(),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// One read: empty at the end.
fn read<'a>(source: &AsyncFd<OwnedFd>, buffer: &'a mut [u8]) -> io::Result<&'a [u8]> {
    let length = source.try_io(Interest::READABLE, |fd| Ok(nix::unistd::read(fd, buffer)?))?;
    Ok(buffer.get(..length).unwrap_or_default())
}
