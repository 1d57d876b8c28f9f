//! The cached machine: `<cache>/vm-<hash>/`, with its disk, kernel, initial file system and saved memory.
//!
//! Built in three steps: a Debian root file system with a kernel (see [`rootfs`]), the same as a disk, and the disk's
//! first boot, at whose end the machine is saved.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::launcher;
use super::machine::{Boot, DISK, INITRD, KERNEL, MACHINE_VERSION, Machine};
use super::monitor;
use super::workspace::Workspace;
use crate::testbed::report::say;
use crate::testbed::suite::Suite;
use crate::testbed::{apt, cache, engines, rootfs};

/// Raised when what is put into the disk changes without a change of what [`ensure`] names.
const IMAGE_VERSION: u32 = 1;

/// Sparse: what is not used is not there.
const DISK_SIZE: &str = "8G";

/// systemd settles in half a minute; beside a busy compiler it takes several times that.
const BOOT_MAX: Duration = Duration::from_secs(600);

/// Starting both engines and loading the images takes about a minute.
const PREPARE_MAX: Duration = Duration::from_secs(600);

/// The cached machine, built if it is not there.
///
/// `workspace` is where the machine that is saved runs meanwhile.
pub fn ensure(workspace: &Workspace) -> Result<PathBuf> {
    apt::need(&[
        ("qemu-system-x86_64", "qemu-system-x86"),
        ("mke2fs", "e2fsprogs"),
        ("setpriv", "util-linux"),
    ])?;
    let root = rootfs::ensure(&Suite::Vm.recipe())?;
    // Whatever is in a saved machine has a part in its name, and so has the QEMU that can read it.
    let parts = format!(
        "{IMAGE_VERSION} {MACHINE_VERSION} {} {} {} {:?}",
        root.file_name().unwrap_or_default().display(),
        qemu_version()?,
        include_str!("launcher.rs"),
        engines::configuration(),
    );
    let place = cache::place("vm", &parts)?;
    cache::built(&place, |partial| build(&root, partial, workspace))?;
    Ok(place)
}

fn build(root: &Path, image: &Path, workspace: &Workspace) -> Result<()> {
    say("making the machine's disk, booting it and saving what has booted; once, about two minutes");
    fs::create_dir_all(image).with_context(|| format!("make {}", image.display()))?;
    let tree = image.join("tree");
    // Hard links: the tree is read once, and only whole files in it are replaced.
    ran(Command::new("cp")
        .arg("--archive")
        .arg("--link")
        .arg(root)
        .arg(&tree))?;
    furnish(&tree)?;
    let boot = tree.join("boot");
    let _ = fs::copy(newest(&boot, "vmlinuz-")?, image.join(KERNEL)).context("copy the kernel")?;
    let _ = fs::copy(newest(&boot, "initrd.img-")?, image.join(INITRD))
        .context("copy the initial file system")?;
    ran(Command::new("mke2fs")
        .args([
            "-q",
            "-t",
            "ext4",
            "-E",
            "lazy_itable_init=1,lazy_journal_init=1",
            "-d",
        ])
        .arg(&tree)
        .arg(image.join(DISK))
        .arg(DISK_SIZE))?;
    fs::remove_dir_all(&tree).with_context(|| format!("remove {}", tree.display()))?;
    first_boot(image, workspace)
}

/// Puts into the tree what makes it a machine of the testbed.
fn furnish(tree: &Path) -> Result<()> {
    for (path, text) in launcher::FILES.iter().chain([&launcher::LAUNCHER]) {
        replace(&tree.join(path), |path| fs::write(path, text))?;
    }
    fs::set_permissions(tree.join(launcher::LAUNCHER.0), fs::Permissions::from_mode(0o755))
        .context("make the launcher executable")?;
    for path in launcher::UNWANTED {
        // Not there is what is wanted.
        let _ = fs::remove_file(tree.join(path));
    }
    let (path, target) = launcher::WANTED;
    replace(&tree.join(path), |path| symlink(target, path))?;
    let units = tree.join("etc/systemd/system");
    for unit in launcher::MASKED {
        replace(&units.join(unit), |path| symlink("/dev/null", path))?;
    }
    replace(&units.join("default.target"), |path| {
        symlink("/usr/lib/systemd/system/multi-user.target", path)
    })
}

/// Makes a new file at `path`. The one that may be there is shared with the cached tree, so it must not be written.
fn replace(path: &Path, make: impl FnOnce(&Path) -> std::io::Result<()>) -> Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).with_context(|| format!("make {}", parent.display()))?;
    }
    if path.symlink_metadata().is_ok() {
        fs::remove_file(path).with_context(|| format!("replace {}", path.display()))?;
    }
    make(path).with_context(|| format!("make {}", path.display()))
}

/// The file in that directory with that prefix. There is one, since one kernel is installed.
fn newest(directory: &Path, prefix: &str) -> Result<PathBuf> {
    let entries = fs::read_dir(directory).with_context(|| format!("read {}", directory.display()))?;
    entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with(prefix))
        })
        .max()
        .with_context(|| format!("find {prefix}* in {}", directory.display()))
}

fn first_boot(image: &Path, workspace: &Workspace) -> Result<()> {
    let machine = Machine::start(image, Boot::Cold, workspace.path())?;
    let said = machine.line(BOOT_MAX)?;
    if said != launcher::UP {
        bail!("boot the machine: it says {said:?}; {}", machine.last_words());
    }
    machine.tell(&launcher::prepare(&workspace.copy_program()?))?;
    let said = machine.line(PREPARE_MAX)?;
    if said != launcher::PREPARED {
        bail!("prepare the machine: it says {said:?}; {}", machine.last_words());
    }
    monitor::save(&machine.monitor)?;
    machine.wait()
}

/// Inside, once: sets up the engines as in other suites, and loads the images.
pub fn prepare_inside() -> Result<()> {
    engines::configure()?;
    ran(Command::new("systemctl").args(["start", "containerd.service", "docker.socket", "docker.service"]))?;
    engines::load_images_containerd()?;
    engines::load_images_docker()?;
    // What a first container and a first dump load from the disk, kernel modules too, is in memory afterwards, and saved
    // with it.
    ran(Command::new("criu").arg("check"))?;
    let warm_up = [
        "run",
        "--rm",
        crate::testbed::image::BUSYBOX,
        "warm-up",
        "/bin/true",
    ];
    ran(Command::new("ctr").args(warm_up))
}

fn qemu_version() -> Result<String> {
    let said = Command::new("qemu-system-x86_64")
        .arg("--version")
        .output()
        .context("run qemu-system-x86_64")?;
    Ok(String::from_utf8_lossy(&said.stdout).into_owned())
}

fn ran(command: &mut Command) -> Result<()> {
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
