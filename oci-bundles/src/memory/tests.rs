//! Against the programs whose place this takes.

use std::fs::{self, File};
use std::ops::ControlFlow;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};

use nix::sys::stat::{Mode, SFlag, makedev, mknod};

use super::*;
use crate::archive::{Limits, Progress};
use crate::rootfs::apply::Device;

fn quiet(_: Progress) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn back(saved: &[u8], top: &Path, device: &dyn Fn(Device) -> bool) -> Result<Applied, ArchiveError> {
    let limits = Limits::default();
    let allowed = Allowed { limits, device };
    put_back(saved, Path::new("tmpfs"), top, &allowed, &mut quiet)
}

/// Names that mean something in a layer, holes, links, a device that is overlay's sign, and more parts than a header has.
fn fill(top: &Path) {
    fs::write(top.join(".wh.name"), "is just a name").expect("a file");
    fs::create_dir(top.join("dir")).expect("a directory");
    fs::set_permissions(top.join("dir"), fs::Permissions::from_mode(0o1511)).expect("a mode");
    fs::hard_link(top.join(".wh.name"), top.join("dir/second")).expect("a link");
    symlink("/etc/passwd", top.join("link")).expect("a symlink");
    let sparse = File::create(top.join("sparse")).expect("a file");
    for part in 0..60 {
        sparse
            .write_all_at(&[part; 5000], u64::from(part) << 20)
            .expect("data");
    }
    sparse.set_len(100 << 20).expect("a length");
    nix::unistd::mkfifo(&top.join("fifo"), Mode::S_IRWXU).expect("a fifo");
    if nix::unistd::geteuid().is_root() {
        let made = |name: &str, number| mknod(&top.join(name), SFlag::S_IFCHR, Mode::S_IRUSR, number);
        made("null", makedev(1, 3)).expect("a device");
        made("sign", 0).expect("a device");
    }
    fs::set_permissions(top, fs::Permissions::from_mode(0o1777)).expect("a mode");
}

fn same(one: &Path, other: &Path) {
    let names = [
        "",
        ".wh.name",
        "dir",
        "dir/second",
        "link",
        "sparse",
        "fifo",
        "null",
        "sign",
    ];
    for name in names.iter().filter(|name| one.join(name).exists()) {
        let of = |top: &Path| {
            let at = top.join(name);
            let meta = fs::symlink_metadata(&at).expect(name);
            let text = meta.is_file().then(|| fs::read(&at).expect(name));
            (meta.mode(), meta.uid(), meta.mtime(), meta.rdev(), text)
        };
        let (was, is) = (of(one), of(other));
        assert!(
            was == is,
            "{name}: {:?}, {:?}",
            (was.0, was.2, was.3),
            (is.0, is.2, is.3)
        );
    }
    let inode = |name: &str| fs::metadata(other.join(name)).expect(name).ino();
    assert_eq!(inode(".wh.name"), inode("dir/second"));
    assert_eq!(
        fs::read_link(other.join("link")).expect("a link"),
        Path::new("/etc/passwd")
    );
    let blocks = fs::metadata(other.join("sparse")).expect("a file").blocks();
    assert!(blocks * 512 < 4 << 20, "holes stay holes: {blocks} blocks");
}

/// As CRIU 4.1 and 4.2 call it.
fn gnu_tar(words: &[&str], input: Stdio) -> Vec<u8> {
    let made = Command::new("tar")
        .args(words)
        .stdin(input)
        .stderr(Stdio::piped())
        .output();
    let made = made.expect("tar");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    made.stdout
}

#[test]
fn gnu_tar_and_gzip_read_what_is_written_here_and_the_other_way() {
    let dir = tempfile::tempdir().expect("a directory");
    let of = |name: &str| {
        let top = dir.path().join(name);
        fs::create_dir(&top).expect("a directory");
        top
    };
    let (from, ours, theirs, both) = (of("from"), of("ours"), of("theirs"), of("both"));
    fill(&from);
    let packed = dir.path().join("packed");
    let made = save(&from, File::create(&packed).expect("a file"), &mut quiet).expect("saved");
    assert!(made.left_out.is_empty());
    assert!(fs::metadata(&packed).expect("there").len() < 1 << 20, "no holes");
    let to = theirs.display().to_string();
    let words = [
        "--extract",
        "--gzip",
        "--no-unquote",
        "--no-wildcards",
        "--directory",
        &to,
    ];
    drop(gnu_tar(&words, File::open(&packed).expect("a file").into()));
    same(&from, &theirs);
    drop(back(&fs::read(&packed).expect("read"), &ours, &|_| true).expect("back"));
    same(&from, &ours);

    let words = [
        "--create",
        "--gzip",
        "--no-unquote",
        "--no-wildcards",
        "--one-file-system",
        "--check-links",
        "--preserve-permissions",
        "--sparse",
        "--numeric-owner",
        "--directory",
        "/proc/self/fd/0",
        ".",
    ];
    let packed = gnu_tar(&words, File::open(&from).expect("a directory").into());
    drop(back(&packed, &both, &|_| true).expect("back"));
    same(&from, &both);

    let cut = &packed[..packed.len() - 30];
    assert!(matches!(
        back(cut, &of("cut"), &|_| true),
        Err(ArchiveError::Damaged { .. })
    ));
}
