//! The resolved settings: one struct a consumer, no options left open.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use crate::source::Source;

/// Logs of failed operations, one directory a container below it.
const LOG_DIR: &str = "/var/log/cedana";

/// Checkpoints made by `cedana` whose user names no directory. Not below /tmp: a checkpoint holds what the memory of a
/// container holds, and is to be there after a reboot.
const CHECKPOINT_DIR: &str = "/var/lib/cedana/checkpoints";

/// The registry. The shims publish in /run/cedana/jobs.d for this one, and beside it for any other: `jobs::spool` knows it, too.
const DB_PATH: &str = "/var/lib/cedana/jobs.db";

/// Everything that can be set, resolved once for a container.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Settings {
    /// For dumps.
    pub dump: Dump,
    /// For restores.
    pub restore: Restore,
    /// For what `cedana` keeps.
    pub checkpoint: Checkpoint,
    /// For the registry of jobs.
    pub db: Db,
    /// Where each value that is not a default came from, by dotted name.
    pub sources: BTreeMap<&'static str, Source>,
}

/// What becomes of established TCP connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Tcp {
    /// Those that do not leave the container are saved, a dump with another one fails; a restore does what the dump did.
    #[default]
    Default,
    /// They are saved and restored. The address must exist where the restore happens.
    Established,
    /// They come back closed: the process sees a reset.
    Close,
}

/// Whether something is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Choice {
    /// Where it is safe, by what is seen of the container.
    #[default]
    Auto,
    /// In any case.
    Yes,
    /// Never.
    No,
}

/// How CRIU keeps packets away while connections are dumped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum NetworkLock {
    /// Not at all when there is no connection to protect, else CRIU's own default.
    #[default]
    Auto,
    /// Never.
    Skip,
    /// With iptables rules.
    Iptables,
    /// With an nftables table.
    Nftables,
}

/// Whether the writable layer of a container goes into its checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Files {
    /// When `cedana` dumps. Other clients keep it themselves: docker in its place, Kubernetes and `ctr --rw` beside the images.
    #[default]
    Auto,
    /// Whoever dumps.
    Always,
    /// Not at all.
    Never,
}

/// Settings of a dump.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dump {
    /// `dump.leave-running`: the container goes on running after a dump whose client said nothing about it. Only for
    /// requests that come without checkpoint options; what a client says wins.
    pub leave_running: bool,
    /// `dump.tcp`: established connections.
    pub tcp: Tcp,
    /// `dump.skip-in-flight`: connections that nobody has accepted yet are left out instead of failing the dump.
    pub skip_in_flight: Choice,
    /// `dump.external-unix-sockets`: datagram sockets connected to the host are left out instead of failing the dump.
    pub external_unix_sockets: Choice,
    /// `dump.shell-job`: a terminal that is not the container's is taken along. Whoever restores must have one, too.
    pub shell_job: bool,
    /// `dump.file-locks`: file locks are saved. Safe in a container, whose files nobody else locks.
    pub file_locks: bool,
    /// `dump.link-remap`: a deleted file that still has another name is given one again, `link_remap.N` beside it.
    pub link_remap: Choice,
    /// `dump.files`: the container's writable layer goes into the checkpoint.
    pub files: Files,
    /// `dump.ghost-limit`: the size in bytes up to which a deleted but open file goes into the image.
    pub ghost_limit: u64,
    /// `dump.buffer`: how much memory, in bytes, pages may be held in so that the container need not stand until they are on
    /// the disk; zero for as much as it takes, up to half of what is free.
    pub buffer: u64,
    /// `dump.network-lock`.
    pub network_lock: NetworkLock,
    /// `dump.timeout`: after this a dump is given up and taken back; zero means by the size of the container.
    pub timeout: Duration,
    /// `dump.log-dir`: where the log of a failed dump survives its bundle.
    pub log_dir: PathBuf,
    /// `dump.external`: what of the host CRIU leaves out, each as its option `external` takes it.
    pub external: Vec<String>,
}

impl Default for Dump {
    fn default() -> Self {
        Self {
            leave_running: true,
            tcp: Tcp::Default,
            skip_in_flight: Choice::Auto,
            external_unix_sockets: Choice::Auto,
            shell_job: false,
            file_locks: true,
            link_remap: Choice::Auto,
            files: Files::Auto,
            // CRIU's own 1 MiB fails the dump of any program that unlinks its log or its cache. The limit only bounds
            // what goes into the image, so it is set where a container's memory usually is.
            ghost_limit: 512 * 1024 * 1024,
            buffer: 0,
            network_lock: NetworkLock::Auto,
            timeout: Duration::ZERO,
            log_dir: PathBuf::from(LOG_DIR),
            external: Vec::new(),
        }
    }
}

/// Settings of a restore.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restore {
    /// `restore.tcp`: established connections found in the image.
    pub tcp: Tcp,
    /// `restore.network-lock`.
    pub network_lock: NetworkLock,
    /// `restore.timeout`: after this a restore is given up; zero means by the size of the image.
    pub timeout: Duration,
    /// `restore.skip-file-check`: do not compare the mode of files with what they were.
    pub skip_file_check: bool,
    /// `restore.skip-cpu-check`: restore though the processor lacks what the one of the dump had.
    pub skip_cpu_check: bool,
    /// `restore.lazy`: processes run on before their memory is there; what they touch comes first.
    pub lazy: bool,
    /// `restore.fill-rate`: how many bytes a second are brought behind them that nobody has touched yet; zero for all that goes.
    pub fill_rate: u64,
    /// `restore.external`: what of the host stands where a dump left something out, each as CRIU's option `external` takes it.
    pub external: Vec<String>,
    /// `restore.log-dir`: where the log of a failed restore survives its bundle.
    pub log_dir: PathBuf,
}

impl Default for Restore {
    fn default() -> Self {
        Self {
            tcp: Tcp::Default,
            network_lock: NetworkLock::Auto,
            timeout: Duration::ZERO,
            skip_file_check: false,
            skip_cpu_check: false,
            lazy: true,
            fill_rate: 0,
            external: Vec::new(),
            log_dir: PathBuf::from(LOG_DIR),
        }
    }
}

/// How a checkpoint is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Compression {
    /// Not: it stays a directory.
    #[default]
    None,
    /// One file, as large as its content.
    Tar,
    /// The tar file through gzip.
    Gzip,
    /// The tar file through LZ4.
    Lz4,
    /// The tar file through zlib.
    Zlib,
    /// The tar file through Zstandard.
    Zstd,
}

/// Settings of what `cedana` keeps. Clients that name a directory of their own are not concerned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// `checkpoint.dir`.
    pub dir: PathBuf,
    /// `checkpoint.compression`.
    pub compression: Compression,
}

impl Default for Checkpoint {
    fn default() -> Self {
        Self {
            dir: PathBuf::from(CHECKPOINT_DIR),
            compression: Compression::None,
        }
    }
}

/// Settings of the registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Db {
    /// `db.path`: the database; none means that no job is registered at all.
    pub path: Option<PathBuf>,
}

impl Default for Db {
    fn default() -> Self {
        Self {
            path: Some(PathBuf::from(DB_PATH)),
        }
    }
}
