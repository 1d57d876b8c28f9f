//! Docker, by its API on its Unix socket.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Duration;

use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::net::UnixStream;

use crate::error::{Error, Kind};

/// The namespace that dockerd uses in containerd, unless its configuration says otherwise.
pub const NAMESPACE: &str = "moby";

/// Where Docker listens unless `DOCKER_HOST` says otherwise.
const DEFAULT_SOCKET: &str = "/var/run/docker.sock";

/// Reads; dockerd answers them from its memory.
const CALL_LIMIT: Duration = Duration::from_secs(10);

/// A start is a restore here, whose own deadlines end earlier.
const START_LIMIT: Duration = Duration::from_secs(3600);

/// The largest answer that is read: a list of some ten thousand containers.
const ANSWER_BYTES_MAX: usize = 32 << 20;

/// A container as Docker shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Container {
    /// Its name, without the slash that Docker puts in front.
    pub name: String,
    /// Its image.
    pub image: String,
    /// When it was created, in milliseconds since 1970, to the second; zero if Docker does not say.
    pub created: u64,
}

/// A line of `GET /containers/json`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Listed {
    id: String,
    #[serde(default)]
    names: Vec<String>,
    #[serde(default)]
    image: String,
    /// In seconds.
    #[serde(default)]
    created: u64,
}

/// `GET /containers/ID/json`, as far as it is of interest.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Inspected {
    /// The image's id.
    image: String,
    config: Config,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Config {
    image: String,
}

/// A container's image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// The name it was asked for by.
    pub name: String,
    /// The digest of its configuration.
    pub id: String,
}

/// What comes with every failure.
#[derive(Debug, Deserialize)]
struct Refusal {
    message: String,
}

/// Docker's server.
#[derive(Debug)]
pub struct Docker {
    socket: PathBuf,
}

impl Docker {
    /// The one that the environment names, as for Docker's own client.
    ///
    /// # Errors
    /// `DOCKER_HOST` names one on another machine: its containers are not here.
    pub fn of_environment() -> Result<Self, Error> {
        Self::at(std::env::var("DOCKER_HOST").ok().as_deref())
    }

    fn at(host: Option<&str>) -> Result<Self, Error> {
        let socket = match host.filter(|host| !host.is_empty()) {
            None => DEFAULT_SOCKET,
            Some(host) => host.strip_prefix("unix://").ok_or_else(|| {
                Error::unsupported(format!(
                    "DOCKER_HOST is {host}: only unix:// sockets of this machine can be used"
                ))
            })?,
        };
        Ok(Self {
            socket: PathBuf::from(socket),
        })
    }

    /// All containers, by their ids.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn containers(&self) -> Result<HashMap<String, Container>, Error> {
        let path = "/containers/json?all=1";
        let body = self
            .call(Method::GET, path, "list Docker's containers", CALL_LIMIT)
            .await?;
        listed(&body).map_err(|source| Error::tool(format!("failed to read Docker's containers: {source}")))
    }

    /// The image of a container.
    ///
    /// # Errors
    /// There is none of that id, or Docker does not answer.
    pub async fn image(&self, id: &str) -> Result<Image, Error> {
        let path = format!("/containers/{}/json", plain(id)?);
        let act = format!("look at {id} in Docker");
        let body = self.call(Method::GET, &path, &act, CALL_LIMIT).await?;
        let found: Inspected = serde_json::from_slice(&body)
            .map_err(|source| Error::tool(format!("failed to read what Docker says of {id}: {source}")))?;
        Ok(Image {
            name: found.config.image,
            id: found.image,
        })
    }

    /// Starts a container that has ended, as `docker start`.
    ///
    /// # Errors
    /// There is none of that id, it runs, or it could not be started: with Docker's words.
    pub async fn start(&self, id: &str) -> Result<(), Error> {
        let path = format!("/containers/{}/start", plain(id)?);
        let act = format!("start {id} by Docker");
        self.call(Method::POST, &path, &act, START_LIMIT).await.map(drop)
    }

    async fn call(&self, method: Method, path: &str, act: &str, limit: Duration) -> Result<Bytes, Error> {
        match tokio::time::timeout(limit, self.exchange(method, path)).await {
            Ok(Ok((status, body))) => answered(status, body, act),
            Ok(Err(why)) => Err(self.silent(&why)),
            Err(_) => Err(self.silent("no answer in time")),
        }
    }

    /// One request on a connection of its own; the words of what went wrong if there was no answer.
    async fn exchange(&self, method: Method, path: &str) -> Result<(StatusCode, Bytes), String> {
        let words = |error: &dyn std::error::Error| error.to_string();
        let stream = UnixStream::connect(&self.socket).await.map_err(|e| words(&e))?;
        let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = handshake.map_err(|e| words(&e))?;
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(hyper::header::HOST, "docker")
            .body(Empty::<Bytes>::new())
            .map_err(|e| words(&e))?;
        let exchange = async {
            let response = sender.send_request(request).await.map_err(|e| words(&e))?;
            let status = response.status();
            let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX)
                .collect()
                .await;
            let body = body.map_err(|e| e.to_string())?.to_bytes();
            Ok((status, body))
        };
        tokio::pin!(connection, exchange);
        tokio::select! {
            done = &mut exchange => done,
            ended = &mut connection => match ended {
                // The answer may be complete and only not be collected yet.
                Ok(()) => exchange.await,
                Err(error) => Err(words(&error)),
            },
        }
    }

    fn silent(&self, why: &str) -> Error {
        Error::tool(format!(
            "failed to reach Docker at {}: {why}",
            self.socket.display()
        ))
        .hint("is it running? another socket is named by $DOCKER_HOST")
    }
}

/// An id that can stand in a path.
fn plain(id: &str) -> Result<&str, Error> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    match id.bytes().all(is_plain) {
        true => Ok(id),
        false => Err(Error::usage(format!("{id:?} is no id of Docker's"))),
    }
}

fn answered(status: StatusCode, body: Bytes, act: &str) -> Result<Bytes, Error> {
    let kind = match status {
        StatusCode::NOT_MODIFIED => {
            return Err(Error::wrong_state(format!("failed to {act}: it runs already")));
        }
        status if status.is_success() => return Ok(body),
        StatusCode::NOT_FOUND => Kind::NotFound,
        StatusCode::CONFLICT => Kind::WrongState,
        StatusCode::BAD_REQUEST => Kind::Failed,
        _ => Kind::Tool,
    };
    let message = serde_json::from_slice(&body).map_or_else(
        |_| format!("status {status}"),
        |refusal: Refusal| refusal.message.trim().to_owned(),
    );
    Err(Error::new(kind, format!("failed to {act}: {message}")))
}

fn listed(body: &[u8]) -> serde_json::Result<HashMap<String, Container>> {
    let lines: Vec<Listed> = serde_json::from_slice(body)?;
    let named = |line: Listed| {
        // A linked container has further names, with a slash within: the first plain one is its own.
        let name = line
            .names
            .iter()
            .map(|name| name.trim_start_matches('/'))
            .find(|name| !name.contains('/'));
        let container = Container {
            name: name.unwrap_or_default().to_owned(),
            image: line.image.clone(),
            created: line.created.saturating_mul(1000),
        };
        (line.id, container)
    };
    Ok(lines.into_iter().map(named).collect())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn only_sockets_of_this_machine_are_used() {
        for (host, socket) in [
            (None, Some(DEFAULT_SOCKET)),
            (Some(""), Some(DEFAULT_SOCKET)),
            (
                Some("unix:///run/user/0/docker.sock"),
                Some("/run/user/0/docker.sock"),
            ),
            (Some("tcp://10.0.0.1:2375"), None),
            (Some("ssh://host"), None),
        ] {
            match (Docker::at(host), socket) {
                (Ok(docker), Some(socket)) => assert_eq!(docker.socket, Path::new(socket)),
                (Err(error), None) => assert_eq!(error.kind, Kind::Unsupported, "{host:?}"),
                (other, _) => panic!("{host:?}: {other:?}"),
            }
        }
    }

    #[test]
    fn a_container_has_its_plain_name_and_its_image() {
        let body = br#"[{"Id":"abc","Names":["/web/alias","/web"],"Image":"redis:7","Created":7,"State":"running"},{"Id":"def"}]"#;
        let found = listed(body).expect("a list");
        let is = |id: &str, name: &str, image: &str, created: u64| {
            let (name, image) = (name.to_owned(), image.to_owned());
            let expected = Container { name, image, created };
            assert_eq!(found.get(id), Some(&expected));
        };
        is("abc", "web", "redis:7", 7000);
        is("def", "", "", 0);
        assert!(listed(b"{}").is_err());
    }

    #[test]
    fn a_refusal_has_its_kind_and_dockers_words() {
        let body = || Bytes::from_static(br#"{"message":"No such container: x\n"}"#);
        for (status, kind) in [
            (400, Kind::Failed),
            (404, Kind::NotFound),
            (409, Kind::WrongState),
            (500, Kind::Tool),
        ] {
            let status = StatusCode::from_u16(status).expect("a status");
            let error = answered(status, body(), "start x").expect_err("refused");
            assert_eq!(error.kind, kind);
            assert_eq!(error.message, "failed to start x: No such container: x");
        }
        let plain = answered(StatusCode::BAD_GATEWAY, Bytes::from_static(b"<html>"), "start x");
        assert_eq!(
            plain.expect_err("refused").message,
            "failed to start x: status 502 Bad Gateway"
        );
        let running = answered(StatusCode::NOT_MODIFIED, Bytes::new(), "start x");
        assert_eq!(running.expect_err("refused").kind, Kind::WrongState);
        assert!(answered(StatusCode::NO_CONTENT, Bytes::new(), "start x").is_ok());
    }
}
