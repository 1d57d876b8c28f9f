//! Containers with volumes that have mounts below them: a restore leaves the host's mounts alone.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use integration::by_ctr::Talker;
use integration::host::Host;
use integration::need;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

const WORKLOAD: &str = env!("CARGO_BIN_EXE_workload");

/// A mount of the host, which goes with the test.
struct Mounted(PathBuf);

impl Mounted {
    fn tmpfs(at: &Path) -> Result<Self> {
        fs::create_dir_all(at)?;
        mount(
            Some("tmpfs"),
            at,
            Some("tmpfs"),
            MsFlags::empty(),
            Some("size=64k"),
        )
        .with_context(|| format!("mount on {}", at.display()))?;
        // As systemd has it on every host that it runs.
        mount(None::<&str>, at, None::<&str>, MsFlags::MS_SHARED, None::<&str>)?;
        Ok(Self(at.to_owned()))
    }

    fn is_there(&self) -> Result<bool> {
        let table = fs::read_to_string("/proc/self/mountinfo")?;
        let point = self.0.display().to_string();
        Ok(table.lines().any(|line| line.split(' ').nth(4) == Some(&point)))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _gone = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

/// runc binds a volume again before it has CRIU restore, and unmounts it with all that is below it.
#[test]
fn restore_leaves_what_is_mounted_below_a_volume() -> Result<()> {
    need!(OurShim, "runc by itself unmounts it");
    need!(Criu, "dumps");
    let host = Host::new()?;
    let _image = host.load_image()?;
    let volume = Mounted::tmpfs(&host.dir().join("volume"))?;
    let below = Mounted::tmpfs(&volume.0.join("below"))?;
    fs::write(below.0.join("file"), "kept")?;
    let option = format!(
        "type=bind,src={},dst=/volume,options=rbind:rprivate:rw",
        volume.0.display()
    );
    let mut talker = Talker::run(&host, "c", WORKLOAD, &["locks"], &["--mount", &option])?;
    assert_eq!(talker.ask("ping")?, "pong 1");
    talker.checkpoint("kept")?;
    talker.remove()?;
    ensure!(below.is_there()?, "gone before the restore");
    talker = Talker::restore(&host, "c", "kept")?;
    assert_eq!(talker.ask("ping")?, "pong 2");
    ensure!(
        below.is_there()? && volume.is_there()?,
        "the host has lost a mount"
    );
    assert_eq!(fs::read_to_string(below.0.join("file"))?, "kept");
    talker.remove()
}
