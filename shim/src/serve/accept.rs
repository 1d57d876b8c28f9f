//! Who may talk to the server: only processes of its own user.
//!
//! The socket's mode says the same, but not if its directory was shared or its descriptor passed on.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_core::Stream;
use nix::unistd::geteuid;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio::time::sleep;
use tracing::warn;
use ttrpc::r#async::transport::Listener;

/// Connections accepted and not yet served. Two are usual in a server's whole life; the kernel queues the others.
const QUEUE_MAX: usize = 4;

/// Pause after a failed accept. The usual failure is want of descriptors, which passes with time and not with trying.
const FAILURE_PAUSE: Duration = Duration::from_millis(100);

/// The connections of our own user, as the ttrpc server takes them.
pub(super) fn same_user(listener: UnixListener) -> Listener {
    let (sender, accepted) = mpsc::channel(QUEUE_MAX);
    drop(tokio::spawn(accept(listener, sender)));
    Listener::new(Accepted(accepted))
}

struct Accepted(mpsc::Receiver<UnixStream>);

impl Stream for Accepted {
    type Item = io::Result<UnixStream>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_recv(context).map(|stream| stream.map(Ok))
    }
}

async fn accept(listener: UnixListener, accepted: mpsc::Sender<UnixStream>) {
    let us = geteuid().as_raw();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => match stream.peer_cred() {
                Ok(peer) if peer.uid() == us => {
                    if accepted.send(stream).await.is_err() {
                        return;
                    }
                }
                Ok(peer) => warn!(
                    uid = peer.uid(),
                    pid = peer.pid(),
                    "connection of another user refused"
                ),
                Err(error) => warn!(%error, "connection of an unknown user refused"),
            },
            Err(error) => {
                warn!(%error, "connection not accepted");
                sleep(FAILURE_PAUSE).await;
            }
        }
    }
}
