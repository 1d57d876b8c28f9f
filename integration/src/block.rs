//! A disk of a test's own: an ext4 file system in a file in memory, which can be made to hang.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// A mounted disk, gone with this.
#[derive(Debug)]
pub struct Disk {
    at: PathBuf,
    device: String,
}

impl Disk {
    /// One of this size, mounted in a directory that is made. The machine has loop devices.
    ///
    /// # Errors
    /// What should work does not.
    pub fn mount(at: &Path, mib: u64) -> Result<Self> {
        let file = at.with_extension("disk");
        File::create_new(&file)?.set_len(mib << 20)?;
        let _said = run("busybox", &["mke2fs", "-F", &file.display().to_string()])?;
        let device = run("losetup", &["--find", "--show", &file.display().to_string()])?;
        // The device keeps it.
        fs::remove_file(file)?;
        let disk = Self {
            at: at.to_owned(),
            device,
        };
        fs::create_dir(at).with_context(|| format!("make {}", at.display()))?;
        let _said = run("mount", &["-t", "ext4", &disk.device, &at.display().to_string()])?;
        Ok(disk)
    }

    /// From now on whoever writes to it hangs, in a sleep that nothing interrupts.
    ///
    /// # Errors
    /// It cannot be made to.
    pub fn hang(&self) -> Result<()> {
        run("fsfreeze", &["--freeze", &self.at.display().to_string()]).map(drop)
    }

    /// It works again.
    ///
    /// # Errors
    /// It does not.
    pub fn recover(&self) -> Result<()> {
        run("fsfreeze", &["--unfreeze", &self.at.display().to_string()]).map(drop)
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.at
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // A test that failed leaves it hanging, and whoever waits for it must be able to go.
        let _works = self.recover();
        let _gone = run("umount", &["--lazy", &self.at.display().to_string()]);
        let _free = run("losetup", &["--detach", &self.device]);
    }
}

fn run(program: &str, args: &[&str]) -> Result<String> {
    let output = Command::new(program)
        .args(args)
        .output()
        .with_context(|| format!("run {program}"))?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} {args:?}: {errors}");
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
