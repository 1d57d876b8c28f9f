//! `cedana checkpoint verify ID|PATH…`: whether checkpoints are as they were made.

use std::path::Path;
use std::sync::Arc;

use oci_bundles::archive::Limits;
use oci_bundles::checkpoint::{self, CheckpointError, Verdict};
use oci_bundles::manifest::{Manifest, ManifestError, NotSaved};
use serde::Serialize;

use super::long;
use super::target::{self, Target};
use crate::context::Context;
use crate::error::{Error, Kind};
use crate::jobs::Jobs;
use crate::output::progress::Progress;
use crate::output::{self, size};

/// Its arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The checkpoints: ids, unique beginnings of ids, or paths
    #[arg(value_name = "ID|PATH", required_unless_present = "all", conflicts_with = "all", value_hint = clap::ValueHint::AnyPath)]
    pub checkpoints: Vec<String>,
    /// All that the registry knows
    #[arg(short, long)]
    pub all: bool,
}

/// What was found out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Status {
    /// Every byte is as it was.
    Good,
    /// It is not as it was made, or cannot be read.
    Damaged,
    /// It can be read, and has no digests to compare with.
    Unverifiable,
    /// A later version made it, which may mean other things by its words.
    Newer,
}

impl Status {
    fn word(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Damaged => "damaged",
            Self::Unverifiable => "unverifiable",
            Self::Newer => "made by a later version",
        }
    }
}

#[derive(Debug, Serialize)]
struct Told {
    id: Option<String>,
    job: Option<String>,
    path: std::path::PathBuf,
    status: Status,
    /// Bytes that were read of its files.
    bytes: u64,
    problems: Vec<String>,
    /// Images beside those that belong to it.
    extra: Vec<std::path::PathBuf>,
    /// Files of the container that it was made without.
    left_out: Vec<NotSaved>,
}

/// Reads them through.
///
/// # Errors
/// There is no such checkpoint, one of them is damaged ([`Kind::Failed`]), or only a later version can tell ([`Kind::Unsupported`]).
pub async fn run(args: Args, context: &Context) -> Result<(), Error> {
    let targets = if args.all {
        target::all(&Jobs::open(context).await?)
    } else {
        let jobs = target::registry(context).await?;
        let each = args
            .checkpoints
            .iter()
            .map(|text| target::find(jobs.as_ref(), text));
        each.collect::<Result<Vec<_>, _>>()?
    };
    let mut all = Vec::new();
    for target in &targets {
        let told = verify(target, context).await?;
        if !context.json {
            output::stdout(&text(&told))?;
        }
        all.push(told);
    }
    if context.json {
        output::json(&all)?;
    } else if all.is_empty() {
        output::line("No checkpoints found")?;
    }
    outcome(&all)
}

/// What the call ends with: what is damaged is worse than what cannot be told.
fn outcome(all: &[Told]) -> Result<(), Error> {
    let count = |status| all.iter().filter(|told| told.status == status).count();
    let of_all = |count: usize, one: &str, are: &str| match (count, all.len()) {
        (1, 1) => format!("the checkpoint {one}"),
        (count, of) => format!("{count} of {of} checkpoints {are}"),
    };
    match (count(Status::Damaged), count(Status::Newer)) {
        (0, 0) => Ok(()),
        (0, newer) => {
            let made = "made by a later version";
            let text = of_all(newer, &format!("was {made}"), &format!("were {made}"));
            Err(Error::unsupported(text).hint("verify with that version"))
        }
        (damaged, _) => Err(Error::failed(of_all(damaged, "is damaged", "are damaged"))),
    }
}

async fn verify(target: &Target, context: &Context) -> Result<Told, Error> {
    let progress = Arc::new(Progress::start("verifying", context.json));
    let path = target.path.clone();
    let verdict = long::run(progress, move |on_progress| {
        checkpoint::verify(&path, &Limits::default(), on_progress)
    })
    .await?;
    let told = told(target, verdict);
    told.map_err(|error| match Error::from(error) {
        error if error.kind == Kind::Interrupted => {
            Error::new(error.kind, "interrupted: not all was verified")
        }
        error => error,
    })
}

fn told(target: &Target, verdict: Result<Verdict, CheckpointError>) -> Result<Told, CheckpointError> {
    use oci_bundles::archive::ArchiveError::Cancelled;
    let manifest = verdict
        .as_ref()
        .ok()
        .and_then(|verdict| verdict.manifest.as_ref());
    let left_out = manifest.into_iter().flat_map(Manifest::files_left_out).cloned();
    let left_out = left_out.collect();
    let (status, bytes, problems, extra) = match verdict {
        Err(CheckpointError::Archive(Cancelled)) => return Err(Cancelled.into()),
        Err(error) => {
            let status = match error {
                CheckpointError::Manifest {
                    source: ManifestError::Newer(_),
                    ..
                } => Status::Newer,
                _ => Status::Damaged,
            };
            (status, 0, vec![format!("failed to {error}")], Vec::new())
        }
        Ok(verdict) => {
            let status = match (verdict.problems.is_empty(), verdict.is_vouched_for()) {
                (false, _) => Status::Damaged,
                (true, false) => Status::Unverifiable,
                (true, true) => Status::Good,
            };
            let problems = verdict.problems.iter().map(ToString::to_string).collect();
            (status, verdict.bytes, problems, verdict.extra)
        }
    };
    Ok(Told {
        id: target.known.as_ref().map(|(_, checkpoint)| checkpoint.id.clone()),
        job: target.known.as_ref().map(|(job, _)| job.name.clone()),
        path: target.path.clone(),
        status,
        bytes,
        problems,
        extra,
        left_out,
    })
}

fn text(told: &Told) -> String {
    let shown = |path: &Path| output::text::line(&path.display().to_string()).into_owned();
    let word = told.status.word();
    let mut text = match told.status {
        Status::Unverifiable => format!(
            "{}: {word}: it has no digests; {} can be read\n",
            shown(&told.path),
            size::whole(told.bytes)
        ),
        Status::Good => format!("{}: {word}, {}\n", shown(&told.path), size::whole(told.bytes)),
        Status::Damaged | Status::Newer => format!("{}: {word}\n", shown(&told.path)),
    };
    for problem in &told.problems {
        text.push_str(&format!("  {}\n", output::text::line(problem)));
    }
    for path in &told.extra {
        text.push_str(&format!(
            "  {} does not belong to it, and harms nothing\n",
            shown(path)
        ));
    }
    for one in &told.left_out {
        let why = output::text::line(&one.source);
        text.push_str(&format!("  {} was not saved: {why}\n", shown(&one.path)));
    }
    text
}

#[cfg(test)]
mod tests {
    use oci_bundles::archive::Form;
    use oci_bundles::manifest::{Difference, Digest, Manifest, Part};

    use super::*;

    #[test]
    fn what_is_damaged_is_told_before_what_is_newer() {
        let of = |status| Told {
            id: None,
            job: None,
            path: "/c".into(),
            status,
            bytes: 0,
            problems: Vec::new(),
            extra: Vec::new(),
            left_out: Vec::new(),
        };
        let kind = |statuses: &[Status]| {
            let all: Vec<Told> = statuses.iter().copied().map(of).collect();
            outcome(&all).err().map(|error| (error.kind, error.message))
        };
        use Status::{Damaged, Good, Newer, Unverifiable};
        for (statuses, wanted) in [
            (&[Good, Unverifiable][..], None),
            (
                &[Newer],
                Some((Kind::Unsupported, "the checkpoint was made by a later version")),
            ),
            (
                &[Good, Newer],
                Some((
                    Kind::Unsupported,
                    "1 of 2 checkpoints were made by a later version",
                )),
            ),
            (
                &[Newer, Damaged],
                Some((Kind::Failed, "1 of 2 checkpoints are damaged")),
            ),
            (&[Damaged], Some((Kind::Failed, "the checkpoint is damaged"))),
        ] {
            let wanted = wanted.map(|(kind, message)| (kind, message.to_owned()));
            assert_eq!(kind(statuses), wanted, "{statuses:?}");
        }
    }

    #[test]
    fn what_was_found_out_is_one_word() {
        let target = Target {
            path: "/c/saved".into(),
            known: None,
        };
        let manifest = Manifest {
            parts: vec![Part {
                path: "pages-1.img".into(),
                size: 1,
                digest: Digest::Blake3([0; 32]),
            }],
            ..Manifest::default()
        };
        let verdict = |manifest: Option<&Manifest>, problems: Vec<Difference>| Verdict {
            form: Form::Directory,
            manifest: manifest.cloned(),
            bytes: 1 << 20,
            problems,
            extra: Vec::new(),
        };
        let missing = Difference::Missing("pages-1.img".into());
        let mut without = manifest.clone();
        without.not_saved.push(NotSaved {
            kind: "file".to_owned(),
            path: "/.wh.a".into(),
            source: "no name for it".to_owned(),
        });
        for (verdict, said) in [
            (Ok(verdict(Some(&manifest), vec![])), "/c/saved: good, 1 MiB\n"),
            (
                Ok(verdict(Some(&without), vec![])),
                "/c/saved: good, 1 MiB\n  /.wh.a was not saved: no name for it\n",
            ),
            (
                Ok(verdict(None, vec![])),
                "/c/saved: unverifiable: it has no digests; 1 MiB can be read\n",
            ),
            (
                Ok(verdict(Some(&manifest), vec![missing])),
                "/c/saved: damaged\n  pages-1.img is missing\n",
            ),
            (
                Err(CheckpointError::Manifest {
                    path: "/c/saved".into(),
                    source: ManifestError::Newer(9),
                }),
                "/c/saved: made by a later version\n  failed to use /c/saved: read cedana.json: schema 9 is newer than 2, the newest known here\n",
            ),
            (
                Err(CheckpointError::NoCheckpoint("/c/saved".into())),
                "/c/saved: damaged\n  failed to use /c/saved: it is no checkpoint: it has no inventory.img\n",
            ),
        ] {
            assert_eq!(text(&told(&target, verdict).expect("told")), said);
        }
    }
}
