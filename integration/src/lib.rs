//! Black-box tests and developer tasks: sees only the binaries.
