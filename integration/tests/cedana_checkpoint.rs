//! `cedana checkpoint` and `cedana convert`: what was kept can be trusted, and is not lost by accident.
#![expect(
    unused_results,
    reason = "a test acts through calls, and compares only the answers it is about"
)]

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use integration::cedana::{Cedana, code};
use integration::cedana_counter::Counter;
use integration::host::Host;
use integration::need;
use serde_json::Value;

const FORMS: [&str; 6] = ["none", "tar", "gzip", "lz4", "zlib", "zstd"];

/// Dumps a job that goes on; returns where to.
fn dump(counter: &Counter, into: &str, form: &str) -> Result<String> {
    let flags = ["--leave-running", "--dir", into, "--compression", form];
    Cedana::new().dump(&[&[counter.job().as_str()], &flags[..]].concat())
}

/// What `verify --json` says of one checkpoint, and the exit code.
fn verified(path: &str) -> Result<(String, Vec<String>, i32)> {
    let said = Cedana::new().run(&["checkpoint", "verify", path, "--json"])?;
    let all: Vec<Value> = serde_json::from_str(&said.stdout).with_context(|| format!("{said:?}"))?;
    let one = all.first().context("a verdict")?;
    let problems = one["problems"].as_array().context("problems")?;
    let problems = problems
        .iter()
        .filter_map(Value::as_str)
        .map(str::to_owned)
        .collect();
    Ok((
        one["status"].as_str().unwrap_or_default().to_owned(),
        problems,
        said.code,
    ))
}

/// It is damaged, and that is what is wrong with it.
fn is_damaged(path: &str, problem: &str) -> Result<()> {
    let (status, problems, code) = verified(path)?;
    assert_eq!((status.as_str(), code), ("damaged", code::FAILED), "{problems:?}");
    ensure!(
        problems.len() == 1 && problems.iter().all(|one| one.contains(problem)),
        "{problems:?} is not that {problem}"
    );
    Ok(())
}

/// Turns one byte of a file around.
fn flip(path: &Path, at: u64) -> Result<()> {
    let file = fs::File::options().read(true).write(true).open(path)?;
    // Several: a single one may say the same in another way, as where in a row of zeros lz4 copies zeros from.
    let mut bytes = [0; 8];
    file.read_exact_at(&mut bytes, at)?;
    bytes.iter_mut().for_each(|byte| *byte ^= 0x40);
    Ok(file.write_all_at(&bytes, at)?)
}

fn cut(path: &Path) -> Result<()> {
    let file = fs::File::options().write(true).open(path)?;
    Ok(file.set_len(file.metadata()?.len() / 2)?)
}

#[test]
fn what_was_dumped_is_good_in_each_form_until_a_byte_of_it_changes() -> Result<()> {
    need!(OurShim, "the shim's own service");
    need!(Criu, "dumps");
    let host = Host::with_image()?;
    let counter = Counter::run(&host, "trusted")?;
    let into = host.made_dir("checkpoints")?;
    for form in FORMS {
        let path = dump(&counter, &into, form)?;
        assert_eq!(verified(&path)?, ("good".to_owned(), vec![], 0), "{form}");
        let file = match form {
            "none" => Path::new(&path).join("checkpoint/pages-1.img"),
            _ => PathBuf::from(&path),
        };
        let middle = fs::metadata(&file)?.len() / 2;
        flip(&file, middle)?;
        let (status, problems, code) = verified(&path)?;
        assert_eq!((status.as_str(), code), ("damaged", code::FAILED), "{form}");
        ensure!(!problems.is_empty(), "{form}: nothing is said");
        if form == "none" {
            is_damaged(&path, "checkpoint/pages-1.img was changed")?;
        }
    }
    counter.goes_on()
}

#[test]
fn what_is_missing_or_cut_is_found_and_not_restored() -> Result<()> {
    need!(OurShim, "the shim's own service");
    need!(Criu, "dumps");
    let host = Host::with_image()?;
    let cedana = Cedana::new();
    let counter = Counter::run(&host, "cut")?;
    let into = host.made_dir("checkpoints")?;
    let (whole, shorter, lacking) = (
        dump(&counter, &into, "none")?,
        dump(&counter, &into, "none")?,
        dump(&counter, &into, "none")?,
    );
    let packed = dump(&counter, &into, "zstd")?;
    cut(&Path::new(&shorter).join("checkpoint/pages-1.img"))?;
    fs::remove_file(Path::new(&lacking).join("checkpoint/core-1.img"))?;
    cut(Path::new(&packed))?;
    is_damaged(&shorter, "checkpoint/pages-1.img has ")?;
    is_damaged(&lacking, "checkpoint/core-1.img is missing")?;
    ensure!(verified(&packed)?.2 == code::FAILED);
    // Others of this machine may be damaged too.
    ensure!(cedana.run(&["checkpoint", "verify", "--all"])?.code == code::FAILED);
    let said = cedana.run(&["checkpoint", "verify", &whole, &shorter, &lacking, &packed])?;
    ensure!(said.code == code::FAILED, "{said:?}");
    ensure!(said.stderr.contains("3 of 4 checkpoints are damaged"), "{said:?}");

    counter.kill()?;
    let ended = counter.seen()?;
    for (path, problem) in [
        (&shorter, "checkpoint/pages-1.img has "),
        (&lacking, "checkpoint/core-1.img is missing"),
    ] {
        let start = Instant::now();
        cedana.fails(
            &["restore", "job", &counter.job(), "--path", path],
            code::FAILED,
            problem,
        )?;
        // CRIU would read the file that is cut for a minute.
        ensure!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    }
    assert_eq!(counter.seen()?, ended, "nothing ran");
    cedana.restore(&[&counter.job(), "--path", &whole])?;
    Ok(())
}

#[test]
fn a_checkpoint_without_digests_is_said_to_be_one() -> Result<()> {
    need!(OurShim, "the shim's own service");
    need!(Criu, "dumps");
    let host = Host::with_image()?;
    let counter = Counter::run(&host, "older")?;
    let path = dump(&counter, &host.made_dir("checkpoints")?, "none")?;
    let manifest = Path::new(&path).join("cedana.json");
    let mut text: Value = serde_json::from_slice(&fs::read(&manifest)?)?;
    let fields = text.as_object_mut().context("fields")?;
    fields.remove("parts").context("it has parts")?;
    fields.insert("schema".to_owned(), 1.into());
    fs::write(&manifest, text.to_string())?;
    assert_eq!(verified(&path)?, ("unverifiable".to_owned(), vec![], 0));
    counter.kill()?;
    Cedana::new().restore(&[&counter.job()])?;
    Ok(())
}

#[test]
fn inspect_tells_what_made_it_and_what_it_lacks() -> Result<()> {
    need!(OurShim, "the shim's own service");
    need!(Criu, "dumps");
    let host = Host::with_image()?;
    let cedana = Cedana::new();
    let outside = host.dir().join("outside");
    fs::create_dir_all(&outside)?;
    let mount = format!("type=bind,src={},dst=/data,options=rbind", outside.display());
    let counter = Counter::run_with(&host, "told", host.runtime(), &["--mount", &mount])?;
    let into = host.made_dir("checkpoints")?;
    for form in ["none", "zstd"] {
        let path = dump(&counter, &into, form)?;
        let told: Value = cedana.json(&["checkpoint", "inspect", &path])?;
        let id = told["id"].as_str().context("an id")?;
        let by_id: Value = cedana.json(&["job", "checkpoint", "inspect", id])?;
        assert_eq!(by_id, told);
        let manifest = &told["manifest"];
        assert_eq!(manifest["schema"], 2);
        for name in ["cedana", "criu", "kernel"] {
            ensure!(manifest["versions"][name].is_string(), "{name} in {manifest}");
        }
        let not_saved = manifest["not_saved"].as_array().context("what is not saved")?;
        ensure!(
            not_saved.iter().any(|one| one["path"] == "/data"),
            "{not_saved:?}"
        );
        let timings = manifest["timings"].as_array().context("timings")?;
        ensure!(timings.iter().any(|one| one["phase"] == "save"), "{timings:?}");
        ensure!(
            manifest["frozen_us"].as_u64().is_some_and(|us| us > 0),
            "{manifest}"
        );
        let text = cedana.says(&["checkpoint", "inspect", &path])?;
        for part in [id, "pages-1.img: ", "/data: ", "save: ", "criu: "] {
            ensure!(text.contains(part), "no {part:?} in {text}");
        }
    }
    cedana.fails(&["checkpoint", "inspect", "nobodys"], code::NOT_FOUND, "nobodys")?;
    Ok(())
}

#[test]
fn the_last_good_one_of_a_job_is_not_removed() -> Result<()> {
    need!(OurShim, "the shim's own service");
    need!(Criu, "dumps");
    let host = Host::with_image()?;
    let cedana = Cedana::new();
    let counter = Counter::run(&host, "precious")?;
    let into = host.made_dir("checkpoints")?;
    let (first, second) = (dump(&counter, &into, "none")?, dump(&counter, &into, "lz4")?);
    let beside = Path::new(&first).join("letter");
    fs::write(&beside, "somebody else's")?;
    let both = ["checkpoint", "rm", first.as_str(), second.as_str()];
    cedana.fails(&both, code::WRONG_STATE, "last good checkpoint")?;
    ensure!(Path::new(&first).exists() && Path::new(&second).exists());
    cedana.says(&["checkpoint", "rm", &first])?;
    ensure!(beside.exists(), "what is not of the checkpoint stays");
    ensure!(!Path::new(&first).join("checkpoint/inventory.img").exists());
    cedana.fails(
        &["checkpoint", "rm", &second],
        code::WRONG_STATE,
        "last good checkpoint",
    )?;
    let listed: Vec<Value> = cedana.json(&["checkpoint", "ls", &counter.job()])?;
    assert_eq!(listed.len(), 1, "{listed:?}");
    let id = listed
        .first()
        .and_then(|one| one["id"].as_str())
        .context("an id")?;
    cedana.says(&["checkpoint", "rm", id, "--all"])?;
    ensure!(!Path::new(&second).exists());
    let listed: Vec<Value> = cedana.json(&["checkpoint", "ls", &counter.job()])?;
    ensure!(listed.is_empty(), "{listed:?}");
    counter.goes_on()
}

#[test]
fn prune_keeps_what_it_was_told_to() -> Result<()> {
    need!(OurShim, "the shim's own service");
    need!(Criu, "dumps");
    let host = Host::with_image()?;
    let cedana = Cedana::new();
    let counter = Counter::run(&host, "many")?;
    let job = counter.job();
    let into = host.made_dir("checkpoints")?;
    let paths = [(); 4].map(|()| dump(&counter, &into, "none"));
    let paths: Vec<String> = paths.into_iter().collect::<Result<_>>()?;
    let left = || {
        paths
            .iter()
            .map(|path| Path::new(path).exists())
            .collect::<Vec<_>>()
    };
    let prune = |more: &[&str]| cedana.json::<Value>(&[&["checkpoint", "prune", &job], more].concat());
    cedana.fails(&["checkpoint", "prune", &job], code::USAGE, "nothing says")?;
    cedana.fails(&["checkpoint", "prune", &job, "--keep", "1"], code::USAGE, "-y")?;
    let told = prune(&["--keep", "2", "--dry-run"])?;
    assert_eq!(told["removed"].as_array().map(Vec::len), Some(2), "{told}");
    prune(&["--older-than", "1h", "-y"])?;
    assert_eq!(left(), [true; 4]);
    // The newest is damaged: it is none of those that are kept.
    cut(&Path::new(&paths[3]).join("checkpoint/pages-1.img"))?;
    prune(&["--keep", "2", "-y"])?;
    assert_eq!(left(), [false, true, true, false]);
    let told = prune(&["--max-size", "0", "-y"])?;
    assert_eq!(
        (told["kept"].as_u64(), left()),
        (Some(1), vec![false, false, true, false])
    );
    prune(&["--older-than", "0s", "--all", "-y"])?;
    assert_eq!(left(), [false; 4]);
    Ok(())
}

#[test]
fn a_checkpoint_goes_through_all_forms_and_is_restored() -> Result<()> {
    need!(OurShim, "the shim's own service");
    need!(Criu, "dumps");
    let host = Host::with_image()?;
    let cedana = Cedana::new();
    let counter = Counter::run(&host, "turned")?;
    let job = counter.job();
    let into = host.made_dir("checkpoints")?;
    let dumped = counter.seen()?;
    let mut path = cedana.dump(&[&job, "--dir", &into, "--name", "saved"])?;
    counter.has_ended()?;
    let ended = counter.seen()?;
    let copy = format!("{into}/copy");
    cedana.says(&["convert", &path, "--to", "zstd", "--output", &copy])?;
    ensure!(Path::new(&path).exists(), "the source stays");
    cedana.fails(
        &["convert", &path, "--to", "tar", "-o", &copy],
        code::WRONG_STATE,
        "exists",
    )?;
    cedana.fails(&["convert", &path, "--to", "none"], code::FAILED, "already")?;
    for (form, suffix) in [
        ("tar", ".tar"),
        ("lz4", ".tar.lz4"),
        ("zstd", ".tar.zst"),
        ("none", ""),
    ] {
        let line = cedana.last_line(&["convert", &path, "--to", form, "--remove"])?;
        let next = line.strip_prefix("Converted to ").context("a path")?.to_owned();
        assert_eq!(next, format!("{into}/saved{suffix}"));
        ensure!(!Path::new(&path).exists(), "{path} is removed");
        path = next;
    }
    cedana.says(&["checkpoint", "verify", &path, &copy])?;
    let listed: Vec<Value> = cedana.json(&["checkpoint", "ls", &job])?;
    let mut paths: Vec<&str> = listed.iter().filter_map(|one| one["path"].as_str()).collect();
    paths.sort_unstable();
    assert_eq!(paths, [copy.as_str(), path.as_str()]);
    assert_eq!(fs::read_dir(&into)?.count(), 2, "nothing else is left");
    cedana.restore(&[&job, "--path", &path])?;
    counter.continues(dumped, ended)?;

    // What is damaged is not made to look good.
    flip(&Path::new(&path).join("checkpoint/pages-1.img"), 100)?;
    cedana.fails(
        &["convert", &path, "--to", "gzip", "--remove"],
        code::FAILED,
        "checkpoint/pages-1.img was changed",
    )?;
    ensure!(Path::new(&path).exists());
    assert_eq!(fs::read_dir(&into)?.count(), 2);
    Ok(())
}
