//! What is put into the guest's root file system before it first boots, and the shell lines it is then told.
//!
//! The launcher is a service that runs shell commands which come by the port. It knows nothing of the agent, so that a
//! machine saved by one build of the testbed serves the next.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use super::machine::SHARE;
use super::{AGENT_ARGUMENT, PREPARE_ARGUMENT};

/// The launcher's first word: systemd has settled.
pub const UP: &str = "up";

/// What the launcher says after a preparation that went well.
pub const PREPARED: &str = "prepared 0";

/// Where the host's files are while a request is being taken in.
pub const HOST_FILES: &str = "/run/testbed/host";

/// Units that a machine without a network, a person at a console or a next boot has no use for.
pub const MASKED: &[&str] = &[
    "apt-daily-upgrade.timer",
    "apt-daily.timer",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "fstrim.timer",
    "getty@tty1.service",
    "ldconfig.service",
    "nftables.service",
    "remote-fs.target",
    "serial-getty@ttyS0.service",
    "systemd-binfmt.service",
    "systemd-firstboot.service",
    "systemd-hwdb-update.service",
    "systemd-journal-catalog-update.service",
    "systemd-networkd-wait-online.service",
    "systemd-networkd.service",
    "systemd-networkd.socket",
    "systemd-pstore.service",
    "systemd-random-seed.service",
    "systemd-timesyncd.service",
    "systemd-tmpfiles-clean.timer",
    "systemd-update-done.service",
];

/// What the first boot starts: the launcher and nothing else. The engines follow when they are configured.
pub const WANTED: (&str, &str) = (
    "etc/systemd/system/multi-user.target.wants/testbed.service",
    "/etc/systemd/system/testbed.service",
);

/// Links that Debian's packages make to have their engines started at boot.
pub const UNWANTED: &[&str] = &[
    "etc/systemd/system/multi-user.target.wants/containerd.service",
    "etc/systemd/system/multi-user.target.wants/docker.service",
    "etc/systemd/system/sockets.target.wants/docker.socket",
];

/// Files of the guest. The engines are set up as in other suites: logs in files, debug level, process ids in `/run`.
pub const FILES: &[(&str, &str)] = &[
    ("etc/hostname", "testbed\n"),
    // Any id will do. Without one, systemd takes the boot for a first one and enables every unit there is.
    ("etc/machine-id", "4d8a1b5f6c7e4c0f9a2b3c4d5e6f7081\n"),
    ("etc/fstab", ""),
    ("etc/systemd/system/testbed.service", LAUNCHER_UNIT),
    (
        "etc/systemd/system/containerd.service.d/testbed.conf",
        "[Service]
ExecStart=
ExecStart=/usr/bin/containerd --log-level debug
ExecStartPost=/bin/sh -c 'echo $MAINPID >/run/containerd.testbed.pid'
StandardOutput=append:/var/log/containerd.log
StandardError=append:/var/log/containerd.log
",
    ),
    (
        "etc/systemd/system/docker.service.d/testbed.conf",
        "[Service]
ExecStart=
ExecStart=/usr/sbin/dockerd -H fd:// --containerd /run/containerd/containerd.sock --debug
ExecStartPost=/bin/sh -c 'echo $MAINPID >/run/dockerd.testbed.pid'
StandardOutput=append:/var/log/dockerd.log
StandardError=append:/var/log/dockerd.log
",
    ),
];

/// Type=idle has it wait until systemd has nothing else to do. An OOM kill inside is a test's, no reason to stop the launcher.
const LAUNCHER_UNIT: &str = "[Unit]
Description=Runs what the testbed says

[Service]
Type=idle
ExecStart=/usr/lib/cedana-testbed/launch
StandardOutput=journal+console
StandardError=journal+console
Delegate=yes
LimitNOFILE=1048576
LimitMEMLOCK=infinity
OOMPolicy=continue
TasksMax=infinity
";

/// The launcher. The port reads as ended while nobody holds its other side, as for a moment when a machine is resumed.
pub const LAUNCHER: (&str, &str) = (
    "usr/lib/cedana-testbed/launch",
    "#!/bin/bash
exec 0<>/dev/virtio-ports/agent 1>&0
echo up
while true; do
    if read -r line; then eval \"$line\"; else sleep 0.1; fi
done
",
);

/// Has the guest configure and start its engines by that program of the host.
pub fn prepare(program: &Path) -> String {
    format!(
        "{} && {} {PREPARE_ARGUMENT} >/dev/console 2>&1; status=$?; umount {HOST_FILES}; sync; echo prepared $status",
        mount(),
        quoted(program)
    )
}

/// Has the guest become the agent, by that program of the host. A resumed guest believes it is the time when it was
/// saved.
pub fn become_agent(program: &Path, now: SystemTime) -> String {
    let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    format!(
        "date -s @{now:.3} >/dev/null; {} && exec {} {AGENT_ARGUMENT}; echo failed",
        mount(),
        quoted(program)
    )
}

/// 512000 is the most that QEMU's transport takes at once. `mmap` caches what is read, so that a program is fetched
/// once.
fn mount() -> String {
    let options = "trans=virtio,version=9p2000.L,msize=512000,cache=mmap";
    format!("mkdir -p {HOST_FILES} && mount -t 9p -o {options} {SHARE} {HOST_FILES}")
}

/// The path of a host's file in the guest, as one word for a shell.
fn quoted(host_path: &Path) -> String {
    let path = format!("{HOST_FILES}{}", host_path.display());
    format!("'{}'", path.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn any_path_is_one_word_of_one_line() {
        let line = become_agent(Path::new("/a b/it's"), UNIX_EPOCH + Duration::from_millis(1500));
        assert!(line.contains("date -s @1.500 "), "{line}");
        assert!(line.contains(r"exec '/run/testbed/host/a b/it'\''s' "), "{line}");
        assert!(!line.contains('\n'));
    }
}
