//! What CRIU takes for GNU tar: packs the files of a tmpfs while the container stands, and unpacks them at a restore.
//!
//! ```text
//!   CRIU --exec "tar", PATH--> this program, called tar --create… --> a gzip that compresses nothing, on stdout
//!                                                       --extract…<-- whatever gzip and tar is on stdin
//!                                                       other words --> exec of the tar that PATH has next
//! ```
//!
//! It does what CRIU 4.1 and 4.2 ask, word by word (`criu/filesystems.c`), and nothing else. What it says on stderr goes into CRIU's log.
//! An image may come from anywhere: nothing in it is made outside the file system, and of devices only those that the container's own
//! request has.

use std::env;
use std::error::Error;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Write};
use std::ops::ControlFlow;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use oci_bundles::archive::Limits;
use oci_bundles::memory;
use oci_bundles::rootfs::apply::{Allowed, Device};
use oci_bundles::spec::Devices;

use super::files::some;
use crate::criu::tools::{BUNDLE, TAR, path_without};

/// How CRIU has a file system packed, up to where it is.
const CREATE: [&str; 10] = [
    "--create",
    "--gzip",
    "--no-unquote",
    "--no-wildcards",
    "--one-file-system",
    "--check-links",
    "--preserve-permissions",
    "--sparse",
    "--numeric-owner",
    "--directory",
];

/// And unpacked.
const EXTRACT: [&str; 5] = [
    "--extract",
    "--gzip",
    "--no-unquote",
    "--no-wildcards",
    "--directory",
];

#[derive(Debug, PartialEq, Eq)]
enum Wanted {
    Create(PathBuf),
    Extract(PathBuf),
}

/// Is `tar`, if this program was called that.
///
/// # Errors
/// What failed; CRIU then takes the dump back, or gives the restore up.
pub fn run_as_tar() -> Option<Result<(), Box<dyn Error>>> {
    let mut words = env::args_os();
    let name = PathBuf::from(words.next()?);
    if name.file_name() != Some(OsStr::new(TAR)) {
        return None;
    }
    let words: Vec<OsString> = words.collect();
    Some(match wanted(&words) {
        Some(wanted) => act(&wanted),
        None => Err(next_tar(&words).into()),
    })
}

fn act(wanted: &Wanted) -> Result<(), Box<dyn Error>> {
    // A CRIU that was killed wants nothing any more.
    set_pdeathsig(Signal::SIGKILL)?;
    let on_progress = &mut |_| ControlFlow::Continue(());
    match wanted {
        Wanted::Create(dir) => drop(memory::save(dir, File::from(own(io::stdout())?), on_progress)?),
        Wanted::Extract(dir) => {
            let bundle = env::var_os(BUNDLE).map(PathBuf::from);
            let devices = bundle.map_or_else(
                || Err("nobody said which".to_owned()),
                |bundle| Devices::read(&bundle).map_err(|error| error.to_string()),
            );
            let devices = devices.unwrap_or_else(|why| {
                say(&format!(
                    "the devices that the container may have are not known, so none is made: {why}"
                ));
                Devices::default()
            });
            let allowed = Allowed {
                limits: Limits::of_memory(),
                device: &|Device {
                              is_block,
                              major,
                              minor,
                          }| devices.allow(is_block, major, minor),
            };
            let name = Path::new("the image of a tmpfs");
            let saved = File::from(own(io::stdin())?);
            let applied = memory::put_back(saved, name, dir, &allowed, on_progress)?;
            if !applied.left_out.is_empty() {
                let (count, first) = (applied.left_out.len(), some(&applied.left_out).join(", "));
                say(&format!(
                    "{count} device(s) that the container may not have are left out: {first}"
                ));
            }
        }
    }
    Ok(())
}

/// Into CRIU's log, if it is still there.
fn say(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// A standard stream without what the library keeps of it between calls.
fn own(stream: impl AsFd) -> io::Result<OwnedFd> {
    stream.as_fd().try_clone_to_owned()
}

/// What the words ask for, if they are CRIU's.
fn wanted(words: &[OsString]) -> Option<Wanted> {
    let begins =
        |all: &[&str]| words.len() > all.len() && all.iter().zip(words).all(|(one, word)| *one == word);
    if begins(&CREATE) {
        let [dir, what] = words.get(CREATE.len()..)? else {
            return None;
        };
        return (what == ".").then(|| Wanted::Create(dir.into()));
    }
    let [dir] = words.get(EXTRACT.len()..)? else {
        return None;
    };
    begins(&EXTRACT).then(|| Wanted::Extract(dir.into()))
}

/// Becomes the tar that would have been called without us; returns only if there is none.
fn next_tar(words: &[OsString]) -> io::Error {
    let path = env::var_os("PATH").unwrap_or_default();
    let bundle = env::var_os(BUNDLE).unwrap_or_default();
    Command::new(TAR)
        .args(words)
        .env("PATH", path_without(Path::new(&bundle), &path))
        .env_remove(BUNDLE)
        .exec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_criu_asks_for_is_done_here() {
        let of = |words: &[&[&str]]| -> Option<Wanted> {
            let words: Vec<OsString> = words.concat().iter().map(OsString::from).collect();
            wanted(&words)
        };
        let create = Some(Wanted::Create("/proc/self/fd/0".into()));
        assert_eq!(of(&[&CREATE, &["/proc/self/fd/0", "."]]), create);
        assert_eq!(of(&[&EXTRACT, &["/mnt"]]), Some(Wanted::Extract("/mnt".into())));
        for words in [
            &[][..],
            &[&CREATE[..]],
            &[&EXTRACT[..]],
            &[&CREATE[..], &["/a", "b"]],
            &[&CREATE[..], &["/a", ".", "c"]],
            &[&EXTRACT[..], &["/a", "b"]],
            &[&["--version"][..]],
            &[&CREATE[..9], &["--directory=/a", "."]],
        ] {
            assert_eq!(of(words), None, "{words:?}");
        }
    }
}
