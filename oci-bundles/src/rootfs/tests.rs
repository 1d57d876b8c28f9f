//! Diffs of real overlays, and diffs that somebody made to do harm.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::ops::ControlFlow;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, chown, lchown, symlink};
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};

use super::Tree;
use super::apply::{Allowed, Applied, Device, apply_to};
use super::attributes;
use super::deleted;
use super::foreign;
use super::make::{Made, make};
use crate::archive::entry::{Entry, Kind};
use crate::archive::limits::Limits;
use crate::archive::place::Place;
use crate::archive::writer::Writer;
use crate::archive::{ArchiveError, Progress};

fn quiet(_: Progress) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

#[expect(clippy::print_stderr, reason = "a test that does not run says so")]
fn is_root(name: &str) -> bool {
    let is_root = nix::unistd::geteuid().is_root();
    if !is_root {
        eprintln!("skipped {name}: no root");
    }
    is_root
}

/// Runs a test with a tmpfs at a directory, which only it sees. A tmpfs has what overlay needs of an upper one.
fn on_tmpfs(test: impl FnOnce(&Path) + Send) {
    let dir = tempfile::tempdir().unwrap();
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
            let none: Option<&str> = None;
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
            mount(Some("test"), dir.path(), Some("tmpfs"), MsFlags::empty(), none).unwrap();
            test(dir.path());
        });
        thread.join().unwrap();
    });
}

/// Mounts an overlay of `lower` and an upper directory, made if need be.
fn overlay(dir: &Path, upper: &str, options: &str) -> PathBuf {
    let path = |name: &str| {
        let path = dir.join(name);
        fs::create_dir_all(&path).unwrap();
        path
    };
    let (lower, work, merged) = (
        path("lower"),
        path(&format!("{upper}-work")),
        path(&format!("{upper}-merged")),
    );
    let data = format!(
        "lowerdir={},upperdir={},workdir={}{options}",
        lower.display(),
        path(upper).display(),
        work.display()
    );
    mount(
        Some("overlay"),
        &merged,
        Some("overlay"),
        MsFlags::empty(),
        Some(data.as_str()),
    )
    .unwrap();
    merged
}

fn write(path: PathBuf, text: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

fn set_xattr(path: &Path, name: &str, value: &[u8]) {
    attributes::set(&File::open(path).unwrap(), OsStr::new(name), value).unwrap();
}

/// What one can see of a tree: of each thing its name, type and mode, owner, time, links, device, content, attributes.
fn seen(top: &Path) -> Vec<String> {
    let mut all = Vec::new();
    let place = Place::open(top).unwrap();
    let mut paths = vec![PathBuf::new()];
    while let Some(path) = paths.pop() {
        let at = top.join(&path);
        let meta = fs::symlink_metadata(&at).unwrap();
        let content = match meta.file_type() {
            kind if kind.is_file() => fs::read(&at).unwrap(),
            kind if kind.is_symlink() => fs::read_link(&at).unwrap().into_os_string().into_encoded_bytes(),
            _ => Vec::new(),
        };
        let mut xattrs = attributes::read(&place.look(&path).unwrap()).unwrap();
        xattrs.retain(|(name, _)| super::overlay::travels(name));
        // A merged directory's links and sizes say nothing.
        let links = if meta.is_dir() { 0 } else { meta.nlink() };
        all.push(format!(
            "{path:?} {:o} {}:{} {}.{} {links} {} {} {xattrs:?}",
            meta.mode(),
            meta.uid(),
            meta.gid(),
            meta.mtime(),
            meta.mtime_nsec(),
            meta.rdev(),
            blake3::hash(&content)
        ));
        if meta.is_dir() {
            paths.extend(
                place
                    .names(&path)
                    .unwrap()
                    .into_iter()
                    .map(|name| path.join(name)),
            );
        }
    }
    all.sort();
    all
}

fn made(upper: &Path) -> (Made, Vec<u8>) {
    make(upper, Vec::new(), &mut quiet).unwrap()
}

fn applied(diff: &[u8], upper: &Path, device: &dyn Fn(Device) -> bool) -> Result<Applied, ArchiveError> {
    let limits = Limits::default();
    fs::create_dir_all(upper).unwrap();
    apply_to(
        Tree::Upper,
        diff,
        Path::new("rootfs-diff.tar"),
        upper,
        &Allowed { limits, device },
        &mut quiet,
    )
}

/// What a container does to its file system.
fn live_in(merged: &Path) {
    fs::remove_file(merged.join("etc/gone")).unwrap();
    fs::remove_dir_all(merged.join("var/old")).unwrap();
    fs::remove_dir_all(merged.join("var/anew")).unwrap();
    write(merged.join("var/anew/only"), "this");
    fs::set_permissions(merged.join("etc/kept"), fs::Permissions::from_mode(0o4711)).unwrap();
    write(merged.join("a/b/c/new"), "new");
    chown(merged.join("a/b"), Some(1000), Some(7)).unwrap();
    fs::set_permissions(merged.join("a/b"), fs::Permissions::from_mode(0o1570)).unwrap();
    fs::hard_link(merged.join("a/b/c/new"), merged.join("a/second")).unwrap();
    fs::hard_link(merged.join("a/b/c/new"), merged.join("zz-third")).unwrap();
    symlink("/etc/passwd", merged.join("a/link")).unwrap();
    lchown(merged.join("a/link"), Some(5), Some(6)).unwrap();
    symlink("n".repeat(300), merged.join(format!("{}-long", "l".repeat(150)))).unwrap();
    nix::unistd::mkfifo(&merged.join("a/fifo"), Mode::from_bits_truncate(0o622)).unwrap();
    let null = makedev(1, 3);
    mknod(
        &merged.join("a/null"),
        SFlag::S_IFCHR,
        Mode::from_bits_truncate(0o600),
        null,
    )
    .unwrap();
    mknod(
        &merged.join("a/disk"),
        SFlag::S_IFBLK,
        Mode::from_bits_truncate(0o600),
        makedev(259, 70000),
    )
    .unwrap();
    set_xattr(
        &merged.join("a/second"),
        "user.key",
        b"a value\n100 path=/etc/passwd\n\0\xff",
    );
    set_xattr(&merged.join("a/b"), "user.dir", b"");
    // CAP_NET_RAW, permitted and effective, as `setcap` writes it.
    let raw = [1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    write(merged.join("a/ping"), "binary");
    chown(merged.join("a/ping"), Some(0), Some(1)).unwrap();
    set_xattr(&merged.join("a/ping"), "security.capability", &raw);
    let sparse = File::create(merged.join("a/sparse")).unwrap();
    sparse.write_all_at(b"begin", 4096).unwrap();
    sparse.write_all_at(b"end", 40 << 20).unwrap();
    sparse.set_len(64 << 20).unwrap();
    write(merged.join("a/empty"), "");
    let _socket = std::os::unix::net::UnixListener::bind(merged.join("a/socket")).unwrap();
    let time = std::time::SystemTime::UNIX_EPOCH - std::time::Duration::from_millis(1500);
    let old = File::options().write(true).open(merged.join("a/empty")).unwrap();
    old.set_modified(time).unwrap();
}

#[test]
fn a_layer_comes_back_as_it_was() {
    if !is_root("a_layer_comes_back_as_it_was") {
        return;
    }
    on_tmpfs(|dir| {
        for name in [
            "etc/gone",
            "etc/kept",
            "etc/untouched",
            "var/old/x",
            "var/anew/hidden",
        ] {
            write(dir.join("lower").join(name), name);
        }
        let merged = overlay(dir, "upper", "");
        live_in(&merged);
        let (made, diff) = made(&dir.join("upper"));
        assert_eq!(made.left_out, [PathBuf::from("a/socket")]);
        assert_eq!(
            made.deleted,
            [PathBuf::from("etc/gone"), PathBuf::from("var/old")]
        );
        assert!(diff.len() < 1 << 20, "holes are not in it: {} bytes", diff.len());
        let applied = applied(&diff, &dir.join("other"), &|_| true).unwrap();
        assert!(applied.left_out.is_empty());
        assert_eq!(applied.entries, made.entries);
        let again = overlay(dir, "other", "");
        fs::remove_file(merged.join("a/socket")).unwrap();
        let (was, is) = (seen(&merged), seen(&again));
        // Removing the socket has changed its directory's time.
        let same = |lines: &[String]| -> Vec<String> {
            let others = lines.iter().filter(|line| !line.starts_with("\"a\" "));
            others.cloned().collect()
        };
        for (was, is) in same(&was).iter().zip(same(&is)) {
            assert_eq!(*was, is);
        }
        assert_eq!(was.len(), is.len());
        let blocks = fs::metadata(dir.join("other/a/sparse")).unwrap().blocks();
        assert!(blocks * 512 < 1 << 20, "{blocks} blocks");
        // And once more, over itself.
        let _again = self::applied(&diff, &dir.join("other2"), &|_| true).unwrap();
        let _again = self::applied(&diff, &dir.join("other2"), &|_| true).unwrap();
        assert_eq!(
            self::made(&dir.join("other2")).1.len(),
            self::made(&dir.join("other")).1.len()
        );
    });
}

#[test]
fn a_layer_comes_back_through_a_root_file_system_that_is_mounted() {
    if !is_root("a_layer_comes_back_through_a_root_file_system_that_is_mounted") {
        return;
    }
    on_tmpfs(|dir| {
        for name in [
            "etc/gone",
            "etc/kept",
            "etc/dir/x",
            "var/old/x",
            "var/anew/hidden",
        ] {
            write(dir.join("lower").join(name), name);
        }
        write(dir.join("lower/etc/file"), "");
        let merged = overlay(dir, "upper", "");
        live_in(&merged);
        // A file in the place of a directory, and a directory in the place of a file: neither has a whiteout.
        fs::remove_dir_all(merged.join("etc/dir")).unwrap();
        write(merged.join("etc/dir"), "a file now");
        fs::remove_file(merged.join("etc/file")).unwrap();
        write(merged.join("etc/file/below"), "a directory now");
        let (_, diff) = made(&dir.join("upper"));
        fs::remove_file(merged.join("a/socket")).unwrap();
        let again = overlay(dir, "other", "");
        let allowed = Allowed {
            limits: Limits::default(),
            device: &|_| true,
        };
        for _twice in 0..2 {
            let name = Path::new("rootfs-diff.tar");
            drop(apply_to(Tree::Merged, &diff[..], name, &again, &allowed, &mut quiet).unwrap());
            let others = |top: &Path| -> Vec<String> {
                let lines = seen(top).into_iter();
                lines.filter(|line| !line.starts_with("\"a\" ")).collect()
            };
            assert_eq!(others(&merged), others(&again));
        }
    });
}

#[test]
fn ordinary_tools_read_a_diff() {
    if !is_root("ordinary_tools_read_a_diff") {
        return;
    }
    on_tmpfs(|dir| {
        write(dir.join("lower/etc/gone"), "");
        write(dir.join("lower/etc/kept"), "");
        write(dir.join("lower/var/old/x"), "");
        write(dir.join("lower/var/anew/hidden"), "");
        live_in(&overlay(dir, "upper", ""));
        let (_, diff) = made(&dir.join("upper"));
        fs::write(dir.join("diff"), &diff).unwrap();
        fs::create_dir(dir.join("out")).unwrap();
        let tar = std::process::Command::new("tar")
            .args(["--xattrs", "--xattrs-include=*", "-xpf", "diff", "-C", "out"])
            .current_dir(dir)
            .output()
            .unwrap();
        assert!(tar.status.success(), "{}", String::from_utf8_lossy(&tar.stderr));
        for name in ["etc/.wh.gone", "var/.wh.old", "var/anew/.wh..wh..opq"] {
            assert_eq!(fs::read(dir.join("out").join(name)).unwrap(), b"", "{name}");
        }
        for name in ["a/second", "a/sparse", "a/null", "a/link", "a/empty"] {
            let line = |top: &str| {
                let wanted = format!("{:?} ", Path::new(name));
                seen(&dir.join(top))
                    .into_iter()
                    .find(|line| line.starts_with(&wanted))
            };
            assert_eq!(line("out"), line("upper"), "{name}");
        }
    });
}

#[test]
fn layers_that_need_the_ones_below_are_refused() {
    if !is_root("layers_that_need_the_ones_below_are_refused") {
        return;
    }
    on_tmpfs(|dir| {
        write(dir.join("lower/dir/x"), "");
        let merged = overlay(dir, "upper", ",redirect_dir=on,metacopy=off");
        fs::rename(merged.join("dir"), merged.join("renamed")).unwrap();
        let error = make(&dir.join("upper"), Vec::new(), &mut quiet).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("upper/renamed: it was renamed by overlay's redirect_dir"),
            "{error}"
        );
        let merged = overlay(dir, "upper2", ",metacopy=on,redirect_dir=on");
        fs::set_permissions(merged.join("dir/x"), fs::Permissions::from_mode(0o600)).unwrap();
        let error = make(&dir.join("upper2"), Vec::new(), &mut quiet).unwrap_err();
        assert!(
            error.to_string().contains("x: its data is in a lower layer"),
            "{error}"
        );
    });
}

#[test]
fn names_that_a_layer_cannot_say_are_left_out_alone() {
    let dir = tempfile::tempdir().unwrap();
    let upper = dir.path().join("upper");
    for name in [".wh.first", ".wh..wh..opq", "d/.wh.dir/below", "d/kept"] {
        write(upper.join(name), "text");
    }
    // What has another name, too, is there by that.
    fs::hard_link(upper.join(".wh.first"), upper.join("second")).unwrap();
    symlink("kept", upper.join("d/.wh.link")).unwrap();
    let (made, diff) = made(&upper);
    let unsayable: Vec<_> = made.unsayable.iter().map(|path| path.to_str().unwrap()).collect();
    assert_eq!(
        unsayable,
        [".wh..wh..opq", ".wh.first", "d/.wh.dir", "d/.wh.link"]
    );
    let mut archive = tar::Archive::new(&diff[..]);
    let names = archive.entries().unwrap().map(|entry| {
        let entry = entry.unwrap();
        (entry.path().unwrap().display().to_string(), entry.size())
    });
    let names: Vec<_> = names.filter(|(_, size)| *size > 0).collect();
    assert_eq!(names, [("second".to_owned(), 4), ("d/kept".to_owned(), 4)]);
}

fn file(path: &str) -> Entry {
    Entry::new(path.into(), Kind::File, 0o644)
}

fn of_kind(path: &str, kind: Kind) -> Entry {
    Entry::new(path.into(), kind, 0o644)
}

fn diff(entries: &[Entry]) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new());
    for entry in entries {
        writer.entry(entry).unwrap();
    }
    writer.finish().unwrap()
}

#[test]
fn a_hostile_diff_reaches_nothing_outside() {
    if !is_root("a_hostile_diff_reaches_nothing_outside") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    write(dir.path().join("outside/precious"), "as it was");
    let out = |path: &str| Kind::Symlink(dir.path().join("outside").join(path));
    let no_dir = "it goes through what is no directory";
    for (entries, why) in [
        (vec![of_kind("l", out("")), file("l/x")], no_dir),
        (vec![of_kind("l", out("")), of_kind("l", Kind::Directory)], no_dir),
        (vec![of_kind("l", out("")), file("l/.wh.precious")], no_dir),
        (vec![of_kind("l", out("")), file("l/.wh..wh..opq")], no_dir),
        (
            vec![
                of_kind("l", out("precious")),
                of_kind("h", Kind::HardLink("l".into())),
            ],
            "a link to no file before it",
        ),
        (
            vec![of_kind("h", Kind::HardLink("h".into()))],
            "a link to no file before it",
        ),
        (
            vec![file("f"), of_kind("f", Kind::HardLink("f".into()))],
            "a link to no file before it",
        ),
        (vec![file(".wh..")], "a whiteout of an unknown kind"),
        (vec![file("d/.wh...")], "a whiteout of an unknown kind"),
        (vec![file(".wh..wh.plnk")], "a whiteout of an unknown kind"),
        (
            vec![of_kind(".wh.x", Kind::Directory)],
            "a whiteout that is no file",
        ),
        (vec![file("d/f"), file("d")], "there is a directory in its place"),
        (
            vec![file("d/f"), file(".wh.d")],
            "there is a directory in its place",
        ),
        (vec![file("f"), file("f/x")], no_dir),
    ] {
        let upper = dir.path().join("upper");
        match applied(&diff(&entries), &upper, &|_| true) {
            Err(ArchiveError::Refused { why: said, .. }) => assert_eq!(said, why, "{entries:?}"),
            other => panic!("{entries:?}: {other:?}"),
        }
        fs::remove_dir_all(upper).unwrap();
        assert_eq!(
            fs::read(dir.path().join("outside/precious")).unwrap(),
            b"as it was"
        );
        assert_eq!(fs::read_dir(dir.path().join("outside")).unwrap().count(), 1);
    }
    // A file that replaces a link replaces the link, and attributes of a link are its own.
    let mut link = of_kind("l", out("precious"));
    (link.uid, link.mode) = (7, 0o777);
    let upper = dir.path().join("upper");
    drop(applied(&diff(&[link.clone(), file("l")]), &upper, &|_| true).unwrap());
    drop(applied(&diff(&[link]), &upper, &|_| true).unwrap());
    let precious = fs::metadata(dir.path().join("outside/precious")).unwrap();
    assert_eq!((precious.uid(), precious.len()), (0, 9));
    assert_eq!(fs::symlink_metadata(upper.join("l")).unwrap().uid(), 7);
}

#[test]
fn devices_and_orders_to_overlay_need_leave() {
    if !is_root("devices_and_orders_to_overlay_need_leave") {
        return;
    }
    on_tmpfs(|dir| {
        let mut orders = of_kind("d", Kind::Directory);
        for name in [
            "trusted.overlay.redirect",
            "user.overlay.redirect",
            "security.selinux",
        ] {
            orders.xattrs.push((OsString::from(name), b"/etc".to_vec()));
        }
        orders.xattrs.push(("user.own".into(), b"kept".to_vec()));
        let diff = diff(&[
            orders,
            of_kind("null", Kind::CharDevice(1, 3)),
            of_kind("mem", Kind::CharDevice(1, 1)),
            of_kind("sda", Kind::BlockDevice(8, 0)),
            of_kind("sign", Kind::CharDevice(0, 0)),
        ]);
        let null = Device {
            is_block: false,
            major: 1,
            minor: 3,
        };
        let upper = dir.join("upper");
        let applied = applied(&diff, &upper, &|device| device == null || device.major == 0).unwrap();
        assert_eq!(applied.left_out, ["mem", "sda", "sign"].map(PathBuf::from));
        let there: Vec<_> = fs::read_dir(&upper)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(there.len(), 2, "{there:?}");
        assert_eq!(fs::metadata(upper.join("null")).unwrap().rdev(), makedev(1, 3));
        let fd = Place::open(&upper).unwrap().look(Path::new("d")).unwrap();
        assert_eq!(
            attributes::read(&fd).unwrap(),
            [(OsString::from("user.own"), b"kept".to_vec())]
        );
    });
}

#[test]
fn a_diff_is_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let mut large = file("large");
    large.size = 5;
    let mut writer = Writer::new(Vec::new());
    writer.entry(&large).unwrap();
    writer.data(b"12345").unwrap();
    let diff = writer.finish().unwrap();
    for (entries_max, bytes_max, what) in [(0, 9, "entries"), (1, 4, "bytes")] {
        let limits = Limits {
            entries_max,
            bytes_max,
            ..Limits::default()
        };
        let allowed = Allowed {
            limits,
            device: &|_| false,
        };
        let result = apply_to(
            Tree::Upper,
            &diff[..],
            Path::new("diff"),
            dir.path(),
            &allowed,
            &mut quiet,
        );
        assert!(
            matches!(result, Err(ArchiveError::TooLarge { what: said, .. }) if said == what),
            "{what}"
        );
    }
}

#[test]
fn directories_above_what_is_in_a_diff_count() {
    let dir = tempfile::tempdir().unwrap();
    let entries = [file("a/b/c/d/e/first"), file("f/g/h/i/j/second"), file("third")];
    for (entries_max, is_fine) in [(13, true), (12, false)] {
        let upper = dir.path().join(entries_max.to_string());
        fs::create_dir(&upper).unwrap();
        let limits = Limits {
            entries_max,
            ..Limits::default()
        };
        let device = &|_| false;
        let allowed = Allowed { limits, device };
        let result = apply_to(
            Tree::Upper,
            &diff(&entries)[..],
            Path::new("diff"),
            &upper,
            &allowed,
            &mut quiet,
        );
        match result {
            Err(ArchiveError::TooLarge { what: "entries", .. }) => assert!(!is_fine),
            other => assert!(is_fine && other.is_ok(), "{other:?}"),
        }
    }
}

#[test]
fn a_file_that_shrinks_fails_its_diff() {
    let dir = tempfile::tempdir().unwrap();
    let mut file = File::create(dir.path().join("f")).unwrap();
    file.write_all(&vec![1; 2 << 20]).unwrap();
    let _end = file.seek(SeekFrom::Start(0)).unwrap();
    let mut shrink = |_| {
        file.set_len(0).unwrap();
        ControlFlow::Continue(())
    };
    let error = make(dir.path(), Vec::new(), &mut shrink).unwrap_err();
    assert!(error.to_string().contains("f: it shrank"), "{error}");
}

/// Applies another engine's diff, as it lies in a checkpoint, to a root file system.
fn applied_foreign(diff: &[u8], dir: &Path, root: &Path) -> Result<Applied, ArchiveError> {
    let path = dir.join("diff");
    fs::write(&path, diff).unwrap();
    let allowed = Allowed {
        limits: Limits::default(),
        device: &|_| false,
    };
    foreign::apply(File::open(&path).unwrap(), &path, root, &allowed, &mut quiet)
}

/// The same of a root file system in which something else is mounted, `outside`, at `root/dev/sub`, with a file in it.
fn with_mount(test: impl FnOnce(&Path, &Path) + Send) {
    on_tmpfs(|dir| {
        let (root, outside) = (dir.join("root"), dir.join("outside"));
        write(outside.join("kept"), "kept");
        write(root.join("file"), "");
        fs::create_dir_all(root.join("dev/sub")).unwrap();
        let none: Option<&str> = None;
        mount(
            Some(&outside),
            &root.join("dev/sub"),
            none,
            MsFlags::MS_BIND,
            none,
        )
        .unwrap();
        mount(
            Some(&outside.join("kept")),
            &root.join("file"),
            none,
            MsFlags::MS_BIND,
            none,
        )
        .unwrap();
        test(dir, &root);
        assert_eq!(fs::read(outside.join("kept")).unwrap(), b"kept");
    });
}

#[test]
fn what_is_mounted_in_a_root_is_not_removed() {
    if !is_root("what_is_mounted_in_a_root_is_not_removed") {
        return;
    }
    with_mount(|_, root| {
        for (path, at) in [
            ("dev", "dev/sub"),
            ("dev/sub", "sub"),
            ("dev/sub/kept", "dev/sub"),
            ("file", "file"),
        ] {
            let error = deleted::remove(root, &[path.into()]).unwrap_err().to_string();
            let why = format!("{path}: something is mounted at {at}");
            assert!(error.ends_with(&why), "{path}: {error}");
        }
    });
    for (entries, why) in [
        (vec![file(".wh.dev")], "something is mounted at dev/sub"),
        (vec![file("dev/.wh.sub")], "something is mounted at sub"),
        (vec![file("dev/.wh..wh..opq")], "something is mounted at sub"),
        (vec![file("dev")], "something is mounted at dev/sub"),
        (
            vec![file("dev/sub/.wh.kept")],
            "something is mounted there or on its way",
        ),
        (
            vec![file("dev/sub/.wh..wh..opq")],
            "something is mounted there or on its way",
        ),
        (vec![file("file")], "something is mounted at file"),
    ] {
        with_mount(|dir, root| {
            let error = applied_foreign(&gzip(&diff(&entries)), dir, root)
                .unwrap_err()
                .to_string();
            assert!(error.ends_with(why), "{entries:?}: {error}");
        });
    }
}

#[test]
fn a_small_gzip_does_not_fill_the_disk() {
    const FROM: u64 = 1 << 20;
    let of = |name: &str, data: &[u8]| {
        let mut entry = file(name);
        entry.size = data.len() as u64;
        let mut writer = Writer::new(Vec::new());
        writer.entry(&entry).unwrap();
        writer.data(data).unwrap();
        gzip(&writer.finish().unwrap())
    };
    let names = |depth: usize| -> Vec<Entry> {
        (0..300)
            .map(|name| file(&format!("{name}/{}f", "d/".repeat(depth))))
            .collect()
    };
    let mut hollow = of("f", &vec![7; 3 << 20]);
    hollow.resize(1 << 20, 0);
    for (what, packed, is_fine) in [
        ("solid", of("f", &vec![7; 3 << 20]), false),
        ("zeros", of("f", &vec![0; 3 << 20]), true),
        ("little", of("f", &vec![7; 900 << 10]), true),
        ("files", gzip(&diff(&names(0))), false),
        ("directories", gzip(&diff(&names(100))), false),
        ("zeros after it", hollow, false),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let (path, root) = (dir.path().join("diff"), dir.path().join("root"));
        fs::write(&path, &packed).unwrap();
        fs::create_dir(&root).unwrap();
        let limits = Limits {
            ratio_from: FROM,
            ..Limits::default()
        };
        let device = &|_| false;
        let allowed = Allowed { limits, device };
        match foreign::apply(File::open(&path).unwrap(), &path, &root, &allowed, &mut quiet) {
            Err(ArchiveError::TooLarge {
                what: "times its own size",
                ..
            }) => assert!(!is_fine, "{what}"),
            other => assert!(is_fine && other.is_ok(), "{what}: {other:?}"),
        }
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    packed.write_all(bytes).unwrap();
    packed.finish().unwrap()
}

#[test]
fn names_in_a_diff_mean_what_its_engine_means_by_them() {
    if !is_root("names_in_a_diff_mean_what_its_engine_means_by_them") {
        return;
    }
    let plain = diff(&[file("srv/new"), file("etc/.wh.motd"), file("etc/.wh.")]);
    let layer = diff(&[file("srv/new"), file("etc/.wh.motd")]);
    for (bytes, deletes) in [(plain.clone(), false), (gzip(&layer), true)] {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        write(root.join("etc/motd"), "");
        fs::create_dir(root.join("srv")).unwrap();
        fs::set_permissions(root.join("srv"), fs::Permissions::from_mode(0o1777)).unwrap();
        drop(applied_foreign(&bytes, dir.path(), &root).unwrap());
        assert!(root.join("srv/new").exists());
        assert_eq!(root.join("etc/motd").exists(), !deletes);
        assert_eq!(root.join("etc/.wh.motd").exists(), !deletes);
        // The directory is not in the diff, and stays as it is.
        assert_eq!(fs::metadata(root.join("srv")).unwrap().mode() & 0o7777, 0o1777);
    }
    let dir = tempfile::tempdir().unwrap();
    for damaged in [&plain[..700], &gzip(&layer)[..40], &[0x1f, 0x8b][..], &[][..]] {
        assert!(applied_foreign(damaged, dir.path(), dir.path()).is_err());
    }
}

#[test]
fn a_hostile_diff_of_another_engine_reaches_nothing_outside() {
    if !is_root("a_hostile_diff_of_another_engine_reaches_nothing_outside") {
        return;
    }
    for (path, kind) in [
        ("up/evil", Kind::File),
        ("up/sub/evil", Kind::Directory),
        ("up/kept", Kind::Symlink("x".into())),
        ("up/sub/.wh.kept", Kind::File),
        ("up/fifo", Kind::Fifo),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let (root, outside) = (dir.path().join("root"), dir.path().join("outside"));
        write(outside.join("kept"), "kept");
        fs::create_dir(&root).unwrap();
        symlink("../outside", root.join("up")).unwrap();
        let bytes = diff(&[of_kind(path, kind)]);
        for bytes in [gzip(&bytes), bytes] {
            assert!(applied_foreign(&bytes, dir.path(), &root).is_err(), "{path}");
        }
        assert_eq!(fs::read(outside.join("kept")).unwrap(), b"kept");
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 1, "{path}");
    }
    // The diff takes the link's place: then it is a directory in the root, and nothing outside.
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    fs::create_dir(&root).unwrap();
    symlink("/etc", root.join("up")).unwrap();
    let bytes = diff(&[
        of_kind("up", Kind::Directory),
        file("up/cedana-test"),
        of_kind("null", Kind::CharDevice(1, 3)),
        of_kind("sign", Kind::CharDevice(0, 0)),
    ]);
    let applied = applied_foreign(&bytes, dir.path(), &root).unwrap();
    assert!(root.join("up/cedana-test").exists() && !Path::new("/etc/cedana-test").exists());
    assert_eq!(applied.left_out, ["null", "sign"].map(PathBuf::from));
    assert!(!root.join("null").exists() && !root.join("sign").exists());
}
