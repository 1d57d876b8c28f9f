//! `TESTBED=host`: the host's own engines in place of a suite's, where they are good enough.
//!
//! They run in an instance like any other, an overlay on the host's root in place of a suite's: with private namespaces, state,
//! sockets and configuration, so that the host's own containerd, images and containers are neither seen nor touched.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::report::say;
use super::{cache, image, rootfs};

/// What `TESTBED_SUITE` says inside, and the value of `TESTBED` that asks for it.
pub const NAME: &str = "host";

/// Programs, how each tells its version, and from which on our tests pass with it. dockerd may be missing: tests that
/// need it are then skipped.
const NEEDED: &[(&str, (u32, u32))] = &[("containerd", (1, 7)), ("runc", (1, 1)), ("criu", (4, 0))];

/// Whether the person asked for the host's engines.
pub fn asked() -> bool {
    std::env::var_os("TESTBED").is_some_and(|value| value == NAME)
}

/// Refuses hosts whose engines are too old, or whose CRIU does not work on their kernel; names all that is wrong.
pub fn check() -> Result<()> {
    let mut wrong: Vec<String> = NEEDED
        .iter()
        .filter_map(|(program, least)| lacking(program, *least))
        .collect();
    if wrong.is_empty()
        && let Some(complaint) = criu_check()
    {
        wrong.push(complaint);
    }
    if !wrong.is_empty() {
        bail!(
            "use the host's engines: {}; without TESTBED=host they come from a suite",
            wrong.join("; ")
        );
    }
    Ok(())
}

/// The test images as an archive in the cache, made from Debian's busybox, which is not installed for that.
pub fn images() -> Result<PathBuf> {
    // In an instance, whose engines stand for a host's when the testbed is tested itself, they are there already.
    let given = Path::new("/").join(rootfs::IMAGES);
    if given.exists() {
        return Ok(given);
    }
    let place = cache::place("images", image::PAUSE)?;
    cache::built(&place, |partial| {
        say("downloading busybox-static for the test images");
        fs::create_dir_all(partial)?;
        let script = "apt-get -qq download busybox-static && dpkg-deb -x busybox-static_*.deb .";
        let unpacked = Command::new("sh")
            .args(["-c", script])
            .current_dir(partial)
            .output()?;
        if !unpacked.status.success() {
            bail!(
                "get busybox-static with apt: {}",
                String::from_utf8_lossy(&unpacked.stderr)
            );
        }
        let program = ["bin/busybox", "usr/bin/busybox"].map(|path| partial.join(path));
        let program = program
            .iter()
            .find(|path| path.is_file())
            .context("find busybox in its package")?;
        let archive = image::archive(&fs::read(program)?, &image::applets(program)?);
        fs::write(partial.join("images.tar"), archive).context("write the test images")
    })?;
    Ok(place.join("images.tar"))
}

fn lacking(program: &str, least: (u32, u32)) -> Option<String> {
    let Ok(told) = Command::new(program).arg("--version").output() else {
        return Some(format!("{program} is not installed"));
    };
    let text = String::from_utf8_lossy(&told.stdout).into_owned();
    match version(&text) {
        Some(found) if found >= least => None,
        Some(found) => Some(format!(
            "{program} {}.{} is older than {}.{}",
            found.0, found.1, least.0, least.1
        )),
        None => Some(format!("{program} --version tells no version: {:?}", text.trim())),
    }
}

fn criu_check() -> Option<String> {
    match Command::new("criu").arg("check").output() {
        Ok(checked) if checked.status.success() => None,
        Ok(checked) => {
            let text = String::from_utf8_lossy(&checked.stderr).into_owned();
            Some(format!(
                "criu check fails: {}",
                text.lines().last().unwrap_or("it says nothing")
            ))
        }
        Err(error) => Some(format!("criu does not run: {error}")),
    }
}

/// Major and minor of the first thing that looks like a version.
fn version(text: &str) -> Option<(u32, u32)> {
    text.split_whitespace().find_map(|word| {
        let mut numbers = word
            .trim_start_matches('v')
            .split(|letter: char| !letter.is_ascii_digit());
        Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_found_in_what_programs_print() {
        let cases = [
            (
                "containerd github.com/containerd/containerd 1.7.24~ds1 1.7.24~ds1-6",
                Some((1, 7)),
            ),
            ("containerd containerd.io v2.1.4 75cb2b7193e4", Some((2, 1))),
            ("runc version 1.3.6+ds1\nspec: 1.2.1\ngo: go1.24", Some((1, 3))),
            ("Version: 4.2.1\nGitID: v4.2.1", Some((4, 2))),
            ("no version 12", None),
            ("", None),
        ];
        for (text, expected) in cases {
            assert_eq!(version(text), expected, "{text:?}");
        }
    }
}
