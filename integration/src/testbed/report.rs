//! What the testbed tells the person who runs it: lines on standard error, standard output belongs to the command.

use std::io::Write;

/// Prints one line, marked as the testbed's. A closed standard error is no reason to stop, so failure is ignored.
pub fn say(line: &str) {
    let _ = writeln!(std::io::stderr().lock(), "testbed: {line}");
}
