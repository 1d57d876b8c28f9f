//! Which containerd, and which of its namespaces: what every verb takes that names a container of containerd's.

use std::path::PathBuf;

use jobs::record::Key;
use jobs::spool::Spool;

use super::containerd::{DEFAULT_ADDRESS, DEFAULT_NAMESPACE};

/// Names containerd for its own clients.
const ADDRESS_VARIABLE: &str = "CONTAINERD_ADDRESS";

/// Names a namespace for its own clients.
const NAMESPACE_VARIABLE: &str = "CONTAINERD_NAMESPACE";

/// The flags.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Address {
    /// containerd's socket; $CONTAINERD_ADDRESS or /run/containerd/containerd.sock unless given
    #[arg(long, value_name = "SOCKET", value_hint = clap::ValueHint::FilePath)]
    address: Option<PathBuf>,
    /// containerd's namespace; $CONTAINERD_NAMESPACE or default unless given
    #[arg(short, long, value_name = "NAMESPACE")]
    namespace: Option<String>,
}

impl Address {
    /// The socket.
    pub fn socket(&self) -> PathBuf {
        let said = self
            .address
            .clone()
            .or_else(|| said(ADDRESS_VARIABLE).map(PathBuf::from));
        said.unwrap_or_else(|| PathBuf::from(DEFAULT_ADDRESS))
    }

    /// The namespace.
    pub fn namespace(&self) -> String {
        self.namespace_or(None)
    }

    /// The namespace of the flag, if it was given.
    pub fn said_namespace(&self) -> Option<&str> {
        self.namespace.as_deref()
    }

    /// The namespace, with what is meant if the user does not say.
    pub fn namespace_or(&self, meant: Option<&str>) -> String {
        let said_so = self.namespace.clone().or_else(|| said(NAMESPACE_VARIABLE));
        said_so.unwrap_or_else(|| meant.unwrap_or(DEFAULT_NAMESPACE).to_owned())
    }

    /// The key of a container there: with the socket as its shim spells it, which is as containerd was told.
    pub fn key(&self, spool: &Spool, namespace: &str, id: &str) -> Key {
        let socket = self.socket();
        let real = socket.canonicalize().ok();
        let is_same =
            |key: &Key| key.engine == socket || (real.is_some() && key.engine.canonicalize().ok() == real);
        let published = spool.read_all().records.into_iter().map(|(record, _)| record.key);
        let spelled = published.into_iter().find(is_same).map(|key| key.engine);
        Key {
            engine: spelled.unwrap_or(socket),
            namespace: namespace.to_owned(),
            id: id.to_owned(),
        }
    }
}

fn said(variable: &str) -> Option<String> {
    std::env::var(variable).ok().filter(|value| !value.is_empty())
}
