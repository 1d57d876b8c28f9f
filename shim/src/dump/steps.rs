//! What the phases of a dump do.

use std::path::Path;
use std::time::Duration;

use config::{Choice, NetworkLock, Tcp};
use jobs::record::{Checkpoint, Origin};
use nix::sys::signal::Signal;
use oci_bundles::layout::{Layout, Shape};
use tokio::time::sleep;

use super::beside::beside_within;
use super::hold::Hold;
use super::parts::Parts;
use super::save::HOLD_MAX;
use super::{DumpCause, DumpJob, Dumping, commit, describe, mark};
use crate::cgroup::CgroupError;
use crate::criu::choices::{self, Choices, Seen};
use crate::criu::conf::{self, Options, Request};
use crate::criu::{Criu, connections, images, manifest, proc, programs, stray, tools, work};
use crate::phases::Stopwatch;
use crate::restore::loopback;

/// CRIU's own limit for getting the tasks to stand is 10 s; a task in uninterruptible sleep delays it.
pub(super) const FREEZE_DEADLINE: Duration = Duration::from_secs(10);

/// How often a paused container is looked at; nothing of it moves, so that a second look differs at most for a process that
/// was still on its way to the freezer.
const PAUSED_LOOKS: u32 = 5;

/// What a dump of nothing may take on the slowest host that was seen (software emulation), with room.
pub(super) const DEADLINE_MIN: Duration = Duration::from_secs(60);

/// The slowest disk that a dump still has to succeed on, in bytes per second.
pub(super) const WRITE_RATE_MIN: u64 = 20 * 1024 * 1024;

/// Connections named in an error; more would not be read.
const CONNECTIONS_SHOWN_MAX: usize = 3;

/// What runc knows of `--manage-cgroups-mode`.
pub(super) const CGROUPS_MODES: [&str; 4] = ["soft", "full", "strict", "ignore"];

impl<'j> Dumping<'j> {
    pub(super) fn new(job: &'j DumpJob, watch: &'j Stopwatch) -> Self {
        let staging = if job.options.parent_path.is_empty() {
            commit::staging(&job.options.image_path, job.options.shape)
        } else {
            // The parent is named relative to the images, and CRIU keeps that name in them.
            Layout::new(&job.options.image_path, Shape::Flat)
        };
        let work = match job.options.work_path.as_str() {
            "" => work::dir(&job.bundle),
            path => path.into(),
        };
        Self {
            job,
            criu: None,
            staging,
            work,
            target: None,
            saved: false,
            kept: None,
            froze: false,
            freezes: true,
            seen: Seen::default(),
            choices: Choices::default(),
            locks: false,
            criu_ended_itself: false,
            woken: Vec::new(),
            environment: Vec::new(),
            in_memory: None,
            capture: None,
            drained: false,
            files: None,
            packed: None,
            hold: None,
            agreed: false,
            deadline: job.settings.timeout,
            manifest: manifest::empty(),
            parts: Parts::default(),
            watch,
        }
    }

    /// What has been made, for the registry.
    pub(super) fn checkpoint(&self) -> Checkpoint {
        let origin = &self.job.origin;
        let directory = &self.job.options.image_path;
        let (path, size) = match (&self.job.options.archive, self.packed) {
            (Some(archive), Some(bytes)) => (&archive.path, bytes),
            _ => (
                directory,
                commit::size(&Layout::new(directory, self.staging.shape())),
            ),
        };
        Checkpoint {
            id: origin.checkpoint.clone(),
            path: path.clone(),
            at: origin.at,
            size,
            left_running: !self.exits(),
        }
    }

    pub(super) async fn find_criu(&mut self) -> Result<(), DumpCause> {
        let criu = Criu::probe(&self.job.runc.reaper).await?;
        criu.look_at_kernel(&self.job.runc.reaper).await;
        self.manifest.criu = criu.version.to_string();
        let origin = Origin {
            left_running: !self.exits(),
            ..self.job.origin.clone()
        };
        // Names and numbers, which JSON can have.
        self.manifest.origin = serde_json::to_value(origin).ok();
        self.manifest.versions = describe::versions(&self.manifest.criu);
        self.manifest.host = describe::host();
        self.manifest.image.clone_from(&self.job.options.image);
        self.manifest.not_saved = describe::not_saved(&self.job.bundle, self.job.init_pid);
        self.expect_layer();
        self.criu = Some(criu);
        Ok(())
    }

    pub(super) async fn freeze(&mut self) -> Result<(), DumpCause> {
        let cgroup = &self.job.cgroup;
        if !cgroup.is_frozen() {
            // Set before: a freeze that fails half-way is thawed as well.
            self.froze = true;
            match cgroup.freeze(FREEZE_DEADLINE).await {
                // CRIU stops the tasks one by one then, which only takes longer.
                Err(CgroupError::Unsupported(why)) => {
                    tracing::warn!(id = self.job.id, why, "dumping without a freezer");
                    self.froze = false;
                    return self.do_without_freezer().await;
                }
                result => result?,
            }
        }
        if self.froze {
            if !programs::leave_starts(cgroup, FREEZE_DEADLINE).await? {
                // A child that does not execute for so long may be gone when CRIU gets there, and if not, CRIU says so.
                tracing::warn!(id = self.job.id, "a process does not come to its program");
            }
        } else {
            self.refuse_program_starts().await?;
        }
        self.stay_in_memory().await
    }

    /// A client's pause is not lifted for it. What the processes wait for is theirs to tell, so one look is not enough.
    async fn refuse_program_starts(&self) -> Result<(), DumpCause> {
        for _ in 0..PAUSED_LOOKS {
            if !programs::is_any_starting(&self.pids()) {
                return Ok(());
            }
            sleep(programs::START_TIME).await;
        }
        Err(DumpCause::Refused(
            "the container was paused while a process of it was in the middle of starting a program, which CRIU cannot save; \
             resume it, pause it again and repeat the dump"
                .to_owned(),
        ))
    }

    /// Without a freezer CRIU alone holds the tasks: it lets them go while pages of theirs may still be in a fifo, unread.
    async fn do_without_freezer(&mut self) -> Result<(), DumpCause> {
        self.freezes = false;
        self.go_to_disk().await
    }

    pub(super) fn look_at_connections(&mut self) -> Result<(), DumpCause> {
        let pids = self.pids();
        self.deadline = match self.job.settings.timeout {
            Duration::ZERO => {
                DEADLINE_MIN + Duration::from_secs(proc::resident_bytes(&pids) / WRITE_RATE_MIN)
            }
            said => said,
        };
        let (connections, waiting) = connections::held_and_waiting(&pids)
            .map_err(DumpCause::files("read", Path::new("/proc/net/tcp")))?;
        let own_network = !proc::shares_network(self.job.init_pid);
        self.seen = Seen {
            connections,
            waiting,
            own_network,
            ends: self.exits(),
            // CRIU can leave out only what it sees, and in a network of its own that is nothing of the host.
            datagrams: match own_network {
                true => Vec::new(),
                false => crate::preflight::datagrams_to_others(&pids),
            },
        };
        self.choices = Choices::of(&self.seen, &self.settings());
        let connections = self.seen.leading_out();
        if connections.is_empty() || self.choices.tcp != Tcp::Default {
            return Ok(());
        }
        let shown: Vec<String> = connections
            .iter()
            .take(CONNECTIONS_SHOWN_MAX)
            .map(ToString::to_string)
            .collect();
        Err(DumpCause::Refused(format!(
            "the container has {} established TCP connection(s) to others ({}{}); close them, or set the annotation \
             cedana.dump.tcp to established (save them) or close (let them come back closed)",
            connections.len(),
            shown.join(", "),
            if connections.len() > shown.len() {
                ", …"
            } else {
                ""
            },
        )))
    }

    pub(super) fn wake_stopped(&mut self) -> Result<(), DumpCause> {
        if self.job.cgroup.is_unified() || !self.job.cgroup.is_frozen() {
            return Ok(());
        }
        self.woken = self
            .pids()
            .into_iter()
            .filter(|pid| proc::is_stopped(*pid))
            .collect();
        self.manifest.stopped = self
            .woken
            .iter()
            .filter_map(|pid| proc::inner_pid(*pid))
            .collect();
        for pid in &self.woken {
            stray::signal(*pid, Signal::SIGCONT);
        }
        Ok(())
    }

    pub(super) fn stop_woken(&mut self) -> Result<(), DumpCause> {
        for pid in self.woken.drain(..) {
            stray::signal(pid, Signal::SIGSTOP);
        }
        Ok(())
    }

    pub(super) async fn configure(&mut self) -> Result<(), DumpCause> {
        let Some(criu) = &self.criu else { return Ok(()) };
        let (settings, choices) = (self.settings(), &self.choices);
        let connected = !self.seen.connections.is_empty();
        let mut options = Options::of_dump(&settings, choices);
        self.manifest.options = choices::all(choices, &self.job.settings, &self.asked_for());
        self.manifest.tcp_closed = choices.tcp == Tcp::Close && connected;
        self.manifest.shell_job = settings.shell_job;
        self.manifest.external_unix_sockets = choices.external_unix_sockets;
        let kept = connected && choices.tcp == Tcp::Established;
        tracing::info!(
            id = self.job.id,
            options = choices::summary(&self.manifest.options),
            "criu is told"
        );
        self.locks = kept;
        if self.exits() && self.staged() {
            self.hold = self.make_hold(&mut options)?;
        }
        let version = criu.version;
        if self.exits() && self.hold.is_none() && self.in_memory.is_some() {
            self.link_fifos().await?;
        }
        let request = Request {
            bundle: &self.job.bundle,
            version,
            options: &options,
            network_lock: conf::resolve_lock(self.job.settings.network_lock, kept),
        };
        if kept && request.network_lock == NetworkLock::Skip {
            tracing::warn!(
                id = self.job.id,
                "connections are dumped without a network lock, as the settings say"
            );
        }
        self.environment = conf::write(&request, conf::is_annotated(&self.job.bundle))
            .map_err(DumpCause::files("configure criu in", &self.job.bundle))?;
        self.environment.extend(tools::make(&self.job.bundle));
        if let Some(hold) = &self.hold {
            self.environment.extend(hold.environment(HOLD_MAX));
        }
        Ok(())
    }

    /// Has CRIU ask before it ends the container. A program that was replaced while it ran cannot be asked.
    fn make_hold(&self, options: &mut Options) -> Result<Option<Hold>, DumpCause> {
        let Ok(script) = loopback::script() else {
            tracing::warn!(
                id = self.job.id,
                "the dump is not on the disk when the container ends: this shim's program was replaced"
            );
            return Ok(None);
        };
        options.value("action-script", script.display().to_string());
        let bundle = &self.job.bundle;
        Hold::new(bundle)
            .map(Some)
            .map_err(DumpCause::files("make fifos in", bundle))
    }

    pub(super) fn unconfigure(&mut self) -> Result<(), DumpCause> {
        tools::remove(&self.job.bundle)
            .and_then(|()| conf::remove(&self.job.bundle))
            .map_err(DumpCause::files(
                "remove criu's configuration from",
                &self.job.bundle,
            ))
    }

    pub(super) async fn verify(&mut self) -> Result<(), DumpCause> {
        let images = self.criu_images();
        let look = move || Ok(images::verify(&images)?);
        beside_within(self.deadline, self.staging.root(), look).await
    }

    /// Lets the container go on before its images are written out, which takes as long as the disk does. What fails here is
    /// tried again, and told, after the commit.
    pub(super) async fn let_go_on(&mut self) -> Result<(), DumpCause> {
        if !self.exits() {
            self.stop_woken()?;
            match self.put_back().await {
                // Whoever freezes it from now on is not us.
                Ok(()) => self.froze = false,
                Err(error) => {
                    tracing::debug!(id = self.job.id, %error, "the container stands until after the commit");
                }
            }
        }
        Ok(())
    }

    /// Brings the container back to running or paused, as it was.
    pub(super) async fn put_back(&mut self) -> Result<(), DumpCause> {
        let cgroup = &self.job.cgroup;
        if !cgroup.exists() {
            return Ok(());
        }
        // What CRIU killed under cgroup v1 cannot die while it is frozen.
        let result = if self.froze || self.exits() && self.ended() {
            cgroup.thaw(FREEZE_DEADLINE).await
        } else if self.job.was_paused && !cgroup.is_frozen() {
            cgroup.freeze(FREEZE_DEADLINE).await
        } else {
            Ok(())
        };
        match result {
            Err(CgroupError::Gone(_)) => Ok(()),
            other => Ok(other?),
        }
    }

    pub(super) fn put_away(&mut self) -> Result<(), DumpCause> {
        mark::clear(&self.job.bundle);
        if !self.owns_work() {
            return Ok(());
        }
        work::remove(&self.work).map_err(DumpCause::files("remove", &self.work))
    }

    /// Init first: the others are looked for in its namespaces.
    pub(super) fn pids(&self) -> Vec<i32> {
        let init = self.job.init_pid;
        let mut pids = vec![init];
        pids.extend(self.job.cgroup.procs().into_iter().filter(|pid| *pid != init));
        pids
    }

    /// Whether the container ends with the dump.
    pub(super) fn exits(&self) -> bool {
        if self.job.options.said {
            self.job.options.exit
        } else {
            !self.job.settings.leave_running
        }
    }

    /// The settings, and over them what the client asked for by CRIU's names.
    pub(super) fn settings(&self) -> config::Dump {
        let (options, mut settings) = (&self.job.options, self.job.settings.clone());
        if options.open_tcp {
            settings.tcp = Tcp::Established;
        }
        if options.external_unix_sockets {
            settings.external_unix_sockets = Choice::Yes;
        }
        settings.shell_job |= options.terminal;
        settings.file_locks |= options.file_locks;
        settings
    }

    /// The options among them.
    fn asked_for(&self) -> Vec<&'static str> {
        let options = &self.job.options;
        let all = [
            ("tcp", options.open_tcp),
            ("external-unix-sockets", options.external_unix_sockets),
            ("shell-job", options.terminal),
            ("file-locks", options.file_locks),
        ];
        all.into_iter()
            .filter(|(_, asked)| *asked)
            .map(|(option, _)| option)
            .collect()
    }

    /// Whether the init is dead or dying.
    pub(super) fn ended(&self) -> bool {
        !proc::is_running(self.job.init_pid)
    }

    pub(super) fn staged(&self) -> bool {
        self.staging.root() != self.job.options.image_path
    }

    pub(super) fn owns_work(&self) -> bool {
        self.job.options.work_path.is_empty()
    }
}
