//! The command line, as a tree of verbs. Each verb's own arguments are beside the verb.

use std::path::PathBuf;

use clap::error::{ContextKind, ContextValue};
use clap::{Parser, Subcommand};

use crate::commands::{
    check, checkpoint, completion, config, convert, delete, dump, features, freeze, job, kill, manage, ps,
    restore, run, version,
};

/// Saves running containers and brings them back.
#[derive(Debug, Parser)]
#[command(
    name = "cedana",
    version,
    propagate_version = true,
    arg_required_else_help = true
)]
pub struct Cedana {
    /// What is said for every verb.
    #[command(flatten)]
    pub global: Global,
    /// The verb.
    #[command(subcommand)]
    pub verb: Verb,
}

/// What every verb takes.
#[derive(Debug, Clone, clap::Args)]
pub struct Global {
    /// Print one JSON document instead of text
    #[arg(long, global = true, help_heading = "For every verb")]
    pub json: bool,
    /// The directory of the configuration file
    #[arg(long, global = true, help_heading = "For every verb", value_name = "DIR", value_hint = clap::ValueHint::DirPath)]
    pub config_dir: Option<PathBuf>,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// List jobs
    #[command(visible_alias = "jobs")]
    Ps(ps::Args),
    /// Look at jobs and their checkpoints, end and forget them
    Job(job::Args),
    /// List the checkpoints of a job
    Checkpoints(job::checkpoints::Args),
    /// Look at checkpoints, verify and remove them
    Checkpoint(checkpoint::Args),
    /// Keep a checkpoint in another form
    Convert(convert::Args),
    /// Kill jobs
    Kill(kill::Args),
    /// Forget jobs that have ended
    Delete(delete::Args),
    /// Save a container
    Dump(dump::Args),
    /// Bring a container back
    Restore(restore::Args),
    /// Start a container as a job
    Run(run::Args),
    /// Make a container a job that another runtime runs
    Manage(manage::Args),
    /// Stop all processes of a container where they are
    Freeze(freeze::Args),
    /// Let a frozen container go on
    #[command(visible_alias = "thaw")]
    Unfreeze(freeze::Args),
    /// Whether this host, or a job, can be saved, and what is in the way
    Check(check::Args),
    /// What this build can do on this host
    Features(features::Args),
    /// Every setting, its value, and where it came from
    Config(config::Args),
    /// The completion script of a shell
    Completion(completion::Args),
    /// The version
    Version(version::Args),
}

/// `cedana dump job web`, if somebody typed `cedana dump web`.
pub fn meant(error: &clap::Error, words: impl Iterator<Item = String>) -> Option<String> {
    let Some(ContextValue::String(name)) = error.get(ContextKind::InvalidSubcommand) else {
        return None;
    };
    // clap has a better idea of what was mistyped.
    if error.get(ContextKind::SuggestedSubcommand).is_some() {
        return None;
    }
    let before: Vec<String> = words.skip(1).take_while(|word| word != name).collect();
    let verb = before.iter().find(|word| !word.starts_with('-'))?;
    matches!(verb.as_str(), "dump" | "restore").then(|| format!("cedana {verb} job {name}"))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_tree_of_verbs_is_sound() {
        Cedana::command().debug_assert();
    }

    #[test]
    fn a_job_that_stands_for_the_word_job_is_understood() {
        for (line, expected) in [
            (&["cedana", "dump", "web"][..], Some("cedana dump job web")),
            (
                &["cedana", "--json", "restore", "web"],
                Some("cedana restore job web"),
            ),
            (&["cedana", "dump", "jo"], None),
            (&["cedana", "rescue", "web"], None),
            (&["cedana", "run", "web"], None),
        ] {
            let error = Cedana::try_parse_from(line).expect_err("an error");
            let words = line.iter().map(|&word| word.to_owned());
            assert_eq!(meant(&error, words).as_deref(), expected, "{line:?}");
        }
    }
}
