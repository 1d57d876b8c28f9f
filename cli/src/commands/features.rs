//! `cedana features`: what this build can do, by kind of job.

use serde::Serialize;

use crate::context::Context;
use crate::error::Error;
use crate::output;
use crate::output::table::{Cell, Colour, Side, Table};

/// Its arguments.
#[derive(Debug, clap::Args)]
pub struct Args {}

/// How far something goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Extent {
    /// All of it.
    Yes,
    /// With the limit that is named.
    Partly,
    /// Not in this build.
    No,
}

/// What can be done with one kind of job.
#[derive(Debug, Serialize)]
struct Feature {
    feature: &'static str,
    containerd: Extent,
    docker: Extent,
    nerdctl: Extent,
    kubernetes: Extent,
    /// Containers of containerd's own runtime that `cedana manage` has taken in.
    managed: Extent,
    #[serde(skip_serializing_if = "str::is_empty")]
    note: &'static str,
}

const fn feature(feature: &'static str, by_engine: [Extent; 5], note: &'static str) -> Feature {
    let [containerd, docker, nerdctl, kubernetes, managed] = by_engine;
    Feature {
        feature,
        containerd,
        docker,
        nerdctl,
        kubernetes,
        managed,
        note,
    }
}

use Extent::{No, Partly, Yes};

const FEATURES: &[Feature] = &[
    feature("list", [Yes, Yes, Yes, Yes, Yes], ""),
    feature(
        "run",
        [Yes, Partly, Partly, Partly, No],
        "cedana run starts containers of containerd; other engines start theirs themselves, with our runtime",
    ),
    feature(
        "manage",
        [No, No, No, No, Yes],
        "containers of our runtime are jobs from their start",
    ),
    feature("dump", [Yes, Yes, Yes, Yes, Yes], ""),
    feature(
        "restore",
        [Yes, Yes, Yes, Partly, Partly],
        "a pod is Kubernetes' to make: its container is restored by the annotation cedana.restore; what was managed comes back \
         under our runtime, if it is containerd's own",
    ),
    feature("freeze, unfreeze", [Yes, Yes, Yes, Yes, Yes], ""),
    feature("kill, delete", [Yes, Yes, Yes, Yes, Yes], ""),
    feature("check", [Yes, Yes, Yes, Yes, Yes], ""),
    feature(
        "established TCP",
        [Yes, Yes, Yes, Yes, Partly],
        "by --tcp-established, for which the address must exist at the restore, or by --tcp-close, which containerd's own shim \
         does not know at the dump",
    ),
    feature(
        "file system",
        [Yes, Partly, Yes, Partly, Partly],
        "cedana dump saves the writable layer of an overlay and /dev/shm, and a restore puts them back; docker keeps its layer, and Kubernetes \
         puts its own into its archives; volumes and bind mounts are no part of a checkpoint",
    ),
    feature("GPU", [No, No, No, No, No], ""),
    feature("streaming, remote stores", [No, No, No, No, No], ""),
];

/// Does it.
///
/// # Errors
/// Standard output cannot be written.
#[expect(clippy::unused_async, reason = "every verb is called alike")]
pub async fn run(_args: Args, context: &Context) -> Result<(), Error> {
    if context.json {
        return output::json(&FEATURES);
    }
    output::stdout(&text(output::colours()))
}

fn text(colours: bool) -> String {
    let columns = [
        "FEATURE",
        "CONTAINERD",
        "DOCKER",
        "NERDCTL",
        "KUBERNETES",
        "MANAGED",
    ];
    let mut table = Table::new(&columns.map(|title| (title, Side::Left)));
    for feature in FEATURES {
        let mut row = vec![Cell::from(feature.feature)];
        let by_engine = [
            feature.containerd,
            feature.docker,
            feature.nerdctl,
            feature.kubernetes,
            feature.managed,
        ];
        row.extend(by_engine.map(cell));
        table.row(row);
    }
    let mut text = table.text(colours);
    text.push('\n');
    for feature in FEATURES.iter().filter(|feature| !feature.note.is_empty()) {
        text.push_str(&format!("{}: {}\n", feature.feature, feature.note));
    }
    text
}

fn cell(extent: Extent) -> Cell {
    match extent {
        Yes => Cell::new("✔", Colour::Green),
        Partly => Cell::new("partly", Colour::Yellow),
        No => Cell::new("✖", Colour::Grey),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_only_partly_is_explained() {
        for feature in FEATURES {
            let row = [
                feature.containerd,
                feature.docker,
                feature.nerdctl,
                feature.kubernetes,
                feature.managed,
            ];
            assert!(
                !row.contains(&Partly) || !feature.note.is_empty(),
                "{}",
                feature.feature
            );
        }
        let text = text(false);
        assert!(text.starts_with("FEATURE "), "{text}");
        assert!(
            text.contains("dump ") && text.contains("restore: a pod is"),
            "{text}"
        );
    }
}
