//! The flags of every dump, as settings of that dump alone.

use std::collections::BTreeMap;
use std::path::PathBuf;

use oci_bundles::archive::Form;

use super::{criu_options, pack};
use crate::context::Context;
use crate::error::Error;

/// What every dump takes.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Flags {
    /// The directory that the checkpoint goes into; it must be there
    #[arg(short, long, value_name = "DIR", value_hint = clap::ValueHint::DirPath)]
    pub dir: Option<PathBuf>,
    /// The checkpoint's name in it [default: dump-containerd-JOB-TIME]
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// Make one file of it: none, tar, gzip, lz4, zlib, zstd [default: none, or as configured]
    #[arg(long, value_name = "FORM", value_parser = pack::forms(), hide_possible_values = true)]
    pub compression: Option<Form>,
    /// Tell how long each phase took
    #[arg(long)]
    pub profiling: bool,
    /// The container goes on afterwards
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true)]
    pub leave_running: Option<bool>,
    /// Save established TCP connections
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true)]
    pub tcp_established: Option<bool>,
    /// Have established TCP connections come back closed
    #[arg(long, conflicts_with = "tcp_established", value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true)]
    pub tcp_close: Option<bool>,
    /// Leave out connections that nobody has accepted yet
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true)]
    pub skip_in_flight: Option<bool>,
    /// Save file locks
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true)]
    pub file_locks: Option<bool>,
    /// The largest deleted but open file that is saved (bytes, or with K, M, G)
    #[arg(long, value_name = "SIZE")]
    pub ghost_limit: Option<String>,
    /// Leave out datagram sockets that are connected to the host
    #[arg(long, alias = "ext-unix-sk", value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true)]
    pub external_unix_sockets: Option<bool>,
    /// How packets are kept away meanwhile: auto, skip, iptables, nftables
    #[arg(long, value_name = "HOW")]
    pub network_lock: Option<String>,
    /// Something outside the container that its processes hold, as CRIU names it (repeatable)
    #[arg(long, value_name = "RESOURCE")]
    pub external: Vec<String>,
    /// Take a client's terminal along
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true)]
    pub shell_job: Option<bool>,
    /// Save deleted files that still have another name
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true)]
    pub link_remap: Option<bool>,
    /// CRIU's options as JSON, by CRIU's names; they win over the flags
    #[arg(long, value_name = "JSON")]
    pub criu_opts: Option<String>,
}

/// What a dump is asked to do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wishes {
    /// The container goes on afterwards.
    pub leave_running: bool,
    /// A client's terminal is taken along.
    pub shell_job: bool,
    /// Settings of this dump by their dotted names.
    pub settings: BTreeMap<String, String>,
}

impl Flags {
    /// The flags, with `--criu-opts` over them and the configuration below. The settings are checked: a shim is not asked
    /// for what cannot be.
    ///
    /// # Errors
    /// Something was said that is no setting: [`crate::error::Kind::Usage`].
    pub fn wishes(&self, context: &Context) -> Result<Wishes, Error> {
        let options = match &self.criu_opts {
            Some(text) => criu_options::parse(text)?,
            None => criu_options::Options::default(),
        };
        let mut settings = BTreeMap::new();
        let mut set = |name: &str, value: Option<String>| {
            if let Some(value) = value {
                let _before = settings.insert(name.to_owned(), value);
            }
        };
        let tcp = |established: bool| if established { "established" } else { "default" }.to_owned();
        set("dump.tcp", self.tcp_established.map(tcp));
        let closed = |close: bool| if close { "close" } else { "default" }.to_owned();
        set("dump.tcp", self.tcp_close.map(closed));
        set(
            "dump.skip-in-flight",
            self.skip_in_flight.map(|on| on.to_string()),
        );
        set("dump.file-locks", self.file_locks.map(|on| on.to_string()));
        set("dump.link-remap", self.link_remap.map(|on| on.to_string()));
        set(
            "dump.external-unix-sockets",
            self.external_unix_sockets.map(|on| on.to_string()),
        );
        set("dump.ghost-limit", self.ghost_limit.clone());
        set("dump.network-lock", self.network_lock.clone());
        set(
            "dump.external",
            (!self.external.is_empty()).then(|| config::text_of_list(&self.external)),
        );
        settings.extend(options.settings);
        let _checked = context.settings.with_flags(&settings)?;
        Ok(Wishes {
            leave_running: options
                .leave_running
                .or(self.leave_running)
                .unwrap_or_else(|| configured_leave_running(context)),
            shell_job: options.shell_job.or(self.shell_job).unwrap_or(false),
            settings,
        })
    }
}

/// The default of that setting is for clients that cannot say it. Whoever types `cedana dump` can, and without a word the
/// container ends with its dump, unless somebody wrote otherwise into the configuration.
fn configured_leave_running(context: &Context) -> bool {
    let settings = &context.settings;
    settings.sources.contains_key("dump.leave-running") && settings.dump.leave_running
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        flags: Flags,
    }

    fn wishes(args: &[&str]) -> Result<Wishes, Error> {
        let line =
            Line::try_parse_from([&["cedana"], args].concat()).map_err(|e| Error::usage(e.to_string()))?;
        line.flags.wishes(&Context::default())
    }

    fn settings(args: &[&str]) -> Vec<(String, String)> {
        wishes(args).expect("wishes").settings.into_iter().collect()
    }

    fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs
            .iter()
            .map(|(a, b)| ((*a).to_owned(), (*b).to_owned()))
            .collect()
    }

    #[test]
    fn each_flag_is_a_setting_of_this_dump() {
        for (args, expected) in [
            (&[][..], &[][..]),
            (&["--tcp-established"], &[("dump.tcp", "established")]),
            (&["--tcp-established=false"], &[("dump.tcp", "default")]),
            (&["--tcp-close"], &[("dump.tcp", "close")]),
            (&["--tcp-close=false"], &[("dump.tcp", "default")]),
            (&["--file-locks=false"], &[("dump.file-locks", "false")]),
            (&["--ghost-limit", "1G"], &[("dump.ghost-limit", "1G")]),
            (&["--network-lock", "skip"], &[("dump.network-lock", "skip")]),
            (&["--ext-unix-sk"], &[("dump.external-unix-sockets", "true")]),
            (
                &["--skip-in-flight", "--link-remap"],
                &[("dump.link-remap", "true"), ("dump.skip-in-flight", "true")],
            ),
            (
                &[
                    "--tcp-established",
                    "--criu-opts",
                    r#"{"tcp_established": false}"#,
                ],
                &[("dump.tcp", "default")],
            ),
        ] {
            assert_eq!(settings(args), pairs(expected), "{args:?}");
        }
    }

    #[test]
    fn the_container_ends_unless_somebody_says_otherwise() {
        for (args, leave_running) in [
            (&[][..], false),
            (&["--leave-running"], true),
            (&["--leave-running=false"], false),
            (
                &["--leave-running", "--criu-opts", r#"{"LeaveRunning": false}"#],
                false,
            ),
            (&["--criu-opts", r#"{"leave_running": true}"#], true),
        ] {
            assert_eq!(
                wishes(args).expect("wishes").leave_running,
                leave_running,
                "{args:?}"
            );
        }
    }

    #[test]
    fn nonsense_is_a_usage_error() {
        for args in [
            &["--criu-opts", "nonsense"][..],
            &["--compression", "rar"],
            &["--file-locks=perhaps"],
            &["--ghost-limit", "much"],
            &["--tcp-close", "--tcp-established"],
        ] {
            let error = wishes(args).expect_err("an error");
            assert_eq!(error.kind, crate::error::Kind::Usage, "{args:?}");
        }
    }
}
