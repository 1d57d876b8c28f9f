//! `cedana check`: what it says of this host, and of containers that can and cannot be dumped; a dump says the same.

use std::fs;
use std::os::unix::net::UnixListener;

use anyhow::{Context, Result, ensure};
use integration::by_ctr::Talker;
use integration::cedana::{Cedana, code};
use integration::cedana_counter::Counter;
use integration::engine::Said;
use integration::host::Host;
use integration::need;
use serde::Deserialize;

const WORKLOAD: &str = env!("CARGO_BIN_EXE_workload");

#[derive(Debug, Deserialize)]
struct Report {
    can_dump: bool,
    processes: usize,
    findings: Vec<Finding>,
}

#[derive(Debug, Deserialize)]
struct Finding {
    code: String,
    severity: String,
    what: String,
    remedy: String,
}

#[derive(Debug, Deserialize)]
struct OfHost {
    can_dump: bool,
    errors: usize,
    checks: Vec<Check>,
}

#[derive(Debug, Deserialize)]
struct Check {
    component: String,
    feature: String,
    level: String,
    found: String,
}

fn check(host: &Host, more: &[&str]) -> Result<Said> {
    let namespace = ["check", "c", "--namespace", host.namespace()];
    Cedana::on(host).run(&[namespace.as_slice(), more].concat())
}

fn report(host: &Host) -> Result<(i32, Report)> {
    let said = check(host, &["--json"])?;
    let report = serde_json::from_str(&said.stdout).with_context(|| format!("a report in {said:?}"))?;
    Ok((said.code, report))
}

/// A workload that holds something, with a directory of the host at `/host`.
fn holding<'host>(host: &'host Host, kind: &str, annotation: &str) -> Result<Talker<'host>> {
    let shared = host.dir().join("shared");
    fs::create_dir_all(&shared)?;
    let mount = format!("type=bind,src={},dst=/host,options=rbind:rw", shared.display());
    let mut more = vec!["--mount", mount.as_str()];
    if !annotation.is_empty() {
        more.extend(["--annotation", annotation]);
    }
    Talker::run(host, "c", WORKLOAD, &["hold", kind], &more)
}

fn listener(host: &Host) -> Result<UnixListener> {
    let shared = host.dir().join("shared");
    fs::create_dir_all(&shared)?;
    Ok(UnixListener::bind(shared.join("socket"))?)
}

/// What is held is found, with how bad it is; a dump fails as well; without it nothing is in the way.
fn check_held(kind: &str, annotation: &str, finding: &str, severity: &str) -> Result<()> {
    need!(OurShim, "another shim has no preflight");
    let host = Host::with_image()?;
    let _listener = listener(&host)?;
    let mut talker = holding(&host, kind, annotation)?;
    let (exit, found) = report(&host)?;
    ensure!(
        !found.can_dump && exit == code::UNSUPPORTED,
        "{kind}: {exit}, {found:?}"
    );
    let of_code: Vec<&Finding> = found.findings.iter().filter(|one| one.code == finding).collect();
    ensure!(
        of_code.len() == 1,
        "{kind}: {finding} is not told once: {found:?}"
    );
    let one = of_code.first().context("one")?;
    assert_eq!(one.severity, severity, "{kind}");
    ensure!(!one.remedy.is_empty() && !one.what.is_empty(), "{kind}: {one:?}");
    assert_eq!(talker.ask("ping")?, "pong 1", "{kind}: it was only looked at");
    let said = check(&host, &[])?;
    ensure!(
        said.stdout.contains(&one.what) && said.stdout.contains("cannot be dumped now"),
        "{said:?}"
    );
    ensure!(said.stderr.starts_with("cedana: c"), "{said:?}");
    let dumped = host.ctr(&["tasks", "checkpoint", "c"])?;
    ensure!(dumped.code != 0, "{kind}: the dump succeeded");

    let _dropped = talker.ask("drop")?;
    let (exit, found) = report(&host)?;
    ensure!(exit == 0 && found.can_dump, "{kind} is dropped: {found:?}");
    talker.remove()
}

#[test]
fn io_uring_is_found() -> Result<()> {
    check_held("io-uring", "", "io-uring", "blocks")
}

#[test]
fn established_connection_is_found_and_a_setting_allows_it() -> Result<()> {
    need!(CriuSockets, "the workload has network sockets");
    check_held("half-connection", "", "tcp-established", "needs-setting")?;
    let host = Host::with_image()?;
    let talker = holding(&host, "half-connection", "cedana.dump.tcp=established")?;
    let (exit, found) = report(&host)?;
    ensure!(exit == 0 && found.can_dump, "{found:?}");
    talker.remove()
}

#[test]
fn deleted_file_over_the_limit_is_found() -> Result<()> {
    check_held(
        "ghost",
        "cedana.dump.ghost-limit=1M",
        "deleted-file",
        "needs-setting",
    )
}

#[test]
fn connection_to_the_host_is_found() -> Result<()> {
    check_held("host-socket", "", "outside-unix-socket", "blocks")
}

#[test]
fn vsock_is_found() -> Result<()> {
    check_held("vsock", "", "socket", "blocks")
}

#[test]
fn nested_namespace_is_found() -> Result<()> {
    check_held("user-namespace", "", "nested-user-namespace", "blocks")
}

#[test]
fn tree_of_processes_is_clear_and_its_volumes_are_named() -> Result<()> {
    need!(OurShim, "another shim has no preflight");
    let host = Host::with_image()?;
    let mut talker = Talker::run(&host, "c", WORKLOAD, &["tree"], &[])?;
    let (exit, found) = report(&host)?;
    assert_eq!(found.processes, 3, "{found:?}");
    ensure!(
        found
            .findings
            .iter()
            .any(|one| one.code == "bind-mount" && one.what.contains("/workload")),
        "{found:?}"
    );
    // Its listening socket is what an old CRIU fails on.
    let sockets = need::is_there(need::Need::CriuSockets);
    assert_eq!(
        (exit, found.can_dump),
        if sockets {
            (0, true)
        } else {
            (code::UNSUPPORTED, false)
        }
    );
    let is_old = found.findings.iter().any(|one| one.code == "old-criu");
    assert_eq!(is_old, !sockets, "{found:?}");
    let dumped = host.ctr(&["tasks", "checkpoint", "c"])?;
    assert_eq!(dumped.code == 0, sockets, "{dumped:?}");
    let _number = talker.check()?;
    talker.remove()
}

#[test]
fn what_does_not_run_cannot_be_checked() -> Result<()> {
    need!(OurShim, "another shim's containers are no jobs");
    let host = Host::with_image()?;
    let talker = Talker::run(&host, "c", WORKLOAD, &["tree"], &[])?;
    let _killed = host.ctr(&["tasks", "kill", "--signal", "KILL", "c"])?.ok()?;
    let _code = host.api().wait("c", "")?;
    let said = check(&host, &[])?;
    assert_eq!(said.code, code::WRONG_STATE, "{said:?}");
    ensure!(
        said.stderr.contains("does not run") && said.stdout.is_empty(),
        "{said:?}"
    );
    let _forgotten = Cedana::on(&host).fails(&["check", "no-such-job"], code::NOT_FOUND, "no-such-job")?;
    let mut talker = talker;
    talker.gone()
}

#[test]
fn host_is_good_and_says_what_it_has() -> Result<()> {
    let said = Cedana::new().run(&["check"])?;
    assert_eq!(said.code, 0, "{said:?}");
    let last = said.stdout.lines().last().unwrap_or_default();
    ensure!(
        last == "All good." || last.starts_with("Looks good, with "),
        "{last}"
    );
    let found: OfHost = Cedana::new().json(&["check"])?;
    ensure!(found.can_dump && found.errors == 0, "{found:?}");
    let old = !need::is_there(need::Need::CriuSockets);
    for (component, feature) in [
        ("containerd", "version"),
        ("shim", "version"),
        ("runc", "version"),
        ("criu", "version"),
        ("kernel", "release"),
        ("gpu", "driver"),
        ("cedana", "registry"),
        ("cedana", "checkpoints"),
        ("cedana", "configuration"),
    ] {
        let check = found
            .checks
            .iter()
            .find(|check| check.component == component && check.feature == feature)
            .with_context(|| format!("{component} {feature} in {found:?}"))?;
        ensure!(!check.found.is_empty(), "{check:?}");
        if (component, old) == ("criu", true) {
            assert_eq!(check.level, "warning", "{check:?}");
        }
    }
    Ok(())
}

#[test]
fn trial_dumps_and_restores_and_leaves_nothing() -> Result<()> {
    need!(Criu, "dumps");
    let found: OfHost = Cedana::new().json(&["check", "--full"])?;
    for feature in ["run", "dump", "restore"] {
        ensure!(
            found
                .checks
                .iter()
                .any(|check| check.component == "trial" && check.feature == feature && check.level == "good"),
            "{feature}: {found:?}"
        );
    }
    let namespaces = integration::engine::run("ctr", &["namespaces", "ls", "--quiet"])?.ok()?;
    ensure!(
        !namespaces.lines().any(|name| name == "cedana-check"),
        "{namespaces}"
    );
    let jobs = Cedana::new().says(&["ps", "--all", "--json"])?;
    ensure!(!jobs.contains("cedana-check"), "{jobs}");
    let left: Vec<_> = fs::read_dir("/run/cedana")?
        .flatten()
        .map(|entry| entry.file_name())
        .filter(|name| name.to_string_lossy().starts_with("check-"))
        .collect();
    ensure!(left.is_empty(), "{left:?}");
    Ok(())
}

#[test]
fn host_that_lacks_something_fails_and_says_what() -> Result<()> {
    let nowhere = Cedana::new().with("CONTAINERD_ADDRESS", "/nonexistent.sock");
    let said = nowhere.run(&["check"])?;
    assert_eq!(said.code, code::UNSUPPORTED, "{said:?}");
    ensure!(said.stdout.contains("✖  containerd  socket"), "{said:?}");
    ensure!(said.stdout.contains("Failed with 1 error"), "{said:?}");
    let tried = nowhere.run(&["check", "--full"])?;
    ensure!(tried.stdout.contains("not tried"), "{tried:?}");

    let dir = tempfile::tempdir()?;
    let file = dir.path().join("config.json");
    fs::write(&file, r#"{"dump": {"tpc": "established"}}"#)?;
    let said = Cedana::new().with("CEDANA_CONFIG", &file).run(&["check"])?;
    assert_eq!(said.code, code::UNSUPPORTED, "{said:?}");
    ensure!(
        said.stdout.contains("✖  cedana") && said.stdout.contains("dump.tcp"),
        "the setting that was meant: {said:?}"
    );
    Ok(())
}

#[test]
fn container_of_another_shim_is_looked_at_as_well() -> Result<()> {
    need!(OurShim, "managing is for containers of another shim");
    let host = Host::with_image()?;
    let image = host.load_image()?;
    let args = [
        "run",
        "--detach",
        "--runtime",
        "io.containerd.runc.v2",
        image,
        "c",
        "sleep",
        "1000",
    ];
    let _started = host.ctr(&args)?.ok()?;
    let manage = ["manage", "containerd", "c", "--namespace", host.namespace()];
    let _managed = Cedana::on(&host).says(&manage)?;
    let (exit, found) = report(&host)?;
    ensure!(exit == 0 && found.can_dump && found.processes == 1, "{found:?}");
    Ok(())
}

#[test]
fn features_are_a_table_and_a_document() -> Result<()> {
    let text = Cedana::new().says(&["features"])?;
    ensure!(text.starts_with("FEATURE ") && text.contains("\ndump "), "{text}");
    let all: Vec<serde_json::Value> = Cedana::new().json(&["features"])?;
    ensure!(
        all.iter()
            .any(|one| one["feature"] == "dump" && one["containerd"] == "yes"),
        "{all:?}"
    );
    Ok(())
}

#[test]
fn preflight_is_for_people_too() -> Result<()> {
    need!(OurShim, "another shim has no preflight");
    let shim = "containerd-shim-cedana-v1";
    let said = integration::engine::run(shim, &["preflight", "-pid", "1"])?;
    let report: serde_json::Value =
        serde_json::from_str(&said.stdout).with_context(|| format!("{said:?}"))?;
    assert_eq!(report["pid"], 1);
    for (args, part) in [
        (["preflight", "-pid", "x"], "no pid"),
        (["preflight", "-pid", "4194304"], "does not run"),
    ] {
        let said = integration::engine::run(shim, &args)?;
        ensure!(said.code == 1 && said.stderr.contains(part), "{said:?}");
    }
    Ok(())
}

#[test]
fn what_was_restored_can_be_dumped_again() -> Result<()> {
    need!(OurShim, "another shim has no preflight");
    need!(Criu, "dumps");
    let host = Host::with_image()?;
    let counter = Counter::run(&host, "c")?;
    let cedana = Cedana::on(&host);
    let job = counter.job();
    let _path = cedana.dump(&[&job])?;
    let _pid = cedana.restore(&[&job])?;
    let (exit, found) = report(&host)?;
    ensure!(found.can_dump && exit == 0, "{exit}: {found:?}");
    let _path = cedana.dump(&[&job, "--leave-running"])?;
    counter.kill_and_delete()
}
