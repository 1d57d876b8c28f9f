//! The owner's loop: what is done at once, what waits for what.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use tokio::sync::{mpsc, watch};

use super::create::{Images, Init};
use super::{Command, Container, Facts, Message, Owner, QUEUE_MAX, View};
use crate::error::Error;
use crate::process::Process;
use crate::registry::Entry;
use crate::stdio::StdioRequest;

/// Starts the owner of a container that has just been created.
pub(super) fn own(facts: Arc<Facts>, init: Init, stdio: StdioRequest, entry: Entry) -> Container {
    let (queue, inbox) = mpsc::channel(QUEUE_MAX);
    let (pid, streams, restored, deferred) = match init {
        Init::Here {
            pid,
            streams,
            restored,
        } => (pid, Some(streams), restored, None),
        Init::Later(deferred) => (0, None, None, Some(deferred)),
    };
    let init = Process::created(pid, stdio, streams);
    let (view, receiver) = watch::channel(View {
        init: init.view(),
        execs: HashMap::new(),
        busy: None,
    });
    let mut owner = Owner {
        facts: Arc::clone(&facts),
        init,
        execs: HashMap::new(),
        restored,
        deferred,
        filling: None,
        busy: None,
        starting: 0,
        waiting: VecDeque::new(),
        held_exit: None,
        dying: false,
        killing: false,
        gone: false,
        canceller: None,
        entry,
        queue: queue.clone(),
        view,
    };
    owner.publish();
    drop(owner.view.send_replace(owner.snapshot()));
    if pid > 0 {
        owner.watch_init();
    }
    let filling = owner
        .restored
        .as_ref()
        .and_then(|restored| restored.filling.clone());
    owner.follow_filling(filling);
    drop(tokio::spawn(owner.run(inbox)));
    Container {
        queue,
        view: receiver,
        facts,
    }
}

impl Owner {
    async fn run(mut self, mut inbox: mpsc::Receiver<Message>) {
        while !self.gone {
            let Some(message) = inbox.recv().await else { return };
            self.take(message);
            self.advance();
            self.publish();
            drop(self.view.send_replace(self.snapshot()));
        }
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Command(command) if self.must_queue(&command) => self.enqueue(command),
            Message::Command(command) => self.begin(command),
            Message::Exited { exec, exit } => self.exited(exec, exit),
            Message::Oom => self.oom(),
            Message::Completed(apply) => apply(self),
        }
    }

    /// Whether a command has to wait its turn. Whatever takes no time, or must never wait (a kill), does not.
    fn must_queue(&self, command: &Command) -> bool {
        let takes_turns = is_exclusive(command) || is_exec_start(command);
        takes_turns && (!self.waiting.is_empty() || !self.may_begin(command))
    }

    fn may_begin(&self, command: &Command) -> bool {
        self.busy.is_none() && (is_exec_start(command) || self.starting == 0)
    }

    fn enqueue(&mut self, command: Command) {
        if self.waiting.len() < QUEUE_MAX {
            return self.waiting.push_back(command);
        }
        refuse(
            command,
            Error::Unavailable("too many requests are waiting for this container".to_owned()),
        );
    }

    /// Begins what was waiting and may go on now, then tells a held exit if nothing stands in its way any more.
    fn advance(&mut self) {
        while let Some(command) = self.waiting.pop_front() {
            if self.gone || !self.may_begin(&command) {
                self.waiting.push_front(command);
                break;
            }
            self.begin(command);
        }
        self.tell_held_exit();
    }

    fn begin(&mut self, command: Command) {
        match command {
            Command::Start { exec: None, reply } => self.start(reply),
            Command::Start {
                exec: Some(id),
                reply,
            } => self.start_exec(id, reply),
            Command::Exec { exec, reply } => answer(reply, self.add_exec(exec)),
            Command::Delete { exec: None, reply } => self.delete(reply),
            Command::Delete {
                exec: Some(id),
                reply,
            } => self.delete_exec(id, reply),
            Command::Kill {
                exec,
                signal,
                all,
                reply,
            } => {
                let killed = self.kill(exec.as_deref(), signal, all);
                answer(reply, killed);
            }
            Command::Pause { reply } => self.pause(reply),
            Command::Resume { reply } => self.resume(reply),
            Command::Update { resources, reply } => self.update(resources, reply),
            Command::Checkpoint {
                options,
                settings,
                reply,
            } => self.checkpoint(*options, settings, reply),
            Command::Restore {
                checkpoint,
                unpacked_from,
                left,
                settings,
                reply,
            } => self.restore(Images { checkpoint, left }, unpacked_from, *settings, reply),
            Command::Cancel { reply } => {
                let cancelled = self.cancel();
                answer(reply, cancelled);
            }
            Command::Record { reply } => answer(reply, Ok(self.entry.record().clone())),
            Command::Resize {
                exec,
                width,
                height,
                reply,
            } => {
                let resized = self.resize(exec.as_deref(), width, height);
                answer(reply, resized);
            }
            Command::CloseIo { exec, reply } => {
                let closed = self.close_io(exec.as_deref());
                answer(reply, closed);
            }
            Command::Pids { reply } => answer(reply, Ok(self.pids())),
            Command::Stats { reply } => answer(reply, self.stats()),
        }
    }

    /// Runs an act that excludes all others beside the owner; `apply` gets what came of it.
    pub(super) fn exclusively<T: Send + 'static>(
        &mut self,
        name: &'static str,
        act: impl Future<Output = T> + Send + 'static,
        apply: impl FnOnce(&mut Self, T) + Send + 'static,
    ) {
        self.busy = Some(name);
        self.aside(act, move |owner, outcome| {
            owner.busy = None;
            apply(owner, outcome);
        });
    }

    /// Runs something beside the owner; `apply` gets what came of it.
    pub(super) fn aside<T: Send + 'static>(
        &self,
        act: impl Future<Output = T> + Send + 'static,
        apply: impl FnOnce(&mut Self, T) + Send + 'static,
    ) {
        let queue = self.queue.clone();
        drop(tokio::spawn(async move {
            let outcome = act.await;
            let completion = Message::Completed(Box::new(move |owner: &mut Self| apply(owner, outcome)));
            // An owner that is gone needs no consequences.
            let _ = queue.send(completion).await;
        }));
    }
}

fn is_exclusive(command: &Command) -> bool {
    matches!(
        command,
        Command::Start { exec: None, .. }
            | Command::Delete { exec: None, .. }
            | Command::Pause { .. }
            | Command::Resume { .. }
            | Command::Update { .. }
            | Command::Checkpoint { .. }
            | Command::Restore { .. }
    )
}

fn is_exec_start(command: &Command) -> bool {
    matches!(command, Command::Start { exec: Some(_), .. })
}

/// Sends a reply; a client that did not wait for it has lost nothing but the answer.
pub(super) fn answer<T>(reply: super::Reply<T>, result: crate::error::Result<T>) {
    let _ = reply.send(result);
}

fn refuse(command: Command, error: Error) {
    match command {
        Command::Start { reply, .. } => answer(reply, Err(error)),
        Command::Delete { reply, .. } => answer(reply, Err(error)),
        Command::Pause { reply } | Command::Resume { reply } | Command::Update { reply, .. } => {
            answer(reply, Err(error))
        }
        Command::Checkpoint { reply, .. } => answer(reply, Err(error)),
        Command::Restore { reply, .. } => answer(reply, Err(error)),
        // Only commands that take turns are queued, so no other is ever refused.
        _ => {}
    }
}
