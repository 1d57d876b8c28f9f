//! The settings of dump, restore and the shim: what can be set, where it may come from, and where each value came from.
//!
//! ```text
//!   defaults  <  /etc/cedana/config.json (or the file CEDANA_CONFIG names)  <  annotations of the container
//!                 {"dump": {"tcp": "established"}}                             cedana.dump.tcp=established
//! ```
//!
//! One table ([`Key`]) holds every setting under its dotted name; the file and the annotations are two spellings of it.
//! Clients such as docker, nerdctl and kubelets drop checkpoint options under any runtime name but
//! `io.containerd.runc.v2`, and all of them can set annotations: what a client cannot say in a request is said here.
//!
//! Invariants:
//! - a name that is not in the table is an error that suggests the nearest one: a typo must not silently change a dump;
//! - [`resolve`] is the only way to [`Settings`], and the only reader of files and of the environment here;
//! - no setting is secret, and none is a credential.

pub mod key;
pub mod layer;
pub mod settings;
pub mod value;

pub use key::{KEYS, Key};
pub use layer::{ConfigError, Source, resolve, resolve_from, resolve_without_file};
pub use settings::{Dump, NetworkLock, Restore, Settings, Tcp};
