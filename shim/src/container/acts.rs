//! What is done to a container as a whole.

use std::ffi::OsStr;
use std::sync::Arc;
use std::time::Duration;

use nix::libc::SIGKILL;

use super::create::{Deferred, From, Init, clean, restore_init};
use super::execs::{deleted, drain};
use super::queue::answer;
use super::{Deleted, Facts, Owner, Reply};
use crate::cgroup::{Metrics, moves};
use crate::criu::programs;
use crate::error::{Error, Result, internal};
use crate::events::Event;
use crate::reap::ExitWatch;
use crate::runc::fast::{self, Fast};
use crate::runc::{Call, RuncError};
use crate::state::{Act, Status, check, check_exec};
use crate::stdio::StdioRequest;

/// How long the kernel may take to freeze or thaw a cgroup. A task in uninterruptible sleep (a hung disk) delays it.
const FREEZE_DEADLINE: Duration = Duration::from_secs(30);
/// How long a killed init may take to end: its exit is a matter of the kernel tearing down its memory.
const KILLED_DEADLINE: Duration = Duration::from_secs(30);

/// Resources go to runc through a pipe, which takes this much without anybody reading.
const RESOURCES_BYTES_MAX: usize = 60 * 1024;

impl Owner {
    pub(super) fn start(&mut self, reply: Reply<i32>) {
        let status = if self.held_exit.is_some() {
            Status::Stopped
        } else {
            self.init.status
        };
        if let Err(error) = check(status, Act::Start) {
            return answer(reply, Err(error));
        }
        if let Some(deferred) = self.deferred.take() {
            return self.start_deferred(deferred, reply);
        }
        let (facts, watch) = (Arc::clone(&self.facts), self.init.watch.clone());
        let restored = self.restored.take();
        let start = async move {
            let started = match &restored {
                Some(restored) => let_go(restored).await,
                None => start(&facts, watch.as_ref()).await,
            };
            (restored, started)
        };
        self.exclusively("start", start, |owner, (restored, started)| {
            if let Err(error) = started {
                owner.restored = restored;
                return answer(reply, Err(error));
            }
            owner.started(reply);
        });
    }

    /// Restores now what could not be restored in `Create`, and lets it go.
    fn start_deferred(&mut self, deferred: Deferred, reply: Reply<i32>) {
        let facts = Arc::clone(&self.facts);
        let strangers = facts.reaper.expect_strangers();
        let restore = async move {
            let _moves = moves::expect();
            let restored = restore_and_let_go(&facts, deferred).await;
            if restored.is_err() {
                clean(&facts).await;
            }
            restored
        };
        self.exclusively("start", restore, move |owner, init| {
            match init {
                Ok(Init::Here {
                    pid,
                    streams,
                    restored,
                }) => {
                    owner.init.pid = pid;
                    owner.init.streams = Some(streams);
                    owner.watch_init();
                    owner.follow_filling(restored.and_then(|restored| restored.filling));
                    owner.started(reply);
                }
                Ok(Init::Later(_)) => answer(
                    reply,
                    Err(Error::Internal("the restore was put off twice".to_owned())),
                ),
                Err(error) => answer(reply, Err(error)),
            }
            drop(strangers);
        });
    }

    /// Draws the consequences of the init running.
    fn started(&mut self, reply: Reply<i32>) {
        self.init.status = Status::Running;
        let pid = self.init.pid;
        let container_id = self.facts.id.clone();
        self.facts.events.publish(Event::Start {
            container_id,
            pid: pid.unsigned_abs(),
        });
        answer(reply, Ok(pid));
    }

    pub(super) fn pause(&mut self, reply: Reply<()>) {
        if let Err(error) = check(self.init.status, Act::Pause) {
            return answer(reply, Err(error));
        }
        self.init.status = Status::Pausing;
        let facts = Arc::clone(&self.facts);
        let freeze = async move {
            if !facts.runc.is_plain() {
                return by_runtime(&facts, "pause").await;
            }
            let cgroup = facts.cgroup()?;
            let failed = "pause the container";
            cgroup.freeze(FREEZE_DEADLINE).await.map_err(internal(failed))?;
            // Most clients pause before they ask for a dump, which must not lift a client's pause.
            let paused = programs::leave_starts(cgroup, FREEZE_DEADLINE).await;
            paused.map(drop).map_err(internal(failed))
        };
        self.exclusively("pause", freeze, |owner, frozen| {
            let id = owner.facts.id.clone();
            let paused = match frozen {
                // It ended meanwhile and that was told: nothing of it is paused any more.
                Ok(()) if owner.init.status != Status::Pausing => check(owner.init.status, Act::Pause),
                Ok(()) => {
                    if owner.dying {
                        owner.thaw_to_die();
                    }
                    owner.init.status = Status::Paused;
                    owner.facts.events.publish(Event::Paused { container_id: id });
                    Ok(())
                }
                Err(error) => {
                    if owner.init.status == Status::Pausing {
                        owner.init.status = Status::Running;
                    }
                    Err(error)
                }
            };
            answer(reply, paused);
        });
    }

    pub(super) fn resume(&mut self, reply: Reply<()>) {
        if let Err(error) = check(self.init.status, Act::Resume) {
            return answer(reply, Err(error));
        }
        let facts = Arc::clone(&self.facts);
        let thaw = async move {
            if !facts.runc.is_plain() {
                return by_runtime(&facts, "resume").await;
            }
            facts
                .cgroup()?
                .thaw(FREEZE_DEADLINE)
                .await
                .map_err(internal("resume the container"))
        };
        self.exclusively("resume", thaw, |owner, thawed| {
            if thawed.is_ok() && owner.init.status == Status::Paused {
                owner.init.status = Status::Running;
                owner.facts.events.publish(Event::Resumed {
                    container_id: owner.facts.id.clone(),
                });
            }
            answer(reply, thawed);
        });
    }

    pub(super) fn update(&mut self, resources: Vec<u8>, reply: Reply<()>) {
        if let Err(error) = check(self.init.status, Act::Update) {
            return answer(reply, Err(error));
        }
        if resources.len() > RESOURCES_BYTES_MAX {
            let text = format!(
                "resources of {} bytes are more than any container has",
                resources.len()
            );
            return answer(reply, Err(Error::InvalidArgument(text)));
        }
        let facts = Arc::clone(&self.facts);
        let update = async move {
            let args: [&OsStr; 4] = [
                "update".as_ref(),
                "--resources".as_ref(),
                "-".as_ref(),
                facts.id.as_ref(),
            ];
            let call = Call {
                input: Some(resources),
                ..Call::default()
            };
            facts
                .runc
                .run(&args, call)
                .await
                .map_err(internal("OCI runtime update failed"))
        };
        self.exclusively("update", update, |_, updated| answer(reply, updated));
    }

    pub(super) fn kill(&mut self, exec: Option<&str>, signal: i32, all: bool) -> Result<()> {
        if all && exec.is_none() {
            return self.kill_all(signal);
        }
        let frozen = self.is_frozen();
        let process = self.process(exec)?;
        if exec.is_some() {
            check_exec(process.status, Act::Kill)?;
        } else {
            check(process.status, Act::Kill)?;
        }
        process.signal(signal)?;
        if signal == SIGKILL {
            self.give_up_dump(exec.is_none());
            if frozen {
                self.thaw_to_die();
            }
        }
        Ok(())
    }

    fn kill_all(&mut self, signal: i32) -> Result<()> {
        let cgroup = self.facts.cgroup()?;
        if cgroup.is_shared() {
            // An init that died before its cgroup was looked up is listed under the root: "all" would be the host.
            return self.init.signal(signal);
        }
        let pids = cgroup.procs();
        if pids.is_empty() {
            return check(Status::Stopped, Act::Kill);
        }
        for pid in pids {
            match crate::signals::send(pid, signal) {
                Ok(()) | Err(nix::errno::Errno::ESRCH) => {}
                Err(nix::errno::Errno::EINVAL) => {
                    return Err(Error::InvalidArgument(format!("{signal} is not a signal")));
                }
                Err(errno) => return Err(Error::Internal(format!("signal process {pid}: {errno}"))),
            }
        }
        if signal == SIGKILL {
            self.give_up_dump(true);
            if self.is_frozen() {
                self.thaw_to_die();
            }
        }
        Ok(())
    }

    /// CRIU waits for ever for a process that was killed while it was being stopped.
    fn give_up_dump(&self, of_init: bool) {
        if of_init && let Some(canceller) = &self.canceller {
            canceller.cancel();
        }
    }

    /// By a client's pause, or by a dump that may be stuck.
    fn is_frozen(&self) -> bool {
        self.init.status == Status::Pausing || self.facts.cgroup().is_ok_and(crate::cgroup::Cgroup::is_frozen)
    }

    /// Under cgroup v1 a frozen task does not even die of SIGKILL, so the cgroup is let go.
    fn thaw_to_die(&mut self) {
        // A freeze under way would freeze it again: whoever ends it asks once more.
        self.dying = true;
        let facts = Arc::clone(&self.facts);
        let thaw = async move {
            facts
                .cgroup()?
                .thaw(FREEZE_DEADLINE)
                .await
                .map_err(internal("thaw a killed container"))
        };
        self.aside(thaw, |owner, thawed| {
            if let Err(error) = thawed {
                tracing::warn!(id = owner.facts.id, %error, "a killed container may stay frozen");
            }
        });
    }

    pub(super) fn resize(&mut self, exec: Option<&str>, width: u16, height: u16) -> Result<()> {
        match &self.process(exec)?.streams {
            Some(streams) => streams
                .resize(width, height)
                .map_err(internal("resize the terminal")),
            None => Err(Error::FailedPrecondition(
                "the process has no terminal yet".to_owned(),
            )),
        }
    }

    pub(super) fn close_io(&mut self, exec: Option<&str>) -> Result<()> {
        if let Some(streams) = &self.process(exec)?.streams {
            streams.close_stdin();
        }
        Ok(())
    }

    /// The processes of the container, with the id of the exec a pid belongs to.
    pub(super) fn pids(&self) -> Vec<(i32, Option<String>)> {
        let mut pids = self
            .facts
            .cgroup()
            .map(crate::cgroup::Cgroup::procs)
            .unwrap_or_default();
        if pids.is_empty()
            && self.held_exit.is_none()
            && self.init.status != Status::Stopped
            && self.init.pid > 0
        {
            // A task without processes would be reaped as leaked by a restarting containerd.
            pids.push(self.init.pid);
        }
        let exec_of = |pid| {
            let mut running = self
                .execs
                .iter()
                .filter(|(_, process)| process.status == Status::Running);
            running
                .find(|(_, process)| process.pid == pid)
                .map(|(id, _)| id.clone())
        };
        pids.into_iter().map(|pid| (pid, exec_of(pid))).collect()
    }

    pub(super) fn stats(&self) -> Result<Metrics> {
        let cgroup = self.facts.cgroup()?;
        if !cgroup.exists() {
            return Err(Error::NotFound(format!(
                "container {} has no cgroup any more",
                self.facts.id
            )));
        }
        cgroup.stats().map_err(internal("read the container's metrics"))
    }

    pub(super) fn delete(&mut self, reply: Reply<Deleted>) {
        if let Err(error) = check(self.init.status, Act::Delete) {
            return answer(reply, Err(error));
        }
        let facts = Arc::clone(&self.facts);
        let alive = (self.init.status == Status::Created)
            .then(|| self.init.watch.clone())
            .flatten();
        let streams: Vec<_> = std::iter::once(&mut self.init)
            .chain(self.execs.values_mut())
            .filter_map(|process| process.streams.take())
            .collect();
        let delete = async move {
            let runc = delete_from_runc(&facts, alive).await;
            drain(streams).await;
            runc?;
            unmount_beside(facts).await
        };
        self.exclusively("delete", delete, |owner, outcome| {
            if let Err(error) = outcome {
                return answer(reply, Err(error));
            }
            // The end of an init that was only created is in the queue behind us: it is told before the deletion.
            if owner.init.exit().is_none()
                && let Some(exit) = owner.init.watch.as_ref().and_then(ExitWatch::now)
            {
                owner.exited(None, exit);
                owner.tell_held_exit();
            }
            let deleted = deleted(&owner.init);
            owner.facts.events.publish(Event::Delete {
                container_id: owner.facts.id.clone(),
                id: String::new(),
                pid: deleted.pid.unsigned_abs(),
                exit_status: deleted.exit.status,
                exited_at: deleted.exit.at,
            });
            owner.gone = true;
            answer(reply, Ok(deleted));
        });
    }
}

/// Has the runtime do what takes nothing but the container's id.
async fn by_runtime(facts: &Facts, verb: &str) -> Result<()> {
    let args: [&OsStr; 2] = [verb.as_ref(), facts.id.as_ref()];
    let failed = format!("OCI runtime {verb} failed");
    facts
        .runc
        .run(&args, Call::default())
        .await
        .map_err(internal(&failed))
}

pub(super) async fn let_go(restored: &crate::restore::Restored) -> Result<()> {
    crate::restore::release(restored)
        .await
        .map_err(internal("let the restored processes go"))
}

async fn restore_and_let_go(facts: &Arc<Facts>, deferred: Deferred) -> Result<Init> {
    let (prepared, settings) = (deferred.prepared, &facts.settings.restore);
    // The client has put the writable layer back, which is what this waited for.
    let from = From {
        images: deferred.images,
        layer_is_there: true,
    };
    let init = restore_init(facts, prepared, from, settings).await?;
    if let Init::Here {
        restored: Some(restored),
        ..
    } = &init
    {
        let_go(restored).await?;
    }
    Ok(init)
}

/// Lets a created init go on: the short way if nothing but that is to be done, else through runc.
async fn start(facts: &Facts, init: Option<&ExitWatch>) -> Result<()> {
    let plain = facts.runc.is_plain() && !facts.spec.hooks.poststart;
    if let (true, Some(init)) = (plain, init) {
        match fast::start(&facts.state_dir(), init).await {
            Ok(Fast::Done) => return Ok(()),
            Ok(Fast::Unsure) => {}
            Err(error) => return Err(internal("OCI runtime start failed")(error)),
        }
    }
    by_runtime(facts, "start").await
}

/// Removes what the runtime keeps: the short way if nothing but that is to be done, else through runc. `alive` is the
/// init of a container that was created and never started.
pub(super) async fn delete_from_runc(facts: &Facts, alive: Option<ExitWatch>) -> Result<()> {
    let plain =
        facts.runc.is_plain() && alive.is_none() && !facts.spec.hooks.poststop && !facts.runc.systemd_cgroup;
    if plain && matches!(fast::delete(&facts.state_dir()), Ok(Fast::Done)) {
        return Ok(());
    }
    let mut args: Vec<&OsStr> = vec!["delete".as_ref()];
    if alive.is_some() {
        args.push("--force".as_ref());
    }
    args.push(facts.id.as_ref());
    match facts.runc.run(&args, Call::default()).await {
        Ok(()) => {}
        Err(error) if error.is_gone() => {}
        Err(error) => return Err(runc_delete_failed(error)),
    }
    if let Some(init) = alive
        && tokio::time::timeout(KILLED_DEADLINE, init.wait()).await.is_err()
    {
        tracing::warn!(id = facts.id, "the init of a deleted container does not end");
    }
    Ok(())
}

/// Unmounting an overlay writes back what is dirty in it, which may take long: not on the shim's only thread.
async fn unmount_beside(facts: Arc<Facts>) -> Result<()> {
    let unmounting = tokio::task::spawn_blocking(move || super::create::unmount_rootfs(&facts.bundle));
    unmounting.await.map_err(internal("unmount the rootfs"))?
}

fn runc_delete_failed(error: RuncError) -> Error {
    internal("OCI runtime delete failed")(error)
}

/// The init as `Create` announced it, for the event.
pub(super) fn announce(
    facts: &Facts,
    rootfs: Vec<oci_bundles::mounts::Mount>,
    io: StdioRequest,
    checkpoint: String,
    pid: i32,
) {
    facts.events.publish(Event::Create {
        container_id: facts.id.clone(),
        bundle: facts.bundle.display().to_string(),
        rootfs,
        io,
        checkpoint,
        pid: pid.unsigned_abs(),
    });
}
