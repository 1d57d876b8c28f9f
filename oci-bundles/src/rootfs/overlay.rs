//! What overlay means by the things in its upper directory, and what a layer's tar calls them.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// What a deleted thing's name follows.
pub const WHITEOUT_PREFIX: &[u8] = b".wh.";

/// The file that says of its directory that nothing below it shows through.
pub const OPAQUE_NAME: &str = ".wh..wh..opq";

/// The attribute of an opaque directory. Overlays mounted with `userxattr` have `user.overlay.` instead, which only
/// unprivileged mounts use.
pub const OPAQUE_XATTR: &str = "trusted.overlay.opaque";

/// Whose attributes these are: overlay's own, in either kind of mount.
const NAMESPACES: [&[u8]; 2] = [b"trusted.overlay.", b"user.overlay."];

/// What a thing in the upper directory is to overlay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Itself.
    Plain,
    /// Something deleted.
    Whiteout,
    /// A directory over which the image's does not show.
    Opaque,
    /// Not to be understood without the layers below; why.
    Entangled(&'static str),
}

/// A name and a value.
pub type Xattr = (OsString, Vec<u8>);

/// What the attributes say of a thing, which is an empty file or not.
pub fn role(xattrs: &[Xattr], is_empty_file: bool) -> Role {
    let mut role = Role::Plain;
    for (name, value) in xattrs {
        match (own(name), value.as_slice()) {
            // `x` is an opaque directory's lesser brother: there are whiteouts by attribute in it.
            (Some(b"opaque"), b"y") => role = Role::Opaque,
            (Some(b"whiteout"), _) if is_empty_file => return Role::Whiteout,
            (Some(b"redirect"), _) => {
                return Role::Entangled("it was renamed by overlay's redirect_dir, which is not supported");
            }
            (Some(b"metacopy"), _) => {
                return Role::Entangled(
                    "its data is in a lower layer by overlay's metacopy, which is not supported",
                );
            }
            _ => {}
        }
    }
    role
}

/// An attribute's name after overlay's prefix, if it is one of overlay's.
fn own(name: &OsStr) -> Option<&[u8]> {
    let name = name.as_bytes();
    NAMESPACES.iter().find_map(|prefix| name.strip_prefix(*prefix))
}

/// Whether an attribute is the container's own and can be set again elsewhere: what users set, access lists, and file
/// capabilities. Labels of security modules are the host's to give, and `trusted.*` is no container's.
pub fn travels(name: &OsStr) -> bool {
    let bytes = name.as_bytes();
    let is_kept = [
        &b"security.capability"[..],
        b"system.posix_acl_access",
        b"system.posix_acl_default",
    ];
    own(name).is_none() && (bytes.starts_with(b"user.") || is_kept.contains(&bytes))
}

/// What an entry's name means in a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Meaning {
    /// Itself.
    Plain,
    /// The thing of that name is deleted.
    Whiteout(OsString),
    /// The directory that it is in is opaque.
    Opaque,
    /// Nothing that can be honoured.
    Unknown,
}

/// What the last part of an entry's path means.
pub fn meaning(name: &OsStr) -> Meaning {
    let Some(rest) = name.as_bytes().strip_prefix(WHITEOUT_PREFIX) else {
        return Meaning::Plain;
    };
    match rest {
        _ if name == OPAQUE_NAME => Meaning::Opaque,
        // aufs kept books under such names; and `.` and `..` would reach elsewhere.
        b"" | b"." | b".." => Meaning::Unknown,
        _ if rest.starts_with(WHITEOUT_PREFIX) => Meaning::Unknown,
        _ => Meaning::Whiteout(OsString::from_vec(rest.to_vec())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_tell_the_role() {
        for (name, value, is_empty_file, wanted) in [
            ("trusted.overlay.opaque", "y", false, Role::Opaque),
            ("user.overlay.opaque", "y", false, Role::Opaque),
            ("trusted.overlay.opaque", "x", false, Role::Plain),
            ("trusted.overlay.whiteout", "", true, Role::Whiteout),
            ("user.overlay.whiteout", "y", true, Role::Whiteout),
            ("trusted.overlay.whiteout", "", false, Role::Plain),
            ("trusted.overlay.origin", "…", false, Role::Plain),
            ("user.mime_type", "y", true, Role::Plain),
        ] {
            let xattrs = [(OsString::from(name), value.as_bytes().to_vec())];
            assert_eq!(role(&xattrs, is_empty_file), wanted, "{name}={value}");
        }
        for name in ["trusted.overlay.redirect", "user.overlay.metacopy"] {
            let xattrs = [(OsString::from(name), Vec::new())];
            assert!(matches!(role(&xattrs, false), Role::Entangled(_)), "{name}");
        }
    }

    #[test]
    fn what_overlay_or_the_host_reads_does_not_travel() {
        for (name, wanted) in [
            ("user.mime_type", true),
            ("security.capability", true),
            ("system.posix_acl_default", true),
            ("trusted.overlay.redirect", false),
            ("user.overlay.redirect", false),
            ("trusted.anything", false),
            ("security.selinux", false),
            ("security.ima", false),
        ] {
            assert_eq!(travels(OsStr::new(name)), wanted, "{name}");
        }
    }

    #[test]
    fn names_mean_what_a_layer_means_by_them() {
        for (name, wanted) in [
            ("a", Meaning::Plain),
            (".whatever", Meaning::Plain),
            (".wh.a", Meaning::Whiteout("a".into())),
            (".wh..hidden", Meaning::Whiteout(".hidden".into())),
            (".wh..wh..opq", Meaning::Opaque),
            (".wh..wh.plnk", Meaning::Unknown),
            (".wh.", Meaning::Unknown),
            (".wh..", Meaning::Unknown),
            (".wh...", Meaning::Unknown),
        ] {
            assert_eq!(meaning(OsStr::new(name)), wanted, "{name}");
        }
    }
}
