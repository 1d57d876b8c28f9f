//! A dump of a container that another shim runs, by containerd's own call.
//!
//! ```text
//!   .NAME.partial-PID/   the shim writes images and CRIU's log here; synced, and with a manifest of ours
//!   NAME/                its name once it is complete
//! ```

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime};

use config::Tcp;
use jobs::record::{Key, Origin};
use jobs::registry::Job;
use jobs::wire::{DumpAnswer, DumpRequest};
use serde::Serialize;

use crate::context::Context;
use crate::engines::containerd::{Containerd, ForeignDump};
use crate::error::{Error, Kind};
use crate::output;

/// CRIU's log of a dump, in its work directory.
const LOG: &str = "dump.log";

/// Where our shim looks for what a restore must know.
const MANIFEST: &str = "cedana.json";

/// The manifest's schema that is written here.
const SCHEMA: u32 = 1;

/// The largest part of CRIU's log that is looked through for what it says of the failure, in bytes: its end.
const LOG_BYTES_MAX: u64 = 1 << 20;

/// How many of CRIU's own error lines are passed on: the first one is the cause.
const LINES_MAX: usize = 3;

/// What a restore must know, in the words of our shim's manifest.
#[derive(Debug, Serialize)]
struct Manifest<'a> {
    schema: u32,
    shell_job: bool,
    external_unix_sockets: bool,
    origin: &'a Origin,
}

/// The settings that containerd's own shim has an option for.
const KNOWN: [&str; 3] = ["dump.tcp", "dump.file-locks", "dump.external-unix-sockets"];

/// Dumps a job of another shim, as its own would.
///
/// # Errors
/// That shim cannot do what is asked, or what CRIU says.
pub async fn ask(context: &Context, job: &Job, request: &DumpRequest) -> Result<DumpAnswer, Error> {
    let unknown = request
        .settings
        .keys()
        .find(|name| !KNOWN.contains(&name.as_str()));
    if let Some(name) = unknown {
        return Err(cannot(job, name));
    }
    let settings = context.settings.with_flags(&request.settings)?;
    if settings.dump.tcp == Tcp::Close {
        return Err(cannot(job, "dump.tcp=close"));
    }
    let options = ForeignDump {
        exit: !request.leave_running,
        tcp: settings.dump.tcp == Tcp::Established,
        external_unix_sockets: settings.dump.external_unix_sockets,
        shell_job: request.shell_job,
        file_locks: settings.dump.file_locks,
        ..ForeignDump::default()
    };
    let origin = Origin {
        key: job.key.clone(),
        name: job.record.name.clone(),
        checkpoint: identity()?,
        at: now_ms(),
        left_running: request.leave_running,
    };
    let engine = Containerd::connect(&job.key.engine, &job.key.namespace).await?;
    let begun = Instant::now();
    let size = dump(&engine, &origin, &request.path, options, &settings.dump.log_dir).await?;
    Ok(DumpAnswer {
        size,
        timings: vec![("dump".to_owned(), begun.elapsed().as_secs_f64() * 1000.0)],
    })
}

fn cannot(job: &Job, what: &str) -> Error {
    Error::unsupported(format!(
        "{} runs under containerd's own shim, which knows nothing of {what}",
        job.name
    ))
    .hint("start the container with --runtime io.containerd.cedana.v1 for all settings")
}

/// A random UUID, of the kernel's making.
fn identity() -> Result<String, Error> {
    let path = Path::new("/proc/sys/kernel/random/uuid");
    let text = fs::read_to_string(path).map_err(|source| failed("read", path, &source))?;
    Ok(text.trim().to_owned())
}

fn now_ms() -> u64 {
    let elapsed = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
    u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX)
}

/// Dumps a container into a directory that is not there yet. Returns the bytes.
async fn dump(
    engine: &Containerd,
    origin: &Origin,
    path: &Path,
    dump: ForeignDump,
    logs: &Path,
) -> Result<u64, Error> {
    let partial = Partial::make(path)?;
    let dump = ForeignDump {
        images: partial.0.clone(),
        work: partial.0.clone(),
        ..dump
    };
    // containerd's shim kills CRIU when its caller goes away, and with it what CRIU is in the middle of: an interrupt waits.
    let mut call = std::pin::pin!(engine.checkpoint_task(&origin.key.id, &dump));
    let mut interrupted = false;
    let done = loop {
        tokio::select! {
            done = &mut call => break done,
            _pressed = tokio::signal::ctrl_c() => {
                if !interrupted {
                    output::note("containerd's own shim cannot take a dump back: it is awaited");
                }
                interrupted = true;
            }
        }
    };
    done.map_err(|error| explained(error, &partial.0.join(LOG), &origin.key, logs))?;
    if interrupted && !dump.exit {
        return Err(Error::new(
            Kind::Interrupted,
            "interrupted: the container goes on, and nothing is kept",
        ));
    }
    let manifest = Manifest {
        schema: SCHEMA,
        shell_job: dump.shell_job,
        external_unix_sockets: dump.external_unix_sockets,
        origin,
    };
    match partial.complete(&manifest, path) {
        Ok(size) => Ok(size),
        // The container has ended: these images are all that is left of it.
        Err(source) if dump.exit => {
            let kept = partial.keep();
            Err(failed("keep", path, &source).hint(format!("the images are in {}", kept.display())))
        }
        Err(source) => Err(failed("keep", path, &source)),
    }
}

/// The directory of a dump that is not complete; it goes with this.
struct Partial(PathBuf);

impl Partial {
    fn make(path: &Path) -> Result<Self, Error> {
        use std::os::unix::fs::DirBuilderExt;
        if path.symlink_metadata().is_ok() {
            return Err(Error::usage(format!("{} is there already", path.display())));
        }
        let mut name = std::ffi::OsString::from(".");
        name.push(path.file_name().unwrap_or_default());
        name.push(format!(".partial-{}", std::process::id()));
        let partial = path.with_file_name(name);
        let made = fs::DirBuilder::new().mode(0o700).create(&partial);
        made.map_err(|source| failed("make", &partial, &source))?;
        Ok(Self(partial))
    }

    fn complete(&self, manifest: &Manifest<'_>, path: &Path) -> io::Result<u64> {
        fs::write(self.0.join(MANIFEST), serde_json::to_vec(manifest)?)?;
        let mut size = 0;
        for entry in fs::read_dir(&self.0)? {
            let file = File::open(entry?.path())?;
            size += file.metadata()?.len();
            file.sync_all()?;
        }
        File::open(&self.0)?.sync_all()?;
        fs::rename(&self.0, path)?;
        if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            File::open(parent)?.sync_all()?;
        }
        Ok(size)
    }

    fn keep(mut self) -> PathBuf {
        std::mem::take(&mut self.0)
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.0.as_os_str().is_empty()
            && let Err(source) = fs::remove_dir_all(&self.0)
            && source.kind() != io::ErrorKind::NotFound
        {
            output::warning(&format!("failed to remove {}: {source}", self.0.display()));
        }
    }
}

/// What CRIU says instead of what containerd's shim makes of it, and where its log is.
fn explained(error: Error, log: &Path, key: &Key, logs: &Path) -> Error {
    if error.kind != Kind::Tool {
        return error;
    }
    let said = end_of(log).map(|text| telling(&text)).unwrap_or_default();
    let message = if said.is_empty() {
        error.message
    } else {
        format!("failed to dump container {}: {said}", key.id)
    };
    let error = Error::new(Kind::Tool, message);
    // Where our own shim keeps those of its containers.
    let logs = logs.join(&key.namespace).join(&key.id);
    let kept = logs.join(LOG);
    match fs::create_dir_all(&logs).and_then(|()| fs::copy(log, &kept)) {
        Ok(_) => error.hint(format!("CRIU's log is {}", kept.display())),
        Err(_) => error,
    }
}

fn end_of(log: &Path) -> io::Result<String> {
    use std::io::{Read, Seek, SeekFrom};
    let mut file = File::open(log)?;
    let length = file.metadata()?.len();
    let _ = file.seek(SeekFrom::Start(length.saturating_sub(LOG_BYTES_MAX)))?;
    let mut bytes = Vec::new();
    let _ = file.take(LOG_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The first errors of CRIU's log, which are the cause; the later ones are its giving up. That it cannot have more files open is
/// none: it goes on.
fn telling(log: &str) -> String {
    let errors = log
        .lines()
        .filter_map(|line| line.split_once("Error ").map(|(_, said)| said.trim()))
        .filter(|said| !said.contains("RLIMIT_NOFILE"));
    errors.take(LINES_MAX).collect::<Vec<_>>().join("; ")
}

fn failed(action: &str, path: &Path, source: &io::Error) -> Error {
    Error::failed(format!("failed to {action} {}: {source}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin() -> Origin {
        Origin {
            key: jobs::record::Key {
                engine: "/run/containerd/containerd.sock".into(),
                namespace: "default".to_owned(),
                id: "web".to_owned(),
            },
            name: None,
            checkpoint: "c".to_owned(),
            at: 1,
            left_running: true,
        }
    }

    #[test]
    fn a_dump_is_seen_whole_or_not_at_all() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("saved");
        let origin = origin();
        let manifest = Manifest {
            schema: SCHEMA,
            shell_job: false,
            external_unix_sockets: false,
            origin: &origin,
        };
        drop(Partial::make(&path).expect("made"));
        assert_eq!(fs::read_dir(dir.path()).expect("list").count(), 0, "given up");
        let partial = Partial::make(&path).expect("made");
        fs::write(partial.0.join("inventory.img"), "12345").expect("write");
        let size = partial.complete(&manifest, &path).expect("complete");
        drop(partial);
        assert!(path.join("inventory.img").is_file() && size > 5);
        assert_eq!(fs::read_dir(dir.path()).expect("list").count(), 1);
        assert_eq!(
            Partial::make(&path).map(|_| ()).expect_err("there").kind,
            Kind::Usage
        );
    }

    #[test]
    fn the_first_errors_of_a_log_are_told() {
        for (log, said) in [
            ("", ""),
            ("(00.01) all is well\n", ""),
            (
                "(00.01) x\n(00.02) Error (criu/a.c:7): cannot\n(00.02) Error (criu/util.c:1): RLIMIT_NOFILE\n(00.03) Error (criu/b.c:8): gave up\n",
                "(criu/a.c:7): cannot; (criu/b.c:8): gave up",
            ),
        ] {
            assert_eq!(telling(log), said);
        }
    }
}
