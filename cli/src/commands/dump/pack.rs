//! A checkpoint as one file.

use std::fs;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use config::Compression;
use oci_bundles::archive::{self, ArchiveError, Form, Step};

use super::place::Place;
use crate::context::Context;
use crate::error::{Error, Kind};
use crate::interrupt::interrupted;
use crate::output::progress::Progress;

/// The form of a word, for the command line and for a shell that completes it.
pub fn forms() -> impl TypedValueParser<Value = Form> {
    let values = Form::ALL.into_iter().map(|form| {
        let value = PossibleValue::new(form.word());
        match form {
            Form::Gzip => value.alias("gz"),
            Form::Zstd => value.alias("zst"),
            _ => value,
        }
    });
    PossibleValuesParser::new(values)
        .try_map(|word| Form::parse(&word).ok_or_else(|| format!("{word} is no form")))
}

/// What the configuration says.
pub fn configured(context: &Context) -> Form {
    match context.settings.checkpoint.compression {
        Compression::None => Form::Directory,
        Compression::Tar => Form::Tar,
        Compression::Gzip => Form::Gzip,
        Compression::Lz4 => Form::Lz4,
        Compression::Zlib => Form::Zlib,
        Compression::Zstd => Form::Zstd,
    }
}

/// Makes one file of the directory of a complete checkpoint, and removes the directory once the file is complete, on the disk,
/// and read back. Tells the file's size. Whatever fails, one of the two is left whole.
///
/// # Errors
/// It could not be packed: the directory is as it was. [`Kind::Interrupted`] if somebody pressed Ctrl+C.
pub async fn pack(place: &Place, progress: Arc<Progress>) -> Result<u64, Error> {
    progress.next("packing");
    let stop = Arc::new(AtomicBool::new(false));
    let work = tokio::task::spawn_blocking({
        let (place, stop) = (place.clone(), Arc::clone(&stop));
        move || {
            archive::pack(&place.directory, &place.path, place.form, &mut |at| {
                let step = match at.step {
                    Step::Verify => "reading back",
                    Step::Pack | Step::Unpack => "",
                };
                progress.set(step, at.done, at.total);
                if stop.load(Ordering::Relaxed) {
                    return ControlFlow::Break(());
                }
                ControlFlow::Continue(())
            })
        }
    });
    tokio::pin!(work);
    let packed = loop {
        tokio::select! {
            packed = &mut work => break packed,
            () = interrupted() => stop.store(true, Ordering::Relaxed),
        }
    };
    let packed = packed.map_err(|source| Error::failed(format!("failed to pack: {source}")))?;
    let packed = packed.map_err(|source| told(&source, &place.directory))?;
    remove(&place.directory)?;
    Ok(packed.bytes)
}

fn told(error: &ArchiveError, directory: &Path) -> Error {
    let kind = match error {
        ArchiveError::Cancelled => Kind::Interrupted,
        _ => Kind::Failed,
    };
    let message = match error {
        ArchiveError::Cancelled => "packing was interrupted".to_owned(),
        other => format!("failed to {other}"),
    };
    Error::new(kind, message).hint(format!(
        "the checkpoint is complete, as the directory {}",
        directory.display()
    ))
}

fn remove(directory: &Path) -> Result<(), Error> {
    fs::remove_dir_all(directory).map_err(|source| {
        Error::failed(format!(
            "failed to remove {} after packing it: {source}",
            directory.display()
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(dir: &Path) -> Place {
        let directory = dir.join("saved");
        fs::create_dir(&directory).expect("a directory");
        fs::write(directory.join("pages-1.img"), [7; 10_000]).expect("a file");
        Place {
            directory,
            path: dir.join("saved.tar.gz"),
            form: Form::Gzip,
        }
    }

    #[tokio::test]
    async fn a_packed_checkpoint_takes_the_place_of_its_directory() {
        let dir = tempfile::tempdir().expect("a directory");
        let place = place(dir.path());
        let bytes = pack(&place, Arc::new(Progress::start("", true)))
            .await
            .expect("packed");
        assert_eq!(fs::metadata(&place.path).expect("the file").len(), bytes);
        assert!(!place.directory.exists());
    }

    #[tokio::test]
    async fn what_cannot_be_packed_stays_as_it_was() {
        let dir = tempfile::tempdir().expect("a directory");
        let place = place(dir.path());
        fs::write(&place.path, "somebody else's").expect("a file");
        let error = pack(&place, Arc::new(Progress::start("", true)))
            .await
            .expect_err("an error");
        assert_eq!(error.kind, Kind::Failed);
        assert!(error.hints.iter().any(|hint| hint.contains("saved")), "{error:?}");
        assert!(place.directory.join("pages-1.img").exists());
        assert_eq!(
            fs::read_to_string(&place.path).expect("the file"),
            "somebody else's"
        );
    }
}
