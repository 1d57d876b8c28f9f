//! Pods by containerd's CRI service, as a kubelet asks for them: with our runtime's name, and with containerd's name
//! and our binary (`runtime_path`).
#![expect(
    unused_results,
    reason = "a test acts through calls, and compares only the answers it is about"
)]

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use integration::cedana::Cedana;
use integration::cedana_counter::COUNTER;
use integration::engine::{Said, run};
use integration::host::IMAGE;
use integration::leftovers::Places;
use integration::need;
use integration::stdio::eventually;
use integration::workload::FOREVER;
use serde_json::json;
use tempfile::TempDir;

const SHORT: Duration = Duration::from_secs(20);
const NAMESPACE: &str = "k8s.io";
const ENDPOINT: &str = "unix:///run/containerd/containerd.sock";

fn crictl(args: &[&str]) -> Result<Said> {
    run(
        "crictl",
        &[
            &["--runtime-endpoint", ENDPOINT, "--image-endpoint", ENDPOINT],
            args,
        ]
        .concat(),
    )
}

fn write(path: &Path, value: &serde_json::Value) -> Result<String> {
    fs::write(path, value.to_string()).with_context(|| format!("write {}", path.display()))?;
    Ok(path.display().to_string())
}

/// A pod on the host's network, so that no network plugin is needed.
fn pod_config(dir: &Path, name: &str) -> Result<String> {
    let config = json!({
        "metadata": {"name": name, "namespace": "default", "uid": name, "attempt": 1},
        "log_directory": dir,
        "linux": {"security_context": {"namespace_options": {"network": 2}}},
    });
    write(&dir.join("pod.json"), &config)
}

fn container_config(dir: &Path) -> Result<String> {
    let config = json!({
        "metadata": {"name": "app"},
        "image": {"image": IMAGE},
        "command": ["sh", "-c", FOREVER],
        "log_path": "app.log",
        "linux": {},
    });
    write(&dir.join("container.json"), &config)
}

fn a_pod(handler: &str) -> Result<()> {
    let dir: TempDir = tempfile::Builder::new().prefix("cedana-").tempdir()?;
    let (pod, container) = (pod_config(dir.path(), handler)?, container_config(dir.path())?);
    let sandbox = crictl(&["runp", "--runtime", handler, &pod])?.ok()?;
    let app = crictl(&["create", &sandbox, &container, &pod])?.ok()?;
    crictl(&["start", &app])?.ok()?;
    let log = || fs::read_to_string(dir.path().join("app.log")).unwrap_or_default();
    eventually("it says ready", SHORT, || log().contains("ready"))?;
    assert_eq!(
        crictl(&["exec", "--sync", &app, "cat", "/proc/1/comm"])?.ok()?,
        "sh"
    );
    let places = |id: &str| Places {
        state: "".into(),
        root: "".into(),
        namespace: id.to_owned(),
    };
    assert_eq!(places(&sandbox).shims().len(), 1, "the sandbox has a shim");
    assert_eq!(places(&app).shims().len(), 0, "the container has none of its own");
    crictl(&["stats", &app])?.ok()?;
    crictl(&["stop", "--timeout", "10", &app])?.ok()?;
    let state: serde_json::Value = serde_json::from_str(&crictl(&["inspect", &app])?.ok()?)?;
    assert_eq!(state.pointer("/status/exitCode"), Some(&json!(143)));
    crictl(&["rm", &app])?.ok()?;
    crictl(&["stopp", &sandbox])?.ok()?;
    crictl(&["rmp", &sandbox])?.ok()?;
    for id in [&app, &sandbox] {
        assert_eq!(places(id).settled(&[]), Vec::<String>::new());
    }
    Ok(())
}

#[test]
fn a_pod_with_our_runtime_s_name() -> Result<()> {
    need!(Crictl, "asks as a kubelet does");
    need!(
        OurShim,
        "the testbed's configuration has a handler of this name for ours"
    );
    a_pod("cedana")
}

#[test]
fn a_pod_with_containerd_s_name_and_our_binary() -> Result<()> {
    need!(Crictl, "asks as a kubelet does");
    need!(
        OurShim,
        "the testbed's configuration has a handler of this name for ours"
    );
    a_pod("cedana-runc")
}

/// What a container does to its files, and what is seen of them.
const LIVE: &str = "mkdir /data; echo new > /data/a; rm /bin/yes; rm -r /var; echo changed >> /etc/passwd";
const LOOK: &str = "cat /data/a; tail -n 1 /etc/passwd; ls -d /bin/yes /var 2>/dev/null; true";

/// As a kubelet asks for one, which names the paths that a container may not see or write; its processes are in a namespace of its own.
fn busy(dir: &Path) -> Result<(String, String)> {
    let namespaces = json!({"network": 2, "pid": 1});
    let pod = json!({
        "metadata": {"name": "busy", "namespace": "default", "uid": "busy", "attempt": 1},
        "log_directory": dir,
        "linux": {"security_context": {"namespace_options": namespaces}},
    });
    let container = json!({
        "metadata": {"name": "app"},
        "image": {"image": IMAGE},
        "command": ["sh", "-c", format!("{LIVE}; {COUNTER}")],
        "log_path": "app.log",
        "linux": {"security_context": {
            "namespace_options": namespaces,
            "masked_paths": ["/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
                "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware",
                "/sys/devices/virtual/powercap", "/proc/interrupts"],
            "readonly_paths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        }},
    });
    Ok((
        write(&dir.join("pod.json"), &pod)?,
        write(&dir.join("container.json"), &container)?,
    ))
}

fn ctr(args: &[&str]) -> Result<String> {
    run("ctr", &[&["--namespace", NAMESPACE], args].concat())?.ok()
}

#[test]
fn the_files_of_a_container_of_cri_come_back_from_its_archive() -> Result<()> {
    need!(Crictl, "checkpoints as a kubelet does");
    need!(OurShim, "restores the archive");
    need!(Criu, "dumps");
    let dir: TempDir = tempfile::Builder::new().prefix("cedana-").tempdir()?;
    let (pod, container) = busy(dir.path())?;
    let sandbox = crictl(&["runp", "--runtime", "cedana", &pod])?.ok()?;
    let app = crictl(&["create", &sandbox, &container, &pod])?.ok()?;
    crictl(&["start", &app])?.ok()?;
    let counts = |log: &str| {
        fs::read_to_string(dir.path().join(log))
            .unwrap_or_default()
            .lines()
            .count()
            > 3
    };
    eventually("it counts", SHORT, || counts("app.log"))?;
    let archive = dir.path().join("app.tar").display().to_string();
    crictl(&["checkpoint", &format!("--export={archive}"), &app])?.ok()?;
    crictl(&["rm", "--force", &app])?.ok()?;
    crictl(&["stopp", &sandbox])?.ok()?;
    crictl(&["rmp", &sandbox])?.ok()?;

    // containerd's diff is a layer with whiteouts, packed with gzip.
    let log = dir.path().join("back.log").display().to_string();
    let restore = [
        "restore",
        "containerd",
        "--path",
        &archive,
        "--id",
        "back",
        "--namespace",
        NAMESPACE,
    ];
    let to = ["--netns", "/proc/1/ns/net", "--out", &log];
    Cedana::new().says(&[&restore[..], &to].concat())?;
    eventually("it counts on", SHORT, || counts("back.log"))?;
    let seen = ctr(&["tasks", "exec", "--exec-id", "look", "back", "sh", "-c", LOOK])?;
    assert_eq!(seen.trim(), "new\nchanged");
    ctr(&["tasks", "rm", "--force", "back"])?;
    ctr(&["containers", "rm", "back"])?;
    Ok(())
}
