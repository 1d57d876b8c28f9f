//! Ends of processes, in the order containerd relies on: after the start, and the init's last.

use std::time::Duration;

use super::{Message, Owner};
use crate::cgroup::OomWatch;
use crate::events::Event;
use crate::reap::Exit;
use crate::state::Status;

/// How long what outlives its init may take to die of SIGKILL before its cgroup is left to `Delete`.
const LEFTOVERS_DEADLINE: Duration = Duration::from_secs(10);

impl Owner {
    /// Brings the end of an exec into the queue.
    pub(super) fn watch_exec(&mut self, id: String, pid: i32) {
        let watch = self.facts.reaper.watch(pid);
        if let Some(process) = self.execs.get_mut(&id) {
            process.watch = Some(watch.clone());
        }
        let queue = self.queue.clone();
        drop(tokio::spawn(async move {
            let exit = watch.wait().await;
            // An owner that is gone has told its own end already.
            let _ = queue.send(Message::Exited { exec: Some(id), exit }).await;
        }));
    }

    /// Brings the end of the init into the queue, and before it every kill for want of memory in the container: who
    /// reads the events learns the cause first.
    pub(super) fn watch_init(&mut self) {
        let exit = self.facts.reaper.watch(self.init.pid);
        self.init.watch = Some(exit.clone());
        let mut kills = self.facts.cgroup.get().and_then(|cgroup| cgroup.oom_watch().ok());
        let queue = self.queue.clone();
        drop(tokio::spawn(async move {
            let exit = loop {
                tokio::select! {
                    biased;
                    () = next_kill(&mut kills) => {}
                    exit = exit.wait() => break exit,
                }
                if queue.send(Message::Oom).await.is_err() {
                    return;
                }
            };
            if kills.as_mut().is_some_and(|kills| kills.is_pending()) {
                let _ = queue.send(Message::Oom).await;
            }
            let _ = queue.send(Message::Exited { exec: None, exit }).await;
        }));
    }

    pub(super) fn oom(&self) {
        self.facts.events.publish(Event::Oom {
            container_id: self.facts.id.clone(),
        });
    }

    pub(super) fn exited(&mut self, exec: Option<String>, exit: Exit) {
        let Some(id) = exec else {
            self.held_exit = Some(exit);
            return self.kill_leftovers();
        };
        let Some(process) = self.execs.get_mut(&id) else {
            return;
        };
        process.end(exit);
        let pid = process.pid.unsigned_abs();
        self.publish_exit(&id, pid, exit);
    }

    /// Tells the init's end, once nothing that began before it is still to be told: its own start, a dump that may
    /// have been meant to end it, and the ends of execs (moby and CRI take the init's exit as the container's last).
    pub(super) fn tell_held_exit(&mut self) {
        let pending = matches!(self.busy, Some("start" | "checkpoint")) || self.starting > 0 || self.killing;
        let alive = self
            .execs
            .values()
            .any(|process| process.status == Status::Running);
        if pending || alive {
            return;
        }
        let Some(exit) = self.held_exit.take() else { return };
        self.init.end(exit);
        let id = self.facts.id.clone();
        self.publish_exit(&id, self.init.pid.unsigned_abs(), exit);
    }

    fn publish_exit(&self, id: &str, pid: u32, exit: Exit) {
        self.facts.events.publish(Event::Exit {
            container_id: self.facts.id.clone(),
            id: id.to_owned(),
            pid,
            exit_status: exit.status,
            exited_at: exit.at,
        });
    }

    /// With a private pid namespace the kernel kills what is left when the init ends; without one, nobody else does.
    /// The init's end is told when that is done: a client that is told deletes the container at once.
    fn kill_leftovers(&mut self) {
        if self.facts.spec.has_private_pid_namespace() {
            return;
        }
        self.killing = true;
        let facts = std::sync::Arc::clone(&self.facts);
        let kill = async move {
            match facts.cgroup() {
                Ok(cgroup) => cgroup
                    .kill_all(LEFTOVERS_DEADLINE)
                    .await
                    .map_err(|error| error.to_string()),
                Err(error) => Err(error.to_string()),
            }
        };
        self.aside(kill, |owner, killed| {
            owner.killing = false;
            if let Err(error) = killed {
                tracing::warn!(
                    id = owner.facts.id,
                    error,
                    "processes outlive their container's init"
                );
            }
        });
    }
}

/// The next kill for want of memory; for ever, once there can be no more.
async fn next_kill(kills: &mut Option<OomWatch>) {
    if let Some(watch) = kills {
        if watch.next().await.is_some() {
            return;
        }
        *kills = None;
    }
    std::future::pending().await
}
