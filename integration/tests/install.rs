//! What `make install` puts on a host: the engines take the ready files, and uninstalling leaves what is not ours.
#![expect(
    unused_results,
    reason = "a test acts through calls, and compares only the answers it is about"
)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use integration::engine::{Said, finish, run};
use integration::host::Host;
use integration::leftovers::command_line;
use integration::need;
use integration::stdio::eventually;

/// Where the instance has what is built.
const BINARIES: &str = "/usr/local/bin";

/// What is installed below the prefix.
const INSTALLED: [&str; 9] = [
    "bin/cedana",
    "bin/containerd-shim-cedana-v1",
    "share/bash-completion/completions/cedana",
    "share/cedana/containerd-1.7.toml",
    "share/cedana/containerd-2.toml",
    "share/cedana/docker-daemon.json",
    "share/cedana/runtimeclass.yaml",
    "share/fish/vendor_completions.d/cedana.fish",
    "share/zsh/site-functions/_cedana",
];

fn config() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../config")
}

fn ready(file: &str) -> PathBuf {
    config().join("files").join(file)
}

fn install(prefix: &Path, argument: &str) -> Result<Said> {
    let mut command = Command::new(config().join("install"));
    command.arg(argument).env("PREFIX", prefix).env_remove("DESTDIR");
    finish(&mut command, "")
}

fn files_below(dir: &Path) -> Result<Vec<String>> {
    let mut files = Vec::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(next) = dirs.pop() {
        for entry in fs::read_dir(&next).with_context(|| format!("read {}", next.display()))? {
            let path = entry?.path();
            if path.is_dir() {
                dirs.push(path);
            } else {
                files.push(path.strip_prefix(dir)?.display().to_string());
            }
        }
    }
    files.sort();
    Ok(files)
}

#[test]
fn what_is_installed_runs_and_is_removed_and_nothing_else_is() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let prefix = dir.path().join("pre fix");
    let said = install(&prefix, BINARIES)?.ok()?;
    assert_eq!(files_below(&prefix)?, INSTALLED);
    assert!(
        said.contains("docker-daemon.json") && said.contains("--runtime io.containerd.cedana.v1"),
        "{said}"
    );
    assert!(
        said.contains("does not look into"),
        "this containerd has another PATH: {said}"
    );
    run(&prefix.join("bin/cedana").display().to_string(), &["version"])?.ok()?;
    let completion = fs::read_to_string(prefix.join("share/bash-completion/completions/cedana"))?;
    assert!(completion.contains("complete"), "{completion}");

    install(&prefix, BINARIES)?.ok().context("install once more")?;
    assert_eq!(files_below(&prefix)?, INSTALLED, "nothing half-written stays");

    fs::write(prefix.join("share/cedana/mine"), "")?;
    install(&prefix, "--remove")?.ok()?;
    assert_eq!(files_below(&prefix)?, ["share/cedana/mine"]);
    install(&prefix, "--remove")?.ok().context("remove once more")?;
    Ok(())
}

#[test]
fn nothing_is_installed_when_not_all_is_built() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let refused = install(&dir.path().join("prefix"), "/nonexistent")?;
    ensure!(
        refused
            .ok()
            .is_err_and(|error| error.to_string().contains("run make build first"))
    );
    assert!(!dir.path().join("prefix").exists());
    Ok(())
}

/// A configuration as a host has it, with the tables of the ready file behind it as its first lines say.
fn containerd_config(dir: &Path) -> Result<PathBuf> {
    let is_2 = run("containerd", &["config", "default"])?
        .ok()?
        .starts_with("version = 3");
    let (file, plugin) = if is_2 {
        ("containerd-2.toml", "io.containerd.cri.v1.runtime")
    } else {
        ("containerd-1.7.toml", "io.containerd.grpc.v1.cri")
    };
    let tables = fs::read_to_string(ready(file))?;
    let version = tables
        .lines()
        .find(|line| line.starts_with("version"))
        .context("find the version")?;
    let tables = tables.replace(version, "");
    let path = dir.join("config.toml");
    let theirs = format!(
        "{version}\n[plugins.'{plugin}'.containerd.runtimes.runc]\nruntime_type = 'io.containerd.runc.v2'\n"
    );
    // The options that are only a suggestion there have to be taken too.
    let suggested = tables.replace("  # [", "  [").replace("  #   ", "    ");
    fs::write(&path, theirs + &suggested)?;
    Ok(path)
}

#[test]
fn containerd_takes_the_ready_file() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let path = containerd_config(dir.path())?;
    let dump = run(
        "containerd",
        &["--config", &path.display().to_string(), "config", "dump"],
    )?
    .ok()?;
    for part in [
        "containerd.runtimes.runc]",
        "containerd.runtimes.cedana]",
        "io.containerd.cedana.v1",
        "cedana.*",
        "dump.tcp",
    ] {
        assert!(dump.contains(part), "{part} is not in {dump}");
    }
    Ok(())
}

#[test]
fn docker_takes_the_ready_file() -> Result<()> {
    need!(Docker, "the file is Docker's");
    let file = ready("docker-daemon.json").display().to_string();
    run("dockerd", &["--validate", "--config-file", &file])?.ok()?;
    Ok(())
}

#[test]
fn settings_in_runtime_options_reach_the_container() -> Result<()> {
    let host = Host::new()?;
    let table = host.dir().join("options.toml");
    let write = |settings: &str| fs::write(&table, format!("TypeUrl = 'x'\n{settings}\n"));
    let start = |id: &str| -> Result<()> {
        let path = table.display().to_string();
        let flags = [
            "run",
            "--detach",
            "--runtime",
            "io.containerd.cedana.v1",
            "--runtime-config-path",
            &path,
        ];
        host.ctr(&[&flags[..], &[host.load_image()?, id, "sleep", "3600"]].concat())?
            .ok()?;
        let tasks = host.ctr(&["tasks", "ls"])?.ok()?;
        let line = tasks
            .lines()
            .find(|line| line.starts_with(id))
            .context("find the task")?;
        let pid = line.split_whitespace().nth(1).context("find its pid")?.parse()?;
        let runs = || command_line(pid).is_some_and(|line| line.starts_with("sleep"));
        eventually("its program runs", Duration::from_secs(10), runs)
    };
    let dump = |id: &str| {
        let images = host.dir().join(id).display().to_string();
        host.ctr(&["tasks", "checkpoint", "--image-path", &images, id])
    };
    write("[cedana]\n  'dump.timeout' = '1ms'")?;
    start("hasty")?;
    let said = dump("hasty")?;
    assert!(
        said.code != 0 && said.stderr.contains("a larger cedana.dump.timeout"),
        "no dump is that fast: {said:?}"
    );

    write("[cedana.dump]\n  timeot = '1ms'")?;
    start("calm")?;
    dump("calm")?
        .ok()
        .context("a host's typo keeps nothing from starting, and holds for nothing")?;

    for id in ["hasty", "calm"] {
        host.ctr(&["tasks", "rm", "--force", id])?.ok()?;
        host.ctr(&["containers", "rm", id])?.ok()?;
    }
    host.assert_clean()
}
