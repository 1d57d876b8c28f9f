//! containerd and dockerd of an instance: their configuration, their start, and the test images.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::json;

use super::instance::PLAN_VARIABLE;
use super::{image, rootfs};

/// Where engines find programs; ours come first.
pub const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// containerd is up in a quarter of a second; machines under load, and emulated ones, are slower by far.
const READY_MAX: Duration = Duration::from_secs(60);

/// How often an engine that has not reported is looked at: has it died?
const READY_STEP: Duration = Duration::from_millis(200);

/// Version 2 is understood by containerd 1.7 and, converted, by 2.x. `cedana-runc` has runc's name and our binary,
/// so that the CRI plugin sends its options. Root without `CAP_SYS_RESOURCE`, as on some machines for development, may
/// not give a pod the better chances with the OOM killer that it has by default.
const CONTAINERD_CONFIG: &str = r#"version = 2
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "localhost/cedana/pause:latest"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "/etc/cni/net.d"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.cedana]
    runtime_type = "io.containerd.cedana.v1"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.cedana-runc]
    runtime_type = "io.containerd.runc.v2"
    runtime_path = "/usr/local/bin/containerd-shim-cedana-v1"
[plugins."io.containerd.internal.v1.opt"]
  path = "/var/lib/containerd/opt"
"#;

/// An engine, and how it is started. Its log is `/var/log/<name>.log`, its process id in `/run/<name>.testbed.pid`.
#[derive(Debug, Clone, Copy)]
pub struct Engine {
    /// Name of its program.
    pub name: &'static str,
    /// Its arguments; everything else is in its configuration file.
    pub arguments: &'static [&'static str],
}

/// containerd, logging all there is to log.
pub const CONTAINERD: Engine = Engine {
    name: "containerd",
    arguments: &["--log-level", "debug"],
};

/// dockerd on that containerd.
pub const DOCKERD: Engine = Engine {
    name: "dockerd",
    arguments: &["--containerd", "/run/containerd/containerd.sock", "--debug"],
};

/// The files that configure both engines and their clients: path and text.
pub fn configuration() -> [(&'static str, String); 4] {
    // No bridge and no packet filter: containers of the tests need neither, and a kernel may lack them. Docker calls
    // checkpoints experimental. Names of foreign runtimes are understood since Docker 23.
    let docker = json!({
        "bridge": "none",
        "iptables": false,
        "ip6tables": false,
        "experimental": true,
        "runtimes": { "cedana": { "runtimeType": "io.containerd.cedana.v1" } },
    });
    [
        ("/etc/containerd/config.toml", CONTAINERD_CONFIG.to_owned()),
        ("/etc/docker/daemon.json", docker.to_string()),
        (
            "/etc/crictl.yaml",
            "runtime-endpoint: unix:///run/containerd/containerd.sock\n".to_owned(),
        ),
        (
            "/etc/hosts",
            "127.0.0.1 localhost testbed\n::1 localhost\n".to_owned(),
        ),
    ]
}

/// Writes them.
pub fn configure() -> Result<()> {
    for (path, text) in configuration() {
        let directory = Path::new(path).parent().unwrap_or(Path::new("/"));
        fs::create_dir_all(directory).with_context(|| format!("make {}", directory.display()))?;
        fs::write(path, text).with_context(|| format!("write {path}"))?;
    }
    Ok(())
}

impl Engine {
    /// Starts it and waits until it reports that it serves. It outlives the caller's interest: nobody waits for its end.
    pub fn start(&self) -> Result<()> {
        let log_path = format!("/var/log/{}.log", self.name);
        let log = File::create(&log_path).with_context(|| format!("make {log_path}"))?;
        let notify_path = format!("/run/{}.testbed.notify", self.name);
        // Both engines speak systemd's protocol: a datagram READY=1 says more than a socket that merely exists.
        let notify = UnixDatagram::bind(&notify_path).with_context(|| format!("bind {notify_path}"))?;
        notify
            .set_read_timeout(Some(READY_STEP))
            .context("set the time to wait for an engine")?;
        let mut child = program(self.name)
            .args(self.arguments)
            .env("NOTIFY_SOCKET", &notify_path)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            // Out of the terminal's foreground: Ctrl-C is for the command.
            .process_group(0)
            .spawn()
            .with_context(|| format!("run {}", self.name))?;
        fs::write(format!("/run/{}.testbed.pid", self.name), child.id().to_string())?;
        let deadline = Instant::now() + READY_MAX;
        while !ready(&notify)? {
            if let Some(status) = child.try_wait()? {
                bail!(
                    "start {}: it ended with {status}; its log ends:\n{}",
                    self.name,
                    last_lines(&log_path)
                );
            }
            if Instant::now() > deadline {
                bail!(
                    "start {} in {READY_MAX:?}; its log ends:\n{}",
                    self.name,
                    last_lines(&log_path)
                );
            }
        }
        fs::remove_file(&notify_path).with_context(|| format!("remove {notify_path}"))
    }
}

/// Loads the test images into containerd's namespaces for ctr and for CRI.
pub fn load_images_containerd() -> Result<()> {
    let archive = format!("/{}", rootfs::IMAGES);
    for namespace in ["default", "k8s.io"] {
        run(program("ctr").args(["--namespace", namespace, "images", "import", &archive]))?;
    }
    Ok(())
}

/// Loads them into docker.
pub fn load_images_docker() -> Result<()> {
    run(program("docker").args(["load", "--quiet", "--input", &format!("/{}", rootfs::IMAGES)]))
        .with_context(|| format!("load {}", image::BUSYBOX))
}

/// Whether the suite has the program; a host used in place of a suite may lack dockerd.
pub fn installed(name: &str) -> bool {
    PATH.split(':')
        .any(|directory| Path::new(directory).join(name).is_file())
}

/// A program of the suite, in the environment it has inside.
pub fn program(name: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(name);
    let _ = command.env("PATH", PATH).env_remove(PLAN_VARIABLE);
    command
}

fn run(command: &mut Command) -> Result<()> {
    let ended = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("run {command:?}"))?;
    if !ended.status.success() {
        bail!(
            "run {command:?}: {}: {}",
            ended.status,
            String::from_utf8_lossy(&ended.stderr)
        );
    }
    Ok(())
}

/// One wait for a message; true when it says that the engine is ready.
fn ready(notify: &UnixDatagram) -> Result<bool> {
    let mut message = [0; 4096];
    match notify.recv(&mut message) {
        Ok(length) => Ok(message.get(..length).unwrap_or_default().starts_with(b"READY=1")),
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(false),
        Err(error) => Err(error).context("wait for an engine"),
    }
}

fn last_lines(log_path: &str) -> String {
    const LINES: usize = 15;
    let log = fs::read_to_string(log_path).unwrap_or_default();
    let lines: Vec<&str> = log.lines().collect();
    lines
        .get(lines.len().saturating_sub(LINES)..)
        .unwrap_or_default()
        .join("\n")
}
