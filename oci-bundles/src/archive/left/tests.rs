//! Archives of every kind, unpacked without their memory.

use std::fs::{self, File};
use std::ops::ControlFlow;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::thread;
use std::time::Duration;

use nix::sys::stat::Mode;

use super::super::entry::Span;
use super::super::tape::TapeError;
use super::super::writer::Writer;
use super::super::{Limits, Progress, pack, unpack_without_memory};
use super::*;

const PAGE: usize = 4096;
const MIB: usize = 1 << 20;

fn quiet(_: Progress) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// Memory that compresses, and in which no two pages are the same.
fn memory(len: usize) -> Vec<u8> {
    (0..len)
        .map(|at| ((at / PAGE * 31) ^ (at / 64)) as u8 | 1)
        .collect()
}

/// The clock of files goes by ticks of 10 ms at most.
fn tick() {
    thread::sleep(Duration::from_millis(20));
}

fn tar_of(entries: &[(&str, Kind, &[u8])]) -> Vec<u8> {
    let mut tar = Writer::new(Vec::new());
    for (name, kind, data) in entries {
        let mut entry = Entry::new((*name).into(), kind.clone(), 0o700);
        entry.size = data.len() as u64;
        tar.entry(&entry).expect("an entry");
        if !data.is_empty() {
            tar.data(data).expect("data");
        }
    }
    tar.finish().expect("a tar")
}

struct Bed {
    home: tempfile::TempDir,
    pages: Vec<u8>,
}

impl Bed {
    /// A checkpoint with its memory in two files, of which the second one has a hole.
    fn new() -> Self {
        let home = tempfile::tempdir().expect("a directory");
        let images = home.path().join("dump/checkpoint");
        fs::create_dir_all(&images).expect("made");
        let pages = memory(3 * MIB + 5 * PAGE);
        for (name, bytes) in [
            ("inventory.img", &b"inventory"[..]),
            ("pages-1.img", &pages),
            ("pages-2.img", &pages),
            ("pages-3.img", b"small"),
            ("pages-x.img", &pages),
        ] {
            fs::write(images.join(name), bytes).expect("written");
        }
        let holey = File::options()
            .write(true)
            .open(images.join("pages-2.img"))
            .expect("open");
        holey.set_len(MIB as u64).expect("cut");
        holey.set_len(pages.len() as u64).expect("grown");
        holey
            .write_all_at(&pages[2 * MIB..], 2 * MIB as u64)
            .expect("written");
        Self { home, pages }
    }

    fn holey(&self) -> Vec<u8> {
        let mut bytes = self.pages.clone();
        bytes[MIB..2 * MIB].fill(0);
        bytes
    }

    fn packed(&self, form: Form) -> PathBuf {
        let archive = self.home.path().join(format!("archive-{form}"));
        let _packed = pack(&self.home.path().join("dump"), &archive, form, &mut quiet).expect("packed");
        archive
    }

    fn unpacked(&self, archive: &Path) -> (PathBuf, Left) {
        let root = archive.with_extension("unpacked");
        let left = unpack_without_memory(archive, &root, &Limits::default(), &mut quiet).expect("unpacked");
        let list = archive.with_extension("left");
        left.write(&list).expect("written");
        assert_eq!(Left::read(&list).expect("read"), left);
        (root, left)
    }
}

#[test]
fn what_is_left_is_read_where_it_is() {
    let bed = Bed::new();
    for form in [Form::Tar, Form::Zstd] {
        let archive = bed.packed(form);
        let (root, left) = bed.unpacked(&archive);
        assert_eq!(left.bytes(), 2 * bed.pages.len() as u64);
        let names = |name: &str| root.join("checkpoint").join(name);
        for (name, is_there) in [
            ("inventory.img", true),
            ("pages-1.img", false),
            ("pages-2.img", false),
            ("pages-3.img", true),
            ("pages-x.img", true),
        ] {
            assert_eq!(names(name).exists(), is_there, "{name}");
        }
        let contents = left.open().expect("open");
        // It may get other names now, and lose them.
        let other = archive.with_extension("other");
        fs::hard_link(&archive, &other).expect("linked");
        for name in [&archive, &other] {
            fs::remove_file(name).expect("removed");
        }
        for (name, bytes) in [("pages-1.img", bed.pages.clone()), ("pages-2.img", bed.holey())] {
            let content = contents.at(&names(name)).expect(name);
            assert_eq!(content.size(), bytes.len() as u64);
            for (at, len) in [
                (0, 1),
                (MIB - 1, 2),
                (2 * MIB - 3, 5),
                (1000, 2 * MIB),
                (0, bytes.len()),
                (bytes.len(), 0),
            ] {
                let mut read = vec![1; len];
                content.read_at(&mut read, at as u64).expect("read");
                assert!(read == bytes[at..at + len], "{name}: {len} at {at}");
            }
            let past = content.read_at(&mut [0; 2], bytes.len() as u64 - 1);
            assert!(matches!(past, Err(TapeError::Damaged(_))), "{past:?}");
        }
        assert!(contents.at(&names("pages-3.img")).is_none());
        contents.make_all().expect("made");
        assert!(fs::read(names("pages-1.img")).expect("read") == bed.pages);
        assert!(fs::read(names("pages-2.img")).expect("read") == bed.holey());
    }
}

#[test]
fn a_file_is_made_with_what_is_wanted_of_it() {
    let bed = Bed::new();
    let (root, left) = bed.unpacked(&bed.packed(Form::Zstd));
    let place = root.join("checkpoint/pages-1.img");
    let contents = left.open().expect("open");
    // An earlier try has come to a part of it.
    fs::write(&place, "other").expect("written");
    let span = |at: usize, len: usize| Span {
        at: at as u64,
        len: len as u64,
    };
    let wanted = [span(PAGE, PAGE), span(MIB, MIB + 3 * PAGE)];
    contents.make(&place, &wanted).expect("made");
    let mut expected = vec![0; bed.pages.len()];
    for Span { at, len } in wanted {
        let range = at as usize..(at + len) as usize;
        expected[range.clone()].copy_from_slice(&bed.pages[range]);
    }
    assert!(fs::read(&place).expect("read") == expected);
    let blocks = fs::metadata(&place).expect("there").blocks() * 512;
    assert!(blocks < 2 * MIB as u64, "{blocks}");
    assert!(contents.make(&root.join("checkpoint/pages-3.img"), &[]).is_err());
    assert!(contents.make(Path::new("/etc/hostname"), &[]).is_err());
}

#[test]
fn what_was_changed_since_is_not_opened() {
    let bed = Bed::new();
    let archive = bed.packed(Form::Tar);
    let (_root, left) = bed.unpacked(&archive);
    let other = archive.with_extension("other");
    let _bytes = fs::copy(&archive, &other).expect("copied");
    fs::rename(&other, &archive).expect("renamed");
    let error = left.open().expect_err("another file");
    assert!(error.to_string().contains("it was changed"), "{error}");
    fs::remove_file(&archive).expect("removed");
    nix::unistd::mkfifo(&archive, Mode::S_IRWXU).expect("a fifo");
    assert!(left.open().is_err(), "and nobody waits for it");
    fs::remove_file(&archive).expect("removed");
    assert!(left.open().is_err());
}

#[test]
fn what_was_changed_and_got_its_time_back_is_not_opened() {
    let bed = Bed::new();
    let archive = bed.packed(Form::Tar);
    let (_root, left) = bed.unpacked(&archive);
    let file = File::options().write(true).open(&archive).expect("open");
    let before = file.metadata().expect("there").modified().expect("a time");
    tick();
    file.write_all_at(&[0x55; 64], MIB as u64).expect("written");
    file.set_modified(before).expect("set");
    let error = left.open().expect_err("changed");
    assert!(error.to_string().contains("it was changed"), "{error}");
}

/// In a tar nothing else tells; a frame of another archive has a good checksum.
#[test]
fn what_is_changed_while_it_is_open_is_not_read() {
    let bed = Bed::new();
    for form in [Form::Tar, Form::Zstd] {
        let archive = bed.packed(form);
        let (root, left) = bed.unpacked(&archive);
        let contents = left.open().expect("open");
        let content = contents.at(&root.join("checkpoint/pages-1.img")).expect("left");
        let mut page = vec![0; PAGE];
        content.read_at(&mut page, 0).expect("read");
        let same = fs::read(&archive).expect("read");
        let file = File::options().write(true).open(&archive).expect("open");
        tick();
        file.write_all_at(&same[..64], 0).expect("written");
        for at in [0, 2 * MIB] {
            let read = content.read_at(&mut page, at as u64);
            assert_eq!(read, Err(TapeError::Changed), "{form}");
        }
        let error = contents.make_all().expect_err("changed").to_string();
        assert!(error.contains("was changed while"), "{form}: {error}");
    }
}

#[test]
fn damage_is_seen_where_it_is_read() {
    let bed = Bed::new();
    let archive = bed.packed(Form::Zstd);
    let (root, left) = bed.unpacked(&archive);
    let contents = left.open().expect("open");
    let content = contents.at(&root.join("checkpoint/pages-1.img")).expect("left");
    let file = File::options().write(true).open(&archive).expect("open");
    let metadata = file.metadata().expect("there");
    let middle = metadata.len() / 3;
    file.write_all_at(&[0x55; 64], middle).expect("written");
    // What a disk loses nobody has written.
    file.set_modified(metadata.modified().expect("a time"))
        .expect("set");
    let mut page = vec![0; PAGE];
    let good = |page: &mut Vec<u8>, at: usize| content.read_at(page, at as u64).is_ok();
    let pages: Vec<usize> = (0..bed.pages.len() / PAGE).map(|page| page * PAGE).collect();
    let bad = pages.iter().filter(|at| !good(&mut page, **at)).count();
    assert!(bad > 0 && bad < pages.len(), "{bad}");
    let error = contents.make_all().expect_err("damaged").to_string();
    assert!(error.contains("damaged"), "{error}");
    file.set_len(middle).expect("cut");
    assert!(left.open().is_err());
}

#[test]
fn what_is_there_twice_is_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let large = memory(2 * MIB);
    for size in [2 * MIB, 7] {
        let tar = tar_of(&[
            ("pages-1.img", Kind::File, &large),
            ("pages-1.img", Kind::File, &large[..size]),
        ]);
        let archive = dir.path().join(format!("{size}.tar"));
        fs::write(&archive, tar).expect("written");
        let root = dir.path().join("root");
        let left = unpack_without_memory(&archive, &root, &Limits::default(), &mut quiet);
        assert!(left.is_err(), "{size}");
        assert!(!root.exists());
    }
}

/// So comes a directory whose equal files somebody has linked to one another.
#[test]
fn memory_with_two_names_is_unpacked() {
    let dir = tempfile::tempdir().expect("a directory");
    let large = memory(2 * MIB);
    let link = |to: &str| Kind::HardLink(to.into());
    for (number, name) in ["checkpoint/pages-2.img", "checkpoint/other"]
        .into_iter()
        .enumerate()
    {
        let tar = tar_of(&[
            ("checkpoint", Kind::Directory, &[]),
            ("checkpoint/pages-1.img", Kind::File, &large),
            (name, link("checkpoint/pages-1.img"), &[]),
            ("checkpoint/pages-3.img", Kind::File, &large),
            ("checkpoint/last", link(name), &[]),
        ]);
        let archive = dir.path().join(format!("{number}.tar"));
        fs::write(&archive, tar).expect("written");
        let root = dir.path().join(format!("{number}"));
        let left = unpack_without_memory(&archive, &root, &Limits::default(), &mut quiet).expect("unpacked");
        assert!(left.is_empty());
        for name in ["checkpoint/pages-1.img", name, "checkpoint/last"] {
            assert!(fs::read(root.join(name)).expect("read") == large, "{name}");
        }
        let links = fs::metadata(root.join(name)).expect("there").nlink();
        assert_eq!(links, 3, "{name}");
        assert_eq!(
            fs::metadata(root.join("checkpoint/pages-3.img"))
                .expect("there")
                .nlink(),
            1
        );
    }
    let names = fs::read_dir(dir.path()).expect("list").count();
    assert_eq!(names, 4, "nothing else is left");
}

#[test]
fn what_cannot_be_read_anywhere_or_gives_too_much_is_unpacked() {
    let bed = Bed::new();
    let archive = bed.packed(Form::Gzip);
    let (root, left) = bed.unpacked(&archive);
    assert!(left.is_empty());
    assert!(fs::read(root.join("checkpoint/pages-1.img")).expect("read") == bed.pages);
    let archive = bed.packed(Form::Zstd);
    let limits = Limits {
        ratio_max: 1,
        ratio_from: 4 << 20,
        ..Limits::default()
    };
    let root = bed.home.path().join("again");
    let refused = unpack_without_memory(&archive, &root, &limits, &mut quiet);
    assert!(
        matches!(refused, Err(ArchiveError::TooLarge { .. })),
        "{refused:?}"
    );
}

/// We write no such entries; `tar --sparse` does.
#[test]
fn holes_of_a_sparse_file_are_zero() {
    let dir = tempfile::tempdir().expect("a directory");
    let data = memory(3 * PAGE);
    let mut entry = Entry::new("checkpoint/pages-1.img".into(), Kind::File, 0o600);
    entry.size = 2 * MIB as u64;
    let span = |at: usize, len: usize| Span {
        at: at as u64,
        len: len as u64,
    };
    entry.parts = Some(vec![span(PAGE, PAGE), span(MIB, 2 * PAGE)]);
    let mut tar = Writer::new(Vec::new());
    tar.entry(&entry).expect("an entry");
    tar.data(&data).expect("data");
    let archive = dir.path().join("sparse.tar");
    fs::write(&archive, tar.finish().expect("a tar")).expect("written");
    let root = dir.path().join("root");
    let left = unpack_without_memory(&archive, &root, &Limits::default(), &mut quiet).expect("unpacked");
    let contents = left.open().expect("open");
    let content = contents.at(&root.join("checkpoint/pages-1.img")).expect("left");
    let mut expected = vec![0; 2 * MIB];
    expected[PAGE..2 * PAGE].copy_from_slice(&data[..PAGE]);
    expected[MIB..MIB + 2 * PAGE].copy_from_slice(&data[PAGE..]);
    for (at, len) in [
        (0, 2 * MIB),
        (PAGE - 1, PAGE + 2),
        (MIB + PAGE, 2 * PAGE),
        (2 * MIB - 1, 1),
    ] {
        let mut read = vec![1; len];
        content.read_at(&mut read, at as u64).expect("read");
        assert!(read == expected[at..at + len], "{len} at {at}");
    }
}
