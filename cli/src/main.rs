//! `cedana`.
fn main() {}
