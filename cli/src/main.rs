//! `cedana`: lists the jobs of a machine, saves them and brings them back.
//!
//! ```text
//!   args ----> commands/VERB ----> jobs      which job is meant (the registry, and the spool of the shims)
//!                   |      \-----> shim      the job's own shim: dump, freeze, thaw, restore in place
//!                   |       \----> engines   containerd, docker, nerdctl: who starts and kills containers
//!                   v
//!                output     tables, JSON, progress: the only printing
//! ```
//!
//! Invariants:
//! - the command line never starts CRIU or runc on a container: the shim that owns it does;
//! - standard output carries what was asked for and nothing else; errors, hints and warnings go to standard error;
//! - each failure has a kind, and each kind its exit code ([`error::Kind`]).

mod args;
mod commands;
mod completer;
mod context;
mod engines;
mod error;
mod interrupt;
mod jobs;
mod output;
mod shim;

use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use clap_complete::CompleteEnv;

fn main() -> ExitCode {
    // Ends the process when a shell asks for the names that could come next.
    CompleteEnv::with_factory(args::Cedana::command)
        .var(commands::completion::ASKED_BY)
        .complete();
    let cedana = match args::Cedana::try_parse() {
        Ok(cedana) => cedana,
        Err(error) => return refused(&error),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let done = match runtime {
        Ok(runtime) => runtime.block_on(commands::run(cedana)),
        Err(source) => Err(error::Error::failed(format!("failed to start: {source}"))),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            output::error(&error);
            ExitCode::from(error.kind.code())
        }
    }
}

/// Says what is wrong with the command line, or the help that was asked for.
fn refused(error: &clap::Error) -> ExitCode {
    // Without a standard error there is still the exit code.
    let _unheard = error.print();
    if let Some(meant) = args::meant(error, std::env::args()) {
        output::note(&format!("a job is meant? {meant}"));
    }
    ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
}
