//! What `checkpointctl` reads of our archives: the tool of the people who made the format, for whoever looks into one.

use anyhow::{Context, Result, ensure};
use integration::cedana::Cedana;
use integration::cedana_counter::Counter;
use integration::engine::run;
use integration::host::{Host, IMAGE};
use integration::need;

fn checkpointctl(args: &[&str]) -> Result<String> {
    let said = run("checkpointctl", args)?;
    said.ok().with_context(|| format!("checkpointctl {args:?}"))
}

#[test]
fn checkpointctl_tells_what_is_in_an_archive_of_ours() -> Result<()> {
    need!(OurShim, "makes the archive");
    need!(Criu, "dumps");
    need!(Checkpointctl, "reads the archive");
    let (host, cedana) = (Host::with_image()?, Cedana::new());
    // One whose memory is captured on the way, and one that is packed from a directory.
    for (id, counter, size) in [
        ("large", Counter::run_large(&host, "large", &[])?, "MiB"),
        ("small", Counter::run(&host, "small")?, "KiB"),
    ] {
        let into = host.made_dir(id)?;
        let dump = ["--leave-running", "--dir", &into, "--compression", "zstd"];
        let path = cedana.dump(&[&[id][..], &dump].concat())?;
        let shown = checkpointctl(&["show", &path])?;
        for part in [id, IMAGE, "runc", "containerd"] {
            ensure!(shown.contains(part), "{part}: {shown}");
        }
        let inspected = checkpointctl(&["inspect", "--all", &path])?;
        for part in [
            "Pages written: ",
            "io.kubernetes.cri.container-name: ",
            "[1]  sh -c ",
            "PATH=/bin",
            "[REG 0]  /dev/null",
            "Destination: /dev/shm",
        ] {
            ensure!(inspected.contains(part), "{part}: {inspected}");
        }
        let sizes = checkpointctl(&["memparse", &path])?;
        let row = sizes
            .lines()
            .find(|line| line.starts_with("1 "))
            .context("the init")?;
        ensure!(row.contains("sh") && row.contains(size), "{row}");
        let found = checkpointctl(&["memparse", "--pid", "1", "--search", "sleep 0.05", &path])?;
        ensure!(found.contains("INSTANCE"), "{found}");
        let pages = checkpointctl(&["memparse", "--pid", "1", &path])?;
        ensure!(pages.lines().count() > 1000, "{pages}");
        counter.goes_on()?;
        counter.kill_and_delete()?;
    }
    Ok(())
}
