//! Says that single files are missing in a checkpoint: where it is made, where it is used.

use std::path::Path;

use oci_bundles::checkpoint;
use oci_bundles::manifest::Manifest;

use crate::output;

/// So many are named, and `inspect` names the others.
const NAMED_MAX: usize = 5;

/// Warns of the files that the checkpoint at a path is without. What cannot be read tells nothing here; whoever needs it says why.
pub fn warn(path: &Path) {
    let manifest = checkpoint::manifest(path).ok().flatten();
    for warning in manifest.iter().flat_map(warnings) {
        output::warning(&warning);
    }
}

fn warnings(manifest: &Manifest) -> Vec<String> {
    let mut left_out = manifest.files_left_out();
    let named = left_out.by_ref().take(NAMED_MAX);
    let mut all: Vec<_> = named
        .map(|one| {
            let path = one.path.display().to_string();
            format!(
                "{} is not in the checkpoint: {}",
                output::text::line(&path),
                one.source
            )
        })
        .collect();
    if left_out.next().is_some() {
        all.push("more files are not in it: cedana checkpoint inspect names them".to_owned());
    }
    all
}

#[cfg(test)]
mod tests {
    use oci_bundles::manifest::NotSaved;

    use super::*;

    #[test]
    fn the_first_are_named_and_mounts_are_not_told_of() {
        let file = |name: &str, kind: &str| NotSaved {
            kind: kind.to_owned(),
            path: name.into(),
            source: "why".to_owned(),
        };
        let mut manifest = Manifest {
            not_saved: vec![file("/srv", "bind"), file("/a\nb", "file")],
            ..Manifest::default()
        };
        assert_eq!(warnings(&manifest), ["/a\\nb is not in the checkpoint: why"]);
        manifest.not_saved.extend((0..9).map(|_| file("/c", "file")));
        let all = warnings(&manifest);
        assert_eq!(all.len(), NAMED_MAX + 1);
        assert!(all[NAMED_MAX].contains("inspect"), "{all:?}");
        assert!(warnings(&Manifest::default()).is_empty());
    }
}
