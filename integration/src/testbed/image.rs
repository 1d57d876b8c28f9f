//! The test images, made without a registry: busybox and its applets as one `docker save` archive.
//!
//! Both `ctr image import` and `docker load` take that format: a tar of `manifest.json`, one configuration per image,
//! and the layers, here one that all images share.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::json;
use sha2::{Digest, Sha256};

/// The image tests run: a shell and busybox's applets.
pub const BUSYBOX: &str = "localhost/cedana/busybox:latest";

/// The image CRI gives to a pod: sleeps until it is told to end.
pub const PAUSE: &str = "localhost/cedana/pause:latest";

/// As process 1 it would ignore signals it has no handler for, hence the trap.
const PAUSE_SCRIPT: &str = "trap 'exit 0' TERM INT; while :; do sleep 3600 & wait $!; done";

const BLOCK: usize = 512;

/// Asks a busybox for the names of its applets.
pub fn applets(busybox: &Path) -> Result<Vec<String>> {
    let listed = Command::new(busybox)
        .arg("--list")
        .output()
        .with_context(|| format!("run {}", busybox.display()))?;
    if !listed.status.success() {
        bail!(
            "list applets: {} --list ended with {}",
            busybox.display(),
            listed.status
        );
    }
    Ok(String::from_utf8(listed.stdout)?
        .lines()
        .map(str::to_owned)
        .collect())
}

/// The archive with all test images.
pub fn archive(busybox: &[u8], applets: &[String]) -> Vec<u8> {
    let layer = layer(busybox, applets);
    let digest = format!("{:x}", Sha256::digest(&layer));
    let layer_name = format!("{digest}.tar");
    let images = [
        (BUSYBOX, json!({ "Cmd": ["/bin/sh"] })),
        (PAUSE, json!({ "Entrypoint": ["/bin/sh", "-c", PAUSE_SCRIPT] })),
    ];
    let mut tar = Tar::default();
    let mut manifest = Vec::new();
    for (name, process) in images {
        let config = config(process, &digest).to_string();
        let config_name = format!("{:x}.json", Sha256::digest(&config));
        tar.file(&config_name, 0o644, config.as_bytes());
        manifest.push(json!({ "Config": config_name, "RepoTags": [name], "Layers": [layer_name] }));
    }
    tar.file(&layer_name, 0o644, &layer);
    tar.file("manifest.json", 0o644, json!(manifest).to_string().as_bytes());
    tar.end()
}

fn config(mut process: serde_json::Value, layer_digest: &str) -> serde_json::Value {
    if let Some(process) = process.as_object_mut() {
        drop(process.insert("Env".into(), json!(["PATH=/bin"])));
        drop(process.insert("WorkingDir".into(), json!("/")));
    }
    json!({
        "architecture": architecture(),
        "os": "linux",
        "created": "2020-01-01T00:00:00Z",
        "config": process,
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{layer_digest}")] },
        "history": [{ "created": "2020-01-01T00:00:00Z", "created_by": "cedana testbed" }],
    })
}

/// This machine's architecture in Go's words, as image configurations have it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn layer(busybox: &[u8], applets: &[String]) -> Vec<u8> {
    let mut tar = Tar::default();
    for directory in ["bin", "dev", "etc", "proc", "root", "run", "sys", "var"] {
        tar.directory(directory, 0o755);
    }
    tar.directory("tmp", 0o1777);
    tar.file(
        "etc/passwd",
        0o644,
        b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n",
    );
    tar.file("etc/group", 0o644, b"root:x:0:\nnogroup:x:65534:\n");
    tar.file("bin/busybox", 0o755, busybox);
    for applet in applets.iter().filter(|name| *name != "busybox") {
        tar.link(&format!("bin/{applet}"), "busybox");
    }
    tar.end()
}

/// A tar archive in memory (POSIX ustar). Names are ours and shorter than the header's 100 bytes; owner is root and
/// times are zero, so the same content gives the same digest.
#[derive(Default)]
struct Tar(Vec<u8>);

impl Tar {
    fn directory(&mut self, name: &str, mode: u32) {
        self.header(name, mode, b'5', 0, "");
    }

    fn link(&mut self, name: &str, target: &str) {
        self.header(name, 0o777, b'2', 0, target);
    }

    fn file(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.header(name, mode, b'0', content.len(), "");
        self.0.extend_from_slice(content);
        self.0.resize(self.0.len().next_multiple_of(BLOCK), 0);
    }

    fn end(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 2 * BLOCK, 0);
        self.0
    }

    /// Fields in the order of the header; numbers are octal text. The checksum counts itself as eight blanks.
    fn header(&mut self, name: &str, mode: u32, kind: u8, size: usize, target: &str) {
        let before = format!(
            "{name:\0<100}{mode:07o}\0{:07o}\0{:07o}\0{size:011o}\0{:011o}\0",
            0, 0, 0
        );
        let after = format!("{}{target:\0<100}ustar\000{:\0<247}", char::from(kind), "");
        let sum: u32 = before.bytes().chain(after.bytes()).map(u32::from).sum::<u32>() + 8 * u32::from(b' ');
        self.0
            .extend_from_slice(format!("{before}{sum:06o}\0 {after}").as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tar_reads_what_we_write() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("layer.tar");
        std::fs::write(
            &path,
            layer(b"not really busybox", &["sh".into(), "busybox".into()]),
        )
        .unwrap();
        let listed = Command::new("tar")
            .args(["--numeric-owner", "-tvf"])
            .arg(&path)
            .output()
            .unwrap();
        let text = String::from_utf8(listed.stdout).unwrap();
        assert!(
            listed.status.success(),
            "{}",
            String::from_utf8_lossy(&listed.stderr)
        );
        for expected in [
            "drwxrwxrwt 0/0",
            " 18 1970-01-01 00:00 bin/busybox",
            "bin/sh -> busybox",
            " etc/passwd",
        ] {
            assert!(text.contains(expected), "{expected:?} in:\n{text}");
        }
        assert_eq!(text.lines().count(), 13, "{text}");
    }
}
