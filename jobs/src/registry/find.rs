//! Which job somebody means.

use super::job::{Job, shown_id};
use crate::record::Status;

/// Jobs an error names: more would hide it.
const CHOICES_MAX: usize = 10;

/// Why a text is not a job.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FindError {
    /// No job is called so.
    #[error("no job is called so")]
    NotFound,
    /// Several are. These texts are each one of them.
    #[error("several jobs are called so: {}", .0.join(", "))]
    Ambiguous(Vec<String>),
}

/// The job that a text means: its name, `NAMESPACE/NAME`, its id, or what a name or id begins with, if no other does. In each
/// of these ways one that still has its task goes before those that are gone. `@SOCKET` at the end tells containerds apart.
pub fn find<'a>(jobs: &'a [Job], text: &str, namespace: Option<&str>) -> Result<&'a Job, FindError> {
    let (text, engine) = match text.split_once("@/") {
        Some((text, engine)) => (text, Some(engine)),
        None => (text, None),
    };
    if text.is_empty() {
        return Err(FindError::NotFound);
    }
    let (inner, name) = match text.split_once('/') {
        Some((namespace, name)) => (Some(namespace), name),
        None => (None, text),
    };
    let candidates: Vec<&Job> = jobs
        .iter()
        .filter(|job| namespace.is_none_or(|namespace| job.key.namespace == namespace))
        .filter(|job| {
            engine.is_none_or(|engine| job.key.engine.to_string_lossy().strip_prefix('/') == Some(engine))
        })
        .collect();
    let within = |job: &&Job| inner.is_none_or(|namespace| job.key.namespace == namespace);
    let ways: [&dyn Fn(&&Job) -> bool; 4] = [
        // A name that an annotation gives may have a slash itself.
        &|job| job.plain_name == text || job.key.id == text,
        &|job| within(job) && (job.plain_name == name || job.key.id == name),
        &|job| job.plain_name.starts_with(text),
        &|job| {
            within(job)
                && !name.is_empty()
                && (job.plain_name.starts_with(name) || job.key.id.starts_with(name))
        },
    ];
    for way in ways {
        let met: Vec<&Job> = candidates.iter().copied().filter(|job| way(job)).collect();
        if let Some(found) = single(&met) {
            return Ok(found);
        }
        if !met.is_empty() {
            return Err(FindError::Ambiguous(choices(&met)));
        }
    }
    Err(FindError::NotFound)
}

fn single<'a>(met: &[&'a Job]) -> Option<&'a Job> {
    if let [one] = met {
        return Some(one);
    }
    let mut with_task = met.iter().filter(|job| job.record.status != Status::Deleted);
    match (with_task.next(), with_task.next()) {
        (Some(one), None) => Some(one),
        _ => None,
    }
}

fn choices(met: &[&Job]) -> Vec<String> {
    let short = |job: &Job| format!("{}/{}", job.key.namespace, shown_id(&job.key.id));
    let mut choices: Vec<String> = met
        .iter()
        .take(CHOICES_MAX)
        .map(|job| {
            let same = met.iter().filter(|other| short(other) == short(job)).count();
            if same > 1 { job.unique() } else { short(job) }
        })
        .collect();
    choices.sort_unstable();
    choices
}

#[cfg(test)]
mod tests {
    use super::super::samples::job;
    use super::*;

    #[test]
    fn a_text_means_one_job_or_an_error() {
        let long = "0123456789abcdef".repeat(4);
        let mut elsewhere = job("default", "only", "both", true);
        elsewhere.key.engine = "/run/other.sock".into();
        let jobs = [
            job("default", "a1", "web", true),
            job("moby", &long, "web", true),
            job("moby", "old", "db", false),
            job("moby", "new", "db", true),
            job("default", "w2", "webster", true),
            job("default", "s1", "team/app", true),
            job("default", "gone1", "past", false),
            job("default", "gone2", "past", false),
            job("default", "only", "both", true),
            elsewhere,
        ];
        for (text, namespace, expected) in [
            ("web", None, Err(vec!["default/a1", "moby/0123456789ab"])),
            ("web", Some("moby"), Ok(long.as_str())),
            ("default/web", None, Ok("a1")),
            ("moby/web", Some("default"), Err(vec![])),
            ("a1", None, Ok("a1")),
            ("a", None, Ok("a1")),
            (long.as_str(), None, Ok(long.as_str())),
            ("0123", None, Ok(long.as_str())),
            ("moby/0123456789ab", None, Ok(long.as_str())),
            ("webs", None, Ok("w2")),
            (
                "we",
                None,
                Err(vec!["default/a1", "default/w2", "moby/0123456789ab"]),
            ),
            ("db", None, Ok("new")),
            ("old", None, Ok("old")),
            ("team/app", None, Ok("s1")),
            ("team/a", None, Ok("s1")),
            ("default/team/app", None, Ok("s1")),
            ("past", None, Err(vec!["default/gone1", "default/gone2"])),
            (
                "both",
                None,
                Err(vec![
                    "default/only@/run/containerd/containerd.sock",
                    "default/only@/run/other.sock",
                ]),
            ),
            ("default/only@/run/other.sock", None, Ok("only")),
            ("", None, Err(vec![])),
            ("/", None, Err(vec![])),
            ("moby/", None, Err(vec![])),
            ("nobody", None, Err(vec![])),
            ("%", None, Err(vec![])),
        ] {
            let found = find(&jobs, text, namespace).map(|job| job.key.id.as_str());
            let expected = expected.map_err(|choices| match choices.as_slice() {
                [] => FindError::NotFound,
                _ => FindError::Ambiguous(choices.into_iter().map(str::to_owned).collect()),
            });
            assert_eq!(found, expected, "{text:?} in {namespace:?}");
        }
    }
}
