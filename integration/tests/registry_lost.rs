//! The machine's registry is lost as a whole: it is made again from the shims that run and the checkpoints on disk.
//!
//! One test, alone in its program: all containers of the instance are in the registry that it loses.
#![expect(
    unused_results,
    reason = "a test acts through calls, and compares only the answers it is about"
)]

use std::fs;

use anyhow::{Context, Result, ensure};
use integration::cedana::{Cedana, Job};
use integration::cedana_counter::Counter;
use integration::host::Host;
use integration::{need, registry};

const DATABASE: &str = "/var/lib/cedana/jobs.db";
/// Where shims publish, in memory and beside the database.
const SPOOLS: [&str; 2] = ["/run/cedana/jobs.d", "/var/lib/cedana/jobs.d"];

fn lose_all() -> Result<()> {
    registry::delete(DATABASE.as_ref())?;
    for spool in SPOOLS {
        match fs::remove_dir_all(spool) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
    }
    Ok(())
}

#[test]
fn a_lost_registry_is_made_from_shims_and_checkpoints() -> Result<()> {
    need!(OurShim, "jobs are containers of our shim");
    need!(Criu, "dumps");
    let host = Host::new()?;
    host.load_image()?;
    let cedana = Cedana::new();
    let (saved, unsaved) = (Counter::run(&host, "saved")?, Counter::run(&host, "unsaved")?);
    let dumped = saved.seen()?;
    let path = cedana.dump(&["saved", "--leave-running"])?;
    let after = saved.seen()?;
    let find = |id: &str| -> Result<Job> {
        let mut jobs = cedana.jobs()?.into_iter();
        jobs.find(|job| job.id == id)
            .with_context(|| format!("{id} in cedana ps"))
    };
    let path_of = |job: &Job| -> Option<String> {
        let checkpoint = job.rest.get("checkpoint")?.get("path")?;
        checkpoint.as_str().map(str::to_owned)
    };

    lose_all()?;
    for counter in [&saved, &unsaved] {
        assert_eq!(find(counter.id())?.pid, Some(counter.pid()?), "its shim has told");
    }
    assert_eq!(path_of(&find("saved")?), Some(path.clone()));

    saved.kill()?;
    lose_all()?;
    let ended = saved.seen()?;
    cedana.restore(&["saved"]).context("its shim is there")?;
    saved.continues_between(dumped, after, ended)?;

    saved.kill_and_delete()?;
    lose_all()?;
    let job = find("saved").context("of which a checkpoint is all there is")?;
    assert_eq!(
        (job.status.as_str(), path_of(&job)),
        ("halted", Some(path.clone()))
    );
    // Where its output went was in what was lost.
    let pid = cedana.restore(&["saved"])?;
    assert_eq!(saved.pid()?, pid);
    ensure!(find("saved")?.lives());
    unsaved.goes_on()?;
    ensure!(find("unsaved")?.lives());
    fs::remove_dir_all(path)?;
    Ok(())
}
