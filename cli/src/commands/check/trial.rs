//! `check --full`: a container made for it is run, dumped and restored, the way a user's would be.
//!
//! No image is needed: its root is an empty directory in which the host's programs are mounted, read-only. It has a
//! containerd namespace of its own, and nothing of it is left.

mod root;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use jobs::liveness;
use jobs::record::Record;
use jobs::registry::Registry;
use jobs::spool::Spool;
use jobs::wire::{self, DumpAnswer, DumpRequest, RestoreAnswer, RestoreRequest};

use super::checks::Checks;
use super::tool::{self, Places};
use crate::context::Context;
use crate::engines::RUNTIME;
use crate::error::{Error, Kind};
use crate::interrupt::interrupted;
use crate::output::size;
use crate::shim;
use root::Root;

const COMPONENT: &str = "trial";
const NAMESPACE: &str = "cedana-check";
/// What runs in it, and for how many seconds at most if everything else fails.
const PROGRAM: &str = "sleep";
const SECONDS: &str = "600";

/// A container without memory takes a tenth of a second for each step; a host that needs longer has other troubles.
const STEP_LIMIT: Duration = Duration::from_secs(60);

/// Where the container's root and its checkpoint are meanwhile.
const DIRECTORY: &str = "/run/cedana";

/// The container, and how it is spoken of to containerd.
#[derive(Debug)]
struct Trial<'a> {
    ctr: PathBuf,
    socket: &'a Path,
    spool: Spool,
    id: String,
    root: Root,
}

/// Tries it.
///
/// # Errors
/// Ctrl+C; everything is put away then, too.
pub async fn look(socket: &Path, context: &Context, checks: &mut Checks) -> Result<(), Error> {
    let Some(trial) = prepare(socket, context, checks) else {
        return Ok(());
    };
    let ended = tokio::select! {
        tried = trial.attempt(checks) => Some(tried),
        () = interrupted() => None,
    };
    let record = trial.record();
    trial.clean(record.as_ref(), context).await;
    match ended {
        None => Err(Error::new(
            Kind::Interrupted,
            "interrupted: the container of the trial is removed",
        )),
        Some(Ok(())) => Ok(()),
        Some(Err((step, error))) => {
            let remedy = error
                .hints
                .first()
                .map_or("mend what is said, and try again", String::as_str);
            checks.error(COMPONENT, step, error.message.clone(), remedy);
            Ok(())
        }
    }
}

/// None if it cannot be tried, which is said.
fn prepare<'a>(socket: &'a Path, context: &Context, checks: &mut Checks) -> Option<Trial<'a>> {
    if checks.errors() > 0 {
        checks.absent(COMPONENT, "container", "not tried: see what is wrong above");
        return None;
    }
    let Some(ctr) = Places::own().find("ctr") else {
        checks.warning(
            COMPONENT,
            "container",
            "not tried: ctr is not found",
            "install containerd's client, ctr",
        );
        return None;
    };
    let Ok(spool) = context.spool() else {
        checks.absent(
            COMPONENT,
            "container",
            "not tried: there is no registry (db.path is empty)",
        );
        return None;
    };
    let id = format!("check-{}", std::process::id());
    match Root::make(&Path::new(DIRECTORY).join(&id), PROGRAM) {
        Ok(root) => Some(Trial {
            ctr,
            socket,
            spool,
            id,
            root,
        }),
        Err(error) => {
            let found = format!("not tried: {error}");
            checks.warning(COMPONENT, "container", found, "try with a container of your own");
            None
        }
    }
}

impl Trial<'_> {
    async fn attempt(&self, checks: &mut Checks) -> Result<(), (&'static str, Error)> {
        let started = Instant::now();
        self.run().await.map_err(|error| ("run", error))?;
        checks.good(COMPONENT, "run", took(started));
        let record = self.record().ok_or_else(|| {
            let error = Error::failed(format!(
                "the container runs, and its shim has published nothing in {}",
                self.spool.directory().display()
            ));
            (
                "run",
                error.hint("see the log of containerd for what the shim says"),
            )
        })?;
        let (started, path) = (Instant::now(), self.root.directory().join("dump"));
        let size = self.dump(&record, &path).await.map_err(|error| ("dump", error))?;
        checks.good(
            COMPONENT,
            "dump",
            format!("{}, {}", took(started), size::whole(size)),
        );
        let started = Instant::now();
        self.restore(&record, &path)
            .await
            .map_err(|error| ("restore", error))?;
        checks.good(COMPONENT, "restore", took(started));
        Ok(())
    }

    async fn run(&self) -> Result<(), Error> {
        let root = self.root.path().display().to_string();
        let mut arguments = vec!["run", "--detach", "--null-io", "--runtime", RUNTIME, "--rootfs"];
        let mounts = self.root.mounts();
        arguments.extend(mounts.iter().flat_map(|mount| ["--mount", mount]));
        let program = self.root.program().display().to_string();
        arguments.extend([root.as_str(), self.id.as_str(), &program, SECONDS]);
        self.ctr(&arguments).await
    }

    async fn dump(&self, record: &Record, path: &Path) -> Result<u64, Error> {
        let request = DumpRequest {
            id: self.id.clone(),
            path: path.to_owned(),
            archive: None,
            name: None,
            image: None,
            leave_running: false,
            shell_job: false,
            settings: Default::default(),
        };
        let answer: DumpAnswer = shim::call(&record.shim.socket, wire::DUMP, &request, STEP_LIMIT).await?;
        if liveness::is_alive(&record.init) {
            return Err(Error::failed(
                "the container still runs after a dump that should have ended it",
            ));
        }
        Ok(answer.size)
    }

    async fn restore(&self, record: &Record, path: &Path) -> Result<(), Error> {
        let request = RestoreRequest {
            id: self.id.clone(),
            path: path.to_owned(),
            unpacked_from: None,
            left: None,
            settings: Default::default(),
        };
        let socket = &record.shim.socket;
        let answer: RestoreAnswer = shim::call(socket, wire::RESTORE, &request, STEP_LIMIT).await?;
        let name = std::fs::read_to_string(format!("/proc/{}/comm", answer.pid)).unwrap_or_default();
        if name.trim_end() == PROGRAM {
            return Ok(());
        }
        Err(Error::failed(format!(
            "the restored process {} is not there",
            answer.pid
        )))
    }

    fn record(&self) -> Option<Record> {
        let records = self
            .spool
            .read_all()
            .records
            .into_iter()
            .map(|(record, _)| record);
        records
            .filter(|record| record.key.namespace == NAMESPACE && record.key.id == self.id)
            .max_by_key(|record| record.changed)
    }

    /// Takes everything away again. What is not there any more was not there to be removed.
    async fn clean(&self, record: Option<&Record>, context: &Context) {
        for arguments in [
            ["tasks", "kill", "--signal", "KILL", &self.id].as_slice(),
            &["tasks", "delete", "--force", &self.id],
            &["containers", "delete", &self.id],
            &["namespaces", "remove", NAMESPACE],
        ] {
            let _ = self.ctr(arguments).await;
        }
        if let (Some(record), Ok(database)) = (record, context.database()) {
            let _ = self.spool.remove(&record.key);
            let _ = Registry::open(database).registry.delete(&record.key);
        }
        self.root.remove();
    }

    async fn ctr(&self, arguments: &[&str]) -> Result<(), Error> {
        let socket = self.socket.display().to_string();
        let mut all = vec!["--address", &socket, "--namespace", NAMESPACE];
        all.extend(arguments);
        match tool::run(&self.ctr, &all, STEP_LIMIT).await {
            Ok(said) if said.success => Ok(()),
            Ok(said) => Err(Error::tool(said.last_line().to_owned())),
            Err(silent) => Err(Error::tool(format!("ctr {silent}"))),
        }
    }
}

fn took(since: Instant) -> String {
    format!("{} ms", since.elapsed().as_millis())
}
