//! How far a shim is.

use std::convert::Infallible;
use std::path::Path;
use std::time::Duration;

use jobs::wire::{self, ProgressAnswer, ProgressRequest};
use tokio::time::{Instant, sleep_until};

use crate::output::progress::Progress;
use crate::shim;

/// The line is drawn five times a second; more nobody sees.
const PACE: Duration = Duration::from_millis(200);

/// The shim answers after a second at the latest.
const ANSWER: Duration = Duration::from_secs(5);

/// Shows how far the act under way is, until it is dropped. A shim that does not tell is asked no more: the act itself has an
/// answer of its own.
pub async fn watch(socket: &Path, id: &str, progress: &Progress) -> Infallible {
    let mut seen = 0;
    loop {
        let next = Instant::now() + PACE;
        let question = ProgressRequest {
            id: id.to_owned(),
            seen,
        };
        let Ok(answer) = shim::call::<_, ProgressAnswer>(socket, wire::PROGRESS, &question, ANSWER).await
        else {
            return std::future::pending().await;
        };
        seen = answer.step;
        if !answer.verb.is_empty() {
            progress.set(&answer.phase, answer.bytes, answer.total);
        }
        sleep_until(next).await;
    }
}
