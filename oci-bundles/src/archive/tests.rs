//! Archives there and back, and through the ordinary tools.

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::process::Command;

use super::*;

pub(super) fn quiet(_: Progress) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// Bytes that hardly compress, always the same.
pub(super) fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// A directory like a checkpoint, with what is rare in one too.
fn checkpoint(at: &Path) {
    fs::create_dir_all(at.join("checkpoint/empty")).unwrap();
    fs::write(at.join("config.dump"), "{}").unwrap();
    fs::write(at.join("checkpoint/core-1.img"), noise(700)).unwrap();
    fs::write(at.join("checkpoint/nothing.img"), "").unwrap();
    checkpoint_pages(at);
    fs::hard_link(at.join("config.dump"), at.join("same")).unwrap();
    symlink("../config.dump", at.join("checkpoint/parent")).unwrap();
    let long = "n".repeat(200);
    fs::write(at.join(&long), "a long name").unwrap();
    symlink(format!("../{long}"), at.join("checkpoint/to-long")).unwrap();
    fs::set_permissions(at.join("config.dump"), fs::Permissions::from_mode(0o640)).unwrap();
    fs::set_permissions(at.join("checkpoint/empty"), fs::Permissions::from_mode(0o750)).unwrap();
}

/// Memory longer than a piece, not a multiple of a block, zeros in the middle and at the end.
fn checkpoint_pages(at: &Path) {
    let mut pages = noise(3 << 20);
    pages[1 << 20..2 << 20].fill(0);
    pages.extend(vec![0; (1 << 20) + 5]);
    fs::write(at.join("checkpoint/pages-1.img"), pages).unwrap();
}

/// What there is below a directory: names, modes, contents.
fn listing(at: &Path) -> Vec<(PathBuf, u32, Vec<u8>)> {
    let found = tree::list(at).unwrap();
    let mut all: Vec<_> = found
        .into_iter()
        .map(|found| {
            let content = match &found.entry.kind {
                entry::Kind::File => fs::read(&found.path).unwrap(),
                entry::Kind::Symlink(target) => target.as_os_str().as_encoded_bytes().to_vec(),
                _ => Vec::new(),
            };
            (found.entry.path, found.entry.mode, content)
        })
        .collect();
    all.sort();
    all
}

fn assert_same(a: &Path, b: &Path, what: &str) {
    for (a, b) in listing(a).iter().zip(listing(b)) {
        assert!(*a == b, "{what}: {} and {}", a.0.display(), b.0.display());
    }
    assert_eq!(listing(a).len(), listing(b).len(), "{what}");
}

#[test]
fn every_form_comes_back_as_it_went() {
    let dir = tempfile::tempdir().unwrap();
    let from = dir.path().join("from");
    checkpoint(&from);
    for form in Form::ALL.into_iter().filter(|form| *form != Form::Directory) {
        let archive = dir.path().join(format!("a{}", form.suffix()));
        let packed = pack(&from, &archive, form, &mut quiet).unwrap();
        assert_eq!(packed.bytes, fs::metadata(&archive).unwrap().len());
        assert_eq!(detect(&archive).unwrap(), form);
        let index = frames::find_index(&File::open(&archive).unwrap()).unwrap();
        assert_eq!(index.is_some(), form == Form::Zstd);
        let to = dir.path().join(format!("to-{form}"));
        let unpacked = unpack(&archive, &to, &Limits::default(), &mut quiet).unwrap();
        assert_eq!(unpacked.parts, packed.parts, "{form}");
        assert_eq!(unpacked.bytes, packed.bytes_raw);
        assert_same(&from, &to, form.word());
        let inode = |name: &str| fs::metadata(to.join(name)).unwrap().ino();
        assert_eq!(inode("config.dump"), inode("same"));
        let pages = fs::metadata(to.join("checkpoint/pages-1.img")).unwrap();
        assert!(pages.blocks() * 512 < pages.len(), "{form}: no hole");
        assert_eq!(fs::metadata(&to).unwrap().mode() & 0o7777, 0o700);
        assert_eq!(
            verify(&archive, &Limits::default(), &mut quiet).unwrap(),
            unpacked
        );
    }
    assert_eq!(hidden(dir.path()), 0, "something is left beside the archives");
}

/// Files in a directory whose names begin with a dot, as partial ones do.
pub(super) fn hidden(dir: &Path) -> usize {
    let names = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name());
    names
        .filter(|name| name.as_encoded_bytes().starts_with(b"."))
        .count()
}

#[expect(clippy::print_stderr, reason = "a test that does not run says so")]
pub(super) fn skip(name: &str, lacking: &str) {
    eprintln!("skipped {name}: no {lacking}");
}

#[test]
fn the_ordinary_tools_read_it_and_we_read_theirs() {
    let dir = tempfile::tempdir().unwrap();
    let from = dir.path().join("from");
    checkpoint(&from);
    for (form, packer, unpacker) in [
        (Form::Tar, "cat", "cat"),
        (Form::Gzip, "gzip", "gzip -d"),
        (Form::Zstd, "zstd -q", "zstd -q -d"),
        (Form::Zstd, "zstd -q -19 --long=27 -T1", "zstd -q -d"),
        (Form::Lz4, "lz4 -q", "lz4 -q -d"),
        (Form::Lz4, "lz4 -q -BD -B4 --no-frame-crc", "lz4 -q -d"),
    ] {
        let tool = packer.split(' ').next().unwrap();
        let here = Command::new("sh")
            .args(["-c", &format!("command -v {tool} tar >/dev/null")])
            .status();
        if !here.unwrap().success() {
            skip("the_ordinary_tools_read_it_and_we_read_theirs", tool);
            continue;
        }
        let run = |script: &str| {
            let out = Command::new("sh")
                .args(["-ec", script])
                .current_dir(dir.path())
                .output()
                .unwrap();
            assert!(
                out.status.success(),
                "{script}: {}",
                String::from_utf8_lossy(&out.stderr)
            );
        };
        run("rm -rf ours theirs theirs.out ours.out");
        drop(pack(&from, &dir.path().join("ours"), form, &mut quiet).unwrap());
        run(&format!(
            "mkdir ours.out; {unpacker} < ours | tar -x -p -C ours.out"
        ));
        assert_same(&from, &dir.path().join("ours.out"), unpacker);
        run(&format!("tar -c --sparse -C from . | {packer} > theirs"));
        let out = dir.path().join("theirs.out");
        let unpacked = unpack(&dir.path().join("theirs"), &out, &Limits::default(), &mut quiet).unwrap();
        assert_eq!(unpacked.form, form);
        assert_same(&from, &out, packer);
    }
}

#[test]
fn one_file_is_read_without_the_others() {
    let dir = tempfile::tempdir().unwrap();
    let from = dir.path().join("from");
    checkpoint(&from);
    for form in Form::ALL.into_iter().filter(|form| *form != Form::Directory) {
        let archive = dir.path().join(form.word());
        drop(pack(&from, &archive, form, &mut quiet).unwrap());
        let read = |name: &str, bytes_max, within| read_file(&archive, Path::new(name), bytes_max, within);
        let small = 1 << 20;
        assert_eq!(read("config.dump", 2, small).unwrap().unwrap(), b"{}", "{form}");
        assert_eq!(
            read("checkpoint/core-1.img", 700, small).unwrap().unwrap(),
            noise(700)
        );
        assert!(matches!(
            read("config.dump", 1, small),
            Err(ArchiveError::TooLarge { .. })
        ));
        assert_eq!(read("nothing", 9, 8 << 20).unwrap(), None);
        // Past the small ones nothing is looked for; nor is this found, as it is at the end.
        assert_eq!(read("checkpoint/pages-1.img", 8 << 20, 1).unwrap(), None);
        assert!(read("checkpoint/pages-1.img", 8 << 20, small).unwrap().is_some());
    }
}

#[test]
fn giving_up_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (from, archive, to) = (
        dir.path().join("from"),
        dir.path().join("a"),
        dir.path().join("to"),
    );
    checkpoint(&from);
    drop(pack(&from, &archive, Form::Zstd, &mut quiet).unwrap());
    for step in [Step::Pack, Step::Verify] {
        let mut at_half = |progress: Progress| match progress {
            Progress { done, total, .. } if progress.step == step && done > total / 2 => {
                ControlFlow::Break(())
            }
            _ => ControlFlow::Continue(()),
        };
        let result = pack(&from, &dir.path().join("b"), Form::Zstd, &mut at_half);
        assert!(matches!(result, Err(ArchiveError::Cancelled)), "{step:?}");
    }
    let mut at_half = |progress: Progress| match progress.done > progress.total / 2 {
        true => ControlFlow::Break(()),
        false => ControlFlow::Continue(()),
    };
    let result = unpack(&archive, &to, &Limits::default(), &mut at_half);
    assert!(matches!(result, Err(ArchiveError::Cancelled)));
    let left = fs::read_dir(dir.path()).unwrap().count();
    assert_eq!(left, 2, "only what was packed, and its archive");
}

#[test]
fn progress_goes_up_to_its_total() {
    let dir = tempfile::tempdir().unwrap();
    let from = dir.path().join("from");
    checkpoint(&from);
    for form in [Form::Tar, Form::Gzip, Form::Zstd] {
        let mut seen: Vec<Progress> = Vec::new();
        let mut watch = |progress: Progress| {
            seen.push(progress);
            ControlFlow::Continue(())
        };
        let archive = dir.path().join(form.word());
        drop(pack(&from, &archive, form, &mut watch).unwrap());
        drop(unpack(&archive, &dir.path().join("to"), &Limits::default(), &mut watch).unwrap());
        fs::remove_dir_all(dir.path().join("to")).unwrap();
        for step in [Step::Pack, Step::Verify, Step::Unpack] {
            let of_step: Vec<_> = seen.iter().filter(|progress| progress.step == step).collect();
            let rises = of_step.windows(2).all(|two| two[0].done <= two[1].done);
            let last = of_step.last().unwrap();
            // What ends an archive is read after the last file.
            let is_near = last.total - last.done <= 4096;
            assert!(rises && is_near && of_step.len() > 10, "{form} {step:?} {last:?}");
        }
    }
}

#[test]
fn what_cannot_be_packed_is_said_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (from, archive) = (dir.path().join("from"), dir.path().join("a.tar"));
    let failure = |from: &Path, form| {
        let error = pack(from, &archive, form, &mut quiet).unwrap_err();
        assert!(!archive.exists());
        assert_eq!(hidden(dir.path()), 0);
        error.to_string()
    };
    assert!(failure(&from, Form::Tar).contains("from: No such file"));
    fs::create_dir(&from).unwrap();
    assert!(failure(&from, Form::Directory).contains("a directory is no archive"));
    nix::unistd::mkfifo(&from.join("pages-1.img"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert!(failure(&from, Form::Tar).contains("pages-1.img: a fifo"));
    fs::remove_file(from.join("pages-1.img")).unwrap();
    fs::write(&archive, "precious").unwrap();
    let error = pack(&from, &archive, Form::Tar, &mut quiet).unwrap_err();
    assert!(matches!(error, ArchiveError::Exists { .. }));
    assert_eq!(fs::read(&archive).unwrap(), b"precious");
}

#[test]
fn a_file_that_changes_while_it_is_packed_fails_it() {
    let dir = tempfile::tempdir().unwrap();
    let (from, archive) = (dir.path().join("from"), dir.path().join("a"));
    checkpoint(&from);
    for len in [1, 10 << 20] {
        let mut change = |progress: Progress| {
            if progress.step == Step::Pack && progress.done > 1 << 20 {
                let file = File::options()
                    .write(true)
                    .open(from.join("checkpoint/pages-1.img"));
                file.unwrap().set_len(len).unwrap();
            }
            ControlFlow::Continue(())
        };
        let error = pack(&from, &archive, Form::Zstd, &mut change).unwrap_err();
        assert!(error.to_string().contains("it changed"), "{len}: {error}");
        assert!(!archive.exists());
        checkpoint_pages(&from);
    }
}

#[test]
fn a_full_disk_is_named_and_left_as_it_was() {
    let name = "a_full_disk_is_named_and_left_as_it_was";
    if !nix::unistd::geteuid().is_root() {
        skip(name, "root");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (from, archive) = (dir.path().join("from"), dir.path().join("a"));
    checkpoint(&from);
    drop(pack(&from, &archive, Form::Zstd, &mut quiet).unwrap());
    let small = dir.path().join("small");
    fs::create_dir(&small).unwrap();
    on_small_disk(&small, || {
        for form in [Form::Tar, Form::Gzip, Form::Lz4, Form::Zlib, Form::Zstd] {
            let error = pack(&from, &small.join("b"), form, &mut quiet).unwrap_err();
            assert!(error.is_full(), "{form}: {error}");
            assert!(error.to_string().contains("small/b: No space left"), "{error}");
            assert_eq!(fs::read_dir(&small).unwrap().count(), 0, "{form}");
        }
        let error = unpack(&archive, &small.join("to"), &Limits::default(), &mut quiet).unwrap_err();
        assert!(
            error.is_full() && error.to_string().contains("small/to/"),
            "{error}"
        );
        assert_eq!(fs::read_dir(&small).unwrap().count(), 0);
    });
}

/// Runs a test with a disk of 1 MiB at a directory, which only it sees.
fn on_small_disk(at: &Path, test: impl FnOnce() + Send) {
    use nix::mount::{MsFlags, mount};
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
            let none: Option<&str> = None;
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
            mount(
                Some("small"),
                at,
                Some("tmpfs"),
                MsFlags::empty(),
                Some("size=1m"),
            )
            .unwrap();
            test();
        });
        thread.join().unwrap();
    });
}

#[test]
fn what_is_read_back_must_be_what_was_written() {
    let dir = tempfile::tempdir().unwrap();
    let (from, archive) = (dir.path().join("from"), dir.path().join("a"));
    checkpoint(&from);
    let parts = pack(&from, &archive, Form::Tar, &mut quiet).unwrap().parts;
    let read_back = |parts: &[Part]| unpack::read_back(&archive, Form::Tar, parts, &mut quiet);
    assert!(read_back(&parts).is_ok());
    assert!(read_back(&parts[1..]).is_err());
    // One byte of the memory, which a tar has no checksum of.
    let file = File::options().write(true).open(&archive).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"!", packed_len(&archive) - (3 << 20)).unwrap();
    let error = read_back(&parts).unwrap_err().to_string();
    assert!(
        error.ends_with("not what was written: checkpoint/pages-1.img"),
        "{error}"
    );
}

fn packed_len(archive: &Path) -> u64 {
    fs::metadata(archive).unwrap().len()
}
