//! The phase that runs CRIU, and what happens beside it.

use std::ffi::{OsStr, OsString};
use std::pin::pin;
use std::time::Duration;

use config::Tcp;
use oci_bundles::layout::Shape;
use tokio::time::{Instant, sleep, timeout};

use super::beside::{beside, beside_within};
use super::capture::{self, Capture, Taken, WORTH_IT};
use super::hold::Hold;
use super::portable::keep_logs;
use super::{DumpCause, Dumping, describe, room};
use crate::capture::Plan;
use crate::criu::logs::Keeper;
use crate::criu::{culprits, lock, proc, stray, telling, work};
use crate::progress::Canceller;
use crate::restore::loopback;
use crate::runc::{Call, RuncError};

use super::steps::{CGROUPS_MODES, FREEZE_DEADLINE};

/// How long the copy of a log may take; it has some 100 KiB.
const KEEP_LIMIT: Duration = Duration::from_secs(5);

/// How long runc waits while a dump is written out, which has limits of its own: this only ends what they all miss.
pub(super) const HOLD_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// What happens while CRIU runs.
enum Met {
    /// runc has come back.
    Ended(Result<(), RuncError>),
    /// A client gives the dump up.
    Cancelled,
    /// The worker that takes the pages is gone.
    WorkerLost,
    /// CRIU has written everything, and would end the container now.
    Held,
    /// CRIU has had its time.
    Late,
}

impl Dumping<'_> {
    /// Has a worker ready for the pages of a container that has many.
    pub(super) async fn start_capture(&mut self) -> Result<(), DumpCause> {
        if !self.staged() {
            return Ok(());
        }
        let pids = self.pids();
        let resident = proc::resident_bytes(&pids);
        let is_worth_it = resident >= WORTH_IT;
        let expected = self.expect(None).await;
        let fifos = match (is_worth_it, &expected) {
            (false, _) => 0,
            (true, Some(expected)) => expected.fifos(),
            (true, None) => room::fifos(pids.len()),
        };
        if let Some(expected) = &expected {
            self.take_memory(expected, fifos);
        }
        if !is_worth_it {
            return Ok(());
        }
        // One that cannot be asked ends the container while its pages are nowhere but in memory.
        let keeps = self.job.options.archive.is_some() && (!self.exits() || loopback::script().is_ok());
        let buffer = self.job.settings.buffer;
        let plan = Plan {
            fifos: self.criu_images(),
            ..capture::plan(&self.staging.images(), fifos, resident, buffer, keeps)
        };
        let capture = Capture::start(&self.job.runc.reaper, &plan).await?;
        self.job.progress.goes_through(capture.pid());
        self.capture = Some(capture);
        Ok(())
    }

    pub(super) fn end_capture(&mut self) {
        self.capture = None;
    }

    pub(super) async fn save(&mut self) -> Result<(), DumpCause> {
        if self.staged() && (self.exits() || self.in_memory.is_none()) {
            // Before the tasks may end: no lack of room can come between the images and what they need.
            self.write_manifest_beside().await?;
        }
        if self.hold.is_none() {
            self.start_files()?;
        }
        let job = self.job;
        let pids = self.pids();
        let fills = match self.capture {
            Some(_) => self.staging.images(),
            None => self.criu_images(),
        };
        job.progress.fills(&fills, proc::resident_bytes(&pids));
        let args = self.arguments();
        let args: Vec<&OsStr> = args.iter().map(AsRef::as_ref).collect();
        let (canceller, cancel) = Canceller::new();
        // With a hold, everything is written out while runc waits, so it is here that CRIU's own time is looked at.
        let holds = self.hold.is_some();
        let mut own_time = pin!(sleep(self.deadline));
        let mut late = false;
        let call = Call {
            env: std::mem::take(&mut self.environment),
            deadline: if holds { HOLD_MAX } else { self.deadline },
            cancel,
            is_hopeless: Some(stray::has_lost_criu),
            ..Call::default()
        };
        let runc = job.runc.clone();
        let mut run = pin!(runc.run(&args, call));
        let mut stopped = None;
        let ended = loop {
            // Once CRIU may end the container there is nothing to be given up any more.
            let listens = stopped.is_none() && !late && !self.agreed;
            let met = tokio::select! {
                ended = &mut run => Met::Ended(ended),
                () = job.cancel.asked(), if listens => Met::Cancelled,
                () = worker_lost(self.capture.as_ref()), if listens => Met::WorkerLost,
                () = asked(self.hold.as_mut()), if listens => Met::Held,
                () = &mut own_time, if holds && !late && stopped.is_none() => Met::Late,
            };
            stopped = match met {
                Met::Ended(ended) => break ended,
                Met::Cancelled => Some(DumpCause::Cancelled),
                Met::WorkerLost => Some(DumpCause::Capture("take the pages: the worker ended".to_owned())),
                // The script waits for the answer, and takes everything back if there is none.
                Met::Held => {
                    let answered = self.answer_hold().await.err();
                    own_time.as_mut().reset(Instant::now() + self.deadline);
                    answered
                }
                Met::Late => {
                    late = true;
                    None
                }
            };
            if stopped.is_some() || late {
                canceller.cancel();
            }
        };
        self.hold = None;
        match (ended, stopped) {
            (Ok(()), None) => {}
            // Whoever of CRIU and runc was killed: all is on the disk.
            (Err(_), None) if self.agreed && self.has_ended_it(&pids).await? => {}
            (Err(error), None) => {
                let error = match (late, error) {
                    (true, RuncError::Cancelled { verb }) => RuncError::TimedOut {
                        verb,
                        deadline: self.deadline,
                    },
                    (_, error) => error,
                };
                self.criu_ended_itself =
                    !matches!(error, RuncError::TimedOut { .. } | RuncError::Cancelled { .. })
                        && work::has_failed(&self.work);
                return Err(self.explain(error).await);
            }
            (Ok(()), Some(cause)) => {
                self.saved = true;
                return Err(cause);
            }
            (Err(_), Some(cause)) => return Err(cause),
        }
        self.saved = true;
        self.drain().await
    }

    /// CRIU has written everything and would end the container: not before it is all on the disk.
    async fn answer_hold(&mut self) -> Result<(), DumpCause> {
        // Not beside CRIU, where there is no hurry: the names that it gives to deleted files are files of the container too.
        self.start_files()?;
        let cancel = self.job.cancel.clone();
        tokio::select! {
            written = self.write_out_in_time() => written?,
            () = cancel.asked() => return Err(DumpCause::Cancelled),
        }
        if cancel.is_asked() {
            return Err(DumpCause::Cancelled);
        }
        let agreed = self.hold.as_mut().map_or(Ok(()), Hold::agree);
        // From here on the images may be all that is left of the application. What a fifo does not take is not answered: it takes so
        // little all at once or not at all.
        self.agreed = agreed.is_ok();
        agreed.map_err(DumpCause::files("answer CRIU in", &self.job.bundle))
    }

    /// The workers have all pages and all files: the application does not have to stand any longer.
    async fn drain(&mut self) -> Result<(), DumpCause> {
        self.finish_files().await?;
        if let Some(capture) = &mut self.capture
            && !std::mem::replace(&mut self.drained, true)
        {
            let bytes = capture.drain(self.deadline).await?;
            self.job.progress.goes_through(0);
            tracing::debug!(id = self.job.id, bytes, "the pages are in memory");
        }
        Ok(())
    }

    /// As long as the dump as a whole may take: a disk that hangs is not waited for.
    pub(super) async fn write_out_in_time(&mut self) -> Result<(), DumpCause> {
        // What this takes has limits of its own, and only then it is known how much there is to be written.
        self.drain().await?;
        let limit = self.deadline;
        timeout(limit, self.write_out()).await.unwrap_or_else(|_| {
            let limit = limit.as_secs();
            Err(DumpCause::TimedOut(format!(
                "write the dump out within {limit} s"
            )))
        })
    }

    /// Everything that CRIU wrote goes to the disk.
    async fn write_out(&mut self) -> Result<(), DumpCause> {
        if self.packed.is_some() {
            return Ok(());
        }
        let mut kept = None;
        if let Some(mut capture) = self.capture.take() {
            match capture.taken(self.deadline).await? {
                Taken::Written(files) => self.parts.take_in(files, self.staging.shape()),
                Taken::Kept(files) => {
                    self.parts.take_in(files, self.staging.shape());
                    kept = Some(capture);
                }
            }
        }
        self.move_images().await?;
        if self.staging.shape() == Shape::Nested {
            let (work, staging) = (self.work.clone(), self.staging.clone());
            let keep = move || {
                keep_logs(&work, &staging);
                Ok(())
            };
            beside(self.staging.root(), keep).await?;
        }
        if let Some(mut capture) = kept {
            return self.pack(&mut capture).await;
        }
        match self.complete().await {
            // What came last are statistics: the images, and a manifest that lists them all, are on the disk since before CRIU ended
            // the container.
            Err(error) if self.agreed && self.staging.shape() == Shape::Nested => {
                tracing::warn!(id = self.job.id, %error, "the manifest does not tell of the end of the dump");
                Ok(())
            }
            completed => completed,
        }
    }

    /// Lists all files in the manifest, unless it does already, and has them on the disk.
    async fn complete(&mut self) -> Result<(), DumpCause> {
        if self.list_parts().await? && self.staged() {
            self.write_manifest_beside().await?;
            let staging = self.staging.clone();
            return beside(self.staging.root(), move || super::commit::sync_all(&staging)).await;
        }
        Ok(())
    }

    /// Completes the manifest; false if it was complete, as it is when CRIU asked before it ended the container.
    pub(super) async fn list_parts(&mut self) -> Result<bool, DumpCause> {
        let parts = std::mem::take(&mut self.parts);
        let (staging, all) = (self.staging.clone(), self.staged());
        let listing = tokio::task::spawn_blocking(move || parts.complete(&staging, all));
        self.parts = match listing.await {
            Ok(parts) => parts.map_err(DumpCause::files("digest the files in", self.staging.root()))?,
            Err(error) => {
                return Err(DumpCause::files("digest the files in", self.staging.root())(
                    error.into(),
                ));
            }
        };
        let parts = self.parts.list();
        if parts == self.manifest.parts {
            return Ok(false);
        }
        self.manifest.parts = parts;
        (self.manifest.timings, self.manifest.frozen_us) = describe::timings(&self.watch.timings());
        Ok(true)
    }

    /// runc's arguments.
    fn arguments(&self) -> Vec<OsString> {
        let job = self.job;
        let mut args: Vec<OsString> = vec!["checkpoint".into()];
        args.extend::<[OsString; 4]>([
            "--image-path".into(),
            self.criu_images().into(),
            "--work-path".into(),
            self.work.clone().into(),
        ]);
        for (flag, on) in [
            ("--leave-running", !self.exits()),
            ("--tcp-established", self.choices.tcp == Tcp::Established),
            ("--ext-unix-sk", self.choices.external_unix_sockets),
            ("--shell-job", self.manifest.shell_job),
            ("--file-locks", job.options.file_locks || job.settings.file_locks),
        ] {
            if on {
                args.push(flag.into());
            }
        }
        if !job.options.parent_path.is_empty() {
            args.extend::<[OsString; 2]>(["--parent-path".into(), job.options.parent_path.clone().into()]);
        }
        for namespace in &job.options.empty_namespaces {
            args.extend::<[OsString; 2]>(["--empty-ns".into(), namespace.into()]);
        }
        if CGROUPS_MODES.contains(&job.options.cgroups_mode.as_str()) {
            args.extend::<[OsString; 2]>([
                "--manage-cgroups-mode".into(),
                job.options.cgroups_mode.clone().into(),
            ]);
        }
        args.push(job.id.clone().into());
        args
    }

    /// What a failed `runc checkpoint` means, with the log kept. The container still stands, so no disk is waited for long.
    async fn explain(&self, error: RuncError) -> DumpCause {
        if matches!(error, RuncError::Cancelled { .. }) {
            return DumpCause::Cancelled;
        }
        let job = self.job;
        let log = self.work.join("dump.log");
        let (log_dir, bundle) = (job.settings.log_dir.clone(), job.bundle.clone());
        let (namespace, id, from) = (job.namespace.clone(), job.id.clone(), log.clone());
        let keep = move || {
            let keeper = Keeper {
                log_dir: &log_dir,
                namespace: &namespace,
                id: &id,
                bundle: &bundle,
            };
            Ok(keeper.keep(&from, "dump"))
        };
        let kept = beside_within(KEEP_LIMIT, &log, keep).await.ok().flatten();
        if matches!(error, RuncError::TimedOut { .. }) {
            return DumpCause::TimedOut(error.to_string());
        }
        DumpCause::Criu {
            telling: telling::read(&log, &error.to_string()),
            culprits: culprits::find(&self.pids()),
            log: kept,
        }
    }

    /// Makes sure that neither a CRIU nor its network lock outlives a failed save.
    pub(super) async fn end_criu(&mut self) -> Result<(), DumpCause> {
        // Who still saves files writes into what is about to be removed.
        self.files = None;
        let pids = self.pids();
        let held = stray::is_any(&pids);
        if held {
            // Before they may run: they were stopped, and go on only when somebody continues them.
            self.stop_woken()?;
            // Under cgroup v1 a CRIU can be stuck in the kernel until the task it attaches to may run again.
            if let Err(error) = self.job.cgroup.thaw(FREEZE_DEADLINE).await {
                tracing::warn!(id = self.job.id, %error, "failed to thaw a container that CRIU holds");
            }
            // Pages that nobody takes any more make it fail, and it takes back by itself what it did.
            self.end_capture();
            if !stray::end_by_themselves(&pids).await && !stray::kill_all(&pids).await {
                return Err(DumpCause::CriuStays);
            }
        }
        // Whoever killed CRIU: one that failed by itself has taken both back, and a lock there may be another's.
        if self.locks && !self.saved && (held || !self.criu_ended_itself) {
            let repaired = lock::end_repair(&pids);
            let unlocked = lock::remove(&self.job.runc.reaper, self.job.init_pid).await;
            tracing::debug!(
                id = self.job.id,
                repaired,
                unlocked,
                "looked for what a killed criu leaves of connections"
            );
        }
        Ok(())
    }
}

/// Resolves if the worker ends, which it does not before it is told to.
async fn worker_lost(capture: Option<&Capture>) {
    match capture {
        Some(capture) => capture.ended().await,
        None => std::future::pending().await,
    }
}

/// Resolves when CRIU asks whether the container may end.
async fn asked(hold: Option<&mut Hold>) {
    if let Some(hold) = hold
        && hold.asked().await.is_ok()
    {
        return;
    }
    std::future::pending().await
}
