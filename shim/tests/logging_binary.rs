//! A logging binary that does not exist. Alone in its process: descriptors are passed by number, and other tests that open
//! and close files between fork and exec would take those numbers, as nothing does in the shim with its one thread.

#![cfg(test)]

use std::path::Path;

use shim::reap::Reaper;
use shim::stdio::{Context, StdioError, StdioRequest, prepare};

#[test]
fn a_missing_logging_binary_is_an_error_that_names_it() {
    let uri = "binary:///missing/logger?a=b".to_owned();
    let request = StdioRequest {
        stdout: uri.clone(),
        stderr: uri,
        ..StdioRequest::default()
    };
    let context = Context {
        namespace: "test-space",
        id: "box",
        socket_dir: Path::new("/nowhere"),
        owner: None,
        reaper: &Reaper::new(),
    };
    let error = prepare(&request, &context).unwrap_err();
    assert!(matches!(error, StdioError::Logger { .. }), "{error:?}");
    assert_eq!(error.to_string(), "start logging binary /missing/logger");
}
