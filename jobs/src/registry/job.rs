//! A job as it is shown: what its shim published, what became of its process, and what was saved of it.

use std::collections::HashMap;
use std::fmt;

use crate::liveness::Liveness;
use crate::record::{Checkpoint, Key, Record, Status};

/// Characters that are shown of an id of 64.
const ID_SHOWN: usize = 12;

/// Who made a container, and starts it again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EngineKind {
    /// containerd itself, by `ctr` or another client.
    Containerd,
    /// dockerd.
    Docker,
    /// nerdctl.
    Nerdctl,
    /// A kubelet.
    Cri,
}

impl EngineKind {
    const ALL: [Self; 4] = [Self::Containerd, Self::Docker, Self::Nerdctl, Self::Cri];

    /// The word for it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Containerd => "containerd",
            Self::Docker => "docker",
            Self::Nerdctl => "nerdctl",
            Self::Cri => "cri",
        }
    }

    /// The engine of a word.
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|engine| engine.word() == word)
    }

    /// As far as containerd's namespace tells: nerdctl has none of its own.
    pub fn of_namespace(namespace: &str) -> Self {
        match namespace {
            "moby" => Self::Docker,
            "k8s.io" => Self::Cri,
            _ => Self::Containerd,
        }
    }
}

impl fmt::Display for EngineKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// What was saved of a job, in short.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Saved {
    /// The newest checkpoint.
    pub latest: Option<Checkpoint>,
    /// How many there are.
    pub count: usize,
}

/// A container that we track.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Job {
    /// Which.
    pub key: Key,
    /// Who starts it.
    pub engine: EngineKind,
    /// Its name as it is shown, unique among the jobs that are listed: the annotation's, the engine's, or the id, cut if it
    /// is one of 64 digits; with the namespace before it (`moby/web`) where it would be ambiguous.
    pub name: String,
    /// What kind of job: `containerd`.
    pub type_: &'static str,
    /// Its image.
    pub image: Option<String>,
    /// What its shim published last. `record.checkpoints` are those that exist, also such as the shim knows nothing of, the
    /// newest last.
    pub record: Record,
    /// What became of its init.
    pub liveness: Liveness,
    /// The word for that, as users know it.
    pub status: &'static str,
    /// Its checkpoints in short.
    pub checkpoints: Saved,
    /// It was taken in by `cedana manage`, and runs under another shim than ours.
    pub managed: bool,
    /// The name without what makes it unique.
    pub(super) plain_name: String,
}

impl Job {
    /// Whether its init is there.
    pub fn is_alive(&self) -> bool {
        matches!(self.liveness, Liveness::Alive(_)) && self.status != HALTED
    }

    /// Whether `cedana ps` shows it: what lives, can be restored, or still has a task; with `all` the others too.
    pub fn is_listed(&self, all: bool) -> bool {
        if all {
            return true;
        }
        !self.record.sandbox
            && (self.is_alive() || self.checkpoints.count > 0 || self.record.status != Status::Deleted)
    }

    /// A text that [`super::Registry::find`] takes for this job and no other one.
    pub fn unique(&self) -> String {
        format!(
            "{}/{}@{}",
            self.key.namespace,
            self.key.id,
            self.key.engine.display()
        )
    }
}

const HALTED: &str = "halted";

/// The STATUS of a job.
pub fn status_word(status: Status, liveness: Liveness) -> &'static str {
    match (status, liveness) {
        (Status::Deleted | Status::Stopped, _) | (_, Liveness::Gone | Liveness::Alive('X' | 'x')) => HALTED,
        (_, Liveness::Reused) => "stale",
        (_, Liveness::Unknown) => "unknown",
        (Status::Created, Liveness::Alive(_)) => "created",
        (Status::Paused, Liveness::Alive(_)) => "frozen",
        (Status::Running, Liveness::Alive(state)) => match state {
            'R' => "running",
            'S' => "sleep",
            'D' => "blocked",
            'T' | 't' => "stop",
            'Z' => "zombie",
            'I' => "idle",
            _ => "unknown",
        },
    }
}

/// An id as it is shown: 64 digits are what nobody types.
pub fn shown_id(id: &str) -> &str {
    let digits = id.len() == 64 && id.bytes().all(|b| b.is_ascii_hexdigit());
    if digits {
        id.get(..ID_SHOWN).unwrap_or(id)
    } else {
        id
    }
}

/// What a job may be called, the shortest first; the last is unique.
const NAMES: [fn(&Job) -> String; 5] = [
    |job| job.plain_name.clone(),
    |job| format!("{}/{}", job.key.namespace, job.plain_name),
    |job| format!("{}/{}", job.key.namespace, shown_id(&job.key.id)),
    |job| format!("{}/{}", job.key.namespace, job.key.id),
    Job::unique,
];

/// Gives the jobs their shown names, each the shortest that no other job has. Jobs that are not listed leave these to the others,
/// and need not differ among themselves.
pub(super) fn name_all(jobs: &mut [Job]) {
    let mut unnamed: Vec<&mut Job> = jobs.iter_mut().collect();
    for name in NAMES {
        let mut owners: HashMap<String, usize> = HashMap::new();
        for job in unnamed.iter().filter(|job| job.is_listed(false)) {
            *owners.entry(name(job)).or_default() += 1;
        }
        unnamed.retain_mut(|job| {
            job.name = name(job);
            let own = usize::from(job.is_listed(false));
            owners.get(&job.name).is_some_and(|count| *count > own)
        });
        if unnamed.is_empty() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::samples::job;
    use super::*;

    #[test]
    fn status_is_the_word_users_know() {
        use Liveness::{Alive, Gone, Reused, Unknown};
        for (status, liveness, word) in [
            (Status::Running, Alive('R'), "running"),
            (Status::Running, Alive('S'), "sleep"),
            (Status::Running, Alive('D'), "blocked"),
            (Status::Running, Alive('T'), "stop"),
            (Status::Running, Alive('t'), "stop"),
            (Status::Running, Alive('Z'), "zombie"),
            (Status::Running, Alive('I'), "idle"),
            (Status::Running, Alive('?'), "unknown"),
            (Status::Running, Alive('X'), "halted"),
            (Status::Running, Gone, "halted"),
            (Status::Running, Reused, "stale"),
            (Status::Running, Unknown, "unknown"),
            (Status::Created, Alive('S'), "created"),
            (Status::Created, Gone, "halted"),
            (Status::Paused, Alive('D'), "frozen"),
            (Status::Paused, Reused, "stale"),
            (Status::Stopped, Gone, "halted"),
            (Status::Stopped, Reused, "halted"),
            (Status::Deleted, Alive('S'), "halted"),
        ] {
            assert_eq!(status_word(status, liveness), word, "{status:?} {liveness:?}");
        }
    }

    #[test]
    fn ids_of_64_digits_are_cut() {
        let long = "0123456789abcdef".repeat(4);
        assert_eq!(shown_id(&long), "0123456789ab");
        assert_eq!(shown_id("web"), "web");
        assert_eq!(shown_id(&"z".repeat(64)), "z".repeat(64));
    }

    #[test]
    fn names_are_as_short_as_they_can_be() {
        let long = "ab".repeat(32);
        let alike = format!("{}cd", "ab".repeat(31));
        let (within_moby, also_within) = (format!("moby/{long}"), format!("moby/{alike}"));
        for (what, jobs, expected) in [
            ("alone", vec![job("default", "1", "web", true)], vec!["web"]),
            (
                "two namespaces",
                vec![job("default", "1", "web", true), job("moby", "2", "web", true)],
                vec!["default/web", "moby/web"],
            ),
            (
                "twice in one",
                vec![job("moby", "1", "web", true), job("moby", &long, "web", true)],
                vec!["moby/1", "moby/abababababab"],
            ),
            (
                "ids that begin alike",
                vec![
                    job("moby", &long, "web", true),
                    job("moby", &alike, "web", true),
                    job("moby", "3", "db", true),
                ],
                vec![within_moby.as_str(), also_within.as_str(), "db"],
            ),
            (
                "one that is not listed",
                vec![job("default", "1", "web", true), job("moby", "2", "web", false)],
                vec!["web", "moby/web"],
            ),
            (
                "two that are not listed",
                vec![job("a", "1", "web", false), job("b", "2", "web", false)],
                vec!["web", "web"],
            ),
        ] {
            let mut jobs = jobs;
            name_all(&mut jobs);
            let names: Vec<_> = jobs.iter().map(|job| job.name.as_str()).collect();
            assert_eq!(names, expected, "{what}");
        }
    }

    #[test]
    fn what_can_be_used_is_listed() {
        let with = |change: fn(&mut Job)| {
            let mut job = job("default", "1", "web", false);
            change(&mut job);
            job
        };
        for (what, job, listed) in [
            ("deleted", with(|_| ()), false),
            ("saved", with(|job| job.checkpoints.count = 1), true),
            ("stopped", with(|job| job.record.status = Status::Stopped), true),
            ("running", job("default", "1", "web", true), true),
            (
                "a sandbox",
                with(|job| {
                    job.record.status = Status::Running;
                    job.record.sandbox = true;
                }),
                false,
            ),
        ] {
            assert_eq!(job.is_listed(false), listed, "{what}");
            assert!(job.is_listed(true), "{what}");
        }
    }

    #[test]
    fn engines_have_words() {
        for engine in EngineKind::ALL {
            assert_eq!(EngineKind::parse(engine.word()), Some(engine));
        }
        assert_eq!(EngineKind::parse("podman"), None);
    }
}
