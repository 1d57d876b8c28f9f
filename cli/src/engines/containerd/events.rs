//! Events: what starts, as it starts.

use containerd_client::services::v1::SubscribeRequest;
use containerd_client::tonic::Streaming;
use containerd_client::types::Envelope;
use prost_types::Any;

use super::{CALL_LIMIT, Containerd, silent};
use crate::error::Error;

/// What containerd publishes when a container or a process of one has started.
const START_TOPIC: &str = "/tasks/start";

/// The starts of a namespace from the moment of the subscription on.
#[derive(Debug)]
pub struct Starts {
    stream: Streaming<Envelope>,
    address: std::path::PathBuf,
}

impl Containerd {
    /// Subscribes to the starts of containers. Whoever waits for one subscribes first and looks afterwards, or misses it.
    ///
    /// # Errors
    /// containerd does not answer.
    pub async fn starts(&self) -> Result<Starts, Error> {
        let filter = format!("topic==\"{START_TOPIC}\",namespace==\"{}\"", self.namespace());
        let message = SubscribeRequest {
            filters: vec![filter],
        };
        // No limit in the request: it would end the stream.
        let request = containerd_client::tonic::Request::new(message);
        let mut client = self.client.events();
        let stream = self
            .answer("subscribe to events", CALL_LIMIT, client.subscribe(request))
            .await?;
        Ok(Starts {
            stream,
            address: self.address().to_owned(),
        })
    }
}

impl Starts {
    /// The id of the next container that starts; waits as long as it takes.
    ///
    /// # Errors
    /// containerd went away.
    pub async fn next(&mut self) -> Result<String, Error> {
        loop {
            match self.stream.message().await {
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
