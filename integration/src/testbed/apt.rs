//! The host's apt: what the testbed needs from it, and where it has its packages from.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::report::say;

/// Another apt may be running (unattended upgrades); this is how long it is waited for.
const LOCK_SECONDS_MAX: u32 = 600;

/// What Debian's own installer configures, for hosts whose apt knows no Debian mirror (Ubuntu).
const DEFAULT_MIRROR: &str = "http://deb.debian.org/debian";

/// What mmdebstrap needs to put a Debian together: itself, and the keys that Debian's archives are signed with, which Ubuntu
/// does not have by default.
pub const FOR_DEBIAN: &[(&str, &str)] = &[
    ("mmdebstrap", "mmdebstrap"),
    (
        "/usr/share/keyrings/debian-archive-keyring.gpg",
        "debian-archive-keyring",
    ),
];

/// Installs the packages of those programs, or files, that are missing, and says so.
pub fn need(programs: &[(&str, &str)]) -> Result<()> {
    let missing: Vec<&str> = programs
        .iter()
        .filter(|(program, _)| !on_path(program))
        .map(|(_, package)| *package)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    install(&missing)
}

/// Installs packages on the host, and says so.
pub fn install(packages: &[&str]) -> Result<()> {
    say(&format!("installing with apt: {}", packages.join(" ")));
    // A stale list names files that the mirror has dropped. Sources that cannot be reached are no reason to stop.
    let _ = apt_get().arg("update").status();
    let installed = apt_get()
        .args(["install", "--yes", "--no-install-recommends"])
        .args(packages)
        .status()
        .context("run apt-get: the testbed works on Debian and Ubuntu")?;
    if !installed.success() {
        bail!(
            "install {}: apt-get ended with {installed}; install them by hand and try again",
            packages.join(" ")
        );
    }
    Ok(())
}

/// The Debian mirror this host uses.
pub fn mirror() -> String {
    let targets = Command::new("apt-get")
        .args([
            "indextargets",
            "--format",
            "$(LABEL) $(REPO_URI)",
            "Created-By: Packages",
        ])
        .output();
    targets
        .ok()
        .and_then(|found| mirror_among(&String::from_utf8_lossy(&found.stdout)))
        .unwrap_or_else(|| DEFAULT_MIRROR.to_owned())
}

/// The first Debian archive among lines of label and address.
fn mirror_among(targets: &str) -> Option<String> {
    let debian = targets.lines().find_map(|line| line.strip_prefix("Debian "))?;
    Some(debian.trim_end_matches('/').to_owned())
}

fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    let _ = command
        .env("DEBIAN_FRONTEND", "noninteractive")
        .args([
            "-qq",
            "-o",
            "Dpkg::Use-Pty=0",
            "-o",
            &format!("DPkg::Lock::Timeout={LOCK_SECONDS_MAX}"),
        ])
        .stdin(Stdio::null())
        // Standard output belongs to the command that the testbed runs.
        .stdout(std::io::stderr());
    command
}

fn on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain([Path::new("/usr/sbin").into()])
        .any(|dir| dir.join(program).is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn security_archives_and_other_vendors_are_not_the_mirror() {
        let cases = [
            ("", None),
            ("Ubuntu http://a/ubuntu/\n", None),
            (
                "Debian-Security http://s/debian-security/\nDebian http://a/debian/\n",
                Some("http://a/debian"),
            ),
            (
                "google-cloud https://p/apt/\nDebian http://b/debian\n",
                Some("http://b/debian"),
            ),
        ];
        for (targets, expected) in cases {
            assert_eq!(mirror_among(targets).as_deref(), expected, "{targets:?}");
        }
    }
}
