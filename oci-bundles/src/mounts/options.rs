//! Mount options: words of fstab to flags and data, and overlay directories made short. Pure.

use std::path::PathBuf;

use nix::mount::MsFlags;

/// What the words say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Options {
    pub(super) flags: MsFlags,
    /// Set by a second call; empty leaves it as the parent mount has it.
    pub(super) propagation: MsFlags,
    /// Words that are the file system's.
    pub(super) data: Vec<String>,
    /// The source is a file to be put behind a loop device.
    pub(super) is_loop: bool,
    /// The loop device bypasses the page cache of the file.
    pub(super) is_direct: bool,
    /// `container:host:size[,…]`.
    pub(super) uid_map: Option<String>,
    pub(super) gid_map: Option<String>,
}

enum Word {
    Set(MsFlags),
    Clear(MsFlags),
    Propagation(MsFlags),
    Nothing,
}

fn word(text: &str) -> Option<Word> {
    use Word::{Clear, Nothing, Propagation, Set};
    let rec = MsFlags::MS_REC;
    Some(match text {
        "defaults" => Nothing,
        "async" => Clear(MsFlags::MS_SYNCHRONOUS),
        "atime" => Clear(MsFlags::MS_NOATIME),
        "bind" => Set(MsFlags::MS_BIND),
        "dev" => Clear(MsFlags::MS_NODEV),
        "diratime" => Clear(MsFlags::MS_NODIRATIME),
        "dirsync" => Set(MsFlags::MS_DIRSYNC),
        "exec" => Clear(MsFlags::MS_NOEXEC),
        "mand" => Set(MsFlags::MS_MANDLOCK),
        "noatime" => Set(MsFlags::MS_NOATIME),
        "nodev" => Set(MsFlags::MS_NODEV),
        "nodiratime" => Set(MsFlags::MS_NODIRATIME),
        "noexec" => Set(MsFlags::MS_NOEXEC),
        "nomand" => Clear(MsFlags::MS_MANDLOCK),
        "norelatime" => Clear(MsFlags::MS_RELATIME),
        "nostrictatime" => Clear(MsFlags::MS_STRICTATIME),
        "nosuid" => Set(MsFlags::MS_NOSUID),
        "rbind" => Set(MsFlags::MS_BIND | rec),
        "relatime" => Set(MsFlags::MS_RELATIME),
        "remount" => Set(MsFlags::MS_REMOUNT),
        "ro" => Set(MsFlags::MS_RDONLY),
        "rw" => Clear(MsFlags::MS_RDONLY),
        "strictatime" => Set(MsFlags::MS_STRICTATIME),
        "suid" => Clear(MsFlags::MS_NOSUID),
        "sync" => Set(MsFlags::MS_SYNCHRONOUS),
        "private" => Propagation(MsFlags::MS_PRIVATE),
        "rprivate" => Propagation(MsFlags::MS_PRIVATE | rec),
        "shared" => Propagation(MsFlags::MS_SHARED),
        "rshared" => Propagation(MsFlags::MS_SHARED | rec),
        "slave" => Propagation(MsFlags::MS_SLAVE),
        "rslave" => Propagation(MsFlags::MS_SLAVE | rec),
        "unbindable" => Propagation(MsFlags::MS_UNBINDABLE),
        "runbindable" => Propagation(MsFlags::MS_UNBINDABLE | rec),
        _ => return None,
    })
}

impl Options {
    /// Takes the words apart; the last one that says something about a flag wins.
    pub(super) fn parse(words: &[String]) -> Self {
        let mut options = Self {
            flags: MsFlags::empty(),
            propagation: MsFlags::empty(),
            data: Vec::new(),
            is_loop: false,
            is_direct: false,
            uid_map: None,
            gid_map: None,
        };
        for text in words {
            match word(text) {
                Some(Word::Set(flag)) => options.flags |= flag,
                Some(Word::Clear(flag)) => options.flags &= !flag,
                Some(Word::Propagation(kind)) => options.propagation = kind,
                Some(Word::Nothing) => {}
                None if text == "loop" => options.is_loop = true,
                None => match text.split_once('=') {
                    Some(("uidmap", map)) => options.uid_map = Some(map.to_owned()),
                    Some(("gidmap", map)) => options.gid_map = Some(map.to_owned()),
                    _ => options.data.push(text.clone()),
                },
            }
        }
        if options.is_loop {
            // Only then is it ours; a file system may have an option of that name.
            let before = options.data.len();
            options.data.retain(|text| text != "direct-io");
            options.is_direct = options.data.len() < before;
        }
        options
    }

    /// What mount(2) gets as data.
    pub(super) fn data_text(&self) -> String {
        self.data.join(",")
    }

    /// The directories of `lowerdir=`, topmost first.
    pub(super) fn lower_dirs(&self) -> Vec<&str> {
        self.data
            .iter()
            .find_map(|text| text.strip_prefix("lowerdir="))
            .map(split_dirs)
            .unwrap_or_default()
    }

    /// The same options with other lower directories.
    pub(super) fn with_lower_dirs(&self, dirs: &[String]) -> Self {
        let mut options = self.clone();
        for text in &mut options.data {
            if text.starts_with("lowerdir=") {
                *text = format!("lowerdir={}", dirs.join(":"));
            }
        }
        options
    }

    /// The data with lower directories relative to the deepest directory that is above all of them, and that
    /// directory. None when they have none but the root in common.
    pub(super) fn shorter_lower_dirs(&self) -> Option<(PathBuf, String)> {
        let dirs = self.lower_dirs();
        let common = common_parent(&dirs)?;
        let short: Option<Vec<String>> = dirs
            .iter()
            .map(|dir| {
                dir.strip_prefix(common)
                    .map(|rest| rest.trim_start_matches('/').to_owned())
            })
            .collect();
        Some((PathBuf::from(common), self.with_lower_dirs(&short?).data_text()))
    }
}

/// Splits at colons that no backslash escapes.
fn split_dirs(text: &str) -> Vec<&str> {
    let mut dirs = Vec::new();
    let (mut start, mut is_escaped) = (0, false);
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b':' if !is_escaped => {
                dirs.extend(text.get(start..at));
                start = at + 1;
            }
            _ => is_escaped = byte == b'\\' && !is_escaped,
        }
    }
    dirs.extend(text.get(start..));
    dirs
}

/// The longest directory above all of the paths. None when that is the root, a path is relative, or there is an
/// escape, which would mean something else in a path of our own making.
fn common_parent<'a>(dirs: &[&'a str]) -> Option<&'a str> {
    let (first, rest) = dirs.split_first()?;
    let mut common = first.rsplit_once('/')?.0;
    if dirs.iter().any(|dir| !dir.starts_with('/') || dir.contains('\\')) {
        return None;
    }
    for dir in rest {
        while !dir
            .strip_prefix(common)
            .is_some_and(|below| below.len() > 1 && below.starts_with('/'))
        {
            common = common.rsplit_once('/')?.0;
        }
    }
    Some(common).filter(|dir| !dir.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &str) -> Options {
        Options::parse(&words.split(' ').map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn words_become_flags_and_the_rest_is_data() {
        let (ro, bind, rec) = (MsFlags::MS_RDONLY, MsFlags::MS_BIND, MsFlags::MS_REC);
        for (words, flags, data) in [
            ("rbind ro", bind | rec | ro, ""),
            ("ro rw", MsFlags::empty(), ""),
            ("rw ro nosuid suid", ro, ""),
            ("defaults", MsFlags::empty(), ""),
            (
                "index=off workdir=/w upperdir=/u lowerdir=/l",
                MsFlags::empty(),
                "index=off,workdir=/w,upperdir=/u,lowerdir=/l",
            ),
            (
                "direct-io uid=5 readonly",
                MsFlags::empty(),
                "direct-io,uid=5,readonly",
            ),
        ] {
            let options = parse(words);
            assert_eq!(
                (options.flags, options.data_text().as_str()),
                (flags, data),
                "{words}"
            );
            assert!(!options.is_loop && !options.is_direct, "{words}");
        }
    }

    #[test]
    fn what_takes_more_than_one_call_is_kept_apart() {
        let options = parse("bind rslave uidmap=0:100:5,5:300:1 gidmap=0:200:5 loop direct-io");
        assert_eq!(options.flags, MsFlags::MS_BIND);
        assert_eq!(options.propagation, MsFlags::MS_SLAVE | MsFlags::MS_REC);
        assert_eq!(options.uid_map.as_deref(), Some("0:100:5,5:300:1"));
        assert_eq!(options.gid_map.as_deref(), Some("0:200:5"));
        assert!(options.is_loop && options.is_direct && options.data.is_empty());
    }

    #[track_caller]
    fn check_short(lower: &str, expected: Option<(&str, &str)>) {
        let options = parse(&format!("userxattr lowerdir={lower} upperdir=/a/9/fs"));
        let expected = expected.map(|(dir, lower)| {
            (
                PathBuf::from(dir),
                format!("userxattr,lowerdir={lower},upperdir=/a/9/fs"),
            )
        });
        assert_eq!(options.shorter_lower_dirs(), expected, "{lower}");
    }

    #[test]
    fn lower_directories_lose_what_they_have_in_common() {
        check_short(
            "/a/s/12/fs:/a/s/1/fs:/a/s/123/fs",
            Some(("/a/s", "12/fs:1/fs:123/fs")),
        );
        check_short("/a/s/12/fs:/a/t/1/fs", Some(("/a", "s/12/fs:t/1/fs")));
        check_short("/a/b:/a/b", Some(("/a", "b:b")));
        check_short("/a/b/c:/a/b", Some(("/a", "b/c:b")));
        check_short("/a/one", Some(("/a", "one")));
        check_short("/a/x:/b/x", None);
        check_short("/a/x:relative", None);
        check_short("/a/x:/a/with\\:colon", None);
    }

    #[test]
    fn an_escaped_colon_does_not_split() {
        assert_eq!(split_dirs("/a\\:b:/c\\\\:/d"), ["/a\\:b", "/c\\\\", "/d"]);
    }
}
