//! The task events of one containerd namespace, in the order in which containerd sent them.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use prost::Message;

use crate::messages as msg;
use crate::task_api::TaskApi;

/// Longest wait for an event. A shim that has to retry its event sink may take some seconds.
pub const EVENT_DEADLINE: Duration = Duration::from_secs(20);

/// How often an event of our own is sent until the subscription shows it: containerd tells a subscriber nothing
/// before its first event, so there is no other sign that it listens.
const PROBE_EVERY: Duration = Duration::from_millis(20);

const PROBE_TOPIC: &str = "/cedana-test/listening";

/// A task event, with what the tests compare. `process` is the exec id, or empty for the container's own process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The last part of the topic: `create`, `start`, `exec-added`, …
    pub kind: String,
    /// The container.
    pub container: String,
    /// The exec id; empty for the init process and for events of the whole container.
    pub process: String,
    /// The pid, where the event carries one.
    pub pid: u32,
    /// The exit status, of `exit` and `delete`.
    pub status: Option<u32>,
}

impl Event {
    /// The event as the tests write it: `create`, `exec-started e1`, `exit 7`, `exit e1 0`.
    pub fn text(&self) -> String {
        let mut words = vec![self.kind.clone()];
        if !self.process.is_empty() {
            words.push(self.process.clone());
        }
        if self.kind == "exit" {
            words.extend(self.status.map(|status| status.to_string()));
        }
        words.join(" ")
    }
}

/// A subscription. Dropping it does not end it: it ends with the connection.
#[derive(Clone, Debug, Default)]
pub struct Events {
    seen: Arc<(Mutex<Vec<Event>>, Condvar)>,
}

impl Events {
    /// Subscribes, and returns once events arrive.
    pub fn subscribe(api: &TaskApi) -> Result<Self> {
        let events = Self::default();
        let seen = Arc::clone(&events.seen);
        api.subscribe(move |envelope| {
            if let Some(event) = parse(&envelope) {
                seen.0.lock().unwrap_or_else(PoisonError::into_inner).push(event);
                seen.1.notify_all();
            }
        })?;
        let deadline = Instant::now() + EVENT_DEADLINE;
        while Instant::now() < deadline {
            api.publish(PROBE_TOPIC)?;
            if events.wait_for(PROBE_EVERY, |seen| {
                seen.iter().any(|event| event.kind == "listening")
            }) {
                return Ok(events);
            }
        }
        bail!("no event arrived within {EVENT_DEADLINE:?}: the subscription is dead")
    }

    /// What one container's events were so far.
    pub fn of(&self, container: &str) -> Vec<Event> {
        self.lock()
            .iter()
            .filter(|event| event.container == container)
            .cloned()
            .collect()
    }

    /// The container's events as text, once the last of them is `last`. Fails with what came instead.
    pub fn until(&self, container: &str, last: &str) -> Result<Vec<String>> {
        let matches = |event: &Event| event.container == container && event.text() == last;
        let arrived = self.wait_for(EVENT_DEADLINE, |seen| seen.iter().any(matches));
        let texts: Vec<String> = self.of(container).iter().map(Event::text).collect();
        if !arrived {
            bail!("no event {last:?} of {container} within {EVENT_DEADLINE:?}; there were {texts:?}");
        }
        Ok(texts)
    }

    /// Waits for an event that satisfies `wanted`, and returns it.
    pub fn find(&self, container: &str, wanted: impl Fn(&Event) -> bool) -> Result<Event> {
        let matches = |event: &&Event| event.container == container && wanted(event);
        let _ = self.wait_for(EVENT_DEADLINE, |seen| seen.iter().any(|event| matches(&event)));
        match self.lock().iter().find(matches) {
            Some(event) => Ok(event.clone()),
            None => bail!(
                "no such event of {container}; there were {:?}",
                self.of(container)
            ),
        }
    }

    fn wait_for(&self, limit: Duration, met: impl Fn(&[Event]) -> bool) -> bool {
        let (_, changed) = &*self.seen;
        let waited = changed.wait_timeout_while(self.lock(), limit, |seen| !met(seen));
        waited.is_ok_and(|(_, timeout)| !timeout.timed_out())
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Event>> {
        self.seen.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// `None` for what is no task event (containers, snapshots, …).
fn parse(envelope: &msg::Envelope) -> Option<Event> {
    if envelope.topic == PROBE_TOPIC {
        return Some(event("listening", "", "", 0, None));
    }
    let kind = envelope.topic.strip_prefix("/tasks/")?;
    let body = envelope.event.as_ref()?.value.as_slice();
    Some(match kind {
        "create" => {
            let it = msg::TaskCreateEvent::decode(body).ok()?;
            event(kind, &it.container_id, "", it.pid, None)
        }
        "start" => {
            let it = msg::TaskStartEvent::decode(body).ok()?;
            event(kind, &it.container_id, "", it.pid, None)
        }
        "exit" => {
            let it = msg::TaskExitEvent::decode(body).ok()?;
            let exec = if it.id == it.container_id { "" } else { &it.id };
            event(kind, &it.container_id, exec, it.pid, Some(it.exit_status))
        }
        "delete" => {
            let it = msg::TaskDeleteEvent::decode(body).ok()?;
            let exec = if it.id == it.container_id { "" } else { &it.id };
            event(kind, &it.container_id, exec, it.pid, Some(it.exit_status))
        }
        "exec-added" | "exec-started" => {
            let it = msg::TaskExecEvent::decode(body).ok()?;
            event(kind, &it.container_id, &it.exec_id, it.pid, None)
        }
        _ => {
            let it = msg::IdRequest::decode(body).ok()?;
            event(kind, &it.container_id, "", 0, None)
        }
    })
}

fn event(kind: &str, container: &str, process: &str, pid: u32, status: Option<u32>) -> Event {
    Event {
        kind: kind.to_owned(),
        container: container.to_owned(),
        process: process.to_owned(),
        pid,
        status,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(topic: &str, body: Vec<u8>, text: &str) {
        let event = Some(prost_types::Any {
            type_url: String::new(),
            value: body,
        });
        let envelope = msg::Envelope {
            topic: topic.to_owned(),
            event,
            ..Default::default()
        };
        assert_eq!(
            parse(&envelope).map(|event| event.text()).unwrap_or_default(),
            text
        );
    }

    #[test]
    fn events_are_told_by_topic_and_process() {
        let exit = |id: &str| {
            let id = id.to_owned();
            msg::TaskExitEvent {
                container_id: "c".to_owned(),
                id,
                pid: 4,
                exit_status: 7,
            }
            .encode_to_vec()
        };
        check("/tasks/exit", exit("c"), "exit 7");
        check("/tasks/exit", exit("e"), "exit e 7");
        let added = msg::TaskExecEvent {
            container_id: "c".to_owned(),
            exec_id: "e".to_owned(),
            pid: 0,
        };
        check("/tasks/exec-added", added.encode_to_vec(), "exec-added e");
        check(
            "/tasks/oom",
            msg::IdRequest {
                container_id: "c".to_owned(),
            }
            .encode_to_vec(),
            "oom",
        );
        check("/containers/create", exit("c"), "");
    }
}
