//! A container that is dumped, and stopped in the middle of it wherever a test wants.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::by_ctr::Talker;
use crate::cedana::Cedana;
use crate::container::Container;
use crate::host::Host;
use crate::messages::Status;
use crate::stdio::eventually;
use crate::tripwire::{Call, Follow, Tripwire};
use crate::workload::Workload;

/// Enough for a worker.
const MEMORY_MIB: &str = "40";

/// How long a container may take to go on once the client has its answer.
const GOES_ON_WITHIN: Duration = Duration::from_secs(20);

/// What CRIU has learned of the kernel since the boot.
const CRIU_LEARNED: &str = "/run/criu.kdat";

/// What a dump is called while it is staged: in the directory that it goes to, or, with a name before it, beside that.
const STAGING: &str = ".cedana-partial";

/// Files of a staged dump that are no images.
const NO_IMAGES: [&str; 4] = ["cedana.json", ".cedana.json", "archive", "archive.unfinished"];

/// The container.
pub const ID: &str = "c";

/// A moment of a dump: the call after which everything stands still.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// As a case is called.
    pub name: &'static str,
    call: &'static str,
    place: Place,
    nth: u32,
    follow: Follow,
}

/// Where the file is that the call has to do with.
#[derive(Clone, Copy, Debug)]
pub enum Place {
    /// In the staged dump.
    Staging(&'static str),
    /// In the bundle.
    Bundle(&'static str),
    /// In the container's cgroup of the freezer.
    Freezer(&'static str),
    /// In a directory that the caller has open, by the name alone.
    Open(&'static str),
}

/// The moment of a call of the shim's, the first of its kind.
pub const fn at(name: &'static str, call: &'static str, place: Place) -> Moment {
    Moment {
        name,
        call,
        place,
        nth: 1,
        follow: Follow::Process,
    }
}

impl Moment {
    /// The same call, the second time.
    pub const fn again(self) -> Self {
        Self { nth: 2, ..self }
    }

    /// The same call, made by a program that the shim has started.
    pub const fn by_program(self) -> Self {
        Self {
            follow: Follow::Programs,
            ..self
        }
    }
}

/// How the dump is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// `cedana dump job`, and the container ends.
    Cedana,
    /// The same, into one file.
    CedanaPacked,
    /// The same, and it goes on.
    CedanaLeaving,
    /// `ctr tasks checkpoint --exit`.
    Ctr,
    /// The same without: the client pauses the container meanwhile.
    CtrLeaving,
}

impl By {
    /// Whether the container ends with the dump.
    pub fn exits(self) -> bool {
        matches!(self, Self::Cedana | Self::CedanaPacked | Self::Ctr)
    }

    /// What there is after a dump to this place.
    pub fn makes(self, images: &Path) -> PathBuf {
        match self {
            Self::CedanaPacked => images.with_extension("tar.zst"),
            Self::Cedana | Self::CedanaLeaving | Self::Ctr | Self::CtrLeaving => images.to_owned(),
        }
    }
}

/// The container on its machine.
#[derive(Debug)]
pub struct Bed<'host> {
    /// The machine.
    pub host: &'host Host,
    /// Who speaks to it.
    pub talker: Talker<'host>,
    answers: u64,
}

impl<'host> Bed<'host> {
    /// Runs it. No dump of it may take longer than `limit`.
    ///
    /// # Errors
    /// It does not run.
    pub fn new(host: &'host Host, workload: &str, limit: &str) -> Result<Self> {
        Self::with(host, workload, &[&format!("cedana.dump.timeout={limit}")])
    }

    /// Runs it with these annotations.
    ///
    /// # Errors
    /// It does not run.
    pub fn with(host: &'host Host, workload: &str, annotations: &[&str]) -> Result<Self> {
        let options: Vec<&str> = annotations.iter().flat_map(|one| ["--annotation", one]).collect();
        let talker = Talker::run(host, ID, workload, &["memory", MEMORY_MIB], &options)?;
        Ok(Self {
            host,
            talker,
            answers: 0,
        })
    }

    /// In the books of its containerd.
    pub fn container(&self) -> Container {
        self.host.known(ID, Workload::forever())
    }

    /// It is the same process as ever, and has the memory it had.
    ///
    /// # Errors
    /// It is gone, stands still, or is another.
    pub fn goes_on(&mut self) -> Result<()> {
        // A client that paused it resumes it after it has said that the dump failed.
        let runs = || self.talker.status().is_ok_and(|status| status == Status::Running);
        let waited = eventually("the container to run", GOES_ON_WITHIN, runs);
        waited.with_context(|| format!("its status is {:?}", self.talker.status()))?;
        self.answers += 1;
        let answers = self.talker.check()?;
        ensure!(answers == self.answers, "{answers} answers, not {}", self.answers);
        Ok(())
    }

    /// The command that dumps it, not started.
    pub fn dump(&self, by: By, images: &Path) -> Command {
        let path = images.display().to_string();
        let (dir, name) = path.rsplit_once('/').unwrap_or_default();
        let job = format!("{}/{ID}", self.host.namespace());
        match by {
            By::Cedana | By::CedanaPacked | By::CedanaLeaving => {
                let leaving = format!("--leave-running={}", !by.exits());
                let form = if by == By::CedanaPacked { "zstd" } else { "none" };
                let args = ["dump", "job", &job, "--dir", dir, "--name", name, &leaving];
                let args = [&args[..], &["--compression", form]].concat();
                Cedana::on(self.host).command(&args)
            }
            By::Ctr | By::CtrLeaving => {
                let exit: &[&str] = if by.exits() { &["--exit"] } else { &[] };
                let args = [&["tasks", "checkpoint", "--image-path", &path], exit, &[ID]].concat();
                let mut command = Command::new("ctr");
                let _command = command.args(self.host.ctr_args(&args));
                command
            }
        }
    }
}

/// Has a dump of the container to this place stand still in that moment.
///
/// # Errors
/// There is no shim, or strace does not work.
pub fn trip(host: &Host, moment: Moment, by: By, images: &Path) -> Result<Tripwire> {
    let container = host.known(ID, Workload::forever());
    let path = match moment.place {
        Place::Staging(name) => staged(by, images, name),
        Place::Bundle(name) => container.bundle().join(name),
        Place::Freezer(name) => Path::new("/sys/fs/cgroup/freezer")
            .join(host.namespace())
            .join(ID)
            .join(name),
        Place::Open(name) => name.into(),
    };
    if moment.follow == Follow::Programs {
        let_criu_learn()?;
    }
    let call = Call {
        name: moment.call,
        path: path.display().to_string(),
        nth: moment.nth,
    };
    Tripwire::set(container.shim_pid()?, moment.follow, &call)
}

/// A file of a staged dump; none for the directory itself.
fn staged(by: By, images: &Path, name: &str) -> PathBuf {
    let dest = images.file_name().unwrap_or_default().display();
    let (root, inner) = match by {
        By::Ctr | By::CtrLeaving => (images.join(STAGING), ""),
        By::Cedana | By::CedanaPacked | By::CedanaLeaving => {
            (images.with_file_name(format!(".{dest}{STAGING}")), "checkpoint")
        }
    };
    match name {
        "" => root,
        name if inner.is_empty() || NO_IMAGES.contains(&name) => root.join(name),
        name => root.join(inner).join(name),
    }
}

/// The checkpoint there is as it was made.
///
/// # Errors
/// There is none, or it is not.
pub fn is_whole(images: &Path) -> Result<()> {
    let path = images.display().to_string();
    let _said = Cedana::new().run(&["checkpoint", "verify", &path])?.ok()?;
    Ok(())
}

/// Has CRIU look at the kernel: what it tries out for that does not work under strace.
///
/// # Errors
/// It cannot be run.
pub fn let_criu_learn() -> Result<()> {
    if !Path::new(CRIU_LEARNED).exists() {
        let _tried = Command::new("criu").arg("check").output().context("run criu")?;
    }
    Ok(())
}
