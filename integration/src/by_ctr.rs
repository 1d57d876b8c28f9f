//! Containers run, dumped and restored by plain `ctr` commands, whose program answers lines on stdin.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::attached::Attached;
use crate::engine::Said;
use crate::host::{Host, IMAGE};
use crate::messages::Status;

/// The libraries of the machine, which the workload needs in the container: it is not static, so that it can be
/// built along with the tests.
const LIBRARIES: [(&str, &str); 2] = [
    ("/usr/lib/x86_64-linux-gnu", "/lib/x86_64-linux-gnu"),
    ("/usr/lib64", "/lib64"),
];

/// A container whose program is the workload (`src/bin/workload.rs`) and whose stdio we hold.
#[derive(Debug)]
pub struct Talker<'host> {
    host: &'host Host,
    id: String,
    client: Attached,
}

impl<'host> Talker<'host> {
    /// Runs the workload's `mode` by `ctr run`, and waits until it is ready. `workload` is its path on the host, and
    /// `more` goes before the image in the command line. The test has loaded the image.
    ///
    /// # Errors
    /// It does not run or does not become ready.
    pub fn run(host: &'host Host, id: &str, workload: &str, mode: &[&str], more: &[&str]) -> Result<Self> {
        let mut args: Vec<String> = ["run", "--runtime", host.runtime()]
            .into_iter()
            .map(str::to_owned)
            .collect();
        args.extend(binds(workload));
        args.extend(
            more.iter()
                .chain(&[IMAGE, id, "/workload"])
                .chain(mode)
                .map(|word| (*word).to_owned()),
        );
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let client = Attached::start(Command::new("ctr").args(host.ctr_args(&args)))?;
        let first = client.line().context("wait until the workload is ready")?;
        ensure!(
            first == "ready",
            "the workload began with {first:?}; {}",
            client.stderr()
        );
        Ok(Self {
            host,
            id: id.to_owned(),
            client,
        })
    }

    /// Attaches to a task that runs, by `ctr tasks attach`.
    ///
    /// # Errors
    /// `ctr` cannot be started.
    pub fn attach(host: &'host Host, id: &str) -> Result<Self> {
        let client = Attached::start(Command::new("ctr").args(host.ctr_args(&["tasks", "attach", id])))?;
        Ok(Self {
            host,
            id: id.to_owned(),
            client,
        })
    }

    /// Restores a checkpoint's image by `ctr containers restore` and attaches to it.
    ///
    /// # Errors
    /// The restore fails.
    pub fn restore(host: &'host Host, id: &str, image: &str) -> Result<Self> {
        let _said = restore(host, id, image)?
            .ok()
            .with_context(|| format!("restore {image} as {id}"))?;
        Self::attach(host, id)
    }

    /// Asks the workload something; returns its answer.
    ///
    /// # Errors
    /// No answer.
    pub fn ask(&mut self, question: &str) -> Result<String> {
        self.client
            .ask(question)
            .with_context(|| format!("ask {}", self.id))
    }

    /// Asks for the state of everything the workload holds; fails if it is not as it was. Returns the number of answers
    /// it gave so far, which tells whether it is the same process.
    ///
    /// # Errors
    /// Something is gone or changed.
    pub fn check(&mut self) -> Result<u64> {
        let answer = self.ask("check")?;
        let number = answer
            .strip_prefix("ok ")
            .with_context(|| format!("{} says {answer:?}", self.id))?;
        number.parse().with_context(|| format!("a number in {answer:?}"))
    }

    /// Dumps the container to an image by `ctr containers checkpoint`; it runs on.
    ///
    /// # Errors
    /// The dump fails.
    pub fn checkpoint(&self, image: &str) -> Result<()> {
        let args = [
            "containers",
            "checkpoint",
            "--task",
            "--rw",
            "--image",
            &self.id,
            image,
        ];
        let _said = self
            .host
            .ctr(&args)?
            .ok()
            .with_context(|| format!("checkpoint {}", self.id))?;
        Ok(())
    }

    /// Kills the container and forgets it.
    ///
    /// # Errors
    /// A command fails or the client does not end.
    pub fn remove(mut self) -> Result<()> {
        let _said = self
            .host
            .ctr(&["tasks", "kill", "--signal", "KILL", &self.id])?
            .ok()?;
        self.gone()
    }

    /// Waits for the client of a container that has ended, and forgets the container.
    ///
    /// # Errors
    /// The client does not end, or something is left that keeps the container.
    pub fn gone(&mut self) -> Result<()> {
        let _code = self.client.wait().context("wait for the client")?;
        // The client deletes the task when it sees the end; whether it could is the business of the line after.
        let _said = self.host.ctr(&["tasks", "delete", &self.id])?;
        let _said = self.host.ctr(&["containers", "delete", &self.id])?.ok()?;
        Ok(())
    }

    /// Status of the task.
    ///
    /// # Errors
    /// There is no task.
    pub fn status(&self) -> Result<Status> {
        Ok(self.host.api().get(&self.id, "")?.status())
    }

    /// Pid of the init process.
    ///
    /// # Errors
    /// There is no task.
    pub fn pid(&self) -> Result<u32> {
        Ok(self.host.api().get(&self.id, "")?.pid)
    }
}

/// Flags of `ctr run` by which a program of ours is `/workload` in the container, with the libraries it needs.
pub fn binds(workload: &str) -> Vec<String> {
    let all = [(workload, "/workload")].into_iter().chain(LIBRARIES);
    all.flat_map(|(source, target)| {
        let mount = format!("type=bind,src={source},dst={target},options=rbind:ro");
        ["--mount".to_owned(), mount]
    })
    .collect()
}

/// `ctr containers restore`, whatever comes of it.
///
/// # Errors
/// `ctr` does not end.
pub fn restore(host: &Host, id: &str, image: &str) -> Result<Said> {
    host.ctr(&["containers", "restore", "--rw", "--live", id, image])
}

/// Whether a directory holds a dump.
pub fn holds_images(dir: &Path) -> bool {
    ["inventory.img", "checkpoint/inventory.img"]
        .iter()
        .any(|name| dir.join(name).is_file())
}
