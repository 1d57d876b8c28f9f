//! Which directory of the host is the writable layer of a container.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

/// The upper directory of a container's root, by its `mountinfo`.
///
/// # Errors
/// Why there is none: what the root is instead.
pub(super) fn upper(mountinfo: &str) -> Result<PathBuf, String> {
    let root = mountinfo
        .lines()
        .rev()
        .find(|line| line.split(' ').nth(4) == Some("/"));
    let (_, filesystem) = root
        .and_then(|line| line.split_once(" - "))
        .ok_or("the container's root is not mounted")?;
    let mut fields = filesystem.split(' ');
    let (kind, options) = (
        fields.next().unwrap_or_default(),
        fields.nth(1).unwrap_or_default(),
    );
    if kind != "overlay" {
        return Err(format!("its root is a directory of {kind}, and no overlay"));
    }
    let upper = options
        .split(',')
        .find_map(|option| option.strip_prefix("upperdir="));
    upper
        .map(unescaped)
        .ok_or_else(|| "its root is an overlay that is read-only".to_owned())
}

/// `\040` is a space in the kernel's tables; what overlay escapes itself (`\,`, `\:`) comes with one more backslash.
fn unescaped(text: &str) -> PathBuf {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let octal = after.get(..3).filter(|_| *first == b'\\');
        let octal = octal.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        match octal {
            Some(byte) => {
                bytes.push(byte);
                rest = after.get(3..).unwrap_or_default();
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    OsString::from_vec(bytes).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layer_is_the_upper_directory_of_the_root() {
        let overlay = |options: &str| {
            format!(
                "9 1 0:9 / /proc rw - proc proc rw\n10 1 0:50 / / rw,relatime - overlay overlay rw,{options}\n"
            )
        };
        let of = |text: &str| upper(text).map(|path| path.display().to_string());
        assert_eq!(
            of(&overlay("lowerdir=/l,upperdir=/s/7/fs,workdir=/w")),
            Ok("/s/7/fs".to_owned())
        );
        assert_eq!(
            of(&overlay("upperdir=/a\\040b\\134/fs")),
            Ok("/a b\\/fs".to_owned())
        );
        assert!(of(&overlay("lowerdir=/l:/m")).unwrap_err().contains("read-only"));
        assert!(
            of("10 1 8:1 /x / rw - ext4 /dev/sda rw")
                .unwrap_err()
                .contains("of ext4")
        );
        assert!(of("").is_err());
    }
}
