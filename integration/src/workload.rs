//! What a test runs: a command in a container made of a static busybox, and the OCI spec that says so.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};

/// A busybox that needs no library, where the testbed has it (Debian's `busybox-static`).
const BUSYBOX: &str = "/bin/busybox";

/// The commands that the workloads use; busybox finds out by its name which one it is.
const APPLETS: &[&str] = &[
    "cat", "chmod", "dd", "echo", "env", "false", "head", "id", "kill", "ls", "md5sum", "mkfifo", "mount",
    "nc", "ps", "readlink", "seq", "sh", "sleep", "sort", "stat", "stty", "tail", "tee", "touch", "tr",
    "true", "tty", "wc", "yes",
];

const CAPABILITIES: &[&str] = &[
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];

/// A script for a shell that says `ready` and stays until it is told to go: a container's first process ignores the
/// signals that it does not handle, so `TERM` has to be trapped to end it with 143 like an ordinary program.
pub const FOREVER: &str = "trap 'exit 143' TERM; echo ready; while true; do sleep 3600 & wait $!; done";

/// A container to be: its command and what is special about it. Everything else is as `ctr run` would have it.
#[derive(Clone, Debug)]
pub struct Workload {
    args: Vec<String>,
    terminal: bool,
    shared_pids: bool,
    resources: Value,
    annotations: Value,
    labels: Vec<(String, String)>,
    cgroups_path: Option<String>,
}

impl Workload {
    /// Runs a program.
    pub fn command<A: Into<String>>(args: impl IntoIterator<Item = A>) -> Self {
        Self {
            args: args.into_iter().map(Into::into).collect(),
            terminal: false,
            shared_pids: false,
            resources: json!({}),
            annotations: json!({}),
            labels: Vec::new(),
            cgroups_path: None,
        }
    }

    /// Runs a shell script.
    pub fn shell(script: &str) -> Self {
        Self::command(["sh", "-c", script])
    }

    /// Runs until it is killed.
    pub fn forever() -> Self {
        Self::shell(FOREVER)
    }

    /// With a terminal for its stdio.
    #[must_use]
    pub fn terminal(mut self) -> Self {
        self.terminal = true;
        self
    }

    /// In the host's pid namespace: the kernel then kills nobody when the init process dies.
    #[must_use]
    pub fn shared_pids(mut self) -> Self {
        self.shared_pids = true;
        self
    }

    /// With limits, as the spec's `linux.resources` has them.
    #[must_use]
    pub fn resources(mut self, resources: Value) -> Self {
        self.resources = resources;
        self
    }

    /// With an annotation in the spec.
    #[must_use]
    pub fn annotation(mut self, key: &str, value: &str) -> Self {
        if let Some(all) = self.annotations.as_object_mut() {
            let _ = all.insert(key.to_owned(), json!(value));
        }
        self
    }

    /// With a label on containerd's record.
    #[must_use]
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.labels.push((key.to_owned(), value.to_owned()));
        self
    }

    /// In a cgroup of this path instead of `/<namespace>/<id>`.
    #[must_use]
    pub fn cgroups_path(mut self, path: &str) -> Self {
        self.cgroups_path = Some(path.to_owned());
        self
    }

    pub(crate) fn has_terminal(&self) -> bool {
        self.terminal
    }

    pub(crate) fn labels(&self) -> impl Iterator<Item = (String, String)> {
        self.labels.iter().cloned()
    }

    /// The OCI spec. `namespace` is in the cgroup path so that whatever is left over can be told whose it is.
    pub(crate) fn spec(&self, namespace: &str, id: &str) -> Value {
        let cgroups_path = self
            .cgroups_path
            .clone()
            .unwrap_or_else(|| format!("/{namespace}/{id}"));
        let mut namespaces = vec![
            json!({"type": "ipc"}),
            json!({"type": "uts"}),
            json!({"type": "mount"}),
        ];
        namespaces.push(json!({"type": "network"}));
        if !self.shared_pids {
            namespaces.push(json!({"type": "pid"}));
        }
        json!({
            "ociVersion": "1.0.2",
            "process": process(&self.args, self.terminal),
            "root": {"path": "rootfs"},
            "hostname": "workload",
            "mounts": mounts(),
            "annotations": self.annotations,
            "linux": {
                "cgroupsPath": cgroups_path,
                "namespaces": namespaces,
                "resources": self.resources,
                "maskedPaths": ["/proc/kcore", "/proc/keys"],
                "readonlyPaths": ["/proc/sys"],
            },
        })
    }
}

/// The `process` part of a spec, which is also what an exec is given.
pub(crate) fn process(args: &[String], terminal: bool) -> Value {
    json!({
        "terminal": terminal,
        "user": {"uid": 0, "gid": 0},
        "args": args,
        "env": ["PATH=/bin"],
        "cwd": "/",
        "capabilities": {"bounding": CAPABILITIES, "effective": CAPABILITIES, "permitted": CAPABILITIES},
        "noNewPrivileges": true,
    })
}

fn mounts() -> Value {
    json!([
        {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
         "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
        {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
         "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
        {"destination": "/dev/shm", "type": "tmpfs", "source": "shm",
         "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]},
        {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
        {"destination": "/run", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
    ])
}

/// Lays a root file system out at `root`.
pub(crate) fn lay_rootfs(root: &Path) -> Result<()> {
    for dir in ["bin", "proc", "dev", "sys", "run", "tmp", "etc"] {
        fs::create_dir_all(root.join(dir)).with_context(|| format!("create {}/{dir}", root.display()))?;
    }
    let _bytes = fs::copy(BUSYBOX, root.join("bin/busybox"))
        .with_context(|| format!("copy {BUSYBOX}: it comes with the package busybox-static"))?;
    for applet in APPLETS {
        symlink("busybox", root.join("bin").join(applet)).with_context(|| format!("link {applet}"))?;
    }
    Ok(())
}
