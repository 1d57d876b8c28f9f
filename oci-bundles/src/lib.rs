//! A checkpoint at rest, and the bundle it is made from.
