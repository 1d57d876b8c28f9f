//! How runc is to be run for one container: what the client said, and what must be inferred because it said nothing.
//!
//! ```text
//! <bundle>/options.json   the options of Create, as containerd's own shim writes them; read by `delete` after a crash
//! <bundle>/runtime        BinaryName alone, which shims before containerd 1.3 wrote; read if there is no better
//! ```
//! Three kinds arrive: `containerd.runc.v1.Options`; `runtimeoptions.v1.Options`, which CRI and dockerd send under a
//! runtime name that is not runc's, with the same settings as a TOML table; and nothing.

mod table;

use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use containerd_shim_protos::shim::oci;
use oci_bundles::spec::{SpecView, host_id};
use protobuf::{CodedInputStream, Message};
use serde::{Deserialize, Serialize};

/// File of the options in a bundle.
pub const OPTIONS_FILE: &str = "options.json";

/// File of the runtime's binary in a bundle, from before there was an options file.
pub const RUNTIME_FILE: &str = "runtime";

/// Type of the options that containerd's runc shim takes.
const RUNC_OPTIONS: &str = "containerd.runc.v1.Options";

/// Types of the options for any other runtime; CRI's own copy preceded the shared one.
const GENERIC_OPTIONS: [&str; 2] = ["runtimeoptions.v1.Options", "cri.runtimeoptions.v1.Options"];

/// The OCI runtime where no option names one.
const DEFAULT_BINARY: &str = "runc";

/// Its state where no option says otherwise: that of containerd's own shim, so that `runc --root` finds containers where
/// people expect them.
const DEFAULT_ROOT: &str = "/run/containerd/runc";

/// The largest options file or table that is read, in bytes. Real ones have a few hundred.
const OPTIONS_BYTES_MAX: u64 = 1 << 20;

/// Why options could not be understood or kept.
#[derive(Debug, thiserror::Error)]
pub enum OptionsError {
    /// The client sent options of another runtime.
    #[error(
        "read runtime options of type {0:?}: only {RUNC_OPTIONS} and runtimeoptions.v1.Options are known"
    )]
    UnknownType(String),
    /// The bytes are not what their type says.
    #[error("decode runtime options: {0}")]
    Decode(#[from] protobuf::Error),
    /// A line of the table is not `key = value`, or its value has the wrong type.
    #[error("read runtime options: line {line}: {problem}")]
    Table {
        /// Line number from 1.
        line: usize,
        /// What is wrong with it.
        problem: String,
    },
    /// The options file of the bundle is damaged.
    #[error("decode {}: {source}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Where it is damaged.
        source: serde_json::Error,
    },
    /// A file could not be read or written.
    #[error("{action} {}: {source}", path.display())]
    Io {
        /// What was tried: "read" or "write".
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the kernel answered.
        source: io::Error,
    },
}

/// Options of one container. Empty strings mean the default of whoever uses them.
///
/// The names in JSON are those of the Go shim, which leaves out what is empty: a node can go from one shim to the
/// other and back with containers running.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Options {
    /// `runc create --no-pivot`: keep the root directory by `chroot` (a rootfs on a ramdisk).
    #[serde(skip_serializing_if = "is_false")]
    pub no_pivot_root: bool,
    /// `runc create --no-new-keyring`: share the session keyring.
    #[serde(skip_serializing_if = "is_false")]
    pub no_new_keyring: bool,
    /// Cgroup the shim itself moves to.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub shim_cgroup: String,
    /// Owner of the container's stdio pipes; none leaves them to root.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub io_uid: Option<u32>,
    /// Group of the container's stdio pipes; none leaves them to root.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub io_gid: Option<u32>,
    /// The OCI runtime, a name or a path; empty is `runc`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub binary_name: String,
    /// The OCI runtime's state directory, without the namespace; empty is `/run/containerd/runc`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub root: String,
    /// Whether cgroups are made through systemd.
    #[serde(skip_serializing_if = "is_false")]
    pub systemd_cgroup: bool,
    /// Image directory to restore from; containerd also passes it as the checkpoint of Create.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub criu_image_path: String,
    /// CRIU's work directory; empty keeps it in the bundle.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub criu_work_path: String,
    /// The table these options came in, if it has settings of ours: [`config::for_container`] takes them from it.
    #[serde(rename = "cedana", skip_serializing_if = "String::is_empty")]
    pub settings: String,
}

impl Options {
    /// Decodes what arrived as an `Any`, with or without a host before the type's name. An empty type means nothing
    /// was said.
    ///
    /// # Errors
    /// `UnknownType` for other types, `Decode` and `Table` for damaged content, `Io` if a named file cannot be read.
    pub fn from_any(type_url: &str, value: &[u8]) -> Result<Self, OptionsError> {
        let name = type_url.rsplit('/').next().unwrap_or(type_url);
        if name.is_empty() {
            return Ok(Self::default());
        }
        if name == RUNC_OPTIONS {
            return Ok(oci::Options::parse_from_bytes(value)?.into());
        }
        if GENERIC_OPTIONS.contains(&name) {
            return Self::from_generic(&Generic::decode(value)?);
        }
        Err(OptionsError::UnknownType(type_url.to_owned()))
    }

    /// Reads the options that Create left in the bundle, or else the runtime's name; the default if neither is there.
    ///
    /// # Errors
    /// `Io` and `Json`. Unknown keys are no error: a newer shim may have written them.
    pub fn load(bundle: &Path) -> Result<Self, OptionsError> {
        let path = bundle.join(OPTIONS_FILE);
        let mut options = match read_text(&path)? {
            Some(text) if !text.trim().is_empty() => {
                serde_json::from_str(&text).map_err(|source| OptionsError::Json { path, source })?
            }
            _ => Self::default(),
        };
        if options.binary_name.is_empty()
            && let Some(name) = read_text(&bundle.join(RUNTIME_FILE))?
        {
            options.binary_name = name.trim().to_owned();
        }
        Ok(options)
    }

    /// Writes the options into the bundle for `delete`, in one step: a reader never sees half of them.
    ///
    /// # Errors
    /// `Io`.
    pub fn save(&self, bundle: &Path) -> Result<(), OptionsError> {
        let path = bundle.join(OPTIONS_FILE);
        let text = serde_json::to_vec(self).map_err(|source| OptionsError::Json {
            path: path.clone(),
            source,
        })?;
        write_file(&path, &text).map_err(|source| OptionsError::Io {
            action: "write",
            path,
            source,
        })?;
        if !self.binary_name.is_empty() {
            let path = bundle.join(RUNTIME_FILE);
            write_file(&path, self.binary_name.as_bytes()).map_err(|source| OptionsError::Io {
                action: "write",
                path,
                source,
            })?;
        }
        Ok(())
    }

    /// The OCI runtime: a path, or a name to look up.
    pub fn binary(&self) -> PathBuf {
        if self.binary_name.is_empty() {
            DEFAULT_BINARY.into()
        } else {
            self.binary_name.clone().into()
        }
    }

    /// Where the OCI runtime keeps the containers of one of containerd's namespaces.
    pub fn state_root(&self, namespace: &str) -> PathBuf {
        Path::new(if self.root.is_empty() {
            DEFAULT_ROOT
        } else {
            &self.root
        })
        .join(namespace)
    }

    /// Fills in what clients leave out under a runtime name that is not runc's but the specification gives away.
    pub fn infer(&mut self, spec: &SpecView) {
        self.systemd_cgroup = self.systemd_cgroup || is_systemd_path(&spec.linux.cgroups_path);
        if self.io_uid.is_some() || self.io_gid.is_some() {
            return;
        }
        let user = spec
            .process
            .as_ref()
            .map(|process| process.user)
            .unwrap_or_default();
        self.io_uid = host_id(&spec.linux.uid_mappings, user.uid);
        self.io_gid = host_id(&spec.linux.gid_mappings, user.gid);
    }

    fn from_generic(generic: &Generic) -> Result<Self, OptionsError> {
        if !generic.config_body.is_empty() {
            return Self::from_table(&String::from_utf8_lossy(&generic.config_body));
        }
        if generic.config_path.is_empty() {
            return Ok(Self::default());
        }
        let path = PathBuf::from(&generic.config_path);
        let missing = || io::Error::from(io::ErrorKind::NotFound);
        match read_text(&path)? {
            Some(text) => Self::from_table(&text),
            None => Err(OptionsError::Io {
                action: "read",
                path,
                source: missing(),
            }),
        }
    }

    fn from_table(text: &str) -> Result<Self, OptionsError> {
        let mut options = table::parse(text)?;
        if text.contains(config::OPTIONS_TABLE) {
            text.clone_into(&mut options.settings);
        }
        Ok(options)
    }
}

impl From<oci::Options> for Options {
    fn from(said: oci::Options) -> Self {
        // Zero is what the wire has for "not set"; root owns the pipes anyway if nobody else is named.
        let id = |id: u32| (id != 0).then_some(id);
        Self {
            no_pivot_root: said.no_pivot_root,
            no_new_keyring: said.no_new_keyring,
            shim_cgroup: said.shim_cgroup,
            io_uid: id(said.io_uid),
            io_gid: id(said.io_gid),
            binary_name: said.binary_name,
            root: said.root,
            systemd_cgroup: said.systemd_cgroup,
            criu_image_path: said.criu_image_path,
            criu_work_path: said.criu_work_path,
            settings: String::new(),
        }
    }
}

/// The two useful fields of `runtimeoptions.v1.Options`; the message is in no crate.
#[derive(Debug, Default)]
struct Generic {
    config_path: String,
    config_body: Vec<u8>,
}

impl Generic {
    fn decode(value: &[u8]) -> Result<Self, OptionsError> {
        const CONFIG_PATH: u32 = 2 << 3 | 2;
        const CONFIG_BODY: u32 = 3 << 3 | 2;
        let mut generic = Self::default();
        let mut input = CodedInputStream::from_bytes(value);
        while let Some(tag) = input.read_raw_tag_or_eof()? {
            match tag {
                CONFIG_PATH => generic.config_path = input.read_string()?,
                CONFIG_BODY => generic.config_body = input.read_bytes()?,
                other => protobuf::rt::skip_field_for_tag(other, &mut input)?,
            }
        }
        Ok(generic)
    }
}

/// Whether a cgroup path has systemd's form `slice:prefix:name`. No path of a cgroup file system has colons there.
pub fn is_systemd_path(cgroups_path: &str) -> bool {
    let mut parts = cgroups_path.split(':');
    matches!((parts.next(), parts.next(), parts.next(), parts.next()), (Some(slice), Some(_), Some(name), None)
        if !slice.contains('/') && !name.is_empty())
}

/// The text of a small file; none if there is no such file.
fn read_text(path: &Path) -> Result<Option<String>, OptionsError> {
    let failed = |source| OptionsError::Io {
        action: "read",
        path: path.to_owned(),
        source,
    };
    let file = match fs::OpenOptions::new()
        .read(true)
        .custom_flags(nix::libc::O_NONBLOCK)
        .open(path)
    {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let mut text = String::new();
    let length = file
        .take(OPTIONS_BYTES_MAX + 1)
        .read_to_string(&mut text)
        .map_err(failed)?;
    if length as u64 > OPTIONS_BYTES_MAX {
        return Err(failed(io::Error::from(io::ErrorKind::FileTooLarge)));
    }
    Ok(Some(text))
}

/// Replaces a file of the bundle. No fsync: the bundle is on a tmpfs and dies with the machine.
fn write_file(path: &Path, content: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("tmp");
    fs::write(&temporary, content)?;
    fs::rename(&temporary, path)
}

fn is_false(value: &bool) -> bool {
    !*value
}

#[cfg(test)]
mod tests;
