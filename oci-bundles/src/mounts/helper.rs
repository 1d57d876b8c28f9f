//! FUSE file systems, which are mounted by a helper of theirs.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::stat::stat;

use super::{Mount, MountError};

/// How long a helper may take. It returns when its daemon serves; 30 s cover a remote store that is slow to answer.
const LIMIT: Duration = Duration::from_secs(30);
const PAUSE_MIN: Duration = Duration::from_millis(1);
const PAUSE_MAX: Duration = Duration::from_millis(50);

/// What of a helper's words goes into an error, in bytes.
const OUTPUT_BYTES_MAX: u64 = 4096;

/// A mount helper, and the prefix of the types it is for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Helper {
    command: &'static str,
    prefix: &'static str,
}

const HELPERS: [Helper; 2] = [
    Helper {
        command: "mount.fuse",
        prefix: "fuse.",
    },
    Helper {
        command: "mount.fuse3",
        prefix: "fuse3.",
    },
];

/// The helper for a type; None when the kernel mounts it.
pub(super) fn of_kind(kind: &str) -> Option<Helper> {
    HELPERS.into_iter().find(|helper| kind.starts_with(helper.prefix))
}

impl Helper {
    pub(super) fn mount(self, request: &Mount, target: &Path) -> Result<(), MountError> {
        run(self.command_for(request, target), target, LIMIT)
    }

    fn command_for(self, request: &Mount, target: &Path) -> Command {
        let mut command = Command::new(self.command);
        let _args = command.arg(&request.source).arg(target);
        for option in &request.options {
            let _args = command.arg("-o").arg(option);
        }
        let _args = command
            .arg("-t")
            .arg(request.kind.trim_start_matches(self.prefix));
        command
    }
}

/// Runs a helper and waits for it.
///
/// The caller may reap every child of the process elsewhere; then the helper's exit is lost to us, and whether another
/// file system now stands at the target tells how it went.
fn run(mut command: Command, target: &Path, limit: Duration) -> Result<(), MountError> {
    let name = command.get_program().to_string_lossy().into_owned();
    let failed = |status: String, output: String| MountError::Helper {
        command: name.clone(),
        status,
        output,
    };
    let before = stat(target)
        .map_err(|error| MountError::io("look at", target, error))?
        .st_dev;
    // A file and not a pipe: the daemon of the file system may keep it open for ever.
    let mut output: File = memfd_create("output", MFdFlags::MFD_CLOEXEC)
        .map_err(|error| MountError::io("keep output for", target, error))?
        .into();
    let words = output
        .try_clone()
        .map_err(|error| failed(error.to_string(), String::new()))?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(words)
        .spawn()
        .map_err(|error| failed(error.to_string(), String::new()))?;
    let end = Instant::now() + limit;
    let mut pause = PAUSE_MIN;
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) if status.success() => return Ok(()),
            Ok(Some(status)) => break status.to_string(),
            Ok(None) if Instant::now() < end => {
                std::thread::sleep(pause);
                pause = (pause * 2).min(PAUSE_MAX);
            }
            Ok(None) => {
                // Both are best effort: the deadline is what there is to tell.
                drop(child.kill());
                drop(child.wait());
                break format!("not done after {limit:?}");
            }
            Err(_) if stat(target).is_ok_and(|now| now.st_dev != before) => return Ok(()),
            Err(error) => break error.to_string(),
        }
    };
    Err(failed(status, last_words(&mut output)))
}

fn last_words(output: &mut File) -> String {
    let mut text = Vec::new();
    let length = output.seek(SeekFrom::End(0)).unwrap_or(0);
    let start = length.saturating_sub(OUTPUT_BYTES_MAX);
    // An unreadable memory file would cost the words, not the error.
    drop(
        output
            .seek(SeekFrom::Start(start))
            .and_then(|_| output.take(OUTPUT_BYTES_MAX).read_to_end(&mut text)),
    );
    String::from_utf8_lossy(&text).trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_type_chooses_the_helper_and_its_words() {
        for (kind, command) in [
            ("fuse.sshfs", Some("mount.fuse")),
            ("fuse3.fuse-overlayfs", Some("mount.fuse3")),
            ("fuse", None),
            ("overlay", None),
        ] {
            assert_eq!(of_kind(kind).map(|helper| helper.command), command, "{kind}");
        }
        let request = Mount {
            kind: "fuse3.fuse-overlayfs".to_owned(),
            source: "overlay".to_owned(),
            target: String::new(),
            options: vec!["lowerdir=/l".to_owned(), "ro".to_owned()],
        };
        let command = of_kind(&request.kind)
            .unwrap()
            .command_for(&request, Path::new("/t"));
        let args: Vec<_> = command.get_args().map(|arg| arg.to_str().unwrap()).collect();
        assert_eq!(
            args,
            [
                "overlay",
                "/t",
                "-o",
                "lowerdir=/l",
                "-o",
                "ro",
                "-t",
                "fuse-overlayfs"
            ]
        );
    }

    #[test]
    fn a_helper_that_fails_or_hangs_is_an_error_with_its_words() {
        let run = |script: &str, limit| {
            let mut command = Command::new("sh");
            let _args = command.arg("-c").arg(script);
            run(command, Path::new("/"), limit).map_err(|error| error.to_string())
        };
        assert_eq!(run("true", LIMIT), Ok(()));
        let failed = "run sh: exit status: 3: no such remote".to_owned();
        assert_eq!(run("echo no such remote >&2; exit 3", LIMIT), Err(failed));
        let hangs = run("echo waiting >&2; exec sleep 100", Duration::from_millis(50)).unwrap_err();
        assert!(hangs.contains("not done after 50ms"), "{hangs}");
    }

    #[test]
    fn only_the_end_of_much_output_is_kept() {
        let mut file = tempfile::tempfile().unwrap();
        std::io::Write::write_all(&mut file, format!("{}the end\n", "x".repeat(10_000)).as_bytes()).unwrap();
        let words = last_words(&mut file);
        assert!(words.len() < 4096 && words.ends_with("xthe end"));
    }
}
