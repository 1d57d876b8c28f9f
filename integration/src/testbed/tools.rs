//! Programs newer than Debian's, built once from `integration/tools`: pinned releases of containerd, runc, nerdctl,
//! crictl and checkpointctl.
//!
//! They come through the Go module proxy, and are compiled in a throwaway Debian with Debian's Go, so that neither
//! the version of the host's Go nor that of its C library matters.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::report::say;
use super::suite::Suite;
use super::{apt, cache, rootfs};

/// Go modules with `tool` lines, relative to the checkout. crictl needs other versions of what it shares with the rest.
const MODULES: &[&str] = &["integration/tools", "integration/tools/crictl"];

/// The release whose Go is new enough for all of them.
const BUILD_RELEASE: &str = "forky";

/// runc filters system calls by way of a C library.
const BUILD_PACKAGES: &str = "ca-certificates,gcc,golang-go,libc6-dev,libseccomp-dev,pkg-config";

/// Clients that work with any suite's containerd; the engines among the programs are for `latest` only.
const CLIENTS: &[&str] = &["checkpointctl", "crictl", "nerdctl"];

/// Where certificates lie in Debian. The build trusts what the host trusts.
const CERTIFICATES: &str = "/etc/ssl/certs/ca-certificates.crt";

/// One build of all programs: where they are, and which of them a suite gets.
#[derive(Debug)]
pub struct Tools {
    /// The directory that holds them.
    pub directory: PathBuf,
    /// Their file names.
    pub names: Vec<String>,
}

impl Tools {
    /// Their paths.
    pub fn paths(&self) -> Vec<PathBuf> {
        self.names.iter().map(|name| self.directory.join(name)).collect()
    }
}

/// The programs for a suite. `latest` has them built if need be; that takes minutes, so the others have what
/// is there already, and do without until then.
pub fn for_suite(suite: Suite, checkout: &Path) -> Result<Option<Tools>> {
    let place = place(checkout)?;
    if suite == Suite::Latest {
        cache::built(&place, |partial| build(checkout, partial))?;
    } else if !place.exists() {
        return Ok(None);
    }
    let mut names = Vec::new();
    for entry in fs::read_dir(&place).with_context(|| format!("list {}", place.display()))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if suite == Suite::Latest || CLIENTS.contains(&name.as_str()) {
            names.push(name);
        }
    }
    Ok(Some(Tools {
        directory: place,
        names,
    }))
}

/// Named by the content of the module files, which pin every version and every digest.
fn place(checkout: &Path) -> Result<PathBuf> {
    let mut recipe = format!("{BUILD_RELEASE} {BUILD_PACKAGES} {BUILD_SCRIPT}");
    for module in MODULES {
        for file in ["go.mod", "go.sum"] {
            let path = checkout.join(module).join(file);
            recipe += &fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        }
    }
    cache::place("tools", &recipe)
}

/// Runs inside the throwaway Debian, in a module's directory. `tool` stands for all the module's tool lines. Tags are
/// those of runc's own build; the other programs know none of them.
const BUILD_SCRIPT: &str = "exec env HOME=/build PATH=/usr/bin:/bin GOTOOLCHAIN=local GOFLAGS=-buildvcs=false \
    nice go build -trimpath -ldflags '-s -w' -tags seccomp,urfave_cli_no_docs -o /build/out/ tool";

fn build(checkout: &Path, partial: &Path) -> Result<()> {
    apt::need(apt::FOR_DEBIAN)?;
    say("building containerd, runc, nerdctl, crictl and checkpointctl with Go; once, some minutes");
    fs::create_dir_all(partial).with_context(|| format!("make {}", partial.display()))?;
    let mut hooks = vec!["mkdir -p \"$1/build/src\" \"$1/build/out\"".to_owned()];
    if Path::new(CERTIFICATES).exists() {
        hooks.push(format!("upload {CERTIFICATES} {CERTIFICATES}"));
    }
    for (index, module) in MODULES.iter().enumerate() {
        let source = checkout.join(module);
        hooks.push(format!("mkdir -p \"$1/build/src/{index}\""));
        hooks.push(format!("sync-in {} /build/src/{index}", source.display()));
        hooks.push(format!(
            "chroot \"$1\" sh -c \"cd /build/src/{index} && {BUILD_SCRIPT}\""
        ));
    }
    hooks.push(format!("sync-out /build/out {}", partial.display()));
    let mut arguments: Vec<String> = hooks
        .into_iter()
        .map(|hook| format!("--customize-hook={hook}"))
        .collect();
    // Format null: the tree is thrown away once the hooks have run.
    arguments.extend([
        "--format=null".into(),
        format!("--include={BUILD_PACKAGES}"),
        BUILD_RELEASE.into(),
        "/dev/null".into(),
    ]);
    rootfs::mmdebstrap(&arguments, &partial.with_extension("log"))
}
