//! The containers of one shim, by id.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use crate::container::create::{Request, Surroundings, create};
use crate::container::{Command, Container, Deleted};
use crate::error::{Error, Result};

/// All containers of a shim: one, or those of a pod.
#[derive(Debug)]
pub struct Shim {
    around: Surroundings,
    containers: Mutex<HashMap<String, Slot>>,
    life: watch::Sender<Life>,
    /// A shutdown came when there was no container, but perhaps one being created.
    told_to_go: AtomicBool,
}

#[derive(Debug)]
enum Slot {
    /// The id is taken; the container is not there yet.
    Creating,
    Ready(Container),
}

/// How far the shim is in its own life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Life {
    /// No container has ever been asked for.
    Unused,
    Used,
    /// It was told to go, and has nothing left to look after.
    Done,
}

impl Shim {
    /// A shim without containers.
    pub fn new(around: Surroundings) -> Arc<Self> {
        Arc::new(Self {
            around,
            containers: Mutex::default(),
            life: watch::channel(Life::Unused).0,
            told_to_go: AtomicBool::new(false),
        })
    }

    /// containerd's namespace, the same for all containers of a shim.
    pub fn namespace(&self) -> &str {
        &self.around.namespace
    }

    /// The container's handle.
    ///
    /// # Errors
    /// [`Error::NotFound`], also while it is being created.
    pub fn container(&self, id: &str) -> Result<Container> {
        match self.lock().get(id) {
            Some(Slot::Ready(container)) => Ok(container.clone()),
            _ => Err(Error::NotFound(format!("container {id} does not exist"))),
        }
    }

    /// Creates a container and returns its handle.
    ///
    /// # Errors
    /// [`Error::AlreadyExists`] for a taken id; else what [`create`] says.
    pub async fn create(&self, request: Request) -> Result<Container> {
        let id = request.id.clone();
        self.reserve(&id)?;
        match create(request, self.around.clone()).await {
            Ok(container) => {
                drop(self.lock().insert(id.clone(), Slot::Ready(container.clone())));
                self.keep_if_wanted(&id, container).await
            }
            Err(error) => {
                drop(self.lock().remove(&id));
                self.leave_if_told();
                Err(error)
            }
        }
    }

    /// containerd gives a slow create up and shuts the shim down: what comes of it afterwards nobody knows or wants.
    async fn keep_if_wanted(&self, id: &str, container: Container) -> Result<Container> {
        if !self.told_to_go.load(Ordering::Relaxed) {
            return Ok(container);
        }
        let deleted = self.delete(id, None).await;
        self.leave_if_told();
        let _ = deleted?;
        Err(Error::Unavailable(format!(
            "container {id} was given up while it was being created"
        )))
    }

    fn reserve(&self, id: &str) -> Result<()> {
        let mut containers = self.lock();
        if containers.contains_key(id) {
            return Err(Error::AlreadyExists(format!("container {id} already exists")));
        }
        drop(containers.insert(id.to_owned(), Slot::Creating));
        let _ = self
            .life
            .send_if_modified(|life| std::mem::replace(life, Life::Used) != Life::Used);
        Ok(())
    }

    /// Deletes a container, or one of its execs.
    ///
    /// # Errors
    /// As the container's owner says; then it is still there.
    pub async fn delete(&self, id: &str, exec: Option<String>) -> Result<Deleted> {
        let whole = exec.is_none();
        let deleted = self
            .container(id)?
            .ask(|reply| Command::Delete { exec, reply })
            .await?;
        if whole {
            drop(self.lock().remove(id));
        }
        Ok(deleted)
    }

    /// Ends the shim if it has no containers any more; otherwise does nothing, as a pod's shim is told to go once for
    /// each of its containers.
    pub fn shut_down(&self) {
        let has_containers = self.lock().values().any(|slot| matches!(slot, Slot::Ready(_)));
        if !has_containers {
            self.told_to_go.store(true, Ordering::Relaxed);
            self.leave_if_told();
        }
    }

    fn leave_if_told(&self) {
        if self.told_to_go.load(Ordering::Relaxed) && self.lock().is_empty() {
            let _ = self.life.send_replace(Life::Done);
        }
    }

    /// Resolves when the shim is to end.
    pub async fn done(&self) {
        // The sender lives in `self`, so this cannot fail before it resolves.
        let _ = self.life.subscribe().wait_for(|life| *life == Life::Done).await;
    }

    /// Resolves when the first container has been asked for.
    pub async fn used(&self) {
        let _ = self.life.subscribe().wait_for(|life| *life != Life::Unused).await;
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Slot>> {
        // Nothing panics while the map is locked.
        self.containers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
