//! The settings of `cedana` and the shim: what can be set, where it may come from, and where each value came from.
//!
//! ```text
//!   defaults
//!     < the file        /etc/cedana/config.json or .toml     {"dump": {"tcp": "established"}}
//!     < runtime options of containerd's configuration        "cedana.dump.tcp" = "established"
//!     < environment                                          CEDANA_DUMP_TCP=established
//!     < annotations of the container                         cedana.dump.tcp=established
//!     < flags of `cedana`                                    --tcp-established
//! ```
//!
//! One table ([`Key`]) holds every setting under its dotted name; the layers are spellings of it.
//! Clients such as docker, nerdctl and kubelets drop checkpoint options under any runtime name but
//! `io.containerd.runc.v2`, and all of them can set annotations: what a client cannot say in a request is said here.
//!
//! Invariants:
//! - a name that is not in the table is an error that suggests the nearest one: a typo must not silently change a dump;
//! - [`resolve_layers`], and [`for_container`] in the shim, are the only ways to [`Settings`]; only [`file`] reads files,
//!   only [`environment`] the environment;
//! - an annotation never sets what is the host's ([`key::Scope`]);
//! - no setting is secret, and none is a credential.

pub mod environment;
pub mod file;
pub mod key;
pub mod layer;
pub mod name;
pub mod settings;
pub mod shown;
pub mod source;
mod toml;
pub mod value;

#[cfg(any(test, fuzzing))]
pub mod fuzzing;

pub use environment::Environment;
pub use file::Place;
pub use key::{KEYS, Key};
pub use layer::{Layers, for_container, resolve_layers};
pub use settings::{Choice, Compression, Dump, Files, NetworkLock, Restore, Settings, Tcp};
pub use shown::{Shown, shown};
pub use source::{ConfigError, Source};
pub use toml::OPTIONS_TABLE;
pub use value::text_of_list;
