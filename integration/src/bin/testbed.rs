//! `testbed [SUITE] [-- COMMAND…]`: see `integration::testbed`, and `integration/testbed`, which builds and runs it.

use std::process::ExitCode;

use anyhow::{Context, Result};
use integration::testbed::command;
use integration::testbed::init::{self, NOT_RUN};
use integration::testbed::instance::{self, INIT_ARGUMENT};
use integration::testbed::report::say;
use integration::testbed::vm::{self, AGENT_ARGUMENT, PREPARE_ARGUMENT};

fn main() -> ExitCode {
    match run() {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            say(&format!("failed to {error:#}"));
            ExitCode::from(NOT_RUN)
        }
    }
}

fn run() -> Result<u8> {
    let mut arguments = std::env::args_os().skip(1).peekable();
    if arguments.next_if(|first| first == INIT_ARGUMENT).is_some() {
        return init::run();
    }
    if arguments.next_if(|first| first == AGENT_ARGUMENT).is_some() {
        return vm::agent::run();
    }
    if arguments.next_if(|first| first == PREPARE_ARGUMENT).is_some() {
        return vm::image::prepare_inside().map(|()| 0);
    }
    let directory = std::env::current_dir().context("find the current directory")?;
    instance::run(&command::parse(arguments, directory)?)
}
