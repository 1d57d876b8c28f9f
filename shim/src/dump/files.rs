//! The dump's side of the files that CRIU leaves out: a worker saves them while CRIU saves the rest.

use std::time::Duration;

use config::Files;
use oci_bundles::layout::Shape;
use oci_bundles::manifest::{FILE_NOT_SAVED, NotSaved};

use super::steps::WRITE_RATE_MIN;
use super::{DumpCause, Dumping};
use crate::restore::layer::LAYER_NOT_SAVED as LAYER;
use crate::worker::errand::{Errand, Limit};
use crate::worker::files::{SAVE, SaveOrder, Saved, shm};

impl Dumping<'_> {
    /// Starts saving, if there is something to be saved. The container stands.
    pub(super) fn start_files(&mut self) -> Result<(), DumpCause> {
        let order = SaveOrder {
            init: self.job.init_pid,
            bundle: self.job.bundle.clone(),
            root: self.staging.root().to_owned(),
            layer: self.wants_layer(),
            shm: self.manifest.not_saved.iter().any(is_shm),
        };
        if !self.freezes && self.hold.is_none() {
            // CRIU alone holds the tasks, for as long as suits it.
            tell(&mut self.manifest.not_saved, unsaved(&order, NO_FREEZER));
            return Ok(());
        }
        if self.staged() && (order.layer || order.shm) {
            self.files = Some(Errand::start(&self.job.runc.reaper, SAVE, &order)?);
        }
        Ok(())
    }

    /// Waits until they are saved: before that nothing of the container may go on.
    pub(super) async fn finish_files(&mut self) -> Result<(), DumpCause> {
        if let Some(errand) = self.files.take() {
            let saved: Saved = errand.answer(self.files_limit()).await?;
            if self.job.settings.timeout.is_zero() {
                // What was saved has to be read again, and to come to the disk.
                self.deadline += Duration::from_secs(saved.bytes / WRITE_RATE_MIN);
            }
            tell(&mut self.manifest.not_saved, saved);
        }
        Ok(())
    }

    /// As long as is said; else as long as the worker moves: how large a layer is it finds out only while it reads it.
    fn files_limit(&self) -> Limit {
        match self.job.settings.timeout {
            Duration::ZERO => Limit::Still(self.deadline),
            said => Limit::Whole(said),
        }
    }

    /// Whether the writable layer goes into the checkpoint. Of the Task API's clients some keep it themselves.
    fn wants_layer(&self) -> bool {
        match self.job.settings.files {
            Files::Auto => self.job.options.shape == Shape::Nested,
            Files::Always => true,
            Files::Never => false,
        }
    }

    /// Names the layer among what is not saved, until it is.
    pub(super) fn expect_layer(&mut self) {
        let why = match self.wants_layer() {
            true => "not yet",
            false => "as dump.files says",
        };
        self.manifest.not_saved.push(layer(why));
    }
}

/// Why nothing is saved where it would change meanwhile.
const NO_FREEZER: &str = "the container cannot be frozen, and its files would change while they are read";

/// Why single files are not saved.
const UNSAYABLE: &str = "a layer has another meaning for names that begin with .wh.";

/// Nothing of an order, and why.
fn unsaved(order: &SaveOrder, why: &str) -> Saved {
    let why = |wanted: bool| wanted.then(|| why.to_owned());
    Saved {
        no_layer: why(order.layer),
        no_shm: why(order.shm),
        ..Saved::default()
    }
}

fn is_shm(one: &NotSaved) -> bool {
    one.kind == "tmpfs" && one.path.as_os_str() == shm::SHM
}

fn layer(why: &str) -> NotSaved {
    NotSaved {
        kind: LAYER.to_owned(),
        path: "/".into(),
        source: why.to_owned(),
    }
}

/// Brings what is said not to be saved up to date.
fn tell(not_saved: &mut Vec<NotSaved>, saved: Saved) {
    if saved.layer {
        not_saved.retain(|one| one.kind != LAYER);
    }
    if saved.shm {
        not_saved.retain(|one| !is_shm(one));
    }
    not_saved.extend(unsayable(&saved));
    for one in not_saved.iter_mut() {
        if let Some(why) = saved.no_layer.as_ref().filter(|_| one.kind == LAYER) {
            one.source.clone_from(why);
        }
        if let Some(why) = saved.no_shm.as_ref().filter(|_| is_shm(one)) {
            one.source = format!("{}: {why}", one.source);
        }
    }
}

/// The files that the saved layer cannot say; the last one stands for all that are not named.
fn unsayable(saved: &Saved) -> Vec<NotSaved> {
    let one = |path: &str, source: &str| NotSaved {
        kind: FILE_NOT_SAVED.to_owned(),
        path: path.into(),
        source: source.to_owned(),
    };
    let mut all: Vec<_> = saved.names.iter().map(|name| one(name, UNSAYABLE)).collect();
    let more = saved.unsayable.saturating_sub(all.len() as u64);
    if more > 0 {
        all.push(one("/", &format!("{more} more: {UNSAYABLE}")));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_a_layer_cannot_say_are_named_and_counted() {
        let saved = |names: &[&str], unsayable| Saved {
            layer: true,
            unsayable,
            names: names.iter().map(|name| (*name).to_owned()).collect(),
            ..Saved::default()
        };
        let mut told = vec![layer("not yet")];
        tell(&mut told, saved(&["/a/.wh.b"], 3));
        let paths: Vec<_> = told.iter().map(|one| one.path.display().to_string()).collect();
        assert_eq!(paths, ["/a/.wh.b", "/"]);
        assert!(
            told.iter()
                .all(|one| one.kind == "file" && one.source.contains(".wh."))
        );
        assert!(told[1].source.starts_with("2 more"), "{told:?}");
        assert!(unsayable(&saved(&[], 0)).is_empty());
    }

    #[test]
    fn what_is_saved_is_no_longer_named_and_the_rest_says_why() {
        let shm = NotSaved {
            kind: "tmpfs".to_owned(),
            path: shm::SHM.into(),
            source: "/run/shm".to_owned(),
        };
        let bind = NotSaved {
            kind: "bind".to_owned(),
            path: "/data".into(),
            source: "/srv".to_owned(),
        };
        let all = vec![shm, bind.clone(), layer("not yet")];
        let mut told = all.clone();
        let saved = Saved {
            layer: true,
            shm: true,
            ..Saved::default()
        };
        tell(&mut told, saved);
        assert_eq!(told, [bind]);
        let mut told = all;
        let saved = Saved {
            no_layer: Some("no overlay".to_owned()),
            no_shm: Some("the host's own".to_owned()),
            ..Saved::default()
        };
        tell(&mut told, saved);
        let sources: Vec<&str> = told.iter().map(|one| one.source.as_str()).collect();
        assert_eq!(sources, ["/run/shm: the host's own", "/srv", "no overlay"]);
        let order = SaveOrder {
            init: 1,
            bundle: "/bundle".into(),
            root: "/root".into(),
            layer: true,
            shm: false,
        };
        tell(&mut told, unsaved(&order, NO_FREEZER));
        let sources: Vec<&str> = told.iter().map(|one| one.source.as_str()).collect();
        assert_eq!(sources, ["/run/shm: the host's own", "/srv", NO_FREEZER]);
    }
}
