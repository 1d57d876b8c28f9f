//! Memory that is in an archive: what of it CRIU reads itself has to be in files before it is started.

use oci_bundles::archive::{ArchiveError, Contents, Span};

use super::extents::Extents;
use super::images::Memory;

/// Makes every file of pages that is in an archive, with all that is not served; the rest are holes, which CRIU passes over.
///
/// # Errors
/// What the disk says; the archive is damaged.
pub(super) fn make_the_rest(left: &Contents, memories: &[Memory]) -> Result<(), ArchiveError> {
    for (place, content) in left.iter() {
        let mut of = memories.iter().filter(|memory| memory.file == place);
        let stretches = match (of.next(), of.next()) {
            (Some(memory), None) => rest(&memory.missing, content.size()),
            // Shared memory; or one for several processes, each of which CRIU might read other pages of.
            _ => rest(&Extents::default(), content.size()),
        };
        left.make(&place, &stretches)?;
    }
    Ok(())
}

/// What of a file of that size is in none of these runs.
fn rest(served: &Extents, size: u64) -> Vec<Span> {
    let mut runs: Vec<_> = served
        .iter()
        .map(|run| (run.offset, run.offset + run.len))
        .collect();
    runs.sort_unstable();
    let (mut stretches, mut at) = (Vec::new(), 0);
    for (begin, end) in runs.into_iter().chain([(size, size)]) {
        if begin > at {
            stretches.push(Span { at, len: begin - at });
        }
        at = at.max(end);
    }
    stretches
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::ops::ControlFlow;
    use std::sync::Arc;

    use oci_bundles::archive::{Form, Limits, pack, unpack_without_memory};

    use super::super::extents::Extent;
    use super::super::source::PagesInArchive;
    use super::*;

    #[test]
    fn what_is_not_served_is_made() {
        for (served, stretches) in [
            (&[][..], &[(0, 100)][..]),
            (&[(7, 0, 100)], &[]),
            // By address they are in another order than in the file.
            (&[(500, 0, 10), (100, 40, 20)], &[(10, 30), (60, 40)]),
            (&[(0, 90, 10), (50, 10, 10), (80, 20, 5)], &[(0, 10), (25, 65)]),
        ] {
            let mut extents = Extents::default();
            for &(start, offset, len) in served {
                assert!(extents.add(Extent { start, len, offset }));
            }
            let found: Vec<_> = rest(&extents, 100)
                .iter()
                .map(|span| (span.at, span.len))
                .collect();
            assert_eq!(found, stretches, "{served:?}");
        }
        assert_eq!(rest(&Extents::default(), 0), []);
    }

    #[test]
    fn criu_finds_what_it_reads_itself() {
        let home = tempfile::tempdir().expect("a directory");
        let (dump, archive, root) = (
            home.path().join("dump"),
            home.path().join("a.tar"),
            home.path().join("root"),
        );
        fs::create_dir_all(dump.join("checkpoint")).expect("made");
        let pages = vec![7; 2 << 20];
        for name in ["pages-1.img", "pages-2.img", "pages-3.img"] {
            fs::write(dump.join("checkpoint").join(name), &pages).expect("written");
        }
        let quiet = &mut |_| ControlFlow::Continue(());
        let _packed = pack(&dump, &archive, Form::Tar, quiet).expect("packed");
        let left = unpack_without_memory(&archive, &root, &Limits::default(), quiet).expect("unpacked");
        let left = left.open().expect("open");
        let place = |name: &str| root.join("checkpoint").join(name);
        let memory = |name: &str| {
            let mut missing = Extents::default();
            assert!(missing.add(Extent {
                start: 0,
                len: 1 << 20,
                offset: 4096
            }));
            Memory {
                pid: 1,
                missing,
                file: place(name),
                pages: Arc::new(PagesInArchive(Arc::clone(left.at(&place(name)).expect("left")))),
            }
        };
        // The second one is shared memory, the third one of two processes.
        let memories = [
            memory("pages-1.img"),
            memory("pages-3.img"),
            memory("pages-3.img"),
        ];
        make_the_rest(&left, &memories).expect("made");
        let mut first = pages.clone();
        first[4096..4096 + (1 << 20)].fill(0);
        for (name, wanted) in [
            ("pages-1.img", &first),
            ("pages-2.img", &pages),
            ("pages-3.img", &pages),
        ] {
            assert!(fs::read(place(name)).expect("read") == *wanted, "{name}");
        }
    }
}
