//! The options runc has no flag for, and the two files that carry them.
//!
//! ```text
//!   <bundle>/criu.conf       named by the annotation org.criu.config, read from runc's state: overrides runc's request
//!   <bundle>/criu-env.conf   named by CRIU_CONFIG_FILE in runc's environment: overridden by runc's request
//! ```
//!
//! - The annotation must be in `config.json` when `runc create` or `runc restore` runs; the file is read by each later
//!   operation, and a missing one means no options. So it is written just before an operation and removed after it: a
//!   `leave-stopped` left behind would stop the application after its next dump.
//! - With the annotation CRIU reads our file instead of `/etc/criu/runc.conf`, so that one's text is put in front of ours.
//! - A container whose user set the annotation, or that was not created by us, gets all options by the environment's
//!   file. There runc's request wins, which matters only for `file-locks` and `link-remap`; the first has a flag.
//! - `network-lock` in the annotation's file crashes CRIU 4.1 (SIGSEGV); in the environment's it works from 3.19 on.
//! - An option CRIU does not know fails the whole operation with `errno 56` and no log. Only known ones are written.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read};
use std::path::{Path, PathBuf};

use config::{NetworkLock, Tcp};
use oci_bundles::spec::SpecView;

use super::Version;
use super::choices::Choices;

/// The annotation that tells runc and crun where CRIU's configuration is.
pub const ANNOTATION: &str = "org.criu.config";

/// What CRIU reads under runc when no annotation says otherwise.
const BASE_PATH: &str = "/etc/criu/runc.conf";

/// A configuration file is a handful of lines.
const BASE_SIZE_MAX: u64 = 64 * 1024;

/// The first version that has `network-lock skip`.
const NETWORK_LOCK_SKIP: Version = Version::new(3, 19);

/// One option, and the version that introduced it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Known {
    name: &'static str,
    since: Version,
}

const fn known(name: &'static str, major: u32, minor: u32) -> Known {
    Known {
        name,
        since: Version::new(major, minor),
    }
}

/// The options we may write. Configuration files as such came with 3.11.
const KNOWN: &[Known] = &[
    known("action-script", 3, 11),
    known("external", 3, 11),
    known("file-locks", 3, 11),
    known("ghost-limit", 3, 11),
    known("leave-stopped", 3, 11),
    known("link-remap", 3, 11),
    known("skip-file-rwx-check", 3, 16),
    known("skip-in-flight", 3, 11),
    known("tcp-close", 3, 11),
    known("tcp-established", 3, 11),
];

/// Options to be written.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Options(Vec<(&'static str, Option<String>)>);

impl Options {
    /// Those of a dump.
    pub fn of_dump(settings: &config::Dump, choices: &Choices) -> Self {
        let mut options = Self::default();
        options.switch("file-locks", settings.file_locks);
        options.switch("link-remap", choices.link_remap);
        options.switch("skip-in-flight", choices.skip_in_flight);
        options.switch("tcp-close", choices.tcp == Tcp::Close);
        options.value("ghost-limit", settings.ghost_limit.to_string());
        for resource in &settings.external {
            options.value("external", resource.clone());
        }
        options
    }

    /// Those of a restore; `stopped` leaves the processes stopped, until [`crate::restore::release`].
    pub fn of_restore(settings: &config::Restore, stopped: bool) -> Self {
        let mut options = Self::default();
        options.switch("file-locks", true);
        options.switch("skip-file-rwx-check", settings.skip_file_check);
        options.switch("leave-stopped", stopped);
        for resource in &settings.external {
            options.value("external", resource.clone());
        }
        options
    }

    /// Adds an option without a value, if it is on.
    pub fn switch(&mut self, name: &'static str, on: bool) {
        if on {
            self.0.push((name, None));
        }
    }

    /// Adds an option with a value, which is quoted if it has blanks.
    pub fn value(&mut self, name: &'static str, value: String) {
        self.0.push((name, Some(value)));
    }

    /// The lines for this CRIU, and the names it does not know yet.
    fn render(&self, version: Version) -> (String, Vec<&'static str>) {
        let (mut text, mut unknown) = (String::new(), Vec::new());
        for (name, value) in &self.0 {
            if !KNOWN
                .iter()
                .any(|option| option.name == *name && option.since <= version)
            {
                unknown.push(*name);
                continue;
            }
            text.push_str(name);
            if let Some(value) = value {
                let quote = if value.contains(' ') { "\"" } else { "" };
                text.extend([" ", quote, value, quote]);
            }
            text.push('\n');
        }
        (text, unknown)
    }
}

/// Where the annotation that is injected at create points.
pub fn path(bundle: &Path) -> PathBuf {
    bundle.join("criu.conf")
}

fn env_path(bundle: &Path) -> PathBuf {
    bundle.join("criu-env.conf")
}

/// What one operation needs written.
#[derive(Debug)]
pub struct Request<'a> {
    /// The bundle whose annotation names our file.
    pub bundle: &'a Path,
    /// The CRIU that will read it.
    pub version: Version,
    /// The options.
    pub options: &'a Options,
    /// The packet lock.
    pub network_lock: NetworkLock,
}

/// Writes both files and returns what runc's environment needs. `annotated` says whether the container was created with
/// the annotation that names our file ([`is_annotated`]).
///
/// # Errors
/// The bundle cannot be written, or the host's own file cannot be read.
pub fn write(request: &Request<'_>, annotated: bool) -> io::Result<Vec<(OsString, OsString)>> {
    let (options, unknown) = request.options.render(request.version);
    if !unknown.is_empty() {
        tracing::warn!(version = %request.version, options = unknown.join(" "), "this criu does not know all options");
    }
    let mut environment = lock_line(request.network_lock, request.version)
        .unwrap_or_default()
        .to_owned();
    if annotated {
        fs::write(path(request.bundle), read_base(Path::new(BASE_PATH))? + &options)?;
    } else {
        environment.push_str(&options);
    }
    if environment.is_empty() {
        return Ok(Vec::new());
    }
    let path = env_path(request.bundle);
    fs::write(&path, environment)?;
    Ok(vec![("CRIU_CONFIG_FILE".into(), path.into_os_string())])
}

/// Whether runc will read our file for the container of this bundle.
pub fn is_annotated(bundle: &Path) -> bool {
    let ours = path(bundle);
    match SpecView::read(bundle) {
        Ok(spec) => spec
            .annotation(ANNOTATION)
            .is_some_and(|path| Path::new(path) == ours),
        Err(error) => {
            tracing::warn!(%error, "failed to read the annotations of the bundle");
            false
        }
    }
}

/// Removes what [`write`] wrote; files that are not there are no error.
///
/// # Errors
/// The first file that could not be removed; the other one was tried too.
pub fn remove(bundle: &Path) -> io::Result<()> {
    let results = [path(bundle), env_path(bundle)].map(|file| match fs::remove_file(file) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    });
    results.into_iter().collect()
}

fn lock_line(lock: NetworkLock, version: Version) -> Option<&'static str> {
    match lock {
        NetworkLock::Skip if version >= NETWORK_LOCK_SKIP => Some("network-lock skip\n"),
        NetworkLock::Iptables => Some("network-lock iptables\n"),
        NetworkLock::Nftables => Some("network-lock nftables\n"),
        NetworkLock::Auto | NetworkLock::Skip => None,
    }
}

fn read_base(path: &Path) -> io::Result<String> {
    let file = match File::open(path) {
        Ok(file) => file,
        // CRIU ignores a missing file too.
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(String::new()),
        Err(error) => return Err(error),
    };
    let mut text = String::new();
    let _ = file.take(BASE_SIZE_MAX).read_to_string(&mut text)?;
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    Ok(text)
}

/// Whether a lock can be skipped is decided by what there is to protect: the settings may only insist.
pub fn resolve_lock(wanted: NetworkLock, connections_kept: bool) -> NetworkLock {
    match wanted {
        NetworkLock::Auto if !connections_kept => NetworkLock::Skip,
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CRIU_4_2: Version = Version::new(4, 2);

    #[test]
    fn only_options_the_version_knows_are_written() {
        let mut options = Options::default();
        options.switch("file-locks", true);
        options.switch("link-remap", false);
        options.switch("skip-file-rwx-check", true);
        options.value("ghost-limit", "7".to_owned());
        options.switch("invented", true);
        assert_eq!(
            options.render(CRIU_4_2),
            (
                "file-locks\nskip-file-rwx-check\nghost-limit 7\n".to_owned(),
                vec!["invented"]
            )
        );
        let (text, unknown) = options.render(Version::new(3, 11));
        assert_eq!(text, "file-locks\nghost-limit 7\n");
        assert_eq!(unknown, ["skip-file-rwx-check", "invented"]);
    }

    #[test]
    fn a_value_with_blanks_is_quoted() {
        let mut options = Options::default();
        options.value("action-script", "sh /run/x.sh".to_owned());
        assert_eq!(options.render(CRIU_4_2).0, "action-script \"sh /run/x.sh\"\n");
    }

    #[test]
    fn every_option_of_a_dump_and_a_restore_is_in_the_table() {
        let settings = config::Settings::default();
        let mut restore = settings.restore.clone();
        restore.skip_file_check = true;
        restore.external = vec!["mnt[a]:/b".to_owned()];
        let choices = Choices {
            tcp: Tcp::Close,
            skip_in_flight: true,
            link_remap: true,
            ..Choices::default()
        };
        for options in [
            Options::of_dump(&settings.dump, &choices),
            Options::of_restore(&restore, true),
        ] {
            assert_eq!(options.render(CRIU_4_2).1, [""; 0]);
        }
    }

    #[test]
    fn a_skip_is_only_asked_of_a_criu_that_has_it() {
        assert_eq!(
            lock_line(NetworkLock::Skip, CRIU_4_2),
            Some("network-lock skip\n")
        );
        assert_eq!(lock_line(NetworkLock::Skip, Version::new(3, 17)), None);
        assert_eq!(lock_line(NetworkLock::Auto, CRIU_4_2), None);
        assert_eq!(resolve_lock(NetworkLock::Auto, false), NetworkLock::Skip);
        assert_eq!(resolve_lock(NetworkLock::Auto, true), NetworkLock::Auto);
        assert_eq!(resolve_lock(NetworkLock::Nftables, false), NetworkLock::Nftables);
    }

    #[test]
    fn without_the_annotation_every_option_goes_through_the_environment() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut options = Options::default();
        options.switch("leave-stopped", true);
        let request = Request {
            bundle: dir.path(),
            version: CRIU_4_2,
            options: &options,
            network_lock: NetworkLock::Skip,
        };
        for (annotated, expected) in [
            (false, "network-lock skip\nleave-stopped\n"),
            (true, "network-lock skip\n"),
        ] {
            let env = write(&request, annotated).expect("write the files");
            assert_eq!(env[0].0, "CRIU_CONFIG_FILE");
            assert_eq!(fs::read_to_string(&env[0].1).expect("read"), expected);
            assert_eq!(path(dir.path()).exists(), annotated);
        }
        assert!(
            fs::read_to_string(path(dir.path()))
                .expect("read")
                .ends_with("leave-stopped\n")
        );
        remove(dir.path()).expect("remove");
        remove(dir.path()).expect("remove what is gone");
        assert!(!path(dir.path()).exists());
    }

    #[test]
    fn only_an_annotation_that_names_our_file_is_ours() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let ours = path(dir.path()).display().to_string();
        for (value, expected) in [(ours.as_str(), true), ("/etc/criu/mine.conf", false), ("", false)] {
            let config = format!("{{\"annotations\": {{\"{ANNOTATION}\": \"{value}\"}}}}");
            fs::write(dir.path().join("config.json"), config).expect("write");
            assert_eq!(is_annotated(dir.path()), expected, "{value}");
        }
        fs::remove_file(dir.path().join("config.json")).expect("remove");
        assert!(!is_annotated(dir.path()));
    }
}
