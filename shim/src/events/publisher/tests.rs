use std::collections::HashMap;
use std::future::Future;
use std::path::Path;
use std::pin::Pin;

use containerd_shim_protos::shim_async::{Events, create_events};
use protobuf::well_known_types::empty::Empty;
use tokio::sync::mpsc;
use ttrpc::r#async::{Server, TtrpcContext};

use super::*;

/// containerd's event service: tells the test each topic, and refuses the ones it was told to refuse.
struct Daemon {
    topics: mpsc::UnboundedSender<String>,
    refused: &'static str,
}

type Answer<'a> = Pin<Box<dyn Future<Output = ttrpc::Result<Empty>> + Send + 'a>>;

impl Events for Daemon {
    fn forward<'a, 'b, 'c>(&'a self, _: &'b TtrpcContext, request: ForwardRequest) -> Answer<'c>
    where
        'a: 'c,
        'b: 'c,
        Self: 'c,
    {
        Box::pin(async move {
            let topic = request.envelope.topic.clone();
            let refuse = topic == self.refused;
            self.topics.send(topic).unwrap();
            match refuse {
                true => Err(ttrpc::Error::RpcStatus(ttrpc::get_status(
                    ttrpc::Code::INVALID_ARGUMENT,
                    "no",
                ))),
                false => Ok(Empty::new()),
            }
        })
    }
}

async fn daemon(socket: &Path, topics: mpsc::UnboundedSender<String>, refused: &'static str) -> Server {
    let _ = std::fs::remove_file(socket);
    let services: HashMap<_, _> = create_events(Arc::new(Daemon { topics, refused }));
    let address = format!("unix://{}", socket.display());
    let mut server = Server::new().bind(&address).unwrap().register_service(services);
    server.start().await.unwrap();
    server
}

fn start(id: &str) -> Event {
    Event::Start {
        container_id: id.into(),
        pid: 1,
    }
}

fn oom(id: &str) -> Event {
    Event::Oom {
        container_id: id.into(),
    }
}

fn exit(id: &str) -> Event {
    let exited_at = SystemTime::UNIX_EPOCH;
    Event::Exit {
        container_id: id.into(),
        id: id.into(),
        pid: 1,
        exit_status: 0,
        exited_at,
    }
}

const LIMIT: Duration = Duration::from_secs(20);

async fn next(topics: &mut mpsc::UnboundedReceiver<String>) -> String {
    timeout(LIMIT, topics.recv()).await.unwrap().unwrap()
}

#[tokio::test]
async fn events_wait_for_containerd_and_arrive_in_order_also_after_its_restart() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("events.sock");
    let publisher = Publisher::start(socket.to_str().unwrap(), "ns");
    publisher.publish(start("a"));
    publisher.publish(exit("a"));
    assert!(
        !publisher.drain(Duration::from_millis(1)).await,
        "nobody is there yet"
    );

    let (sender, mut topics) = mpsc::unbounded_channel();
    let mut server = daemon(&socket, sender.clone(), "").await;
    assert_eq!(next(&mut topics).await, "/tasks/start");
    assert_eq!(next(&mut topics).await, "/tasks/exit");
    assert!(publisher.drain(LIMIT).await);

    server.shutdown().await.unwrap();
    publisher.publish(oom("b"));
    publisher.publish(exit("b"));
    let _server = daemon(&socket, sender, "").await;
    assert_eq!(next(&mut topics).await, "/tasks/oom");
    assert_eq!(next(&mut topics).await, "/tasks/exit");
    assert!(publisher.drain(LIMIT).await);
}

#[tokio::test]
async fn an_event_that_containerd_refuses_is_given_up_and_the_next_one_sent() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("events.sock");
    let (sender, mut topics) = mpsc::unbounded_channel();
    let _server = daemon(&socket, sender, "/tasks/start").await;
    let publisher = Publisher::start(&format!("unix://{}", socket.display()), "ns");
    publisher.publish(start("a"));
    publisher.publish(exit("a"));
    for _ in 0..REFUSALS_MAX {
        assert_eq!(next(&mut topics).await, "/tasks/start");
    }
    assert_eq!(next(&mut topics).await, "/tasks/exit");
    assert!(publisher.drain(LIMIT).await);
}

#[test]
fn a_full_queue_loses_what_nobody_waits_for() {
    let queued = |vital| Queued {
        request: ForwardRequest::default(),
        vital,
    };
    let mut queue: VecDeque<Queued> = (0..QUEUE_MAX).map(|index| queued(index != 5)).collect();
    assert!(!push(&mut queue, queued(true)).unwrap().vital);
    assert_eq!(queue.len(), QUEUE_MAX);
    assert!(
        push(&mut queue, queued(true)).unwrap().vital,
        "all are vital: the oldest goes"
    );
    assert_eq!(queue.len(), QUEUE_MAX);
    assert!(push(&mut VecDeque::new(), queued(false)).is_none());
}
