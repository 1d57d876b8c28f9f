//! Outside tools: where they are, and what they say.

use std::fmt;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::net::UnixStream;
use tokio::process::Command;
use tokio::time::timeout;

/// A tool that only says what it is needs milliseconds; `criu check` needs a tenth of a second.
pub const TOOL_LIMIT: Duration = Duration::from_secs(15);

/// A connect to a Unix socket either works at once or the server's backlog is full.
const CONNECT_LIMIT: Duration = Duration::from_secs(2);

/// More than any of these tools says; `runc features` says 15 KB.
const OUTPUT_BYTES_MAX: u64 = 1 << 20;

/// The environment of a process is as long as it was made; a shell's is 10 KB.
const ENVIRONMENT_BYTES_MAX: usize = 1 << 20;

/// Where system tools are, whatever the PATH of whoever calls.
const USUAL: [&str; 4] = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin"];

/// The directories where tools are looked for: containerd's, since it is its shims that run them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Places {
    /// In the order of the search.
    pub directories: Vec<PathBuf>,
    /// They are containerd's own; else ours, which may differ.
    pub are_containerds: bool,
}

impl Places {
    /// Those of the containerd that answers on this socket.
    pub async fn of_containerd(socket: &Path) -> Self {
        match path_of_server(socket).await {
            Some(path) => Self {
                directories: split(&path),
                are_containerds: true,
            },
            None => Self::own(),
        }
    }

    /// Those of this process, and the usual ones.
    pub fn own() -> Self {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let mut directories: Vec<PathBuf> = std::env::split_paths(&path).collect();
        directories.extend(USUAL.iter().map(PathBuf::from));
        Self {
            directories,
            are_containerds: false,
        }
    }

    /// The first executable of that name.
    pub fn find(&self, name: &str) -> Option<PathBuf> {
        self.directories
            .iter()
            .map(|directory| directory.join(name))
            .find(|path| is_executable(path))
    }
}

/// Why a tool has said nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Silent {
    /// It could not be started.
    NotStarted(String),
    /// It did not end in time, and was killed.
    TooLong(Duration),
}

impl fmt::Display for Silent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotStarted(why) => write!(f, "does not start: {why}"),
            Self::TooLong(limit) => write!(f, "does not end within {} s", limit.as_secs()),
        }
    }
}

/// What a tool said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    /// It ended well.
    pub success: bool,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Said {
    /// Its last line, wherever it said it.
    pub fn last_line(&self) -> &str {
        let last = |text: &'_ str| text.trim_end().rfind('\n').map_or(0, |end| end + 1);
        let text = if self.stderr.trim().is_empty() {
            &self.stdout
        } else {
            &self.stderr
        };
        text.get(last(text)..).unwrap_or_default().trim()
    }
}

/// Runs a tool to its end, `limit` at most.
///
/// # Errors
/// See [`Silent`]. A tool that fails is none: it has said something.
pub async fn run(program: &Path, arguments: &[&str], limit: Duration) -> Result<Said, Silent> {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|source| Silent::NotStarted(source.to_string()))?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let ended = timeout(limit, async {
        let (stdout, stderr) = tokio::join!(text(stdout), text(stderr));
        (stdout, stderr, child.wait().await)
    });
    match ended.await {
        Ok((stdout, stderr, Ok(status))) => Ok(Said {
            success: status.success(),
            stdout,
            stderr,
        }),
        Ok((_, _, Err(source))) => Err(Silent::NotStarted(source.to_string())),
        Err(_) => Err(Silent::TooLong(limit)),
    }
}

async fn text(stream: Option<impl AsyncRead + Unpin>) -> String {
    let mut bytes = Vec::new();
    if let Some(stream) = stream {
        // What was read before an error is what there is.
        let _ = stream.take(OUTPUT_BYTES_MAX).read_to_end(&mut bytes).await;
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Major and minor number of the first version in a text: of `runc version 1.3.6`, 1 and 3.
pub fn version(text: &str) -> Option<(u32, u32)> {
    let mut words = text
        .split_whitespace()
        .map(|word| word.trim_start_matches(['v', '=', ':']));
    words.find_map(|word| {
        let mut numbers = word.split(|c: char| !c.is_ascii_digit());
        let major = numbers.next()?.parse().ok()?;
        let minor = numbers.next()?.parse().ok()?;
        Some((major, minor))
    })
}

/// The `PATH` of the process that listens on a socket, if it can be seen.
async fn path_of_server(socket: &Path) -> Option<String> {
    let stream = timeout(CONNECT_LIMIT, UnixStream::connect(socket))
        .await
        .ok()?
        .ok()?;
    let pid = stream.peer_cred().ok()?.pid()?;
    // A socket that systemd made for a server is systemd's, to the kernel.
    if pid == 1 {
        return None;
    }
    let environment = fs::read(format!("/proc/{pid}/environ")).ok()?;
    path_in(environment.get(..environment.len().min(ENVIRONMENT_BYTES_MAX))?)
}

fn path_in(environment: &[u8]) -> Option<String> {
    let mut variables = environment.split(|byte| *byte == 0);
    let path = variables.find_map(|variable| variable.strip_prefix(b"PATH="))?;
    String::from_utf8(path.to_owned()).ok()
}

fn split(path: &str) -> Vec<PathBuf> {
    std::env::split_paths(path).collect()
}

fn is_executable(path: &Path) -> bool {
    path.is_absolute()
        && fs::metadata(path).is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_found_in_what_tools_say() {
        for (text, expected) in [
            ("runc version 1.3.6\ncommit: v1.3.6-0\nspec: 1.2.1", Some((1, 3))),
            ("Version: 4.2.1\n", Some((4, 2))),
            (
                "containerd github.com/containerd/containerd/v2 v2.1.9 abc",
                Some((2, 1)),
            ),
            ("containerd containerd.io 1.7.24 88bf19b", Some((1, 7))),
            ("crun version 1.21", Some((1, 21))),
            ("nothing", None),
            ("", None),
        ] {
            assert_eq!(version(text), expected, "{text}");
        }
    }

    #[test]
    fn the_path_is_found_in_an_environment() {
        for (environment, expected) in [
            (&b"HOME=/\0PATH=/a:/b\0X=1\0"[..], Some("/a:/b")),
            (b"XPATH=/a\0", None),
            (b"", None),
        ] {
            assert_eq!(path_in(environment).as_deref(), expected);
        }
    }

    #[tokio::test]
    async fn a_tool_is_heard_and_one_that_hangs_is_not_waited_for() {
        let shell = Path::new("/bin/sh");
        let said = run(shell, &["-c", "echo a; echo b >&2; exit 3"], TOOL_LIMIT)
            .await
            .unwrap();
        assert_eq!(
            (said.success, said.stdout.as_str(), said.last_line()),
            (false, "a\n", "b")
        );
        let limit = Duration::from_millis(20);
        let hung = run(shell, &["-c", "exec sleep 100"], limit).await;
        assert_eq!(hung, Err(Silent::TooLong(limit)));
        let missing = run(Path::new("/nonexistent"), &[], TOOL_LIMIT).await;
        assert!(matches!(missing, Err(Silent::NotStarted(_))));
    }
}
