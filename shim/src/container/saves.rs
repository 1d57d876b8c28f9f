//! Dumps, restores in place, and what the registry is told of a container.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jobs::record;
use jobs::time::millis;

use super::acts::{delete_from_runc, let_go};
use super::create::{
    From, Images, Init, bring_layer, keep_layer, mount_rootfs, put_layer_back, restore_init, unmount_rootfs,
};
use super::execs::drain;
use super::filling::until_filled;
use super::queue::answer;
use super::{Facts, Owner, Reply, RestoredInPlace};
use crate::cgroup::moves;
use crate::dump::{self, CheckpointOptions, DumpJob, Dumped};
use crate::error::{Error, Result, internal};
use crate::events::Event;
use crate::process::Process;
use crate::progress::Canceller;
use crate::restore::Restored;
use crate::restore::layer::{self, Replaced};
use crate::state::{Act, Status, check};
use crate::stdio::{self, StdioRequest, Streams};

/// What is told when a restore in place fails and so does what is to be as it was.
const NOT_MOUNTED: &str = "the root file system of a failed restore is not mounted again";

impl Owner {
    pub(super) fn checkpoint(
        &mut self,
        options: CheckpointOptions,
        settings: Option<Box<config::Dump>>,
        reply: Reply<Dumped>,
    ) {
        if let Err(error) = check(self.init.status, Act::Checkpoint) {
            return answer(reply, Err(error));
        }
        let was_paused = self.init.status == Status::Paused;
        let (facts, init_pid) = (Arc::clone(&self.facts), self.init.pid);
        let (canceller, cancel) = Canceller::new();
        self.canceller = Some(canceller);
        let mut origin = self.entry.origin();
        origin.name = origin.name.or_else(|| options.name.clone());
        let filling = self.filling.clone();
        let dump = async move {
            until_filled(filling, &facts.progress, &cancel).await?;
            let job = DumpJob {
                runc: facts.runc.clone(),
                namespace: facts.namespace.clone(),
                id: facts.id.clone(),
                bundle: facts.bundle.clone(),
                init_pid,
                cgroup: facts.cgroup()?.clone(),
                was_paused,
                options,
                settings: settings.map_or_else(|| facts.settings.dump.clone(), |settings| *settings),
                progress: facts.progress.clone(),
                cancel,
                origin,
            };
            dump::dump(&job).await.map_err(Error::from)
        };
        self.exclusively("checkpoint", dump, move |owner, dumped| {
            owner.canceller = None;
            match &dumped {
                Ok(dumped) => {
                    let keep = owner
                        .entry
                        .saved(dumped.checkpoint.clone(), owner.facts.progress.last_phase());
                    drop(tokio::task::spawn_blocking(keep));
                    let container_id = owner.facts.id.clone();
                    owner.facts.events.publish(Event::Checkpointed {
                        container_id,
                        checkpoint: dumped.checkpoint.path.display().to_string(),
                    });
                }
                Err(error) => owner.entry.acted(
                    "dump",
                    owner.facts.progress.last_phase(),
                    Some(&error.to_string()),
                ),
            }
            answer(reply, dumped);
        });
    }

    /// Gives the dump under way up, unless it is past its commit. It answers for itself.
    pub(super) fn cancel(&mut self) -> Result<()> {
        let nothing = || Error::FailedPrecondition("no dump is under way".to_owned());
        self.canceller.as_ref().ok_or_else(nothing)?.cancel();
        Ok(())
    }

    /// Lets a container that has ended run again, from a checkpoint. It keeps its bundle, its root file system and its streams,
    /// as far as those who read and write them are still there.
    pub(super) fn restore(
        &mut self,
        images: Images,
        unpacked_from: Option<PathBuf>,
        settings: config::Restore,
        reply: Reply<RestoredInPlace>,
    ) {
        if let Err(error) = check(self.init.status, Act::Restore) {
            return answer(reply, Err(error));
        }
        let facts = Arc::clone(&self.facts);
        let strangers = facts.reaper.expect_strangers();
        let (streams, stdio) = (self.init.streams.take(), what_is_there(&self.init.stdio));
        let from = unpacked_from.unwrap_or_else(|| images.checkpoint.clone());
        let request = stdio.clone();
        let restore = async move {
            let _moves = moves::expect();
            drain(streams).await;
            in_place(&facts, &request, images, &settings).await
        };
        // Told as a start: the exit of what is restored, if it comes at once, has to wait for it.
        self.exclusively("start", restore, move |owner, restored| {
            match restored {
                Ok((pid, streams, Restored { timings, filling, .. })) => {
                    owner.runs_again(pid, streams, stdio, &from);
                    owner.follow_filling(filling);
                    answer(reply, Ok(RestoredInPlace { pid, timings }));
                }
                Err(error) => {
                    owner.entry.acted(
                        "restore",
                        owner.facts.progress.last_phase(),
                        Some(&error.to_string()),
                    );
                    answer(reply, Err(error));
                }
            }
            drop(strangers);
        });
    }

    fn runs_again(&mut self, pid: i32, streams: Streams, stdio: StdioRequest, from: &Path) {
        self.init = Process::created(pid, stdio, Some(streams));
        self.init.status = Status::Running;
        (self.dying, self.killing) = (false, false);
        self.watch_init();
        let container_id = self.facts.id.clone();
        self.facts.events.publish(Event::Start {
            container_id,
            pid: pid.unsigned_abs(),
        });
        self.entry.restored(from, self.facts.progress.last_phase());
    }

    /// Brings the entry in the registry up to date.
    pub(super) fn publish(&mut self) {
        let exit = self.init.exit().map(|exit| record::Exit {
            status: exit.status,
            at: millis(exit.at),
        });
        let status = match self.init.status {
            _ if self.gone => record::Status::Deleted,
            Status::Created => record::Status::Created,
            Status::Running => record::Status::Running,
            Status::Pausing | Status::Paused => record::Status::Paused,
            Status::Stopped => record::Status::Stopped,
        };
        self.entry.state(status, self.init.pid, exit);
    }
}

async fn in_place(
    facts: &Arc<Facts>,
    stdio: &StdioRequest,
    images: Images,
    settings: &config::Restore,
) -> Result<(i32, Streams, Restored)> {
    delete_from_runc(facts, None).await?;
    let layer = renew_root(facts, &images, settings).await?;
    let from = From {
        images,
        layer_is_there: layer.as_ref().is_some_and(Replaced::is_filled),
    };
    let (pid, streams, restored) = match bring_back(facts, stdio, from, settings).await {
        Ok(back) => {
            keep_layer(layer);
            back
        }
        Err(error) => {
            if layer.is_some() {
                take_root_back(facts, layer);
            }
            return Err(error);
        }
    };
    if let Err(error) = let_go(&restored).await {
        // Stopped processes that nobody will ever start are worse than none.
        let args: [&OsStr; 3] = ["delete".as_ref(), "--force".as_ref(), facts.id.as_ref()];
        if let Err(error) = facts.runc.run(&args, crate::runc::Call::default()).await {
            tracing::warn!(id = facts.id, %error, "what was restored stays, and stands still");
        }
        return Err(error);
    }
    Ok((pid, streams, restored))
}

/// Mounts the root file system anew, with the writable layer of the checkpoint, if it has one and we had mounted it.
async fn renew_root(facts: &Facts, images: &Images, settings: &config::Restore) -> Result<Option<Replaced>> {
    let has_layer = images
        .layer()
        .map_err(|error| error.told("read the checkpoint"))?
        .is_some();
    if !has_layer || layer::upper(&facts.rootfs).is_none() {
        return Ok(None);
    }
    unmount_rootfs(&facts.bundle)?;
    let layer = bring_layer(facts, images, settings).await;
    let mounted = mount_rootfs(&facts.bundle, &facts.rootfs);
    match (layer, mounted) {
        (Ok(layer), Ok(())) => Ok(layer),
        (Ok(layer), Err(error)) => {
            take_root_back(facts, layer);
            Err(error)
        }
        (Err(error), mounted) => {
            if let Err(error) = mounted {
                tracing::warn!(id = facts.id, %error, "{NOT_MOUNTED}");
            }
            Err(error)
        }
    }
}

/// The container has ended, and its files are as they were when it did.
fn take_root_back(facts: &Facts, layer: Option<Replaced>) {
    if let Err(error) = unmount_rootfs(&facts.bundle) {
        return tracing::warn!(id = facts.id, %error, "the layer of a failed restore stays: it is still mounted");
    }
    put_layer_back(facts, layer);
    if let Err(error) = mount_rootfs(&facts.bundle, &facts.rootfs) {
        tracing::warn!(id = facts.id, %error, "{NOT_MOUNTED}");
    }
}

async fn bring_back(
    facts: &Arc<Facts>,
    stdio: &StdioRequest,
    from: From,
    settings: &config::Restore,
) -> Result<(i32, Streams, Restored)> {
    let prepared =
        stdio::prepare(stdio, &facts.stdio_context(&facts.id)).map_err(internal("set up the stdio"))?;
    match restore_init(facts, prepared, from, settings).await? {
        Init::Here {
            pid,
            streams,
            restored: Some(restored),
        } => Ok((pid, streams, restored)),
        _ => Err(Error::Internal("the restore brought no process back".to_owned())),
    }
}

/// The streams less the fifos that are gone with the client who had made them.
fn what_is_there(stdio: &StdioRequest) -> StdioRequest {
    let keep = |name: &String| match name.starts_with('/') && !Path::new(name).exists() {
        true => String::new(),
        false => name.clone(),
    };
    StdioRequest {
        stdin: keep(&stdio.stdin),
        stdout: keep(&stdio.stdout),
        stderr: keep(&stdio.stderr),
        terminal: stdio.terminal,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_whose_fifo_is_gone_is_none() {
        let stdio = StdioRequest {
            stdin: "/nonexistent/stdin".to_owned(),
            stdout: "file:///nonexistent/log".to_owned(),
            stderr: "/proc/self/status".to_owned(),
            terminal: false,
        };
        let kept = what_is_there(&stdio);
        assert_eq!(kept.stdin, "");
        assert_eq!((kept.stdout, kept.stderr), (stdio.stdout, stdio.stderr));
    }
}
