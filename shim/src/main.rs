//! `containerd-shim-cedana-v1`: containerd starts it with `start` and `delete`, and `start` starts the server.
//!
//! Standard output and error are read by containerd as one answer, so nothing is printed but that, or why there is none.

use std::env;
use std::error::Error;
use std::io::{self, Write};
use std::process::ExitCode;

use shim::args::{Action, Args, Environment};
use shim::restore::loopback;
use shim::{bootstrap, capture, delete, info, preflight, serve, start, worker};

fn main() -> ExitCode {
    match run() {
        Ok(answer) if io::stdout().lock().write_all(&answer).is_ok() => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            // There is nobody left to tell if this fails too.
            let _ = writeln!(io::stderr(), "failed to {error}");
            ExitCode::FAILURE
        }
    }
}

/// Does what the command line says. Returns what is to be printed.
fn run() -> Result<Vec<u8>, Box<dyn Error>> {
    if let Some(done) = worker::tar::run_as_tar() {
        return done.map(|()| Vec::new());
    }
    if let Some(raised) = loopback::run_as_script() {
        return Ok(raised.map(|()| Vec::new())?);
    }
    if let Some(ended) = worker::run_as_worker(env::args_os().skip(1)) {
        return ended.map(|()| Vec::new());
    }
    let args = Args::parse(env::args_os().skip(1))?;
    let environment = Environment::read();
    match args.action {
        Action::Start => {
            let stdin = bootstrap::read_stdin()?;
            Ok(start::start(&args, &environment, &env::current_dir()?, &stdin)?)
        }
        Action::Delete => {
            let deleted = delete::delete(&args, &env::current_dir()?)?;
            let _ = deleted
                .complaints
                .iter()
                .try_for_each(|complaint| writeln!(io::stderr(), "failed to {complaint}"));
            Ok(deleted.answer)
        }
        Action::Info => Ok(info::info(&bootstrap::read_stdin()?)?),
        Action::Preflight => {
            let bundle = Some(args.bundle.as_path()).filter(|bundle| !bundle.as_os_str().is_empty());
            Ok(preflight::preflight(args.pid, bundle)?)
        }
        Action::Capture => {
            capture::run(io::stdin(), io::stdout())?;
            Ok(Vec::new())
        }
        Action::Version => Ok(info::version().into_bytes()),
        Action::Serve => {
            serve::serve(&args, &environment, &env::current_dir()?)?;
            Ok(Vec::new())
        }
    }
}
