//! The queue between this shim and containerd's event service.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use containerd_shim_protos::shim::events::ForwardRequest;
use containerd_shim_protos::shim_async::{Client, EventsClient};
use protobuf::MessageField;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tracing::{debug, error, warn};
use ttrpc::context;

use super::{Event, EventSink, encode};

/// Events kept while containerd is away, some 200 bytes each. An hour of an exec every five seconds fits.
const QUEUE_MAX: usize = 2048;

/// Longest wait for containerd to take one event, as in the Go shims.
const FORWARD_TIMEOUT: Duration = Duration::from_secs(5);

/// How often an event is sent that containerd answers with an error; then it is the event that is wrong.
const REFUSALS_MAX: u32 = 5;

/// First and longest pause before connecting again. A containerd that is back wants to know at once, and asking costs 20 µs.
const RECONNECT_PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(500));

/// The sink that leads to containerd.
///
/// Nothing is connected before the first event, so a shim starts without waiting for containerd's event service.
#[derive(Debug)]
pub struct Publisher {
    namespace: String,
    queue: Mutex<VecDeque<Queued>>,
    /// Events accepted and not yet delivered or given up, the one under way included.
    pending: watch::Sender<usize>,
}

#[derive(Debug)]
struct Queued {
    request: ForwardRequest,
    /// Exits and deletes: a client waits for them for ever, so they outlive a full queue.
    vital: bool,
}

impl Publisher {
    /// Starts delivering to the ttrpc server at `address` (a path, with or without `unix://`); with an empty address
    /// events go nowhere. Must be called within the runtime.
    pub fn start(address: &str, namespace: &str) -> Arc<Self> {
        let publisher = Arc::new(Self {
            namespace: namespace.to_owned(),
            queue: Mutex::default(),
            pending: watch::Sender::new(0),
        });
        if !address.is_empty() {
            let address = if address.contains("://") {
                address.to_owned()
            } else {
                format!("unix://{address}")
            };
            drop(tokio::spawn(deliver_all(Arc::clone(&publisher), address)));
        }
        publisher
    }

    /// Waits until every event is delivered, at most `limit`. False if some are left.
    pub async fn drain(&self, limit: Duration) -> bool {
        let mut pending = self.pending.subscribe();
        let is_empty = timeout(limit, pending.wait_for(|left| *left == 0)).await;
        is_empty.is_ok_and(|changed| changed.is_ok())
    }

    fn queue(&self) -> MutexGuard<'_, VecDeque<Queued>> {
        // The queue is whole after any panic: each change of it is a single call.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count(&self, change: impl FnOnce(&mut usize)) {
        self.pending.send_modify(change);
    }
}

impl EventSink for Publisher {
    fn publish(&self, event: Event) {
        let vital = matches!(event, Event::Exit { .. } | Event::Delete { .. });
        let envelope = match encode::envelope(event, &self.namespace, SystemTime::now()) {
            Ok(envelope) => envelope,
            Err(error) => return error!(%error, "encode event"),
        };
        let request = ForwardRequest {
            envelope: MessageField::some(envelope),
            ..ForwardRequest::default()
        };
        let lost = push(&mut self.queue(), Queued { request, vital });
        if let Some(lost) = lost {
            error!(
                topic = lost.request.envelope.topic,
                "event dropped: containerd is away and the queue is full"
            );
        } else {
            self.count(|pending| *pending += 1);
        }
    }
}

/// Appends; a full queue first loses its oldest event that is not vital, or else its oldest.
fn push(queue: &mut VecDeque<Queued>, new: Queued) -> Option<Queued> {
    let mut lost = None;
    if queue.len() >= QUEUE_MAX {
        let victim = queue.iter().position(|queued| !queued.vital).unwrap_or(0);
        lost = queue.remove(victim);
    }
    queue.push_back(new);
    lost
}

/// Delivers for ever, always the oldest event first.
async fn deliver_all(publisher: Arc<Publisher>, address: String) {
    let mut pending = publisher.pending.subscribe();
    let mut connection = None;
    loop {
        if pending.wait_for(|left| *left > 0).await.is_err() {
            return;
        }
        let head = publisher.queue().pop_front();
        if let Some(head) = head {
            deliver(&mut connection, &address, &head.request).await;
        }
        publisher.count(|pending| *pending = pending.saturating_sub(1));
    }
}

/// Sends one event until it is taken, or refused too often.
async fn deliver(connection: &mut Option<EventsClient>, address: &str, request: &ForwardRequest) {
    let mut refusals = 0;
    let (mut pause, pause_max) = RECONNECT_PAUSE;
    loop {
        let was_connected = connection.is_some();
        match forward(connection, address, request).await {
            Ok(()) => return,
            Err(ttrpc::Error::RpcStatus(status)) if refusals + 1 < REFUSALS_MAX => {
                refusals += 1;
                debug!(reason = status.message, "event refused, trying again");
            }
            Err(ttrpc::Error::RpcStatus(status)) => {
                return warn!(
                    topic = request.envelope.topic,
                    reason = status.message,
                    "event given up"
                );
            }
            Err(error) => {
                debug!(%error, "no connection to containerd's event service");
                *connection = None;
                // A connection from before containerd's restart says nothing about the new containerd: try at once.
                if was_connected {
                    continue;
                }
            }
        }
        sleep(pause).await;
        pause = pause_max.min(pause * 2);
    }
}

async fn forward(
    connection: &mut Option<EventsClient>,
    address: &str,
    request: &ForwardRequest,
) -> ttrpc::Result<()> {
    let client = match connection {
        Some(client) => client,
        None => connection.insert(EventsClient::new(Client::connect(address).await?)),
    };
    let answer = client.forward(context::with_duration(FORWARD_TIMEOUT), request);
    // The client counts the time of the answer only, not of a full send queue.
    match timeout(FORWARD_TIMEOUT, answer).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(ttrpc::Error::RpcStatus(status))) if status.code() == ttrpc::Code::DEADLINE_EXCEEDED => {
            Err(ttrpc::Error::Others("containerd does not answer".to_owned()))
        }
        Ok(Err(error)) => Err(error),
        Err(_) => Err(ttrpc::Error::Others("containerd does not answer".to_owned())),
    }
}

#[cfg(test)]
mod tests;
