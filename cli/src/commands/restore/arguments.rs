//! What all restores take.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::images::Memory;
use crate::commands::dump::criu_options;
use crate::error::Error;

/// Flags of a restore.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Flags {
    /// Append the output of the container to this file
    #[arg(short, long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    pub out: Option<PathBuf>,
    /// Write the pid to this file
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    pub pid_file: Option<PathBuf>,
    /// Bring established TCP connections back as they were
    #[arg(long, conflicts_with = "tcp_close")]
    tcp_established: bool,
    /// Bring established TCP connections back closed
    #[arg(long)]
    tcp_close: bool,
    /// Bring all memory back before the job runs, instead of behind it
    #[arg(long)]
    eager: bool,
    /// Do not compare the permissions of files with what they were at the dump
    #[arg(long)]
    skip_file_check: bool,
    /// Restore though this processor lacks instructions that the one of the dump had
    #[arg(long)]
    skip_cpu_check: bool,
    /// Restore though the container was made from another image than the checkpoint is of
    #[arg(long)]
    pub skip_image_check: bool,
    /// What stands where the dump left something out, as CRIU names it (repeatable): mnt[data]:/data
    #[arg(long, value_name = "RESOURCE")]
    external: Vec<String>,
    /// CRIU's options as JSON, by CRIU's names; they win over the flags
    #[arg(long, value_name = "JSON")]
    criu_opts: Option<String>,
    /// Taken from the checkpoint; accepted for scripts
    #[arg(long, hide = true)]
    file_locks: bool,
    /// Taken from the checkpoint; accepted for scripts
    #[arg(long, hide = true)]
    shell_job: bool,
    /// Taken from the checkpoint; accepted for scripts
    #[arg(long, hide = true)]
    link_remap: bool,
}

impl Flags {
    /// What becomes of the memory in an archive.
    pub fn memory(&self) -> Memory {
        match self.eager {
            true => Memory::Unpacked,
            false => Memory::Left,
        }
    }

    /// The settings that they are, by dotted names.
    ///
    /// # Errors
    /// Of CRIU's options there is one that is no setting.
    pub fn settings(&self) -> Result<BTreeMap<String, String>, Error> {
        let tcp = match (self.tcp_established, self.tcp_close) {
            (true, _) => Some("established"),
            (_, true) => Some("close"),
            _ => None,
        };
        let tcp = tcp.map(|word| ("restore.tcp", word));
        let check = self
            .skip_file_check
            .then_some(("restore.skip-file-check", "true"));
        let cpu = self.skip_cpu_check.then_some(("restore.skip-cpu-check", "true"));
        let eager = self.eager.then_some(("restore.lazy", "false"));
        let said = tcp.into_iter().chain(check).chain(cpu).chain(eager);
        let mut settings: BTreeMap<String, String> = said
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        if !self.external.is_empty() {
            let all = config::text_of_list(&self.external);
            drop(settings.insert("restore.external".to_owned(), all));
        }
        if let Some(text) = &self.criu_opts {
            settings.extend(of_criu(text)?);
        }
        Ok(settings)
    }

    /// The file for the output as an absolute path, which is what a shim can use.
    ///
    /// # Errors
    /// It is relative, and there is no directory to which.
    pub fn out(&self) -> Result<Option<PathBuf>, Error> {
        let absolute = |path| {
            std::path::absolute(path)
                .map_err(|source| Error::usage(format!("failed to use {path:?}: {source}")))
        };
        self.out.as_ref().map(absolute).transpose()
    }

    /// Writes the file of the pid, if one is asked for.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write_pid(&self, pid: i32) -> Result<(), Error> {
        let Some(path) = &self.pid_file else {
            return Ok(());
        };
        std::fs::write(path, pid.to_string())
            .map_err(|source| Error::failed(format!("failed to write {}: {source}", path.display())))
    }
}

/// Options of CRIU's that a restore has settings for. The others are as the dump was, whose manifest has them.
fn of_criu(text: &str) -> Result<BTreeMap<String, String>, Error> {
    let options = criu_options::parse(text)?;
    let of_restore = options
        .settings
        .into_iter()
        .filter_map(|(name, value)| match name.as_str() {
            "dump.tcp" => Some(("restore.tcp".to_owned(), value)),
            "dump.timeout" => Some(("restore.timeout".to_owned(), value)),
            "dump.external" => Some(("restore.external".to_owned(), value)),
            "dump.network-lock" => Some(("restore.network-lock".to_owned(), value)),
            _ => None,
        });
    Ok(of_restore.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_settings() {
        let none = Flags::default();
        assert!(none.settings().expect("settings").is_empty());
        for (flags, expected) in [
            (
                Flags {
                    tcp_established: true,
                    ..none.clone()
                },
                "restore.tcp=established",
            ),
            (
                Flags {
                    eager: true,
                    ..none.clone()
                },
                "restore.lazy=false",
            ),
            (
                Flags {
                    tcp_close: true,
                    ..none.clone()
                },
                "restore.tcp=close",
            ),
            (
                Flags {
                    external: vec!["mnt[a]:/a".to_owned(), "mnt[b]:/b".to_owned()],
                    ..none.clone()
                },
                "restore.external=mnt[a]:/a,mnt[b]:/b",
            ),
            (
                Flags {
                    skip_file_check: true,
                    ..none.clone()
                },
                "restore.skip-file-check=true",
            ),
            (
                Flags {
                    tcp_established: true,
                    criu_opts: Some(r#"{"tcp_close": true, "file_locks": true}"#.to_owned()),
                    ..none.clone()
                },
                "restore.tcp=close",
            ),
        ] {
            let settings = flags.settings().expect("settings");
            let said: Vec<String> = settings.iter().map(|(k, v)| format!("{k}={v}")).collect();
            assert_eq!(said, [expected]);
        }
    }
}
