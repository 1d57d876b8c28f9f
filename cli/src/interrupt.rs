//! Somebody wants it to end.

use tokio::signal::unix::{SignalKind, signal};

/// Ctrl+C, or a polite kill.
pub async fn interrupted() {
    let mut terminate = signal(SignalKind::terminate()).ok();
    let terminated = async {
        match &mut terminate {
            Some(signal) => signal.recv().await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        pressed = tokio::signal::ctrl_c() => if pressed.is_err() { std::future::pending().await },
        _ = terminated => {}
    }
}
