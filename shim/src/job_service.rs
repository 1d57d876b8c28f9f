//! The shim's own service, for `cedana`: see [`jobs::wire`]. Like the Task service it translates and decides nothing.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use jobs::wire::{
    CANCEL, DUMP, DumpAnswer, DumpRequest, Empty, FREEZE, MESSAGE_BYTES_MAX, PROGRESS, ProgressAnswer,
    ProgressRequest, RESTORE, RestoreAnswer, RestoreRequest, SERVICE, STATUS, StatusAnswer, THAW, Target,
};
use oci_bundles::layout::Shape;
use oci_bundles::manifest::Image;
use serde::Serialize;
use serde::de::DeserializeOwned;
use ttrpc::r#async::{MethodHandler, Service, TtrpcContext};
use ttrpc::{Request, Response};

use crate::container::{Command, Container};
use crate::dump::CheckpointOptions;
use crate::error::{Error, Result, chain};
use crate::phases::Timing;
use crate::shim::Shim;
use crate::translate::status;

/// The service under its name.
pub fn services(shim: Arc<Shim>) -> HashMap<String, Service> {
    let methods = [STATUS, DUMP, RESTORE, FREEZE, THAW, PROGRESS, CANCEL];
    let handler = |name| {
        let method = Method {
            name,
            shim: Arc::clone(&shim),
        };
        (
            name.to_owned(),
            Box::new(method) as Box<dyn MethodHandler + Send + Sync>,
        )
    };
    let service = Service {
        methods: methods.into_iter().map(handler).collect(),
        streams: HashMap::new(),
    };
    HashMap::from([(SERVICE.to_owned(), service)])
}

struct Method {
    name: &'static str,
    shim: Arc<Shim>,
}

#[async_trait]
impl MethodHandler for Method {
    async fn handler(&self, _: TtrpcContext, request: Request) -> ttrpc::Result<Response> {
        let mut response = Response::new();
        match self.answer(&request.payload).await.map_err(status) {
            Ok(answer) => {
                response.set_status(ttrpc::get_status(ttrpc::Code::OK, ""));
                response.payload = answer;
            }
            // An error that is returned as one reaches the client without its code.
            Err(ttrpc::Error::RpcStatus(refusal)) => response.set_status(refusal),
            Err(error) => return Err(error),
        }
        Ok(response)
    }
}

impl Method {
    async fn answer(&self, payload: &[u8]) -> Result<Vec<u8>> {
        match self.name {
            STATUS => encode(&self.status(decode(payload)?).await?),
            DUMP => encode(&self.dump(decode(payload)?).await?),
            RESTORE => encode(&self.restore(decode(payload)?).await?),
            FREEZE => {
                self.tell(decode(payload)?, |reply| Command::Pause { reply })
                    .await
            }
            THAW => {
                self.tell(decode(payload)?, |reply| Command::Resume { reply })
                    .await
            }
            PROGRESS => encode(&self.progress(decode(payload)?).await?),
            _ => {
                self.tell(decode(payload)?, |reply| Command::Cancel { reply })
                    .await
            }
        }
    }

    fn container(&self, id: &str) -> Result<Container> {
        self.shim.container(id)
    }

    async fn tell(
        &self,
        target: Target,
        command: impl FnOnce(crate::container::Reply<()>) -> Command,
    ) -> Result<Vec<u8>> {
        self.container(&target.id)?.ask(command).await?;
        encode(&Empty {})
    }

    async fn status(&self, target: Target) -> Result<StatusAnswer> {
        let container = self.container(&target.id)?;
        let record = container.ask(|reply| Command::Record { reply }).await?;
        let busy = container.view().busy.map(str::to_owned);
        Ok(StatusAnswer { record, busy })
    }

    async fn dump(&self, request: DumpRequest) -> Result<DumpAnswer> {
        let container = self.container(&request.id)?;
        check_target(&request.path)?;
        if let Some(archive) = &request.archive {
            check_target(&archive.path)?;
            if archive.path.parent() != request.path.parent() {
                return Err(Error::InvalidArgument(format!(
                    "{} is not in the directory of {}",
                    archive.path.display(),
                    request.path.display()
                )));
            }
        }
        let archive_path = request.archive.as_ref().map(|archive| archive.path.clone());
        let settings = with_flags(&container, &request.settings)?.dump;
        let options = Box::new(CheckpointOptions {
            said: true,
            image_path: request.path,
            shape: Shape::Nested,
            archive: request.archive,
            new_directory: true,
            name: request.name,
            image: request.image.map(image),
            exit: !request.leave_running,
            terminal: request.shell_job,
            ..CheckpointOptions::default()
        });
        let dumped = container
            .ask(|reply| Command::Checkpoint {
                options,
                settings: Some(Box::new(settings)),
                reply,
            })
            .await?;
        Ok(DumpAnswer {
            archived: archive_path.is_some_and(|path| path == dumped.checkpoint.path),
            size: dumped.checkpoint.size,
            timings: millis(&dumped.timings),
        })
    }

    async fn restore(&self, request: RestoreRequest) -> Result<RestoreAnswer> {
        let container = self.container(&request.id)?;
        let settings = Box::new(with_flags(&container, &request.settings)?.restore);
        let restored = container
            .ask(|reply| Command::Restore {
                checkpoint: request.path,
                unpacked_from: request.unpacked_from,
                left: request.left,
                settings,
                reply,
            })
            .await?;
        Ok(RestoreAnswer {
            pid: restored.pid,
            timings: millis(&restored.timings),
        })
    }

    async fn progress(&self, request: ProgressRequest) -> Result<ProgressAnswer> {
        let container = self.container(&request.id)?;
        let step = container.facts.progress.after(request.seen).await;
        Ok(ProgressAnswer {
            step: step.count,
            verb: step.verb.to_owned(),
            phase: step.phase.to_owned(),
            bytes: step.bytes(),
            total: step.total,
        })
    }
}

fn image(said: jobs::wire::Image) -> Image {
    let jobs::wire::Image { name, digest, id } = said;
    Image { name, digest, id }
}

/// A checkpoint gets a directory of its own: one with something in it may be somebody's.
fn check_target(path: &Path) -> Result<()> {
    let shown = path.display();
    if !path.is_absolute() {
        return Err(Error::InvalidArgument(format!("{shown} is not an absolute path")));
    }
    if path.exists() {
        return Err(Error::AlreadyExists(format!(
            "{shown} exists already; give the checkpoint another name"
        )));
    }
    match path.parent().is_some_and(Path::is_dir) {
        true => Ok(()),
        false => Err(Error::InvalidArgument(format!(
            "the directory of {shown} does not exist"
        ))),
    }
}

fn with_flags(container: &Container, flags: &BTreeMap<String, String>) -> Result<config::Settings> {
    container
        .facts
        .settings
        .with_flags(flags)
        .map_err(|error| Error::InvalidArgument(chain(&error)))
}

fn millis(timings: &[Timing]) -> Vec<(String, f64)> {
    let each = |timing: &Timing| (timing.phase.to_owned(), timing.took.as_secs_f64() * 1000.0);
    timings.iter().map(each).collect()
}

fn decode<T: DeserializeOwned>(payload: &[u8]) -> Result<T> {
    if payload.len() > MESSAGE_BYTES_MAX {
        return Err(Error::InvalidArgument(format!(
            "a message of {} bytes is none of ours",
            payload.len()
        )));
    }
    serde_json::from_slice(payload)
        .map_err(|error| Error::InvalidArgument(format!("read the request: {error}")))
}

/// Every request, of any bytes; the settings in it as well.
#[cfg(any(test, fuzzing))]
pub(crate) fn decode_any(payload: &[u8]) {
    let (dump, restore) = (decode::<DumpRequest>(payload), decode::<RestoreRequest>(payload));
    let _progress = decode::<ProgressRequest>(payload).is_ok();
    let of_dump = dump.ok().map(|request| request.settings);
    let of_restore = restore.ok().map(|request| request.settings);
    for flags in of_dump.iter().chain(&of_restore) {
        let _settings = config::Settings::default().with_flags(flags);
    }
}

fn encode<T: Serialize>(answer: &T) -> Result<Vec<u8>> {
    serde_json::to_vec(answer).map_err(|error| Error::Internal(format!("write the answer: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkpoint_gets_a_directory_of_its_own() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        assert!(check_target(&dir.path().join("new")).is_ok());
        assert!(matches!(check_target(dir.path()), Err(Error::AlreadyExists(_))));
        assert!(matches!(
            check_target(&dir.path().join("a/b")),
            Err(Error::InvalidArgument(_))
        ));
        assert!(matches!(
            check_target(Path::new("relative")),
            Err(Error::InvalidArgument(_))
        ));
    }

    #[test]
    fn a_message_that_is_none_is_refused() {
        assert!(decode::<Target>(b"{\"id\": \"x\", \"later\": 1}").is_ok());
        for payload in [b"".as_slice(), b"{}", b"[1]", &[b' '; MESSAGE_BYTES_MAX + 1]] {
            assert!(matches!(
                decode::<Target>(payload),
                Err(Error::InvalidArgument(_))
            ));
        }
    }
}
