//! The floor under every freeze: the same dump by runc and CRIU alone, its pages drained to `/dev/null` as they come.
//!
//! No engine can let the application stand for less without a CRIU of its own: all of its work but the last step is in here,
//! and nobody keeps the pages.

use std::fs::{self, File};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use anyhow::{Context, Result, anyhow};
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc::O_NONBLOCK;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use super::ctr::{NAMESPACE, timed};

/// Where containerd's own shim lets runc keep its state.
const RUNC_ROOT: &str = "/run/containerd/runc";
/// What a fifo may hold at most by default.
const FIFO_BYTES: i32 = 1 << 20;

/// Dumps a container of containerd's own shim with a single process, into a new directory. It runs on. Returns how many
/// bytes of pages came.
///
/// # Errors
/// The dump fails, or its pages do not come through the fifo.
pub fn dump(dir: &Path, id: &str, pid: u32) -> Result<u64> {
    fs::create_dir(dir).with_context(|| format!("make {}", dir.display()))?;
    let pages = dir.join("pages-1.img");
    mkfifo(&pages, Mode::S_IRUSR | Mode::S_IWUSR).context("make a fifo")?;
    // As our shim has it: nothing to lock without a connection.
    let configuration = dir.join("criu.conf");
    fs::write(&configuration, "network-lock skip\n").context("write CRIU's configuration")?;
    let freezer = Freezer::of(pid)?;
    thread::scope(|scope| {
        let drain = scope.spawn(|| drain(&pages));
        // CRIU's own way to freeze looks at it every 100 ms.
        freezer.set(true)?;
        let dumped = timed(
            Command::new("runc")
                .args(["--root", &format!("{RUNC_ROOT}/{NAMESPACE}"), "checkpoint"])
                .arg("--leave-running")
                .arg("--image-path")
                .arg(dir)
                .arg("--work-path")
                .arg(dir)
                .arg(id)
                .env("CRIU_CONFIG_FILE", &configuration),
        );
        freezer.set(false)?;
        // If CRIU never came, the reader waits for somebody to open the other end.
        let _released = File::options().write(true).custom_flags(O_NONBLOCK).open(&pages);
        let drained = drain
            .join()
            .unwrap_or_else(|_| Err(anyhow!("the reader panicked")));
        let _took = dumped.context("dump without us")?;
        drained.context("drain the pages")
    })
}

/// Returns how many bytes came.
fn drain(pages: &Path) -> Result<u64> {
    let mut fifo = File::open(pages)?;
    // Best effort: a smaller one makes CRIU wait more often.
    let _size = fcntl(&fifo, FcntlArg::F_SETPIPE_SZ(FIFO_BYTES));
    let mut nowhere = File::options().write(true).open("/dev/null")?;
    // From a pipe the standard library splices: nothing is copied.
    Ok(std::io::copy(&mut fifo, &mut nowhere)?)
}

/// The file that freezes a container's cgroup, and its two words.
#[derive(Debug)]
struct Freezer {
    file: PathBuf,
    frozen: &'static str,
    thawed: &'static str,
}

impl Freezer {
    fn of(pid: u32) -> Result<Self> {
        let path = format!("/proc/{pid}/cgroup");
        let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
        Self::in_groups(&text).with_context(|| format!("no freezer in {text:?}"))
    }

    fn in_groups(text: &str) -> Option<Self> {
        let group = |name: &str| {
            let mut fields = text.lines().map(|line| line.splitn(3, ':').collect::<Vec<_>>());
            fields.find_map(|fields| match fields.as_slice() {
                [_, found, path] if *found == name => Some(path.trim_start_matches('/').to_owned()),
                _ => None,
            })
        };
        let of_its_own = group("freezer").map(|path| Self {
            file: Path::new("/sys/fs/cgroup/freezer")
                .join(path)
                .join("freezer.state"),
            frozen: "FROZEN",
            thawed: "THAWED",
        });
        of_its_own.or_else(|| {
            group("").map(|path| Self {
                file: Path::new("/sys/fs/cgroup").join(path).join("cgroup.freeze"),
                frozen: "1",
                thawed: "0",
            })
        })
    }

    fn set(&self, frozen: bool) -> Result<()> {
        let word = if frozen { self.frozen } else { self.thawed };
        fs::write(&self.file, word).with_context(|| format!("write {}", self.file.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::Freezer;

    #[test]
    fn freezer_is_found_in_either_kind_of_cgroup() {
        for (text, expected) in [
            (
                "11:freezer:/default/a\n1:name=x:/\n0::/\n",
                Some("/sys/fs/cgroup/freezer/default/a/freezer.state"),
            ),
            ("0::/default/a\n", Some("/sys/fs/cgroup/default/a/cgroup.freeze")),
            ("1:cpu:/\n", None),
        ] {
            let found = Freezer::in_groups(text).map(|freezer| freezer.file.display().to_string());
            assert_eq!(found.as_deref(), expected, "{text}");
        }
    }
}
