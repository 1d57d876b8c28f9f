//! Events: what starts, as it starts.

use std::fmt;
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;

use containerd_client::services::v1::SubscribeRequest;
use containerd_client::tonic::{Request, Response, Status, Streaming};
use containerd_client::types::Envelope;
use prost_types::Any;

use super::{Containerd, silent};
use crate::error::Error;

/// What containerd publishes when a container or a process of one has started.
const START_TOPIC: &str = "/tasks/start";

/// A subscription that is being made.
type Opening = Pin<Box<dyn Future<Output = Result<Response<Streaming<Envelope>>, Status>>>>;

/// The starts of a namespace, from about the first call of [`Starts::next`] on.
pub struct Starts {
    address: PathBuf,
    state: State,
}

enum State {
    Opening(Opening),
    Open(Box<Streaming<Envelope>>),
}

impl fmt::Debug for Starts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "starts by containerd at {}", self.address.display())
    }
}

impl Containerd {
    /// Subscribes to the starts of containers. containerd answers with the first event and not before, so nobody can know when
    /// the subscription holds: whoever waits for a container that may be there looks for it afterwards, and again a moment later.
    pub fn starts(&self) -> Starts {
        let filter = format!("topic==\"{START_TOPIC}\",namespace==\"{}\"", self.namespace());
        let message = SubscribeRequest {
            filters: vec![filter],
        };
        let mut client = self.client.events();
        // No limit: it would end the stream.
        let opening = async move { client.subscribe(Request::new(message)).await };
        Starts {
            address: self.address().to_owned(),
            state: State::Opening(Box::pin(opening)),
        }
    }
}

impl Starts {
    /// The id of the next container that starts; waits as long as it takes. Nothing is lost when the wait is given up.
    ///
    /// # Errors
    /// containerd went away.
    pub async fn next(&mut self) -> Result<String, Error> {
        loop {
            let stream = match &mut self.state {
                State::Open(stream) => stream,
                State::Opening(opening) => {
                    let opened = opening.await;
                    let stream = opened.map_err(|status| silent(&self.address, status.message()))?;
                    self.state = State::Open(Box::new(stream.into_inner()));
                    continue;
                }
            };
            match stream.message().await {
                Ok(Some(envelope)) => {
                    if let Some(id) = envelope.event.as_ref().and_then(started) {
                        return Ok(id);
                    }
                }
                Ok(None) => return Err(silent(&self.address, "it ended the events")),
                Err(status) => return Err(silent(&self.address, status.message())),
            }
        }
    }
}

/// The container of a start event; none for what cannot be read.
fn started(event: &Any) -> Option<String> {
    use prost::Message;
    let start = containerd_client::events::TaskStart::decode(event.value.as_slice()).ok()?;
    (!start.container_id.is_empty()).then_some(start.container_id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message;

    #[test]
    fn a_start_names_its_container_and_nothing_else_does() {
        let event = |value: Vec<u8>| Any {
            type_url: "containerd.events.TaskStart".to_owned(),
            value,
        };
        let start = containerd_client::events::TaskStart {
            container_id: "web".to_owned(),
            pid: 7,
        };
        assert_eq!(started(&event(start.encode_to_vec())).as_deref(), Some("web"));
        assert_eq!(started(&event(Vec::new())), None);
        assert_eq!(started(&event(vec![0xff])), None);
    }
}
