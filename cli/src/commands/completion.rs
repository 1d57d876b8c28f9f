//! `cedana completion SHELL`.

use clap_complete::Shell;
use clap_complete::env::Shells;

use crate::context::Context;
use crate::error::Error;
use crate::output;

/// The variable by which the shell's script asks the command for names. It is nobody else's, and no setting.
pub const ASKED_BY: &str = "_CEDANA_COMPLETE";

/// Its arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The shell
    pub shell: Shell,
}

/// Prints the script. It asks `cedana` itself at each press of the key, so jobs and flags are the ones of that moment.
///
/// # Errors
/// Standard output cannot be written.
#[expect(clippy::unused_async, reason = "every verb is called alike")]
pub async fn run(args: Args, _context: &Context) -> Result<(), Error> {
    output::stdout(&script(args.shell)?)
}

fn script(shell: Shell) -> Result<String, Error> {
    let unknown = || Error::unsupported(format!("there is no completion for {shell}"));
    let shells = Shells::builtins();
    let writer = shells.completer(&shell.to_string()).ok_or_else(unknown)?;
    let mut script = Vec::new();
    writer
        .write_registration(ASKED_BY, "cedana", "cedana", "cedana", &mut script)
        .map_err(|source| Error::failed(format!("failed to write the completion for {shell}: {source}")))?;
    String::from_utf8(script).map_err(|_| unknown())
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum;

    use super::*;

    #[test]
    fn every_shell_that_is_offered_has_a_script() {
        for shell in Shell::value_variants() {
            let script = script(*shell).expect("a script");
            assert!(script.contains("cedana"), "{shell}");
        }
    }
}
