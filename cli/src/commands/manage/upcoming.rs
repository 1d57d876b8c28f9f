//! Waits for a container that is still to come, by containerd's events.

use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::Instant;

use crate::engines::containerd::{Containerd, Task};
use crate::error::{Error, Kind};
use crate::output;

/// Between two looks for a containerd that went away: it takes a second to restart.
const RETURN_PAUSE: Duration = Duration::from_secs(1);

/// When it is looked whether the container is there already. Once would do if containerd said when a subscription holds; it
/// does so within milliseconds. From the last look on only events count.
const LOOKS: [Duration; 3] = [Duration::ZERO, Duration::from_millis(250), Duration::from_secs(3)];

/// Ctrl+C, from the moment on that this is called.
///
/// # Errors
/// The kernel does not let us listen for it.
pub fn interrupts() -> Result<Signal, Error> {
    signal(SignalKind::interrupt())
        .map_err(|source| Error::failed(format!("failed to listen for Ctrl+C: {source}")))
}

/// The container's task, as soon as it runs.
///
/// # Errors
/// It did not come in time, or Ctrl+C was pressed.
pub async fn wait(
    engine: &Containerd,
    id: &str,
    limit: Option<Duration>,
    interrupts: &mut Signal,
) -> Result<Task, Error> {
    let in_time = async {
        match limit {
            Some(limit) => tokio::time::sleep(limit).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        done = started(engine, id) => done,
        () = in_time => {
            let limit = limit.unwrap_or_default();
            Err(Error::not_found(format!("container {id} did not start within {limit:?}")))
        }
        _pressed = interrupts.recv() => {
            Err(Error::new(Kind::Interrupted, format!("interrupted: container {id} has not started")))
        }
    }
}

/// Waits through restarts of containerd.
async fn started(engine: &Containerd, id: &str) -> Result<Task, Error> {
    let mut told = false;
    loop {
        match watched(engine, id).await {
            Err(error) if error.kind == Kind::Tool => {
                if !told {
                    output::note(&format!("{error}; waiting for its return"));
                }
                told = true;
                tokio::time::sleep(RETURN_PAUSE).await;
            }
            done => return done,
        }
    }
}

async fn watched(engine: &Containerd, id: &str) -> Result<Task, Error> {
    let begun = Instant::now();
    let mut starts = engine.starts();
    let mut looks = LOOKS.iter();
    loop {
        let look = looks.next();
        let time_to_look = async {
            match look {
                Some(after) => tokio::time::sleep_until(begun + *after).await,
                None => std::future::pending().await,
            }
        };
        tokio::pin!(time_to_look);
        loop {
            tokio::select! {
                // In this order: what starts between the first look and the subscription would be missed the other way round.
                biased;
                started = starts.next() => if started? == id { break },
                () = &mut time_to_look => break,
            }
        }
        if let Some(task) = engine.task(id).await?.filter(|task| task.pid > 0 && task.lives()) {
            return Ok(task);
        }
    }
}

/// Reads a time as people write it.
///
/// # Errors
/// It is none.
pub fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: u64 = digits.parse().map_err(|_| format!("{text} is no time"))?;
    let unit = text.strip_prefix(digits).unwrap_or_default();
    let ms = match unit {
        "ms" => 1,
        "" | "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(format!("{unit} is no unit of time: ms, s, m and h are")),
    };
    let ms = number
        .checked_mul(ms)
        .ok_or_else(|| format!("{text} is too long"))?;
    Ok(Duration::from_millis(ms))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_people_write_them() {
        for (text, ms) in [
            ("5", Some(5000)),
            ("1s", Some(1000)),
            ("250ms", Some(250)),
            ("2m", Some(120_000)),
            ("1h", Some(3_600_000)),
            ("0", Some(0)),
            ("s", None),
            ("", None),
            ("-1", None),
            ("1.5s", None),
            ("1d", None),
            ("99999999999999999999", None),
            ("18446744073709551615h", None),
        ] {
            assert_eq!(duration(text).ok(), ms.map(Duration::from_millis), "{text}");
        }
    }
}
