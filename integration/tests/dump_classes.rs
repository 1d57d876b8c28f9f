//! The ways in which CRIU fails, each made to happen by a workload: what is said of it and what is to be done, that the container
//! goes on, and that it can be dumped once the cause is gone. Beside them what looks like one of them and is saved, because
//! a dump chooses the option for it by itself.
//!
//! Those in `dump_failures` are not repeated. These cannot be provoked here, and are known by their lines only
//! (`shim/src/criu/telling.rs` has them in its table):
//! - guard pages and secret memory: the system calls have no safe wrapper, and tests have no unsafe code;
//! - GPUs, and what another processor has: there is none;
//! - perf events, userfaultfd, BPF, landlock: as guard pages; a device stands for all that has "that type";
//! - processes that cannot be frozen: the kernel of the testbed has nothing that waits without end and is not a bug;
//! - AppArmor and SELinux: neither is in the kernel of the testbed;
//! - vdso and rseq of an older CRIU: none is old enough.

use std::fs::{self, File, Permissions};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use integration::by_ctr::{Talker, restore};
use integration::cedana::Cedana;
use integration::host::{Host, IMAGE};
use integration::need;
use integration::need::{Need, is_there};
use integration::stdio::eventually;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns};

const WORKLOAD: &str = env!("CARGO_BIN_EXE_workload");

/// Where the journal of a host listens; in the testbed there is none.
const JOURNAL: &str = "/run/systemd/journal";

/// What the workload does by `deleted-link`, for a container that nobody has to hold.
const DELETED_LINK: &str =
    "echo >/first; ln /first /second; exec 3</first; rm /first; while :; do sleep 0.1; done";

/// Four commands of a shell, on a busy machine.
const DELETED_WITHIN: Duration = Duration::from_secs(20);

/// A workload, with a directory of the host at `/host`.
struct Case<'a> {
    mode: &'a [&'a str],
    more: &'a [&'a str],
    /// CRIU's line.
    line: &'a str,
    /// What it means.
    meaning: &'a str,
    /// What is to be done.
    remedy: &'a str,
}

fn shared(host: &Host) -> Result<PathBuf> {
    let shared = host.dir().join("shared");
    fs::create_dir_all(&shared)?;
    Ok(shared)
}

fn run<'host>(host: &'host Host, mode: &[&str], more: &[&str]) -> Result<Talker<'host>> {
    let mount = format!(
        "type=bind,src={},dst=/host,options=rbind:rslave:rw",
        shared(host)?.display()
    );
    Talker::run(host, "c", WORKLOAD, mode, &[&["--mount", &mount], more].concat())
}

/// It is refused and explained, goes on, and is dumped when it has dropped what it holds.
fn check(case: &Case<'_>) -> Result<()> {
    need!(OurShim, "containerd's own shim only names the log");
    need!(Criu, "dumps");
    let host = Host::with_image()?;
    let talker = run(&host, case.mode, case.more)?;
    check_in(case, &host, talker)
}

fn check_in(case: &Case<'_>, host: &Host, mut talker: Talker<'_>) -> Result<()> {
    is_refused(case, host)?;
    assert_eq!(talker.ask("ping")?, "pong 1", "it goes on");
    assert_eq!(talker.ask("drop")?, "dropped 2");
    is_dumped(host)?;
    assert_eq!(talker.ask("ping")?, "pong 3");
    talker.remove()
}

fn is_refused(case: &Case<'_>, host: &Host) -> Result<()> {
    let said = host.ctr(&["tasks", "checkpoint", "c"])?;
    ensure!(said.code != 0, "the dump of {:?} succeeded", case.mode);
    for part in [case.line, case.meaning, case.remedy] {
        ensure!(
            said.stderr.contains(part),
            "{:?}: {} lacks {part:?}",
            case.mode,
            said.stderr
        );
    }
    Ok(())
}

fn is_dumped(host: &Host) -> Result<()> {
    let _said = host
        .ctr(&["tasks", "checkpoint", "c"])?
        .ok()
        .context("what is in the way is gone")?;
    Ok(())
}

#[test]
fn file_on_a_detached_mount_is_refused() -> Result<()> {
    check(&Case {
        mode: &["hold", "detached-mount"],
        more: &["--cap-add", "CAP_SYS_ADMIN"],
        line: "Can't lookup mount=",
        meaning: "outside the container",
        remedy: "close it",
    })
}

#[test]
fn device_is_refused() -> Result<()> {
    check(&Case {
        mode: &["hold", "open:/dev/loop-control"],
        more: &["--device", "/dev/loop-control"],
        line: "of that type [20600] (chr 10:237)",
        meaning: "cannot be saved",
        remedy: "close it before the dump",
    })
}

#[test]
fn nested_network_namespace_is_refused() -> Result<()> {
    check(&Case {
        mode: &["hold", "network-namespace"],
        more: &["--cap-add", "CAP_SYS_ADMIN"],
        line: "more than one netns",
        meaning: "nested namespace",
        remedy: "stop what made it",
    })
}

#[test]
fn nested_pid_namespace_is_refused() -> Result<()> {
    check(&Case {
        mode: &["hold", "pid-namespace"],
        more: &["--cap-add", "CAP_SYS_ADMIN"],
        line: "nested pid namespace",
        meaning: "nested namespace",
        remedy: "stop what made it",
    })
}

#[test]
fn deleted_file_with_another_name_is_saved_where_it_can_be_restored() -> Result<()> {
    check(&Case {
        mode: &["hold", "deleted-link"],
        more: &[],
        line: "Can't create link remap for",
        meaning: "has another name",
        remedy: "have the container end with the dump",
    })?;
    let host = Host::with_image()?;
    let run = [
        "run",
        "--detach",
        "--runtime",
        host.runtime(),
        IMAGE,
        "c",
        "sh",
        "-c",
        DELETED_LINK,
    ];
    let _said = host.ctr(&run)?.ok()?;
    eventually("the file is deleted", DELETED_WITHIN, || {
        finding(&host, "deleted-link").is_ok()
    })?;
    let found = finding(&host, "deleted-link")?;
    ensure!(
        found.severity == "note" && found.what.contains("ends the container"),
        "{found:?}"
    );
    let (cedana, job) = (Cedana::on(&host), format!("{}/c", host.namespace()));
    let _path = cedana.dump(&[&job])?;
    let pid = cedana.restore(&[&job])?;
    assert_eq!(fs::read_to_string(format!("/proc/{pid}/comm"))?.trim(), "sh");
    let _said = host.ctr(&["tasks", "delete", "--force", "c"])?.ok()?;
    let _said = host.ctr(&["containers", "delete", "c"])?.ok()?;
    Ok(())
}

#[test]
fn lock_is_refused_only_where_it_is_not_wanted() -> Result<()> {
    check(&Case {
        mode: &["hold", "lock"],
        more: &["--annotation", "cedana.dump.file-locks=false"],
        line: "Some file locks are hold",
        meaning: "holds file locks",
        remedy: "cedana.dump.file-locks",
    })?;
    lock_is_saved()
}

/// A lock is saved as it is, and `check` tells of it.
fn lock_is_saved() -> Result<()> {
    let host = Host::with_image()?;
    let mut talker = run(&host, &["hold", "lock"], &[])?;
    let found = finding(&host, "file-lock")?;
    assert_eq!(found.severity, "note", "{found:?}");
    talker.checkpoint("kept")?;
    talker.remove()?;
    talker = Talker::restore(&host, "c", "kept")?;
    assert_eq!(talker.ask("ping")?, "pong 1");
    talker.remove()
}

#[derive(Debug, serde::Deserialize)]
struct Report {
    findings: Vec<Finding>,
}

#[derive(Debug, Clone, serde::Deserialize)]
struct Finding {
    code: String,
    severity: String,
    what: String,
}

/// What `cedana check` finds of that kind; it says that a dump succeeds.
fn finding(host: &Host, code: &str) -> Result<Finding> {
    let args = ["check", "c", "--namespace", host.namespace()];
    let report: Report = Cedana::on(host).json(&args)?;
    let found = report.findings.iter().find(|finding| finding.code == code);
    found.cloned().with_context(|| format!("no {code} in {report:?}"))
}

#[test]
fn datagram_socket_to_the_host_is_refused() -> Result<()> {
    need!(CriuSockets, "other sockets are in the host's network");
    let host = Host::with_image()?;
    let _socket = UnixDatagram::bind(shared(&host)?.join("datagram"))?;
    let case = Case {
        mode: &["hold", "host-datagram"],
        more: &["--net-host"],
        line: "External socket is used",
        meaning: "socket of the host",
        remedy: "cedana.dump.external-unix-sockets",
    };
    let talker = run(&host, case.mode, case.more)?;
    check_in(&case, &host, talker)
}

#[test]
fn datagram_socket_to_the_hosts_log_is_left_out_unasked() -> Result<()> {
    need!(OurShim, "chooses by itself");
    need!(CriuSockets, "other sockets are in the host's network");
    ensure!(!Path::new(JOURNAL).exists(), "the testbed has a journal");
    fs::create_dir_all(JOURNAL)?;
    let gone = Gone(JOURNAL);
    let _log = UnixDatagram::bind(Path::new(JOURNAL).join("dev-log"))?;
    let host = Host::with_image()?;
    std::os::unix::fs::symlink("/journal/dev-log", shared(&host)?.join("datagram"))?;
    let mount = format!("type=bind,src={JOURNAL},dst=/journal,options=rbind:rw");
    let more = ["--net-host", "--mount", &mount];
    let mut talker = run(&host, &["hold", "host-datagram"], &more)?;
    let found = finding(&host, "chosen")?;
    ensure!(found.what.contains("external-unix-sockets"), "{found:?}");
    is_dumped(&host)?;
    assert_eq!(talker.ask("ping")?, "pong 1");
    drop(gone);
    talker.remove()
}

/// A directory that goes with the test.
struct Gone(&'static str);

impl Drop for Gone {
    fn drop(&mut self) {
        let _removed = fs::remove_dir_all(self.0);
    }
}

#[test]
fn connection_within_the_container_is_saved_unasked() -> Result<()> {
    need!(OurShim, "chooses by itself");
    need!(CriuSockets, "saves connections");
    let host = Host::with_image()?;
    let mut talker = run(&host, &["hold", "connection"], &[])?;
    let found = finding(&host, "chosen")?;
    ensure!(found.what.contains("established"), "{found:?}");
    talker.checkpoint("kept")?;
    assert_eq!(talker.check()?, 1, "it goes on");
    talker.remove()?;
    talker = Talker::restore(&host, "c", "kept")?;
    assert_eq!(talker.check()?, 1, "both ends are there, and bytes go through");
    talker.remove()
}

#[test]
fn what_was_chosen_is_in_the_manifest() -> Result<()> {
    need!(OurShim, "chooses by itself");
    need!(CriuSockets, "saves connections");
    let host = Host::with_image()?;
    let talker = run(&host, &["hold", "connection"], &[])?;
    let cedana = Cedana::on(&host);
    let job = format!("{}/c", host.namespace());
    let path = cedana.dump(&[&job, "--leave-running", "--ghost-limit", "1M"])?;
    let told = cedana.says(&["checkpoint", "inspect", &path])?;
    for part in [
        "tcp: established (both ends",
        "ghost-limit: 1M (set)",
        "file-locks: true (by default)",
    ] {
        ensure!(told.contains(part), "{told} lacks {part:?}");
    }
    talker.remove()
}

#[test]
fn connection_that_nobody_has_accepted_is_left_out_unless_that_is_forbidden() -> Result<()> {
    need!(OurShim, "chooses by itself");
    need!(CriuSockets, "saves sockets");
    for (setting, is_left_out) in [("auto", true), ("false", false)] {
        let host = Host::with_image()?;
        let annotation = format!("cedana.dump.skip-in-flight={setting}");
        let mut talker = run(&host, &["tree"], &["--annotation", &annotation])?;
        let _client = connect_in_network_of(talker.pid()?)?;
        if is_left_out {
            let found = finding(&host, "chosen")?;
            ensure!(found.what.contains("skip-in-flight"), "{found:?}");
            is_dumped(&host)?;
        } else {
            is_refused(
                &Case {
                    mode: &["tree"],
                    more: &[],
                    line: "In-flight connection",
                    meaning: "not been accepted",
                    remedy: "cedana.dump.skip-in-flight",
                },
                &host,
            )?;
        }
        assert_eq!(talker.ask("ping")?, "pong 1");
        talker.remove()?;
    }
    Ok(())
}

/// A client of the tree's socket that is not in the container.
fn connect_in_network_of(pid: u32) -> Result<TcpStream> {
    let network = File::open(format!("/proc/{pid}/ns/net"))?;
    let connect = move || -> Result<TcpStream> {
        setns(network, CloneFlags::CLONE_NEWNET)?;
        Ok(TcpStream::connect(("127.0.0.1", 7000))?)
    };
    std::thread::spawn(connect).join().ok().context("the thread")?
}

#[test]
fn mount_from_outside_is_refused() -> Result<()> {
    need!(OurShim, "containerd's own shim only names the log");
    need!(Criu, "dumps");
    let host = Host::with_image()?;
    let shared = Mounted::on(&shared(&host)?)?;
    let mut talker = run(&host, &["hold", "lock"], &[])?;
    let later = Mounted::on(&shared.0.join("later"))?;
    is_refused(
        &Case {
            mode: &["a mount from outside"],
            more: &[],
            line: "has unreachable sharing",
            meaning: "mounted from outside",
            remedy: "unmount it",
        },
        &host,
    )?;
    assert_eq!(talker.ask("ping")?, "pong 1");
    drop(later);
    is_dumped(&host)?;
    talker.remove()
}

/// A shared mount of the host, which goes with the test.
struct Mounted(PathBuf);

impl Mounted {
    fn on(at: &Path) -> Result<Self> {
        fs::create_dir_all(at)?;
        mount(
            Some("tmpfs"),
            at,
            Some("tmpfs"),
            MsFlags::empty(),
            Some("size=64k"),
        )?;
        mount(None::<&str>, at, None::<&str>, MsFlags::MS_SHARED, None::<&str>)?;
        Ok(Self(at.to_owned()))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _gone = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

/// A user's own file for CRIU, which the annotation `org.criu.config` names.
fn check_configured(text: &str, line: &str, meaning: &str, remedy: &str) -> Result<()> {
    need!(OurShim, "containerd's own shim only names the log");
    need!(Criu, "dumps");
    let host = Host::with_image()?;
    let file = host.dir().join("criu.conf");
    fs::write(&file, text)?;
    let annotation = format!("org.criu.config={}", file.display());
    let mut talker = run(&host, &["hold", "lock"], &["--annotation", &annotation])?;
    let mode = &[text];
    let case = Case {
        mode,
        more: &[],
        line,
        meaning,
        remedy,
    };
    is_refused(&case, &host)?;
    assert_eq!(talker.ask("ping")?, "pong 1");
    fs::remove_file(&file)?;
    is_dumped(&host)?;
    talker.remove()
}

#[test]
fn option_that_criu_does_not_know_is_told() -> Result<()> {
    check_configured("invented\n", "errno 56", "unknown to this CRIU", "/etc/criu")
}

#[test]
fn script_that_fails_is_told() -> Result<()> {
    check_configured(
        "action-script /bin/false\n",
        "",
        "a script around the dump failed",
        "look for its own error",
    )
}

#[test]
fn file_that_is_another_than_at_the_dump_is_told() -> Result<()> {
    need!(OurShim, "containerd's own shim only names the log");
    need!(Criu, "dumps");
    let host = Host::with_image()?;
    let file = shared(&host)?.join("file");
    fs::write(&file, "of the host")?;
    let talker = run(&host, &["hold", "host-file"], &[])?;
    talker.checkpoint("kept")?;
    talker.remove()?;
    fs::write(&file, "longer than it was")?;
    restore_fails(&host, &["has bad size", "not the one it was at the dump"])?;
    fs::write(&file, "of the host")?;
    fs::set_permissions(&file, Permissions::from_mode(0o600))?;
    restore_fails(
        &host,
        &[
            "has bad mode",
            "other permissions",
            "cedana.restore.skip-file-check",
        ],
    )?;
    fs::set_permissions(&file, Permissions::from_mode(0o644))?;
    let mut talker = Talker::restore(&host, "c", "kept")?;
    assert_eq!(talker.ask("ping")?, "pong 1");
    talker.remove()
}

#[test]
fn address_in_use_is_told() -> Result<()> {
    need!(OurShim, "containerd's own shim only names the log");
    need!(CriuSockets, "the workload has network sockets");
    let host = Host::with_image()?;
    let talker = run(&host, &["tree"], &["--net-host"])?;
    talker.checkpoint("kept")?;
    talker.remove()?;
    let taken = std::net::TcpListener::bind("0.0.0.0:7000")?;
    restore_fails(&host, &["Address already in use", "in use", "free it"])?;
    drop(taken);
    let mut talker = Talker::restore(&host, "c", "kept")?;
    let _number = talker.check()?;
    talker.remove()
}

fn restore_fails(host: &Host, parts: &[&str]) -> Result<()> {
    let said = restore(host, "c", "kept")?;
    ensure!(said.code != 0, "restored in spite of {parts:?}");
    for part in parts {
        ensure!(said.stderr.contains(part), "{} lacks {part:?}", said.stderr);
    }
    // ctr leaves the container's record, as it does after any run that fails.
    let _said = host.ctr(&["containers", "delete", "c"])?.ok()?;
    Ok(())
}

/// Where CRIU is too old for the kernel, that is what is said.
#[test]
fn old_criu_is_told() -> Result<()> {
    need!(OurShim, "containerd's own shim only names the log");
    need!(Criu, "dumps");
    if is_there(Need::CriuSockets) {
        // Not a skip: there is nothing to be said of a CRIU that can.
        return Ok(());
    }
    let host = Host::with_image()?;
    let mut talker = run(&host, &["tree"], &[])?;
    is_refused(
        &Case {
            mode: &["tree"],
            more: &[],
            line: "Can't get 1:16 opt",
            meaning: "older than 4.2",
            remedy: "install CRIU 4.2 or later",
        },
        &host,
    )?;
    assert_eq!(talker.check()?, 1);
    talker.remove()
}
