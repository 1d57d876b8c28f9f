//! A suite's root file system: Debian packages, put together by mmdebstrap, and the test images.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::report::say;
use super::suite::{RECIPE_VERSION, Recipe};
use super::{apt, cache, image};

/// A build takes half a minute from a near mirror, with Go programs five; slow ones get this long.
const BUILD_SECONDS_MAX: u32 = 3600;

/// As much of a failed build's log as a person reads.
const LOG_TAIL_BYTES: u64 = 3000;

/// Where the test images lie inside a root file system, as one `docker save` archive.
pub const IMAGES: &str = "usr/share/cedana-testbed/images.tar";

/// The root file system of that recipe: its path, built if it is not in the cache.
pub fn ensure(recipe: &Recipe) -> Result<PathBuf> {
    let place = cache::place(recipe.release, &format!("{RECIPE_VERSION} {recipe:?}"))?;
    cache::built(&place, |partial| build(recipe, partial))?;
    Ok(place)
}

fn build(recipe: &Recipe, root: &Path) -> Result<()> {
    apt::need(apt::FOR_DEBIAN)?;
    debian(recipe, root)?;
    let images = root.join(IMAGES);
    if let Some(parent) = images.parent() {
        fs::create_dir_all(parent)?;
    }
    let busybox = fs::read(root.join("bin/busybox")).context("read the suite's busybox")?;
    let applets = image::applets(&root.join("bin/busybox"))?;
    fs::write(&images, image::archive(&busybox, &applets)).context("write the test images")
}

fn debian(recipe: &Recipe, root: &Path) -> Result<()> {
    let packages = recipe.packages.join(",");
    say(&format!(
        "building Debian {} with {packages}; once, about half a minute",
        recipe.release
    ));
    let mut arguments = vec!["--format=directory".to_owned()];
    // Nobody reads a manual inside, and a third of the size is that.
    arguments.extend(
        ["man", "doc", "locale", "info"].map(|name| format!("--dpkgopt=path-exclude=/usr/share/{name}/*")),
    );
    arguments.extend([
        format!("--include={packages}"),
        recipe.release.to_owned(),
        root.display().to_string(),
    ]);
    mmdebstrap(&arguments, &root.with_extension("log"))
}

/// Runs mmdebstrap on the host's mirror. Its signature checks stay on; only dates are not looked at, since mirrors of
/// testing fall behind. Its log is kept when it fails.
pub(super) fn mmdebstrap(arguments: &[String], log_path: &Path) -> Result<()> {
    let mirror = apt::mirror();
    let mut log = File::options()
        .create(true)
        .truncate(true)
        .read(true)
        .write(true)
        .open(log_path)?;
    let status = Command::new("timeout")
        .arg(BUILD_SECONDS_MAX.to_string())
        .args(["mmdebstrap", "--mode=root", "--variant=apt", "--components=main"])
        .args([
            "--aptopt=Acquire::Check-Valid-Until \"false\"",
            "--aptopt=APT::Install-Recommends \"false\"",
        ])
        .args(arguments)
        .arg(&mirror)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log.try_clone()?)
        .status()
        .context("run mmdebstrap")?;
    if !status.success() {
        bail!(
            "build it: mmdebstrap ended with {status}; its last words (all in {}):\n{}\nis {mirror} reachable, and is \
             the package debian-archive-keyring installed and recent?",
            log_path.display(),
            tail(&mut log)?
        );
    }
    fs::remove_file(log_path).with_context(|| format!("remove {}", log_path.display()))
}

fn tail(log: &mut File) -> Result<String> {
    let length = log.seek(SeekFrom::End(0))?;
    let _ = log.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL_BYTES)))?;
    let mut text = Vec::new();
    let _ = log.take(LOG_TAIL_BYTES).read_to_end(&mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}
