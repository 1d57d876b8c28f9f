//! What a power cut would leave of a checkpoint, told by the order of system calls: data is on the disk before its name, names
//! before whoever waits for them is told, and nothing is taken away before what replaces it is there.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use integration::calls::{Made, Tracing};
use integration::cedana::Cedana;
use integration::dump_bed::{Bed, By, let_criu_learn};
use integration::host::Host;
use integration::need;
use serde_json::Value;

const WORKLOAD: &str = env!("CARGO_BIN_EXE_workload");

/// What a worker calls the file that becomes `pages-1.img`.
const WORKER_S: &str = "/unfinished-0>";

/// Where a call stands that has to be there.
fn find(made: &[Made], what: &str, is: impl Fn(&Made) -> bool) -> Result<Made> {
    made.iter()
        .rfind(|call| is(call))
        .cloned()
        .with_context(|| format!("no {what}"))
}

fn syncs(call: &Made, end: &str) -> bool {
    call.name == "fsync" && call.args.ends_with(end)
}

fn renames_to(call: &Made, path: &Path) -> bool {
    call.name.starts_with("rename") && call.args.contains(&format!(", \"{}\"", path.display()))
}

/// All of a checkpoint that was made under a name of its own is on the disk before it gets its name, and then the name is.
fn check(made: &[Made], images: &Path) -> Result<()> {
    let manifest = images.join("cedana.json");
    let text: Value = serde_json::from_slice(&fs::read(&manifest)?)?;
    let parts = text.get("parts").and_then(Value::as_array).context("parts")?;
    ensure!(parts.len() > 10, "{} parts", parts.len());
    // The whole directory, or the manifest as the last of its files.
    let named = find(made, "name for the checkpoint", |call| {
        renames_to(call, images) || renames_to(call, &manifest)
    })?;
    let names = parts
        .iter()
        .filter_map(|part| part["path"].as_str())
        .chain(["cedana.json"]);
    for name in names {
        let end = format!("/{name}>");
        let is = |call: &Made| syncs(call, &end) || name.ends_with("pages-1.img") && syncs(call, WORKER_S);
        let synced = find(made, &format!("fsync of {name}"), is)?;
        ensure!(
            synced.to < named.from,
            "{name} gets its name before it is on the disk"
        );
    }
    let staged = find(made, "fsync of the staged directory", |call| {
        syncs(call, ".cedana-partial>")
    })?;
    let first = made.iter().find(|call| {
        call.name.starts_with("rename")
            && call.args.contains(&format!(", \"{}", images.display()))
            && !call
                .args
                .rsplit(", ")
                .next()
                .unwrap_or_default()
                .contains("partial")
    });
    let first = first.context("a rename into place")?;
    ensure!(
        staged.to < first.from,
        "something is moved before the names in the staged directory are on the disk"
    );
    let last = made.iter().rfind(|call| {
        call.name.starts_with("rename") && call.args.contains(&format!(", \"{}", images.display()))
    });
    ensure!(
        last.is_some_and(|last| last.from == named.from),
        "the manifest is not the last: {last:?}"
    );
    let parent = images.parent().context("a parent")?;
    let end = format!("<{}>", parent.display());
    let lasting = find(made, "fsync of the directory it is in", |call| syncs(call, &end))?;
    ensure!(
        named.to < lasting.from,
        "its name is on the disk before it is there"
    );
    Ok(())
}

fn dump(bed: &Bed<'_>, by: By) -> Result<(Vec<Made>, PathBuf)> {
    let images = PathBuf::from(bed.host.made_dir(&format!("{by:?}"))?).join("saved");
    let trace = images.with_file_name("trace");
    let_criu_learn()?;
    let tracing = Tracing::follow(bed.container().shim_pid()?, &trace)?;
    let said = bed.dump(by, &images).output()?;
    let made = tracing.made()?;
    ensure!(said.status.success(), "{said:?}");
    Ok((made, images))
}

#[test]
fn a_checkpoint_is_on_the_disk_before_anybody_relies_on_it() -> Result<()> {
    need!(OurShim, "its order");
    need!(Criu, "dumps");
    need!(Strace, "sees the order");
    let host = Host::with_image()?;
    let mut bed = Bed::new(&host, WORKLOAD, "60s")?;
    for by in [By::CedanaLeaving, By::CtrLeaving] {
        let (made, images) = dump(&bed, by)?;
        check(&made, &images).with_context(|| format!("{by:?}"))?;
        bed.goes_on()?;
    }
    let (made, images) = dump(&bed, By::Cedana)?;
    check(&made, &images).context("with exit")?;
    // Nobody but the answer ends the container.
    let agreed = find(&made, "answer to CRIU", |call| {
        call.name == "write" && call.args.contains("/hold-answer>")
    })?;
    let text: Value = serde_json::from_slice(&fs::read(images.join("cedana.json"))?)?;
    let names = text.get("parts").and_then(Value::as_array).into_iter().flatten();
    for name in names.filter_map(|part| part["path"].as_str()) {
        let end = format!("/{name}>");
        let is = |call: &&Made| syncs(call, &end) || name.ends_with("pages-1.img") && syncs(call, WORKER_S);
        let synced = made
            .iter()
            .find(is)
            .with_context(|| format!("no fsync of {name}"))?;
        // It tells of the end, and no restore needs it.
        let is_late = name == "stats-dump" || name == "dump.log";
        ensure!(
            is_late || synced.to < agreed.from,
            "the container may end before {name} is on the disk"
        );
    }
    bed.talker.gone()
}

#[test]
fn a_checkpoint_goes_when_its_archive_is_on_the_disk() -> Result<()> {
    need!(OurShim, "its order");
    need!(Criu, "dumps");
    need!(Strace, "sees the order");
    let host = Host::with_image()?;
    let bed = Bed::new(&host, WORKLOAD, "60s")?;
    let dir = PathBuf::from(host.made_dir("packed")?);
    let (shown, job) = (dir.display().to_string(), format!("{}/c", host.namespace()));
    let_criu_learn()?;
    let tracing = Tracing::follow(bed.container().shim_pid()?, &host.dir().join("trace"))?;
    let into = ["--dir", &shown, "--name", "saved", "--compression", "zstd"];
    let _path = Cedana::on(&host).dump(&[&[job.as_str(), "--leave-running"][..], &into[..]].concat())?;
    let (made, archive) = (tracing.made()?, dir.join("saved.tar.zst"));
    let _said = Cedana::new().says(&["checkpoint", "verify", &archive.display().to_string()])?;
    let named = find(&made, "name for the archive", |call| renames_to(call, &archive))?;
    let synced = find(&made, "fsync of the archive", |call| {
        syncs(call, "/archive.unfinished>")
    })?;
    // By this name it is whole, for whoever finds it when the shim is gone.
    let whole = find(&made, "name for what is whole", |call| {
        call.name.starts_with("rename") && call.args.contains("/archive.unfinished\"")
    })?;
    let lasting = find(&made, "fsync of the directory", |call| {
        syncs(call, &format!("<{shown}>"))
    })?;
    ensure!(
        synced.to < whole.from && whole.to < named.from,
        "it gets its name before it is on the disk"
    );
    ensure!(
        named.to < lasting.from,
        "its name is on the disk before it is there"
    );
    // The images in memory go before.
    let first = made.iter().find(|call| {
        call.name.starts_with("unlink")
            && call.args.contains("inventory.img")
            && !call.args.contains("criu-images")
    });
    let first = first.context("the directory goes")?;
    ensure!(
        lasting.to < first.from,
        "the directory goes before the archive's name is on the disk"
    );
    bed.talker.remove()
}
