//! What is ours: the configuration, the registry, the place where checkpoints go.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use config::Source;
use jobs::registry::Registry;
use nix::sys::statvfs::statvfs;
use nix::unistd::{AccessFlags, access, geteuid};

use super::checks::Checks;
use crate::context::Context;
use crate::output::{counted, size};

/// A checkpoint takes about the memory of its container; with less room than this few fit.
const ROOM_MIN: u64 = 1 << 30;

/// Bits of a directory's mode that let others look into checkpoints, which hold what memory held.
const OTHERS: u32 = 0o077;

/// Looks at all of it.
pub fn look(context: &Context, checks: &mut Checks) {
    checks.good("cedana", "version", env!("CARGO_PKG_VERSION"));
    if geteuid().is_root() {
        checks.good("cedana", "privilege", "root");
    } else {
        checks.error(
            "cedana",
            "privilege",
            "not root",
            "run it with sudo: shims and CRIU are root's",
        );
    }
    look_at_configuration(context, checks);
    look_at_registry(context, checks);
    look_at_checkpoints(context.checkpoint_dir(), checks);
}

fn look_at_configuration(context: &Context, checks: &mut Checks) {
    if let Some(problem) = &context.problem {
        let remedy = "mend it; until then shims use the defaults, and most commands refuse to run";
        checks.error("cedana", "configuration", problem.to_string(), remedy);
        return;
    }
    let file = context.settings.sources.values().find_map(|source| match source {
        Source::File(path) => Some(path.display().to_string()),
        _ => None,
    });
    let set = context.settings.sources.len();
    let found = match (file, set) {
        (Some(file), _) => format!("{}, {file}", counted(set, "setting")),
        (None, 0) => "defaults".to_owned(),
        (None, _) => format!("{}, no file", counted(set, "setting")),
    };
    checks.good("cedana", "configuration", found);
}

fn look_at_registry(context: &Context, checks: &mut Checks) {
    let Ok(database) = context.database() else {
        checks.absent("cedana", "registry", "switched off: db.path is empty");
        return;
    };
    let mut opened = Registry::open(database);
    let refreshed = opened.registry.refresh();
    let jobs = refreshed.and_then(|()| opened.registry.jobs());
    let mut warnings: Vec<String> = opened.warnings.iter().map(ToString::to_string).collect();
    warnings.extend(opened.registry.take_warnings().iter().map(ToString::to_string));
    // Whoever may not look cannot know whether it is damaged.
    let remedy = if geteuid().is_root() {
        "no container depends on it: removing the file is safe, and what can be found is taken in again"
    } else {
        "run it with sudo: the registry is root's"
    };
    match jobs {
        Err(error) => checks.warning("cedana", "registry", error.to_string(), remedy),
        Ok(_) if !warnings.is_empty() => {
            checks.warning("cedana", "registry", warnings.join("; "), remedy);
        }
        Ok(jobs) => checks.good(
            "cedana",
            "registry",
            format!("{}, {}", counted(jobs.len(), "job"), database.display()),
        ),
    }
}

fn look_at_checkpoints(directory: &Path, checks: &mut Checks) {
    let (component, feature) = ("cedana", "checkpoints");
    // It is made by the first dump: what counts until then is where.
    let Some(existing) = directory.ancestors().find(|directory| directory.exists()) else {
        return;
    };
    let shown = directory.display();
    if !existing.is_dir() || access(existing, AccessFlags::W_OK).is_err() {
        let found = format!("{} cannot be written", existing.display());
        checks.warning(
            component,
            feature,
            found,
            if geteuid().is_root() {
                "mend it, or set checkpoint.dir to another directory"
            } else {
                "run it with sudo: checkpoints are root's"
            },
        );
        return;
    }
    let room = statvfs(existing).map_or(0, |disk| {
        disk.blocks_available().saturating_mul(disk.fragment_size())
    });
    let found = format!("{} free, {shown}", size::whole(room));
    if room < ROOM_MIN {
        let remedy = "make room, or set checkpoint.dir to another directory: a checkpoint takes about the memory of its container";
        checks.warning(component, feature, found, remedy);
    } else if existing == directory && is_open_to_others(directory) {
        let found = format!("{shown} can be read by others");
        let remedy = format!("chmod 700 {shown}: a checkpoint holds what the memory of a container held");
        checks.warning(component, feature, found, &remedy);
    } else {
        checks.good(component, feature, found);
    }
}

fn is_open_to_others(directory: &Path) -> bool {
    fs::metadata(directory).is_ok_and(|found| found.mode() & OTHERS != 0)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn checkpoints_are_for_root_alone() {
        let dir = tempfile::tempdir().unwrap();
        for (mode, expected) in [(0o700, false), (0o750, true), (0o755, true)] {
            fs::set_permissions(dir.path(), fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(is_open_to_others(dir.path()), expected, "{mode:o}");
        }
    }

    #[test]
    fn a_broken_configuration_is_an_error() {
        let context = Context {
            problem: Some(config::ConfigError::Read {
                path: "/etc/cedana/config.json".into(),
                source: std::io::ErrorKind::PermissionDenied.into(),
            }),
            ..Context::default()
        };
        let mut checks = Checks::default();
        look_at_configuration(&context, &mut checks);
        assert_eq!(checks.errors(), 1);
        look_at_configuration(&Context::default(), &mut checks);
        assert_eq!(checks.errors(), 1);
    }
}
