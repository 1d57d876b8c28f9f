//! What containerd says on the command line and in the environment.
//!
//! The command line has the syntax of Go's `flag` package (`-k v`, `-k=v`, one dash or two, booleans without a value),
//! because containerd composes it for shims written in Go.

use std::env;
use std::ffi::OsString;
use std::path::PathBuf;

/// What this process is to be. containerd starts one process for each of the first two; `start` starts the last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Action {
    /// `start`: see that a server runs for the container, and print its address.
    Start,
    /// `delete`: take away what a container left behind.
    Delete,
    /// `-info`: print what the runtime can do.
    Info,
    /// `-v`: print name and version.
    Version,
    /// `capture`: take the pages of one dump from CRIU; the shim starts it.
    Capture,
    /// `preflight`: print what stands in the way of a dump. Asked for by people and by `cedana check`, not by containerd.
    Preflight,
    /// No action: serve the Task service on the socket that was inherited.
    #[default]
    Serve,
}

/// The command line.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Args {
    /// What to be.
    pub action: Action,
    /// containerd's namespace of the container.
    pub namespace: String,
    /// The container or, for a server, the first container it was started for.
    pub id: String,
    /// containerd's gRPC socket.
    pub address: String,
    /// The container's bundle; said for `delete` only, where all processes have it as working directory, and for
    /// `preflight`, if it is known.
    pub bundle: PathBuf,
    /// The container's init; said for `preflight` only.
    pub pid: i32,
    /// Whether to log for developers.
    pub debug: bool,
}

/// Why the command line was not understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ArgsError {
    /// A flag that no containerd passes.
    #[error("read command line: unknown flag -{0}")]
    UnknownFlag(String),
    /// A flag at the end of the line that needs a value.
    #[error("read command line: flag -{0} has no value")]
    NoValue(String),
    /// A boolean flag with a value that is none.
    #[error("read command line: flag -{0} is neither true nor false")]
    NotBoolean(String),
    /// A number that is no process's.
    #[error("read command line: flag -{0} is no pid")]
    NotPid(String),
    /// The first word after the flags.
    #[error("read command line: unknown action {0:?}")]
    UnknownAction(String),
    /// `start`, `delete` and the server need to know whose they are.
    #[error("read command line: -{0} is missing")]
    Missing(&'static str),
    /// containerd's own values are all UTF-8.
    #[error("read command line: {0:?} is not UTF-8")]
    NotText(OsString),
}

impl Args {
    /// Reads the arguments after the program's name.
    ///
    /// # Errors
    /// See [`ArgsError`]. Nothing but the action is looked at after the flags.
    pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Self, ArgsError> {
        let mut args = Self::default();
        let mut info = false;
        let mut version = false;
        let mut rest = arguments
            .into_iter()
            .map(|word| word.into_string().map_err(ArgsError::NotText));
        while let Some(word) = rest.next().transpose()? {
            let Some((name, said)) = flag(&word) else {
                let is_end_of_flags = word == "--";
                let action = if is_end_of_flags {
                    rest.next().transpose()?
                } else {
                    Some(word)
                };
                args.action = action.as_deref().map_or(Ok(Action::Serve), action_named)?;
                // Typed by people, who put flags after the word.
                if args.action == Action::Preflight {
                    continue;
                }
                break;
            };
            let mut value = || match said {
                Some(value) => Ok(value.to_owned()),
                None => rest
                    .next()
                    .transpose()?
                    .ok_or_else(|| ArgsError::NoValue(name.to_owned())),
            };
            match name {
                "namespace" => args.namespace = value()?,
                "id" => args.id = value()?,
                "address" => args.address = value()?,
                "bundle" => args.bundle = value()?.into(),
                "pid" => args.pid = pid(name, &value()?)?,
                // Said for shims that publish events by running containerd, or that make their own socket.
                "publish-binary" | "socket" => drop(value()?),
                "debug" => args.debug = boolean(name, said)?,
                "info" => info = boolean(name, said)?,
                "v" | "version" => version = boolean(name, said)?,
                unknown => return Err(ArgsError::UnknownFlag(unknown.to_owned())),
            }
        }
        if info || version {
            args.action = if version { Action::Version } else { Action::Info };
        }
        args.check()
    }

    fn check(self) -> Result<Self, ArgsError> {
        let needs_owner = matches!(self.action, Action::Start | Action::Delete | Action::Serve);
        match () {
            () if needs_owner && self.namespace.is_empty() => Err(ArgsError::Missing("namespace")),
            () if needs_owner && self.id.is_empty() => Err(ArgsError::Missing("id")),
            () if self.action == Action::Preflight && self.pid == 0 => Err(ArgsError::Missing("pid")),
            () => Ok(self),
        }
    }
}

/// What containerd says in the environment.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Environment {
    /// `TTRPC_ADDRESS`: containerd's event service.
    pub ttrpc_address: String,
    /// `SCHED_CORE`: keep foreign processes off the hyperthreads beside the container's.
    pub sched_core: bool,
}

/// Name of the variable with the address of containerd's event service; a server gets it from its `start`.
pub const TTRPC_ADDRESS: &str = "TTRPC_ADDRESS";

impl Environment {
    /// Reads this process's environment.
    pub fn read() -> Self {
        let ttrpc_address = env::var(TTRPC_ADDRESS).unwrap_or_default();
        let sched_core = env::var("SCHED_CORE").is_ok_and(|value| truth(&value) == Some(true));
        Self {
            ttrpc_address,
            sched_core,
        }
    }
}

/// Name and attached value, if the word is a flag.
fn flag(word: &str) -> Option<(&str, Option<&str>)> {
    let name = word.strip_prefix("--").or_else(|| word.strip_prefix('-'))?;
    if name.is_empty() {
        return None;
    }
    Some(
        name.split_once('=')
            .map_or((name, None), |(name, value)| (name, Some(value))),
    )
}

fn action_named(word: &str) -> Result<Action, ArgsError> {
    match word {
        "start" => Ok(Action::Start),
        "delete" => Ok(Action::Delete),
        "capture" => Ok(Action::Capture),
        "preflight" => Ok(Action::Preflight),
        other => Err(ArgsError::UnknownAction(other.to_owned())),
    }
}

fn pid(name: &str, said: &str) -> Result<i32, ArgsError> {
    let pid = said.parse().ok().filter(|pid| *pid > 0);
    pid.ok_or_else(|| ArgsError::NotPid(name.to_owned()))
}

fn boolean(name: &str, said: Option<&str>) -> Result<bool, ArgsError> {
    said.map_or(Some(true), truth)
        .ok_or_else(|| ArgsError::NotBoolean(name.to_owned()))
}

/// The words Go's `strconv.ParseBool` takes.
fn truth(word: &str) -> Option<bool> {
    match word {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(action: Action) -> Args {
        Args {
            action,
            namespace: "n".into(),
            id: "c".into(),
            ..Args::default()
        }
    }

    #[test]
    fn command_lines_are_read_as_go_reads_them() {
        let cases: &[(&str, Result<Args, ArgsError>)] = &[
            ("-namespace n -id c start", Ok(args(Action::Start))),
            ("-namespace=n --id=c start", Ok(args(Action::Start))),
            (
                "-namespace n -id c -publish-binary /c start extra -words",
                Ok(args(Action::Start)),
            ),
            ("-namespace n -id c", Ok(args(Action::Serve))),
            ("-namespace n -id c -- delete", Ok(args(Action::Delete))),
            (
                "-namespace n -id c -debug start",
                Ok(Args {
                    debug: true,
                    ..args(Action::Start)
                }),
            ),
            ("-namespace n -id c -debug=false start", Ok(args(Action::Start))),
            (
                "-namespace n -address a -id c -bundle /b delete",
                Ok(Args {
                    address: "a".into(),
                    bundle: "/b".into(),
                    ..args(Action::Delete)
                }),
            ),
            (
                "-namespace n -id -x start",
                Ok(Args {
                    id: "-x".into(),
                    ..args(Action::Start)
                }),
            ),
            (
                "-v",
                Ok(Args {
                    action: Action::Version,
                    ..Args::default()
                }),
            ),
            (
                "-info",
                Ok(Args {
                    action: Action::Info,
                    ..Args::default()
                }),
            ),
            ("-namespace n -id c start -info", Ok(args(Action::Start))),
            (
                "preflight -pid 7 -bundle /b",
                Ok(Args {
                    action: Action::Preflight,
                    pid: 7,
                    bundle: "/b".into(),
                    ..Args::default()
                }),
            ),
            (
                "-pid 7 preflight",
                Ok(Args {
                    action: Action::Preflight,
                    pid: 7,
                    ..Args::default()
                }),
            ),
            ("preflight", Err(ArgsError::Missing("pid"))),
            ("preflight -pid -1", Err(ArgsError::NotPid("pid".into()))),
            ("-id c start", Err(ArgsError::Missing("namespace"))),
            ("-namespace n delete", Err(ArgsError::Missing("id"))),
            ("-namespace n -id", Err(ArgsError::NoValue("id".into()))),
            (
                "-debug=maybe -namespace n -id c",
                Err(ArgsError::NotBoolean("debug".into())),
            ),
            ("-other", Err(ArgsError::UnknownFlag("other".into()))),
            (
                "-namespace n -id c stop",
                Err(ArgsError::UnknownAction("stop".into())),
            ),
        ];
        for (line, want) in cases {
            assert_eq!(&Args::parse(line.split(' ').map(OsString::from)), want, "{line}");
        }
    }
}
