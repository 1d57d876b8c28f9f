//! What is legal in which state. Pure: no async, no input or output, no locks.
//!
//! ```text
//!            start                pause             paused
//!  Created --------> Running ------------> Pausing --------> Paused
//!     |                 ^  |                                    |
//!     |                 +--|------------------------------------+
//!     |                    |               resume               |
//!     +-------- exit ------+------------ exit ------------------+----> Stopped
//! ```
//! `Pausing` is only ever seen while the kernel is freezing the cgroup.

use std::fmt;

use crate::error::Error;

/// The state of a process, as containerd's `State` names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// It exists (an exec: its id does) and waits for `Start`.
    Created,
    /// It runs.
    Running,
    /// Its cgroup is being frozen.
    Pausing,
    /// Its cgroup is frozen.
    Paused,
    /// It has ended; its exit is kept until `Delete`.
    Stopped,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Pausing => "pausing",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        })
    }
}

/// What may be asked of a container (of its init unless said otherwise).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// Let the created init run.
    Start,
    /// Reserve an exec's id; judged by the state of init.
    Exec,
    /// Start a reserved exec; judged by the state of init.
    StartExec,
    /// Freeze.
    Pause,
    /// Thaw.
    Resume,
    /// Change resource limits.
    Update,
    /// Dump.
    Checkpoint,
    /// Restore in place: run again what has ended.
    Restore,
    /// Send a signal.
    Kill,
    /// Forget it.
    Delete,
}

impl Act {
    fn verb(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Exec | Self::StartExec => "exec in",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Update => "update",
            Self::Checkpoint => "checkpoint",
            Self::Restore => "restore",
            Self::Kill => "kill",
            Self::Delete => "delete",
        }
    }
}

/// Whether `act` is legal for a container whose init is in `status`.
///
/// # Errors
/// [`Error::NotFound`] for signalling what has ended (clients take it as success), else
/// [`Error::FailedPrecondition`] naming the act and the state.
pub fn check(status: Status, act: Act) -> Result<(), Error> {
    use Status::{Created, Paused, Pausing, Running, Stopped};
    let legal = match act {
        Act::Start => matches!(status, Created),
        Act::Exec => matches!(status, Created | Running | Paused),
        // runc refuses an exec in a paused container since 1.1; in a created one it works.
        Act::StartExec => matches!(status, Created | Running),
        Act::Pause => matches!(status, Running),
        Act::Resume => matches!(status, Paused),
        Act::Update => matches!(status, Created | Running | Paused),
        // Most clients pause first.
        Act::Checkpoint => matches!(status, Running | Paused),
        Act::Restore => matches!(status, Stopped),
        Act::Kill => !matches!(status, Stopped),
        Act::Delete => matches!(status, Created | Stopped),
    };
    match (legal, act, status) {
        (true, _, _) => Ok(()),
        (false, Act::Kill, _) => Err(Error::NotFound("process already finished".to_owned())),
        (false, Act::Pause, Pausing) => Err(Error::FailedPrecondition(
            "a pause is already under way".to_owned(),
        )),
        (false, _, _) => Err(Error::FailedPrecondition(format!(
            "cannot {} a {status} container",
            act.verb()
        ))),
    }
}

/// Whether `act` is legal for an exec process in `status`; the container's own state is checked besides.
///
/// # Errors
/// As [`check`].
pub fn check_exec(status: Status, act: Act) -> Result<(), Error> {
    match (act, status) {
        (Act::StartExec, Status::Created)
        | (Act::Kill, Status::Running | Status::Paused | Status::Pausing)
        | (Act::Delete, Status::Created | Status::Stopped) => Ok(()),
        (Act::Kill, Status::Stopped) => Err(Error::NotFound("process already finished".to_owned())),
        (act, status) => {
            let verb = if act == Act::StartExec {
                "start"
            } else {
                act.verb()
            };
            Err(Error::FailedPrecondition(format!(
                "cannot {verb} a {status} process"
            )))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATES: [Status; 5] = [
        Status::Created,
        Status::Running,
        Status::Pausing,
        Status::Paused,
        Status::Stopped,
    ];

    fn legal_in(act: Act) -> Vec<Status> {
        STATES
            .into_iter()
            .filter(|status| check(*status, act).is_ok())
            .collect()
    }

    #[test]
    fn each_act_is_legal_in_exactly_these_states() {
        use Status::{Created, Paused, Pausing, Running, Stopped};
        let table: [(Act, &[Status]); 10] = [
            (Act::Start, &[Created]),
            (Act::Exec, &[Created, Running, Paused]),
            (Act::StartExec, &[Created, Running]),
            (Act::Pause, &[Running]),
            (Act::Resume, &[Paused]),
            (Act::Update, &[Created, Running, Paused]),
            (Act::Checkpoint, &[Running, Paused]),
            (Act::Restore, &[Stopped]),
            (Act::Kill, &[Created, Running, Pausing, Paused]),
            (Act::Delete, &[Created, Stopped]),
        ];
        for (act, states) in table {
            assert_eq!(legal_in(act), states, "{act:?}");
        }
    }

    #[test]
    fn signalling_what_has_ended_is_not_found_because_clients_take_that_as_success() {
        assert!(matches!(
            check(Status::Stopped, Act::Kill),
            Err(Error::NotFound(_))
        ));
        assert!(matches!(
            check_exec(Status::Stopped, Act::Kill),
            Err(Error::NotFound(_))
        ));
        assert!(matches!(
            check_exec(Status::Created, Act::Kill),
            Err(Error::FailedPrecondition(_))
        ));
    }

    #[test]
    fn a_refusal_names_the_act_and_the_state() {
        let Err(error) = check(Status::Running, Act::Delete) else {
            panic!("delete of a running container")
        };
        assert_eq!(error.to_string(), "cannot delete a running container");
    }

    #[test]
    fn an_exec_is_deleted_before_its_start_or_after_its_end() {
        for status in STATES {
            let legal = matches!(status, Status::Created | Status::Stopped);
            assert_eq!(check_exec(status, Act::Delete).is_ok(), legal, "{status}");
        }
    }
}
