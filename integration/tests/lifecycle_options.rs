//! `containerd.runc.v1.Options`: all of them reach runc, whether sent with the container or with the create call.
#![expect(
    unused_results,
    reason = "a test acts through calls, and compares only the answers it is about"
)]

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Context, Result};
use integration::host::Host;
use integration::leftovers::{cgroups, command_line};
use integration::messages::RuncOptions;
use integration::need;
use integration::stalled::StalledRunc;
use integration::stdio::StreamNames;
use integration::workload::Workload;

const CGROUP_ROOT: &str = "/sys/fs/cgroup";

#[test]
fn every_runc_call_takes_the_binary_the_root_and_the_flags() -> Result<()> {
    let host = Host::new()?;
    let runc = StalledRunc::that_never_stops(host.dir())?;
    let root = host.dir().join("runc-root");
    let options = RuncOptions {
        root: root.display().to_string(),
        no_pivot_root: true,
        no_new_keyring: true,
        ..runc.options()
    };
    let container = host.container_with("c", Workload::forever(), Some(&options))?;
    container.create()?;
    container.start()?;
    assert!(
        root.join(host.namespace()).join("c/state.json").exists(),
        "runc's state is under its root"
    );
    assert_eq!(container.run_exec("e1", "exit 2")?.1, 2);
    container.api().pause("c")?;
    container.api().resume("c")?;
    container.kill_and_delete()?;
    let calls = runc.calls();
    let with_root = format!("--root {}/{}", root.display(), host.namespace());
    assert!(calls.iter().all(|call| call.contains(&with_root)), "{calls:#?}");
    let create = calls
        .iter()
        .find(|call| call.contains(" create "))
        .context("find the create call")?;
    assert!(
        create.contains("--no-pivot") && create.contains("--no-new-keyring"),
        "{create}"
    );
    let has_exec = calls.iter().any(|call| call.contains(" exec "));
    assert!(has_exec, "the other steps a shim may do itself: {calls:#?}");
    assert!(!root.join(host.namespace()).join("c").exists());
    host.assert_clean()
}

#[test]
fn options_of_the_create_call_are_taken_too() -> Result<()> {
    let host = Host::new()?;
    let runc = StalledRunc::that_never_stops(host.dir())?;
    let container = host.container("c", Workload::shell("exit 3"))?;
    container.create_with(&StreamNames::default(), Some(&runc.options()))?;
    container.start()?;
    assert_eq!(container.wait()?, 3);
    container.delete()?;
    assert!(
        runc.calls().iter().any(|call| call.contains(" create ")),
        "{:#?}",
        runc.calls()
    );
    Ok(())
}

#[test]
fn crun_works_too() -> Result<()> {
    need!(Crun, "runs a container by crun");
    need!(
        NotHybrid,
        "crun refuses to run where a unified hierarchy beside v1 has controllers"
    );
    let host = Host::new()?;
    let events = host.events()?;
    let options = RuncOptions {
        binary_name: "crun".to_owned(),
        ..RuncOptions::default()
    };
    let container = host.container_with("c", Workload::forever(), Some(&options))?;
    let fifos = container.fifos("init")?;
    let (stdout, _stderr) = fifos.read();
    container.create_with(&fifos.names(false), None)?;
    container.start()?;
    stdout.wait_for("ready")?;
    let state = Path::new("/run/containerd/runc")
        .join(host.namespace())
        .join("c/status");
    assert!(
        state.exists(),
        "crun's state file is there, and runc's is called otherwise"
    );
    assert_eq!(container.run_exec("e1", "exit 2")?.1, 2);
    container.api().pause("c")?;
    container.api().resume("c")?;
    assert!(container.api().pids("c")?.len() >= 2);
    container.kill(15)?;
    assert_eq!(container.wait()?, 143);
    container.delete()?;
    events.until("c", "exit 143")?;
    host.assert_clean()
}

/// The uid cannot be seen: runc gives the streams to the user of the process, whoever made them.
#[test]
fn the_streams_belong_to_the_io_gid() -> Result<()> {
    let host = Host::new()?;
    let options = RuncOptions {
        io_uid: 1234,
        io_gid: 2345,
        ..RuncOptions::default()
    };
    let container = host.container("c", Workload::forever())?;
    let fifos = container.fifos("init")?;
    let (stdout, _stderr) = fifos.read();
    container.create_with(&fifos.names(false), Some(&options))?;
    container.start()?;
    stdout.wait_for("ready")?;
    let pid = container.state()?.pid;
    for fd in 0..3 {
        let stream = fs::metadata(format!("/proc/{pid}/fd/{fd}"))?;
        assert_eq!(stream.gid(), 2345, "descriptor {fd}");
    }
    Ok(())
}

#[test]
fn the_shim_goes_into_the_cgroup_that_it_is_told() -> Result<()> {
    let host = Host::new()?;
    let name = format!("{}-shims", host.namespace());
    let dirs = make_cgroups(&name)?;
    let options = RuncOptions {
        shim_cgroup: format!("/{name}"),
        ..RuncOptions::default()
    };
    let container = host.container_with("c", Workload::forever(), Some(&options))?;
    container.create()?;
    let shim = container.shim_pid()?;
    let table = fs::read_to_string(format!("/proc/{shim}/cgroup"))?;
    assert!(table.contains(&name), "{:?} is in {table}", command_line(shim));
    let init = fs::read_to_string(format!("/proc/{}/cgroup", container.state()?.pid))?;
    assert!(!init.contains(&name), "the container is not: {init}");
    container.delete()?;
    container.remove()?;
    assert!(!cgroups(&name).is_empty(), "it belongs to whoever made it");
    for dir in dirs {
        fs::remove_dir(&dir).with_context(|| format!("remove {}", dir.display()))?;
    }
    Ok(())
}

/// The cgroup in every v1 hierarchy, or in the unified one.
fn make_cgroups(name: &str) -> Result<Vec<std::path::PathBuf>> {
    let unified = Path::new(CGROUP_ROOT).join("cgroup.controllers").exists();
    let roots: Vec<_> = if unified {
        vec![Path::new(CGROUP_ROOT).to_owned()]
    } else {
        let all = fs::read_dir(CGROUP_ROOT)?.flatten().map(|entry| entry.path());
        all.filter(|path| path.is_dir() && !path.is_symlink() && !path.ends_with("unified"))
            .collect()
    };
    let dirs: Vec<_> = roots.into_iter().map(|root| root.join(name)).collect();
    for dir in &dirs {
        fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
    }
    // An empty cpuset takes no process.
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let (own, parent) = (
            Path::new(CGROUP_ROOT).join("cpuset").join(name).join(file),
            Path::new(CGROUP_ROOT).join("cpuset").join(file),
        );
        if own.exists() {
            fs::write(&own, fs::read_to_string(parent)?)?;
        }
    }
    Ok(dirs)
}

#[test]
fn a_systemd_cgroup_path_puts_the_container_into_its_scope() -> Result<()> {
    need!(Systemd, "systemd makes the scope");
    for told in [true, false] {
        if !told {
            need!(
                OurShim,
                "containerd's shim does not recognise the path by its form"
            );
        }
        let host = Host::new()?;
        let options = RuncOptions {
            systemd_cgroup: told,
            ..RuncOptions::default()
        };
        let name = host.namespace().to_lowercase();
        let workload = Workload::forever().cgroups_path(&format!("system.slice:cedana:{name}"));
        let container = host.container_with("c", workload, told.then_some(&options))?;
        container.create()?;
        container.start()?;
        let table = fs::read_to_string(format!("/proc/{}/cgroup", container.state()?.pid))?;
        assert!(
            table.contains(&format!("system.slice/cedana-{name}.scope")),
            "{table}"
        );
        container.kill_and_delete()?;
        host.assert_clean()?;
    }
    Ok(())
}
