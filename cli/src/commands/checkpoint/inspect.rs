//! `cedana checkpoint inspect ID|PATH`: everything that is known of a checkpoint.

use std::fs;
use std::path::Path;

use jobs::record::Origin;
use oci_bundles::archive::{self, Form};
use oci_bundles::checkpoint;
use oci_bundles::layout::{Extra, Layout, Shape};
use oci_bundles::manifest::{FILE_NOT_SAVED, Manifest};
use oci_bundles::podman::{self, Foreign};
use serde::Serialize;

use super::target::{self, Target};
use crate::context::Context;
use crate::error::Error;
use crate::jobs::rebuild;
use crate::output::{self, size, time};

/// Files that are named of a checkpoint whose manifest names none; CRIU makes some ten for each process.
const FILES_MAX: usize = 100_000;

/// Its arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Its id, a unique beginning of it, or its path
    #[arg(value_name = "ID|PATH", value_hint = clap::ValueHint::AnyPath)]
    pub id: String,
}

/// A checkpoint, told.
#[derive(Debug, Serialize)]
struct Told<'a> {
    id: Option<&'a str>,
    path: &'a Path,
    at: Option<u64>,
    size: u64,
    left_running: Option<bool>,
    job: Option<&'a str>,
    namespace: Option<&'a str>,
    container: Option<&'a str>,
    compression: &'static str,
    origin: Option<&'a Origin>,
    /// What is wrong with its manifest.
    problem: Option<String>,
    manifest: Option<&'a Manifest>,
    /// What it tells other tools of its container, or another tool told.
    config: Option<&'a Foreign>,
    files: Vec<File>,
}

#[derive(Debug, Serialize)]
struct File {
    name: String,
    size: u64,
}

/// Prints it.
///
/// # Errors
/// There is no such checkpoint.
pub async fn run(args: Args, context: &Context) -> Result<(), Error> {
    let jobs = target::registry(context).await?;
    let target = target::find(jobs.as_ref(), &args.id)?;
    let form = archive::detect(&target.path).map_err(|error| Error::failed(format!("failed to {error}")))?;
    let (manifest, problem) = match checkpoint::manifest(&target.path) {
        Ok(manifest) => (manifest, None),
        Err(error) => (None, Some(error.to_string())),
    };
    let origin = manifest.as_ref().and_then(rebuild::origin_in);
    let mut told = told(&target, form, manifest.as_ref(), origin.as_ref(), problem);
    let config = config(&target.path);
    told.config = config.as_ref();
    if context.json {
        return output::json(&told);
    }
    output::stdout(&text(&told))
}

fn told<'a>(
    target: &'a Target,
    form: Form,
    manifest: Option<&'a Manifest>,
    origin: Option<&'a Origin>,
    problem: Option<String>,
) -> Told<'a> {
    let known = target.known.as_ref().map(|(_, checkpoint)| checkpoint);
    let key = target
        .known
        .as_ref()
        .map(|(job, _)| &job.key)
        .or(origin.map(|origin| &origin.key));
    Told {
        id: known
            .map(|one| one.id.as_str())
            .or(origin.map(|one| one.checkpoint.as_str())),
        path: &target.path,
        at: known.map(|one| one.at).or(origin.map(|one| one.at)),
        size: rebuild::size(&target.path),
        left_running: known
            .map(|one| one.left_running)
            .or(origin.map(|one| one.left_running)),
        job: target.known.as_ref().map(|(job, _)| job.name.as_str()),
        namespace: key.map(|key| key.namespace.as_str()),
        container: key.map(|key| key.id.as_str()),
        compression: form.word(),
        origin,
        problem,
        manifest,
        config: None,
        files: files(&target.path, manifest),
    }
}

/// What is damaged tells nothing here; whoever needs it says why.
fn config(path: &Path) -> Option<Foreign> {
    let text = checkpoint::extra(path, Extra::Config, podman::BYTES_MAX).ok()??;
    Foreign::parse(&text).ok()
}

/// The files of a checkpoint: those that its manifest lists, else those that are there.
fn files(path: &Path, manifest: Option<&Manifest>) -> Vec<File> {
    let parts = manifest
        .map(|manifest| manifest.parts.as_slice())
        .unwrap_or_default();
    if !parts.is_empty() {
        let file = |part: &oci_bundles::manifest::Part| File {
            name: part.path.display().to_string(),
            size: part.size,
        };
        return parts.iter().map(file).collect();
    }
    let mut files = files_in(path, Shape::Flat);
    if let Some(layout) = Layout::find(path).filter(|layout| layout.shape() == Shape::Nested) {
        files.extend(files_in(&layout.images(), Shape::Nested));
    }
    files.sort_by(|a, b| a.name.cmp(&b.name));
    files
}

/// The files in one directory of a checkpoint.
fn files_in(dir: &Path, shape: Shape) -> Vec<File> {
    let entries = fs::read_dir(dir).into_iter().flatten().take(FILES_MAX).flatten();
    let file = |entry: fs::DirEntry| {
        let facts = entry.metadata().ok().filter(fs::Metadata::is_file)?;
        Some(File {
            name: shape.image(entry.file_name()).display().to_string(),
            size: facts.len(),
        })
    };
    entries.filter_map(file).collect()
}

fn text(told: &Told<'_>) -> String {
    let container = told.namespace.zip(told.container);
    let yes_or_no = |is: bool| if is { "yes" } else { "no" }.to_owned();
    let pairs = [
        ("id", told.id.map(str::to_owned)),
        ("job", told.job.map(str::to_owned)),
        (
            "container",
            container.map(|(namespace, id)| format!("{namespace}/{id}")),
        ),
        ("path", Some(told.path.display().to_string())),
        ("time", told.at.map(time::local)),
        ("size", Some(size::whole(told.size))),
        ("compression", Some(told.compression.to_owned())),
        ("left running", told.left_running.map(yes_or_no)),
        ("problem", told.problem.clone()),
    ];
    let mut text: String = pairs
        .iter()
        .filter_map(|(name, value)| Some(line("", name, value.as_ref()?)))
        .collect();
    match (told.manifest, told.config) {
        (Some(manifest), _) => describe(&mut text, manifest),
        (None, Some(config)) => text.push_str(&foreign(config)),
        (None, None) => {}
    }
    section(
        &mut text,
        "files",
        told.files
            .iter()
            .map(|file| (file.name.clone(), size::whole(file.size))),
    );
    text
}

/// What another tool's checkpoint tells.
fn foreign(config: &Foreign) -> String {
    let pairs = [
        ("name", &config.name),
        ("container", &config.id),
        ("image", &config.image),
        ("image id", &config.image_id),
        ("runtime", &config.runtime),
        ("created", &config.created),
    ];
    let said = pairs.iter().filter(|(_, value)| !value.is_empty());
    said.map(|(name, value)| line("", name, value)).collect()
}

/// What a manifest tells beside the files.
fn describe(text: &mut String, manifest: &Manifest) {
    if let Some(image) = &manifest.image {
        let parts = [
            ("name", &image.name),
            ("digest", &image.digest),
            ("id", &image.id),
        ];
        let said = parts.iter().filter(|(_, value)| !value.is_empty());
        section(
            text,
            "image",
            said.map(|(name, value)| ((*name).to_owned(), (*value).clone())),
        );
    }
    let mut versions = manifest.versions.clone();
    if !manifest.criu.is_empty() {
        drop(versions.insert("criu".to_owned(), manifest.criu.clone()));
    }
    section(text, "versions", versions.into_iter());
    let host = &manifest.host;
    let features: Vec<&str> = host.cpu_features.iter().map(String::as_str).collect();
    let features = features.join(" ");
    let machine = [
        ("architecture", &host.architecture),
        ("cpu", &host.cpu),
        ("cpu features", &features),
    ];
    let machine = machine.into_iter().filter(|(_, value)| !value.is_empty());
    section(
        text,
        "host",
        machine.map(|(name, value)| (name.to_owned(), value.clone())),
    );
    let options = manifest.options.iter();
    section(
        text,
        "options",
        options.map(|one| (one.option.clone(), format!("{} ({})", one.value, one.why))),
    );
    let ms = |us: u64| format!("{:.1} ms", us as f64 / 1000.0);
    if manifest.frozen_us > 0 {
        text.push_str(&line("", "frozen", &ms(manifest.frozen_us)));
    }
    let timings = manifest.timings.iter();
    section(
        text,
        "timings",
        timings.map(|timing| (timing.phase.clone(), ms(timing.us))),
    );
    let not_saved = manifest.not_saved.iter().map(|one| {
        let from = match one.kind.as_str() {
            _ if one.source.is_empty() => String::new(),
            // Of what could have been saved it says why it was not.
            "rootfs" | FILE_NOT_SAVED => format!(": {}", one.source),
            _ => format!(" of {}", one.source),
        };
        (one.path.display().to_string(), format!("{}{from}", one.kind))
    });
    section(text, "not saved", not_saved);
}

/// A list under a name, unless it is empty.
fn section(text: &mut String, name: &str, lines: impl Iterator<Item = (String, String)>) {
    let lines: String = lines.map(|(name, value)| line("  ", &name, &value)).collect();
    if !lines.is_empty() {
        text.push_str(&format!("{name}:\n{lines}"));
    }
}

fn line(space: &str, name: &str, value: &str) -> String {
    format!(
        "{space}{}: {}\n",
        output::text::line(name),
        output::text::line(value)
    )
}

#[cfg(test)]
mod tests {
    use oci_bundles::manifest::{Chosen, Digest, NotSaved, Part, Timing};

    use super::*;

    #[test]
    fn a_manifest_is_told_in_full() {
        let manifest = Manifest {
            criu: "4.2".to_owned(),
            versions: [("kernel".to_owned(), "6.18".to_owned())].into(),
            parts: vec![Part {
                path: "pages-1.img".into(),
                size: 5 << 20,
                digest: Digest::Blake3([0; 32]),
            }],
            not_saved: vec![
                NotSaved {
                    kind: "volume".to_owned(),
                    path: "/da\nta".into(),
                    source: "/srv".to_owned(),
                },
                NotSaved {
                    kind: "file".to_owned(),
                    path: "/.wh.a".into(),
                    source: "no name for it".to_owned(),
                },
            ],
            timings: vec![Timing {
                phase: "save".to_owned(),
                us: 61_250,
            }],
            frozen_us: 62_000,
            options: vec![Chosen {
                option: "tcp".to_owned(),
                value: "close".to_owned(),
                why: "set".to_owned(),
            }],
            ..Manifest::default()
        };
        let target = Target {
            path: "/nowhere/saved".into(),
            known: None,
        };
        let told = told(&target, Form::Tar, Some(&manifest), None, None);
        let expected = "path: /nowhere/saved\nsize: 0 bytes\ncompression: tar\n\
                        versions:\n  criu: 4.2\n  kernel: 6.18\noptions:\n  tcp: close (set)\nfrozen: 62.0 ms\ntimings:\n  save: 61.2 ms\n\
                        not saved:\n  /da\\nta: volume of /srv\n  /.wh.a: file: no name for it\nfiles:\n  pages-1.img: 5 MiB\n";
        assert_eq!(text(&told), expected);
    }
}
