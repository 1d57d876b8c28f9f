//! The command line: `testbed [SUITE] [-- COMMAND…]`.

use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::{Result, bail};

use super::suite::Suite;

/// What a person asked for.
#[derive(Debug, Clone)]
pub struct RunArgs {
    /// The engines to run it on.
    pub suite: Suite,
    /// The command and its arguments, never empty.
    pub command: Vec<OsString>,
    /// Where it is started: the same path inside as outside.
    pub directory: PathBuf,
}

/// Reads the arguments after the program's name. Without a command it is a shell.
pub fn parse(arguments: impl IntoIterator<Item = OsString>, directory: PathBuf) -> Result<RunArgs> {
    let mut arguments = arguments.into_iter().peekable();
    let mut suite = Suite::Forky;
    if let Some(name) = arguments.next_if(|first| first != "--") {
        suite = Suite::named(&name.to_string_lossy())?;
    }
    if let Some(odd) = arguments.next_if(|next| next != "--") {
        bail!(
            "understand {odd:?}: usage is testbed [SUITE] [-- COMMAND…], with one of the suites {}",
            Suite::names()
        );
    }
    let mut command: Vec<OsString> = arguments.skip(1).collect();
    if command.is_empty() {
        command = vec!["bash".into()];
    }
    Ok(RunArgs {
        suite,
        command,
        directory,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(words: &[&str]) -> Option<(Suite, Vec<String>)> {
        let args = parse(words.iter().map(OsString::from), PathBuf::from("/")).ok()?;
        Some((
            args.suite,
            args.command
                .iter()
                .map(|word| word.to_string_lossy().into_owned())
                .collect(),
        ))
    }

    #[test]
    fn suite_and_command_are_both_optional() {
        let shell = vec!["bash".to_owned()];
        type Case<'a> = (&'a [&'a str], Option<(Suite, Vec<String>)>);
        let cases: &[Case<'_>] = &[
            (&[], Some((Suite::Forky, shell.clone()))),
            (&["trixie"], Some((Suite::Trixie, shell.clone()))),
            (&["--"], Some((Suite::Forky, shell))),
            (
                &["--", "ctr", "version"],
                Some((Suite::Forky, vec!["ctr".into(), "version".into()])),
            ),
            (
                &["latest", "--", "sh", "--", "x"],
                Some((Suite::Latest, vec!["sh".into(), "--".into(), "x".into()])),
            ),
            (&["buster"], None),
            (&["forky", "ctr"], None),
        ];
        for (words, expected) in cases {
            assert_eq!(&parsed(words), expected, "{words:?}");
        }
    }
}
