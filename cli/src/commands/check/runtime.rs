//! Our shim, and the runc below it, as containerd finds them.

use std::path::Path;

use serde::Deserialize;

use super::checks::Checks;
use super::tool::{Places, TOOL_LIMIT, run, version};
use crate::engines::our_shim;

const SHIM: &str = "containerd-shim-cedana-v1";
const RUNC: &str = "runc";

/// The oldest that reads CRIU's configuration from an annotation, without which no option reaches CRIU.
const RUNC_OLDEST: (u32, u32) = (1, 1);

const CHECKPOINTS: &str = "org.opencontainers.runc.checkpoint.enabled";

/// What of `runc features` decides something.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Features {
    annotations: std::collections::BTreeMap<String, String>,
}

/// Looks at both.
pub async fn look(places: &Places, checks: &mut Checks) {
    look_at_shim(places, checks).await;
    look_at_runc(places, checks).await;
}

async fn look_at_shim(places: &Places, checks: &mut Checks) {
    let Some(path) = places.find(SHIM) else {
        let remedy = "install it where containerd looks: /usr/local/bin, or another directory of its PATH";
        match our_shim() {
            Some(elsewhere) => {
                let found = format!("{} is not in the PATH of containerd", elsewhere.display());
                checks.error("shim", "binary", found, remedy);
            }
            None => checks.error("shim", "binary", "not found", remedy),
        }
        return;
    };
    let said = run(&path, &["-v"], TOOL_LIMIT).await;
    let of = |said: &str| said.split_whitespace().last().unwrap_or_default().to_owned();
    match said {
        Ok(said) if said.success && of(&said.stdout) == env!("CARGO_PKG_VERSION") => {
            checks.good(
                "shim",
                "version",
                format!("{} ({})", of(&said.stdout), path.display()),
            );
        }
        Ok(said) if said.success => checks.warning(
            "shim",
            "version",
            format!(
                "{} ({}), of another version than this command",
                of(&said.stdout),
                path.display()
            ),
            "install both from one build; containers that run keep the shim they have",
        ),
        Ok(said) => broken(&path, said.last_line(), checks),
        Err(silent) => broken(&path, &silent.to_string(), checks),
    }
    if !places.are_containerds {
        checks.absent(
            "shim",
            "place",
            "found by the PATH of this command: containerd's cannot be seen",
        );
    }
}

fn broken(path: &Path, why: &str, checks: &mut Checks) {
    let found = format!("{}: {why}", path.display());
    checks.error("shim", "binary", found, "install it anew");
}

async fn look_at_runc(places: &Places, checks: &mut Checks) {
    let remedy = "install runc 1.1 or later where containerd finds it";
    let Some(path) = places.find(RUNC) else {
        checks.error(RUNC, "binary", "not found", remedy);
        return;
    };
    let said = match run(&path, &["--version"], TOOL_LIMIT).await {
        Ok(said) => said,
        Err(silent) => {
            checks.error(RUNC, "binary", format!("{} {silent}", path.display()), remedy);
            return;
        }
    };
    let first = said.stdout.lines().next().unwrap_or_default();
    let found = format!(
        "{} ({})",
        first.trim_start_matches("runc version "),
        path.display()
    );
    match version(first) {
        Some(version) if version >= RUNC_OLDEST => checks.good(RUNC, "version", found),
        _ => checks.error(RUNC, "version", found, remedy),
    }
    // A runc that does not know the question (before 1.1) was told to be too old above.
    if let Ok(said) = run(&path, &["features"], TOOL_LIMIT).await {
        judge_features(&said.stdout, checks);
    }
}

fn judge_features(json: &str, checks: &mut Checks) {
    let Ok(features) = serde_json::from_str::<Features>(json) else {
        return;
    };
    match features.annotations.get(CHECKPOINTS).map(String::as_str) {
        Some("true") => checks.good(RUNC, "checkpoints", "built in"),
        Some(_) => {
            let remedy = "install a runc that was built with checkpoint support";
            checks.error(RUNC, "checkpoints", "left out of this build", remedy);
        }
        None => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_runc_without_checkpoints_is_an_error() {
        for (json, expected) in [
            (
                r#"{"annotations":{"org.opencontainers.runc.checkpoint.enabled":"true"}}"#,
                (1, 0),
            ),
            (
                r#"{"annotations":{"org.opencontainers.runc.checkpoint.enabled":"false"}}"#,
                (1, 1),
            ),
            (r#"{"ociVersionMin":"1.0.0"}"#, (0, 0)),
            ("unknown command", (0, 0)),
        ] {
            let mut checks = Checks::default();
            judge_features(json, &mut checks);
            assert_eq!((checks.all().len(), checks.errors()), expected, "{json}");
        }
    }
}
