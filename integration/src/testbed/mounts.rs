//! The file system an instance sees: an overlay in memory on a cached suite, with fresh kernel file systems.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::unistd::{chdir, pivot_root};

use super::cgroups::{Cgroups, delegate};

/// Directories that get a file system of their own, in memory. containerd's and docker's snapshots are overlays
/// themselves, which an overlay cannot hold.
const IN_MEMORY: &[&str] = &[
    "run",
    "tmp",
    "var/lib/containerd",
    "var/lib/docker",
    "var/lib/nerdctl",
    "dev/shm",
];

/// Makes `root` (a suite) the root of the calling process, which must be alone in a mount namespace of its own.
///
/// `workspace` is any directory outside; what is mounted on it is seen by this namespace only. `shared` are host paths that are
/// there inside as well, writable, under the same names.
pub fn enter(root: &Path, workspace: &Path, cgroups: &Cgroups, shared: &[PathBuf]) -> Result<()> {
    // Nothing that is mounted here may reach the host.
    remount("/", MsFlags::MS_PRIVATE)?;
    fresh("tmpfs", workspace, None)?;
    let new_root = overlay(root, workspace)?;
    fresh("proc", &new_root.join("proc"), None)?;
    fresh("sysfs", &new_root.join("sys"), None)?;
    bind(Path::new("/dev"), &new_root.join("dev"))?;
    for directory in IN_MEMORY {
        fresh("tmpfs", &new_root.join(directory), Some("mode=755"))?;
    }
    for open_to_all in ["tmp", "dev/shm"] {
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o1777);
        fs::set_permissions(new_root.join(open_to_all), mode)?;
    }
    mount_cgroups(&new_root, cgroups)?;
    for path in shared {
        bind(path, &new_root.join(path.strip_prefix("/").unwrap_or(path)))?;
    }
    // CRIU refuses a root that is not a mount point, so this is no chroot.
    chdir(&new_root).context("enter the new root")?;
    pivot_root(".", ".").context("make it the root")?;
    umount2(".", MntFlags::MNT_DETACH).context("let go of the old root")?;
    chdir("/").context("enter /")?;
    // As on a machine with systemd: mounts made by one engine are seen by the others.
    remount("/", MsFlags::MS_SHARED)
}

fn overlay(lower: &Path, workspace: &Path) -> Result<PathBuf> {
    let [upper, work, merged] = ["upper", "work", "root"].map(|name| workspace.join(name));
    for directory in [&upper, &work, &merged] {
        fs::create_dir(directory).with_context(|| format!("make {}", directory.display()))?;
    }
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        lower.display(),
        upper.display(),
        work.display()
    );
    fresh("overlay", &merged, Some(&options))?;
    Ok(merged)
}

/// The hierarchies of the host under the same names, each showing the instance's own cgroup as its root.
fn mount_cgroups(new_root: &Path, cgroups: &Cgroups) -> Result<()> {
    let within = |mount_point: &Path| new_root.join(mount_point.strip_prefix("/").unwrap_or(mount_point));
    if let [(only, _)] = cgroups.places.as_slice()
        && only.options.is_none()
    {
        let at = within(&only.mount_point);
        fresh("cgroup2", &at, None)?;
        // A v2 cgroup that hands controllers down cannot hold processes, and this one looks like the root inside.
        let init = at.join("init");
        fs::create_dir(&init).with_context(|| format!("make cgroup {}", init.display()))?;
        fs::write(init.join("cgroup.procs"), "0").context("move into the cgroup of init")?;
        return delegate(&at);
    }
    fresh("tmpfs", &new_root.join("sys/fs/cgroup"), Some("mode=755"))?;
    for (hierarchy, _) in &cgroups.places {
        let kind = if hierarchy.options.is_some() {
            "cgroup"
        } else {
            "cgroup2"
        };
        fresh(
            kind,
            &within(&hierarchy.mount_point),
            hierarchy.options.as_deref(),
        )?;
        aliases(&new_root.join("sys/fs/cgroup"), &hierarchy.mount_point)?;
    }
    Ok(())
}

/// Where a hierarchy holds several controllers (`cpu,cpuacct`), each is found under its own name, too.
fn aliases(directory: &Path, mount_point: &Path) -> Result<()> {
    let Some(name) = mount_point
        .file_name()
        .and_then(|name| name.to_str())
        .filter(|name| name.contains(','))
    else {
        return Ok(());
    };
    for controller in name.split(',') {
        std::os::unix::fs::symlink(name, directory.join(controller)).context("link a controller's name")?;
    }
    Ok(())
}

fn fresh(kind: &str, at: &Path, options: Option<&str>) -> Result<()> {
    fs::create_dir_all(at).with_context(|| format!("make {}", at.display()))?;
    mount(Some(kind), at, Some(kind), MsFlags::empty(), options)
        .with_context(|| format!("mount {kind} on {} with {options:?}", at.display()))
}

fn bind(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to).with_context(|| format!("make {}", to.display()))?;
    mount(
        Some(from),
        to,
        None::<&str>,
        MsFlags::MS_BIND | MsFlags::MS_REC,
        None::<&str>,
    )
    .with_context(|| format!("bind {} to {}", from.display(), to.display()))
}

fn remount(at: &str, propagation: MsFlags) -> Result<()> {
    mount(
        None::<&str>,
        at,
        None::<&str>,
        MsFlags::MS_REC | propagation,
        None::<&str>,
    )
    .with_context(|| format!("change the propagation of mounts below {at}"))
}
