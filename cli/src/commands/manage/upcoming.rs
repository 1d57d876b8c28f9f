//! Waits for a container that is still to come, by containerd's events.

use std::time::Duration;

use crate::engines::containerd::{Containerd, Task};
use crate::error::{Error, Kind};

/// The container's task, as soon as it runs.
///
/// # Errors
/// It did not come in time, Ctrl+C was pressed, or containerd went away.
pub async fn wait(engine: &Containerd, id: &str, limit: Option<Duration>) -> Result<Task, Error> {
    let waiting = async {
        match limit {
            Some(limit) => tokio::time::timeout(limit, started(engine, id))
                .await
                .unwrap_or_else(|_| {
                    Err(Error::not_found(format!(
                        "container {id} did not start within {limit:?}"
                    )))
                }),
            None => started(engine, id).await,
        }
    };
    tokio::select! {
        done = waiting => done,
        _pressed = tokio::signal::ctrl_c() => {
            Err(Error::new(Kind::Interrupted, format!("interrupted: container {id} has not started")))
        }
    }
}

async fn started(engine: &Containerd, id: &str) -> Result<Task, Error> {
    // The subscription first: what starts between the two would be missed the other way round.
    let mut starts = engine.starts().await?;
    loop {
        if let Some(task) = engine.task(id).await?.filter(|task| task.pid > 0 && task.lives()) {
            return Ok(task);
        }
        while starts.next().await? != id {}
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
