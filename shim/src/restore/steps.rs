//! What the phases of a restore do.

use std::ffi::OsStr;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use config::Tcp;
use oci_bundles::archive::Left;
use oci_bundles::layout::{Layout, Shape};
use oci_bundles::spec::SpecView;
use oci_bundles::spec::rights::Rights;

use super::files::Waiting;
use super::{RestoreCause, RestoreJob, Restoring, loopback, rights};
use crate::cgroup::Cgroup;
use crate::criu::conf::{self, Options, Request};
use crate::criu::file::read_regular;
use crate::criu::images::{self, Summary};
use crate::criu::logs::Keeper;
use crate::criu::manifest::{self, Manifest};
use crate::criu::{Criu, stray, telling, tools, work};
use crate::delete::leftover::Leftover;
use crate::dump::describe;
use crate::error::chain;
use crate::runc::{Call, RuncError};
use crate::worker::MAKE_PAGES;
use crate::worker::errand::{Errand, Limit};
use crate::worker::page_server::{self, Order, Started};

/// The restore of nothing on the slowest host that was seen (software emulation), with room.
const DEADLINE_MIN: Duration = Duration::from_secs(60);

/// The slowest disk that a restore still has to succeed from, in bytes per second.
const READ_RATE_MIN: u64 = 20 * 1024 * 1024;

/// The size of a sparse file is whatever its maker says; 5 TiB at the slowest rate are what is waited for.
const DEADLINE_MAX: Duration = Duration::from_secs(72 * 60 * 60);

/// runc's own clean-up kills and waits for processes; more than this and it hangs.
const DELETE_DEADLINE: Duration = Duration::from_secs(30);

/// What is smaller is read by CRIU itself in 20 ms (0.6 s/GiB), which is hardly more than a server costs.
const LAZY_SIZE_MIN: u64 = 32 * 1024 * 1024;

/// A pid has 10 digits at most.
const PID_FILE_SIZE_MAX: u64 = 64;

impl Restoring {
    pub(super) fn new(job: RestoreJob) -> Self {
        let owns_work = job.work_path.is_none();
        let work = job.work_path.unwrap_or_else(|| work::dir(&job.bundle));
        Self {
            runc: job.runc,
            namespace: job.namespace,
            id: job.id,
            bundle: job.bundle,
            layout: Layout::new(job.checkpoint, Shape::Flat),
            left: job.left,
            work,
            owns_work,
            spec: SpecView::default(),
            stdio: Some(job.stdio),
            console_socket: job.console_socket,
            no_pivot_root: job.no_pivot_root,
            settings: job.settings,
            criu: None,
            summary: Summary::default(),
            manifest: Manifest::default(),
            environment: Vec::new(),
            key: job.key,
            layer_is_there: job.layer_is_there,
            waiting: Waiting::default(),
            filled_shm: None,
            filling: None,
            cgroup_was_vacant: false,
            pid: 0,
        }
    }

    pub(super) async fn find_criu(&mut self) -> Result<(), RestoreCause> {
        self.criu = Some(Criu::probe(&self.runc.reaper).await?);
        Ok(())
    }

    pub(super) fn read_images(&mut self) -> Result<(), RestoreCause> {
        // Without images it stays flat, and what is missing is told.
        if let Some(found) = Layout::find(self.layout.root()) {
            self.layout = found;
        }
        let left = self.left.as_deref().map(Left::read).transpose()?;
        self.manifest = manifest::read(self.layout.root(), left.as_ref())?;
        self.note_files();
        self.refuse_lesser_processor()?;
        // They are what they should be, and as many as files.
        self.manifest.parts = Vec::new();
        let images = self.layout.images();
        images::refuse_strange(&images)?;
        self.summary = images::summarize(&images)?;
        let left = left.map_or(0, |left| left.bytes());
        self.summary.size = self.summary.size.saturating_add(left);
        Ok(())
    }

    /// What a program found when it started is not looked for again.
    fn refuse_lesser_processor(&self) -> Result<(), RestoreCause> {
        let lacking = self.manifest.lacking(&describe::host());
        if lacking.is_empty() || self.settings.skip_cpu_check {
            return Ok(());
        }
        Err(RestoreCause::Processor(lacking.join(", ")))
    }

    pub(super) fn prepare_directories(&mut self) -> Result<(), RestoreCause> {
        if self.state().exists() {
            return Err(RestoreCause::Exists(self.id.clone()));
        }
        work::make(&self.work, self.owns_work).map_err(RestoreCause::files("make", &self.work))?;
        self.spec = SpecView::read(&self.bundle)?;
        self.cgroup_was_vacant = self.leftover().members().is_empty();
        // A pid of an earlier attempt would be taken for the restored one.
        remove_file(&self.pid_file())
    }

    pub(super) fn put_away(&mut self) -> Result<(), RestoreCause> {
        if !self.owns_work {
            return Ok(());
        }
        work::remove(&self.work).map_err(RestoreCause::files("remove", &self.work))
    }

    pub(super) fn remove_directories(&mut self) -> Result<(), RestoreCause> {
        work::remove_after_kill(&self.work, self.owns_work)
            .map_err(RestoreCause::files("remove what criu left in", &self.work))
    }

    pub(super) fn configure(&mut self) -> Result<(), RestoreCause> {
        let Some(criu) = &self.criu else { return Ok(()) };
        let mut options = Options::of_restore(&self.settings, true);
        options.switch("tcp-close", self.tcp() == Tcp::Close);
        let kept = self.summary.connections && self.tcp() == Tcp::Established;
        if kept && self.makes_network() {
            let program = Path::new("/proc/self/exe");
            let script = loopback::script().map_err(RestoreCause::files("find the program", program))?;
            options.value("action-script", script.display().to_string());
        }
        let request = Request {
            bundle: &self.bundle,
            version: criu.version,
            options: &options,
            network_lock: conf::resolve_lock(self.settings.network_lock, kept),
        };
        tracing::info!(
            id = self.id,
            tcp = ?self.tcp(),
            connections = self.summary.connections,
            external_unix_sockets = self.manifest.external_unix_sockets,
            shell_job = self.manifest.shell_job,
            external = config::text_of_list(&self.settings.external),
            "criu is told"
        );
        self.environment = conf::write(&request, conf::is_annotated(&self.bundle))
            .map_err(RestoreCause::files("configure criu in", &self.bundle))?;
        self.environment.extend(tools::make(&self.bundle));
        Ok(())
    }

    pub(super) fn unconfigure(&mut self) -> Result<(), RestoreCause> {
        let failed = RestoreCause::files("remove criu's configuration from", &self.bundle);
        tools::remove(&self.bundle)
            .and_then(|()| conf::remove(&self.bundle))
            .map_err(failed)
    }

    /// Starts what gives memory to the processes while they run, if that is wanted, worth it and possible; else CRIU reads all
    /// of it before they do. Other runtimes than runc know nothing of it.
    pub(super) async fn serve_pages(&mut self) -> Result<(), RestoreCause> {
        if !self.settings.lazy || self.summary.size < LAZY_SIZE_MIN || !self.runc.is_plain() {
            return self.make_pages().await;
        }
        let order = Order {
            images: &self.layout.images(),
            work: &self.work,
            rate: self.settings.fill_rate,
            left: self.left.as_deref(),
            deadline: self.deadline(),
        };
        match page_server::start(&self.runc.reaper, &order).await {
            Ok(Started::Serving(filling)) => {
                self.filling = Some(filling);
                return Ok(());
            }
            Ok(Started::Unsuitable(reason)) => {
                tracing::info!(id = self.id, reason, "all memory is restored at once");
            }
            Err(error) if error.is_final(self.left.is_some()) => return Err(RestoreCause::served(error)),
            Err(error) => tracing::warn!(
                id = self.id,
                error = chain(&error),
                "all memory is restored at once"
            ),
        }
        self.make_pages().await
    }

    /// Takes memory that was left in an archive out of it: CRIU reads files.
    async fn make_pages(&self) -> Result<(), RestoreCause> {
        let Some(list) = &self.left else { return Ok(()) };
        let made = async {
            let errand = Errand::start(&self.runc.reaper, MAKE_PAGES, list)?;
            errand.answer(Limit::Whole(self.deadline())).await
        };
        made.await.map_err(RestoreCause::memory)
    }

    /// Nobody is left whom it could serve.
    pub(super) async fn stop_serving(&mut self) -> Result<(), RestoreCause> {
        if let Some(filling) = self.filling.take() {
            filling.stop().await.map_err(RestoreCause::served)?;
        }
        Ok(())
    }

    pub(super) async fn restore(&mut self) -> Result<(), RestoreCause> {
        let (pid_file, images) = (self.pid_file(), self.layout.images());
        // No `--no-subreaper`: crun does not know it, and a detached runc is gone before it could reap anything.
        let mut args: Vec<&OsStr> = vec!["restore".as_ref(), "--detach".as_ref()];
        for (flag, value) in [
            ("--bundle", self.bundle.as_path()),
            ("--image-path", &images),
            ("--work-path", &self.work),
            ("--pid-file", &pid_file),
        ] {
            args.extend::<[&OsStr; 2]>([flag.as_ref(), value.as_ref()]);
        }
        if let Some(socket) = &self.console_socket {
            args.extend::<[&OsStr; 2]>(["--console-socket".as_ref(), socket.as_ref()]);
        }
        for (flag, on) in [
            ("--no-pivot", self.no_pivot_root),
            (
                "--tcp-established",
                self.summary.connections && self.tcp() == Tcp::Established,
            ),
            ("--ext-unix-sk", self.manifest.external_unix_sockets),
            ("--shell-job", self.manifest.shell_job),
            ("--file-locks", true),
            ("--lazy-pages", self.filling.is_some()),
        ] {
            if on {
                args.push(flag.as_ref());
            }
        }
        args.push(self.id.as_ref());
        let call = Call {
            stdio: self.stdio.take(),
            env: std::mem::take(&mut self.environment),
            deadline: self.deadline(),
            is_hopeless: Some(stray::has_lost_criu),
            // Before it starts CRIU, runc binds the sources of the container's bind mounts, with all that is mounted below
            // them, into the rootfs, and unmounts them lazily after it. Where the host's mounts are shared (systemd makes
            // them so), that unmount reaches what is mounted below the sources themselves: with `/` as a volume, the host's
            // /proc, /sys and /dev (seen with runc 1.3, also when the restore failed).
            own_mounts: true,
            ..Call::default()
        };
        let result = self.runc.run(&args, call).await;
        result.map_err(|error| self.explain(&error))
    }

    /// What a failed `runc restore` means, with the log kept.
    fn explain(&self, error: &RuncError) -> RestoreCause {
        let log = self.work.join("restore.log");
        let (namespace, id, bundle) = (&self.namespace, &self.id, &self.bundle);
        let keeper = Keeper {
            log_dir: &self.settings.log_dir,
            namespace,
            id,
            bundle,
        };
        let kept = keeper.keep(&log, "restore");
        match error {
            RuncError::TimedOut { .. } => RestoreCause::TimedOut(error.to_string()),
            _ => RestoreCause::Criu {
                telling: telling::read(&log, &error.to_string()),
                log: kept,
            },
        }
    }

    pub(super) fn read_pid(&mut self) -> Result<(), RestoreCause> {
        let path = self.pid_file();
        let text = read_regular(&path, PID_FILE_SIZE_MAX).map_err(RestoreCause::files("read", &path))?;
        self.pid = parse_pid(&text).ok_or_else(|| RestoreCause::NoPid(path.display().to_string()))?;
        Ok(())
    }

    /// Nothing of it has run yet.
    pub(super) fn check_rights(&mut self) -> Result<(), RestoreCause> {
        let mut pids = Cgroup::of_pid(self.pid)?.procs();
        if !pids.contains(&self.pid) {
            pids.push(self.pid);
        }
        let excess = rights::excess(&pids, &Rights::read(&self.bundle)?);
        match excess.map_err(RestoreCause::files("read", Path::new("/proc")))? {
            Some(problem) => Err(RestoreCause::Rights(problem)),
            None => Ok(()),
        }
    }

    /// Does what runc does for a network namespace it makes; one that was given belongs to whoever made it.
    pub(super) fn raise_loopback(&mut self) -> Result<(), RestoreCause> {
        if !self.makes_network() {
            return Ok(());
        }
        loopback::raise(self.pid).map_err(RestoreCause::Loopback)
    }

    /// Removes whatever a failed restore has left: CRIU, runc's mount and state, processes, cgroups.
    pub(super) async fn remove_remains(&mut self) -> Result<(), RestoreCause> {
        // CRIU first: it would go on making what is being removed.
        if !stray::kill_all(&[]).await {
            return Err(RestoreCause::Remains("CRIU does not end".to_owned()));
        }
        let state = self.state();
        super::unmount_criu_root(&state).await?;
        let mut remains = Vec::new();
        if state.exists() {
            let args: [&OsStr; 3] = ["delete".as_ref(), "--force".as_ref(), self.id.as_ref()];
            let call = Call {
                deadline: DELETE_DEADLINE,
                ..Call::default()
            };
            let deleted = self.runc.run(&args, call).await;
            remains.extend(
                deleted
                    .err()
                    .filter(|error| !error.is_gone())
                    .map(|error| chain(&error)),
            );
        }
        // runc makes the cgroups before its state. Others may have been in them before: then nothing in them is ours.
        if self.cgroup_was_vacant {
            remains.extend(self.leftover().remove());
        }
        for result in [remove_tree(&state), remove_file(&self.pid_file())] {
            remains.extend(result.err().map(|error| chain(&error)));
        }
        if remains.is_empty() {
            Ok(())
        } else {
            Err(RestoreCause::Remains(remains.join("; ")))
        }
    }

    /// Where runc keeps what it knows of the container.
    fn state(&self) -> PathBuf {
        self.runc.root.join(&self.id)
    }

    /// The cgroup that the container is configured for.
    fn leftover(&self) -> Leftover {
        Leftover::find(&self.state(), &self.spec.linux.cgroups_path)
    }

    /// Whether the container gets a network namespace of its own making, and not one it is given.
    fn makes_network(&self) -> bool {
        let namespaces = &self.spec.linux.namespaces;
        namespaces
            .iter()
            .any(|namespace| namespace.kind == "network" && namespace.path.as_os_str().is_empty())
    }

    fn pid_file(&self) -> PathBuf {
        self.bundle.join("init.pid")
    }

    /// What becomes of the connections in the images: as the settings say, else as the dump did.
    fn tcp(&self) -> Tcp {
        match self.settings.tcp {
            Tcp::Default if self.manifest.tcp_closed => Tcp::Close,
            Tcp::Default => Tcp::Established,
            said => said,
        }
    }

    pub(super) fn deadline(&self) -> Duration {
        match self.settings.timeout {
            Duration::ZERO => deadline_of(self.summary.size),
            said => said,
        }
    }
}

/// A pid that names one process: 0 and what is below would mean groups, and end up in a `kill`.
fn parse_pid(text: &[u8]) -> Option<i32> {
    let pid: i32 = str::from_utf8(text).ok()?.trim().parse().ok()?;
    (pid > 0).then_some(pid)
}

/// How long the restore of this many bytes may take.
fn deadline_of(size: u64) -> Duration {
    DEADLINE_MIN
        .saturating_add(Duration::from_secs(size / READ_RATE_MIN))
        .min(DEADLINE_MAX)
}

fn remove_file(path: &Path) -> Result<(), RestoreCause> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(RestoreCause::files("remove", path)(error)),
        _ => Ok(()),
    }
}

fn remove_tree(dir: &Path) -> Result<(), RestoreCause> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(RestoreCause::files("remove", dir)(error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pid_names_one_process() {
        for (text, pid) in [
            ("42", Some(42)),
            ("42\n", Some(42)),
            ("0", None),
            ("-1", None),
            ("99999999999", None),
            ("", None),
        ] {
            assert_eq!(parse_pid(text.as_bytes()), pid, "{text:?}");
        }
    }

    #[test]
    fn a_deadline_grows_with_the_images_and_has_an_end() {
        assert_eq!(deadline_of(0), DEADLINE_MIN);
        assert_eq!(deadline_of(READ_RATE_MIN * 60), DEADLINE_MIN * 2);
        assert_eq!(deadline_of(u64::MAX), DEADLINE_MAX);
    }
}
