//! What the fuzzer feeds here; see [`crate::fuzzing`].

use std::io::Write;
use std::os::unix::net::UnixStream;

use super::channel::Word;
use super::images::{family, pagemap};
use super::restorer::{Restorer, Said};
use super::uffd;

const PAGE: u64 = 4096;

/// The images that say what is restored late. The runs of a pagemap that is taken do not overlap, and are within its pages.
pub(crate) fn images(bytes: &[u8]) {
    let _family = family(bytes);
    let Ok(map) = pagemap(bytes, PAGE) else { return };
    let mut last = 0;
    for run in map.missing.iter() {
        assert!(run.start >= last && run.offset + run.len <= map.size, "{run:?}");
        last = run.start + run.len;
    }
}

/// What a page server tells its shim.
pub(crate) fn words(bytes: &[u8]) {
    if let Some(word) = Word::parse(bytes) {
        assert_eq!(Word::parse(word.to_string().as_bytes()), Some(word));
    }
}

/// What CRIU says on its socket; it has to come to an end.
pub(crate) fn restorer(bytes: &[u8]) {
    let Ok((ours, mut theirs)) = UnixStream::pair() else {
        return;
    };
    // More would not fit into the socket, and nobody reads yet.
    let bytes = bytes.get(..4096).unwrap_or(bytes);
    if theirs.write_all(bytes).is_err() {
        return;
    }
    drop(theirs);
    let Ok(mut restorer) = Restorer::connected(ours) else {
        return;
    };
    while let Ok(said) = restorer.hear() {
        if matches!(said, Said::Gone) {
            return;
        }
    }
}

/// What the kernel says of a userfaultfd.
pub(crate) fn events(bytes: &[u8]) {
    let _message = uffd::parse(bytes);
}
