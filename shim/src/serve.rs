//! The life of a server: from the socket that `start` left to the exit that leaves nothing behind.
//!
//! ```text
//!  SIGCHLD -------> reaper          containerd --connect--> accept (same user?) --> ttrpc --> services
//!  SIGTERM, SIGINT, all containers gone, never used -------> socket removed, events drained, exit
//! ```

mod accept;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::prctl;
use tokio::net::UnixListener;
use tokio::runtime::Builder;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::timeout;
use tracing::{debug, error, info, warn};
use ttrpc::r#async::Server;

use crate::args::{Args, Environment};
use crate::container::create::Surroundings;
use crate::events::{EventSink, Publisher};
use crate::job_service;
use crate::log;
use crate::reap::Reaper;
use crate::registry::Registry;
use crate::service;
use crate::shim::Shim;
use crate::spawn;

/// The descriptor at which `start` leaves the listening socket.
pub const LISTENER_FD: std::os::fd::RawFd = 3;

/// How long an unused server waits for its first container. containerd creates it right after `start`; one that could not
/// use our reply never comes back, and nobody else knows this process.
const UNUSED_LIMIT: Duration = Duration::from_secs(60);

/// What may block waits for a disk or a file system, each perhaps for another one: what hangs at one of them, and is waited for no more, must not
/// keep all. Each is there only as long as it has something to do.
const BLOCKING_THREADS_MAX: usize = 16;

/// How long a thread for what may block (unmounting) is kept after its work: long enough for a pod that is removed.
const BLOCKING_KEEP_ALIVE: Duration = Duration::from_secs(1);

/// How long events may take to arrive before the server exits, as in the Go shims.
const DRAIN_LIMIT: Duration = Duration::from_secs(5);

/// How long the reply that let us go may take to leave; containerd does without it if need be.
const GOODBYE_LIMIT: Duration = Duration::from_millis(200);

/// Why a server could not serve.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The process was not started by `start`.
    #[error("take over the socket at descriptor {LISTENER_FD}: {0}")]
    Listener(#[source] io::Error),
    /// The kernel refused what a server is made of.
    #[error("{action}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// What the kernel answered.
        source: io::Error,
    },
    /// The ttrpc server did not start.
    #[error("serve: {0}")]
    Ttrpc(#[from] ttrpc::Error),
}

/// Serves until nothing is left to do. `bundle` is the working directory.
///
/// The caller must exit when this returns: containers that are still there belong to containerd's `delete`.
///
/// # Errors
/// See [`ServeError`].
pub fn serve(args: &Args, environment: &Environment, bundle: &Path) -> Result<(), ServeError> {
    log::start(&log::Settings {
        bundle: bundle.to_owned(),
        namespace: args.namespace.clone(),
        id: args.id.clone(),
        debug: args.debug,
    });
    let served = run(args, environment);
    served.inspect_err(|error| error!("failed to {error}"))
}

fn run(args: &Args, environment: &Environment) -> Result<(), ServeError> {
    let listener = spawn::inherited_listener(LISTENER_FD).map_err(ServeError::Listener)?;
    listener.set_nonblocking(true).map_err(ServeError::Listener)?;
    // Container processes whose parent, runc, is gone become our children, and so do their exit codes.
    prctl::set_child_subreaper(true).map_err(|errno| failed("become a subreaper")(errno.into()))?;
    // One thread: memory counts once per container, and a child's death signal is bound to the thread that spawned it.
    let runtime = Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .thread_keep_alive(BLOCKING_KEEP_ALIVE)
        .build();
    let runtime = runtime.map_err(failed("start the runtime"))?;
    runtime.block_on(live(args, environment, listener))
}

/// The server's life within the runtime.
async fn live(
    args: &Args,
    environment: &Environment,
    listener: std::os::unix::net::UnixListener,
) -> Result<(), ServeError> {
    let socket = Socket::of(&listener);
    let listener = UnixListener::from_std(listener).map_err(ServeError::Listener)?;
    let mut signals = Signals::install().map_err(failed("install signal handlers"))?;
    let reaper = Reaper::new();
    let publisher = Publisher::start(&environment.ttrpc_address, &args.namespace);
    let events = Arc::clone(&publisher) as Arc<dyn EventSink>;
    let registry = Arc::new(Registry::new(
        PathBuf::from(&args.address),
        socket.0.clone().unwrap_or_default(),
    ));
    let shim = Shim::new(Surroundings {
        namespace: args.namespace.clone(),
        reaper: Arc::clone(&reaper),
        events,
        registry: Arc::clone(&registry),
    });
    drop(tokio::spawn(reap_on(signals.child, reaper)));

    let mut server = Server::new()
        .add_listener(accept::same_user(listener))
        .register_service(service::services(Arc::clone(&shim)))
        .register_service(job_service::services(Arc::clone(&shim)));
    server.start().await?;
    debug!("serving");
    tokio::select! {
        () = shim.done() => debug!("all containers are gone"),
        _ = signals.terminate.recv() => info!("terminated"),
        _ = signals.interrupt.recv() => info!("interrupted"),
        () = unused(&shim) => warn!("no container was created, nobody needs this server"),
    }
    // First the name, then the service: whoever finds the socket finds somebody listening.
    drop(socket);
    if !publisher.drain(DRAIN_LIMIT).await {
        warn!("exiting with events that containerd did not take");
    }
    // Its answer does not matter: the process ends either way.
    let _ = timeout(GOODBYE_LIMIT, server.shutdown()).await;
    registry.sweep();
    Ok(())
}

/// The signals of a server. SIGPIPE is ignored since the program's start, by Rust's runtime.
struct Signals {
    child: Signal,
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn install() -> io::Result<Self> {
        Ok(Self {
            child: signal(SignalKind::child())?,
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }
}

/// Collects the dead whenever there are some.
async fn reap_on(mut child: Signal, reaper: Arc<Reaper>) {
    while child.recv().await.is_some() {
        reaper.reap();
    }
}

/// Comes to an end only if no container was created in time.
async fn unused(shim: &Shim) {
    if timeout(UNUSED_LIMIT, shim.used()).await.is_ok() {
        std::future::pending::<()>().await;
    }
}

/// The name of the socket, removed when dropped.
struct Socket(Option<PathBuf>);

impl Socket {
    fn of(listener: &std::os::unix::net::UnixListener) -> Self {
        let address = listener.local_addr().ok();
        Self(address.and_then(|address| address.as_pathname().map(Path::to_owned)))
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            // Gone already is as good.
            let _ = std::fs::remove_file(path);
        }
    }
}

fn failed(action: &'static str) -> impl FnOnce(io::Error) -> ServeError {
    move |source| ServeError::Io { action, source }
}
