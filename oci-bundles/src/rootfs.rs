//! The writable layer of a container as a diff: what an overlay's upper directory has over the image, as a tar of an
//! OCI layer, and such a tar put into an upper directory again.
//!
//! ```text
//!  in the upper directory                          in the tar
//!  a character device 0:0 called x            <->  an empty file .wh.x        (x is deleted)
//!  a file x with the xattr overlay.whiteout    ->  the same
//!  a directory with overlay.opaque = y        <->  .wh..wh..opq in it         (nothing of the image shows)
//!  overlay's other xattrs                      ->  nothing: they speak of this machine's inodes
//!  files, links, devices, fifos, xattrs       <->  themselves; holes stay holes
//!  sockets                                     ->  nothing: whoever listened makes them anew
//! ```
//!
//! Invariants:
//! - neither direction follows a symlink or leaves the directory, whatever runs in the container meanwhile;
//! - a diff is foreign input when it is applied: its devices are made only if the request allows, its `trusted.*`
//!   xattrs never, since overlay takes orders from them;
//! - a layer that cannot be told from its upper directory alone (`redirect_dir`, `metacopy`) is refused.

pub mod apply;
pub mod deleted;
pub mod foreign;
pub mod make;

pub(crate) mod attributes;
mod overlay;
mod remove;

/// What a tree of files is, which decides what names and attributes mean in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tree {
    /// The upper directory of an overlay.
    Upper,
    /// A root file system as its container sees it, on whatever it lies: what a diff deletes is removed.
    Merged,
    /// The same, and a diff of an engine that has a [list](deleted) beside it for what is deleted: every name is just that.
    Listed,
    /// A file system that is no layer of anything: every name and every device in it is just that.
    Own,
}

impl Tree {
    /// Whether names in a diff of it may mean that something is deleted.
    fn has_whiteouts(self) -> bool {
        matches!(self, Self::Upper | Self::Merged)
    }

    /// Whether what is there already is what the container sees.
    fn is_merged(self) -> bool {
        matches!(self, Self::Merged | Self::Listed)
    }
}

#[cfg(feature = "archive")]
#[cfg(test)]
mod tests;
