//! `cedana convert`: a checkpoint in another form.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use oci_bundles::archive::{self, Form, Limits};
use oci_bundles::checkpoint::{self, Converted};
use serde::Serialize;

use super::checkpoint::remove::remove;
use super::checkpoint::{long, target};
use super::dump::pack::forms;
use crate::context::Context;
use crate::error::{Error, Kind};
use crate::output;
use crate::output::progress::Progress;

/// Its arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The checkpoint: its id, a unique beginning of it, or its path
    #[arg(value_name = "ID|PATH", value_hint = clap::ValueHint::AnyPath)]
    pub checkpoint: String,
    /// The form: none (a directory), tar, gzip, lz4, zlib, zstd
    #[arg(long, value_name = "FORM", value_parser = forms(), hide_possible_values = true)]
    pub to: Form,
    /// Where it goes; beside the checkpoint, by the same name, unless given
    #[arg(short, long, value_name = "PATH", value_hint = clap::ValueHint::AnyPath)]
    pub output: Option<PathBuf>,
    /// Remove the checkpoint when it is complete in the other form
    #[arg(long)]
    pub remove: bool,
}

#[derive(Debug, Serialize)]
struct Told<'a> {
    from: &'a Path,
    path: &'a Path,
    size: u64,
    compression: &'static str,
    /// It is what the digests of its manifest say.
    verified: bool,
    removed: bool,
}

/// Converts it, and registers it.
///
/// # Errors
/// There is no such checkpoint, it is damaged or of that form, or something is where it would go.
pub async fn run(args: Args, context: &Context) -> Result<(), Error> {
    let mut jobs = target::registry(context).await?;
    let target = target::find(jobs.as_ref(), &args.checkpoint)?;
    let from = archive::detect(&target.path).map_err(|error| Error::failed(format!("failed to {error}")))?;
    let dest = match &args.output {
        Some(path) => absolute(path)?,
        None => renamed(&target.path, from, args.to),
    };
    let converted = convert(&target.path, &dest, args.to, context).await?;
    if let (Some(jobs), Some((job, known))) = (&mut jobs, &target.known) {
        let mut checkpoint = known.clone();
        checkpoint.path.clone_from(&dest);
        checkpoint.size = converted.bytes;
        // It is there, whatever the books say.
        if let Err(problem) = jobs.add_checkpoint(&job.key, &checkpoint) {
            output::warning(&problem.to_string());
        }
    }
    if args.remove {
        remove(&target.path).map_err(|error| error.while_trying_to("remove what was converted"))?;
        if let Some(jobs) = &mut jobs {
            jobs.remove_checkpoint_at(&target.path)?;
        }
    }
    if !context.json {
        return output::line(&format!("Converted to {}", dest.display()));
    }
    output::json(&Told {
        from: &target.path,
        path: &dest,
        size: converted.bytes,
        compression: args.to.word(),
        verified: converted.is_vouched_for,
        removed: args.remove,
    })
}

async fn convert(path: &Path, dest: &Path, form: Form, context: &Context) -> Result<Converted, Error> {
    let progress = Arc::new(Progress::start("converting", context.json));
    let (from, to) = (path.to_owned(), dest.to_owned());
    let converted = long::run(progress, move |on_progress| {
        checkpoint::convert(&from, &to, form, &Limits::default(), on_progress)
    });
    let converted = converted.await?.map_err(Error::from)?;
    if !converted.is_vouched_for {
        output::note("the checkpoint has no digests that it could be compared with");
    }
    Ok(converted)
}

/// In a directory that is there.
fn absolute(path: &Path) -> Result<PathBuf, Error> {
    let name = path.file_name();
    let name = name.ok_or_else(|| {
        Error::usage(format!(
            "failed to use {}: it is no name of a file",
            path.display()
        ))
    })?;
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let parent = parent.canonicalize().map_err(|source| {
        let message = format!("failed to use the directory {}: {source}", parent.display());
        Error::new(Kind::NotFound, message)
    })?;
    Ok(parent.join(name))
}

/// The same name with another end.
fn renamed(path: &Path, from: Form, to: Form) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let stem = name
        .strip_suffix(from.suffix())
        .filter(|stem| !stem.is_empty())
        .unwrap_or(&name);
    let renamed = path.with_file_name(format!("{stem}{}", to.suffix()));
    match renamed == path {
        // An archive without the usual end.
        true => path.with_file_name(format!("{stem}.unpacked")),
        false => renamed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_changes_its_end() {
        for (path, from, to, expected) in [
            ("/c/a", Form::Directory, Form::Zstd, "/c/a.tar.zst"),
            ("/c/a.tar.zst", Form::Zstd, Form::Directory, "/c/a"),
            ("/c/a.tar.gz", Form::Gzip, Form::Tar, "/c/a.tar"),
            ("/c/a.bin", Form::Gzip, Form::Tar, "/c/a.bin.tar"),
            ("/c/a", Form::Gzip, Form::Directory, "/c/a.unpacked"),
            ("/c/.tar", Form::Tar, Form::Gzip, "/c/.tar.tar.gz"),
        ] {
            assert_eq!(renamed(Path::new(path), from, to), Path::new(expected), "{path}");
        }
    }
}
