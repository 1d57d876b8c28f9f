//! Archives that somebody made to do harm, or that something broke. Whatever they are, unpacking one says what is
//! wrong with it, and afterwards nothing is there that was not before.

use std::fs;

use tar::{EntryType, Header};

use super::tests::{hidden, noise, quiet};
use super::*;

/// An entry as it stands in a tar, with a right checksum.
fn raw(name: &str, kind: EntryType, link: &str, size: u64, data: &[u8]) -> Vec<u8> {
    let mut header = Header::new_ustar();
    header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
    header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
    header.set_entry_type(kind);
    header.set_mode(0o6777);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(size);
    header.set_cksum();
    let mut bytes = header.as_bytes().to_vec();
    bytes.extend(data);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

fn file(name: &str, data: &[u8]) -> Vec<u8> {
    raw(name, EntryType::Regular, "", data.len() as u64, data)
}

fn device_node(kind: EntryType) -> Vec<u8> {
    let mut bytes = raw("d", kind, "", 0, b"");
    let header = Header::from_byte_slice(&bytes[..512]);
    let mut header = header.clone();
    header.set_device_major(1).unwrap();
    header.set_device_minor(3).unwrap();
    header.set_cksum();
    bytes[..512].copy_from_slice(header.as_bytes());
    bytes
}

fn link(name: &str, kind: EntryType, target: &str) -> Vec<u8> {
    raw(name, kind, target, 0, b"")
}

fn extended(records: &[&str]) -> Vec<u8> {
    let mut data = Vec::new();
    for record in records {
        // All are shorter than 97 bytes, so the length has two digits.
        data.extend(format!("{:02} {record}\n", record.len() + 4).into_bytes());
    }
    raw("x", EntryType::XHeader, "", data.len() as u64, &data)
}

fn with_end(entries: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = entries.concat();
    bytes.resize(bytes.len() + 1024, 0);
    bytes
}

/// Unpacks bytes in a directory of its own beside something precious; checks that nothing is left on failure and
/// nothing else changed.
fn try_unpack(bytes: &[u8], limits: &Limits) -> Result<Unpacked, ArchiveError> {
    let dir = tempfile::tempdir().unwrap();
    let (archive, outside) = (dir.path().join("archive"), dir.path().join("outside"));
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("precious"), "as it was").unwrap();
    fs::write(&archive, bytes).unwrap();
    let dest = dir.path().join("dest");
    let result = unpack(&archive, &dest, limits, &mut quiet);
    assert_eq!(dest.exists(), result.is_ok());
    assert_eq!(hidden(dir.path()), 0);
    assert_eq!(
        fs::read_dir(dir.path()).unwrap().count(),
        2 + usize::from(result.is_ok())
    );
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
    assert_eq!(fs::read(outside.join("precious")).unwrap(), b"as it was");
    result
}

fn refusal(entries: &[Vec<u8>]) -> String {
    match try_unpack(&with_end(entries), &Limits::default()) {
        Ok(_) => "taken".into(),
        Err(ArchiveError::Refused { why, .. }) => why.into(),
        Err(ArchiveError::Damaged { what, .. }) => what,
        Err(other) => other.to_string(),
    }
}

#[test]
fn what_leads_out_is_refused() {
    use EntryType::{Link, Symlink};
    let inside = || file("a", b"x");
    for (entries, why) in [
        (vec![file("/etc/x", b"")], "its name is absolute"),
        (vec![file("../x", b"")], "its name goes up"),
        (vec![file("a/../../x", b"")], "its name goes up"),
        (vec![extended(&["path=../x"]), file("a", b"")], "its name goes up"),
        (
            vec![raw("l", EntryType::GNULongName, "", 4, b"../x"), inside()],
            "its name goes up",
        ),
        (vec![link("l", Symlink, "/etc")], "a link that could lead out"),
        (
            vec![link("l", Symlink, "../outside")],
            "a link that could lead out",
        ),
        (
            vec![link("d/l", Symlink, "../../outside")],
            "a link that could lead out",
        ),
        (
            vec![link("d/l", Symlink, "../x/../..")],
            "a link that could lead out",
        ),
        (
            vec![link("d", Symlink, "e"), file("d/x", b"")],
            "it is there twice",
        ),
        (
            vec![file("d/x", b""), link("d", Symlink, "e")],
            "it is there twice",
        ),
        (vec![link("l", Link, "../outside/precious")], "its name goes up"),
        (vec![link("l", Link, "/etc/passwd")], "its name is absolute"),
        (vec![link("l", Link, "nothing")], "a link to no file before it"),
        (
            vec![link("s", Symlink, "a"), link("l", Link, "s")],
            "a link to no file before it",
        ),
        (vec![link("l", Symlink, "")], "a link to nothing"),
    ] {
        assert_eq!(refusal(&entries), why);
    }
    assert_eq!(
        refusal(&[inside(), link("d/l", Symlink, "../a"), link("h", Link, "a")]),
        "taken"
    );
}

#[test]
fn what_no_checkpoint_has_is_refused() {
    let device = "a device or fifo, which no checkpoint has";
    for (entry, why) in [
        (device_node(EntryType::Char), device),
        (device_node(EntryType::Block), device),
        (link("d", EntryType::Block, ""), "its device number is not one"),
        (link("d", EntryType::Fifo, ""), device),
        (link("d", EntryType::new(b'Z'), ""), "its type is not known"),
        (link("d", EntryType::GNUSparse, ""), "its map of holes is wrong"),
        (
            raw("d", EntryType::Directory, "", 512, &[1; 512]),
            "it has data, and is no file",
        ),
        (
            raw("l", EntryType::Symlink, "a", 512, &[1; 512]),
            "it has data, and is no file",
        ),
        (file("", b"x"), "it has no name"),
        (file(".", b"x"), "it has no name"),
    ] {
        assert_eq!(refusal(&[entry]), why);
    }
    assert_eq!(refusal(&[file("a", b"1"), file("a", b"2")]), "it is there twice");
    assert_eq!(
        refusal(&[file("a", b"1"), file("./a", b"2")]),
        "it is there twice"
    );
    assert_eq!(
        refusal(&[file("a", b"1"), file("a/b", b"2")]),
        "it goes through what is no directory"
    );
    let long = "n".repeat(256);
    assert_eq!(
        refusal(&[
            raw("l", EntryType::GNULongName, "", 256, long.as_bytes()),
            file("a", b"")
        ]),
        "its name is too long"
    );
}

#[test]
fn set_id_bits_are_dropped() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let (archive, dest) = (dir.path().join("a"), dir.path().join("d"));
    fs::write(
        &archive,
        with_end(&[file("d/a", b"x"), raw("d", EntryType::Directory, "", 0, b"")]),
    )
    .unwrap();
    drop(unpack(&archive, &dest, &Limits::default(), &mut quiet).unwrap());
    for name in ["d", "d/a"] {
        let mode = fs::metadata(dest.join(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o777, "{name}");
    }
}

#[test]
fn headers_that_lie_are_damage() {
    let damaged = |entries: &[Vec<u8>], what: &str| {
        let said = refusal(entries);
        assert!(said.contains(what), "{what}: {said}");
    };
    let mut wrong_sum = file("a", b"");
    wrong_sum[0] ^= 1;
    damaged(&[wrong_sum], "wrong checksum");
    damaged(&[raw("a", EntryType::Regular, "", u64::MAX, b"")], "more than");
    damaged(&[raw("a", EntryType::Regular, "", 1 << 40, b"")], "it is cut");
    damaged(&[extended(&["size=99999"]), file("a", b"")], "it is cut");
    damaged(
        &[extended(&["size=18446744073709551615"]), file("a", b"")],
        "more than",
    );
    damaged(
        &[raw("x", EntryType::XHeader, "", 2 << 20, b"")],
        "bytes of an extended header",
    );
    damaged(
        &[raw("x", EntryType::GNULongName, "", 2 << 20, b"")],
        "bytes of an extended header",
    );
    damaged(
        &[raw("x", EntryType::XHeader, "", 9, b"not a one")],
        "a record that is none",
    );
    damaged(
        &[vec![extended(&["path=a"]); 10].concat()],
        "too many extended headers",
    );
    damaged(&[extended(&["path=a"])], "ends with an extended header");
    damaged(
        &[
            raw("g", EntryType::XGlobalHeader, "", 10, b"10 path=b\n"),
            file("a", b""),
        ],
        "a global header",
    );
    let mut garbage = with_end(&[file("a", b"x")]);
    garbage.extend(file("b", b"y"));
    let error = try_unpack(&garbage, &Limits::default()).unwrap_err();
    assert!(error.to_string().contains("something follows its end"), "{error}");
    let mut zeros = with_end(&[file("a", b"x")]);
    zeros.resize(2 << 20, 0);
    assert!(try_unpack(&zeros, &Limits::default()).is_err());
}

#[test]
fn maps_of_holes_that_lie_are_refused() {
    let sparse = |size: &str, map: &str, data: &[u8]| {
        let mut bytes = map.as_bytes().to_vec();
        bytes.resize(bytes.len().next_multiple_of(512), 0);
        bytes.extend(data);
        let size = format!("GNU.sparse.realsize={size}");
        let records = [
            "GNU.sparse.major=1",
            "GNU.sparse.minor=0",
            "GNU.sparse.name=s",
            &size,
        ];
        [extended(&records), file("stand-in", &bytes)]
    };
    let wrong = "its map of holes is wrong";
    for (size, map, data, said) in [
        ("10", "1\n4\n2\n", &b"xy"[..], "taken"),
        ("10", "2\n4\n2\n10\n0\n", b"xy", "taken"),
        ("10", "0\n", b"", "taken"),
        ("10", "1\n4\n2\n", b"x", wrong),
        ("10", "1\n4\n2\n", b"xyz", wrong),
        ("5", "1\n4\n2\n", b"xy", wrong),
        ("10", "2\n4\n1\n3\n1\n", b"xy", wrong),
        ("10", "2\n4\n1\n", b"x", wrong),
        ("10", "1\n-4\n2\n", b"xy", wrong),
        ("10", "\n4\n2\n", b"xy", wrong),
        ("10", "99999999999\n", b"", wrong),
        ("10", "1\n18446744073709551615\n2\n", b"xy", wrong),
        ("10", "1\n18446744073709551616\n2\n", b"xy", wrong),
    ] {
        assert_eq!(refusal(&sparse(size, map, data)), said, "{size} {map:?}");
    }
    let huge = refusal(&sparse("9999999999999999", "0\n", b""));
    assert!(huge.contains("more than"), "{huge}");
    let old = refusal(&[extended(&["GNU.sparse.map=0,1"]), file("s", b"x")]);
    assert!(old.contains("old formats"), "{old}");
}

#[test]
fn there_is_a_limit_to_everything() {
    let dir = tempfile::tempdir().unwrap();
    let (from, archive) = (dir.path().join("from"), dir.path().join("a"));
    fs::create_dir(&from).unwrap();
    fs::write(from.join("bomb"), vec![b'x'; 1 << 20]).unwrap();
    fs::write(from.join("zeros"), vec![0; 1 << 20]).unwrap();
    drop(pack(&from, &archive, Form::Zstd, &mut quiet).unwrap());
    let bytes = fs::read(&archive).unwrap();
    let limits = |entries_max, bytes_max, ratio_max| Limits {
        entries_max,
        bytes_max,
        ratio_max,
        ratio_from: 1 << 16,
    };
    let most = u64::MAX;
    for (limits, what) in [
        (limits(1, most, most), Some("entries")),
        (limits(2, (2 << 20) - 1, most), Some("bytes")),
        (limits(2, 2 << 20, 100), Some("times its own size")),
        (limits(2, 2 << 20, most), None),
    ] {
        match (try_unpack(&bytes, &limits), what) {
            (Err(ArchiveError::TooLarge { what: said, .. }), Some(what)) => assert_eq!(said, what),
            (Ok(_), None) => {}
            (other, what) => panic!("{other:?} for {what:?}"),
        }
    }
}

/// A small archive of each form, with more than one frame where there are frames.
fn small_archives() -> Vec<(Form, Vec<u8>, Vec<Part>)> {
    let dir = tempfile::tempdir().unwrap();
    let from = dir.path().join("from");
    fs::create_dir(&from).unwrap();
    let mut data = noise(800);
    data.resize(300 << 10, 7);
    fs::write(from.join("a"), "some text, some text").unwrap();
    fs::write(from.join("b"), data).unwrap();
    let forms = Form::ALL.into_iter().filter(|form| *form != Form::Directory);
    forms
        .map(|form| {
            let path = dir.path().join(form.word());
            let packed = pack(&from, &path, form, &mut quiet).unwrap();
            (form, fs::read(path).unwrap(), packed.parts)
        })
        .collect()
}

#[test]
fn an_archive_that_is_cut_is_never_taken() {
    for (form, bytes, parts) in small_archives() {
        let mut lengths: Vec<usize> = (0..bytes.len()).step_by(bytes.len() / 30 + 1).collect();
        lengths.extend(bytes.len().saturating_sub(40)..bytes.len());
        for len in lengths {
            if let Ok(unpacked) = try_unpack(&bytes[..len], &Limits::default()) {
                // All that can be missing is what says nothing: the second block of zeros, and Zstandard's index.
                assert!(
                    matches!(form, Form::Tar | Form::Zstd),
                    "{form}, {len} of {}",
                    bytes.len()
                );
                assert_eq!(unpacked.parts, parts, "{form}, {len} of {}", bytes.len());
            }
        }
    }
}

#[test]
fn a_changed_byte_is_noticed_or_changes_nothing() {
    for (form, bytes, parts) in small_archives() {
        // A tar has no checksum of its data: there a digest from elsewhere must tell.
        if form == Form::Tar {
            continue;
        }
        let mut places: Vec<usize> = (0..bytes.len()).step_by(bytes.len() / 80 + 1).collect();
        places.extend(0..20);
        places.extend(bytes.len() - 40..bytes.len());
        for at in places {
            let mut changed = bytes.clone();
            changed[at] ^= 0x10;
            if let Ok(unpacked) = try_unpack(&changed, &Limits::default()) {
                assert_eq!(unpacked.parts, parts, "{form}: byte {at}");
            }
        }
    }
}

#[test]
fn what_follows_an_archive_is_noticed() {
    for (form, bytes, _) in small_archives() {
        for tail in [&b"x"[..], b"more of something, longer than any header", &bytes] {
            let longer = [&bytes, tail].concat();
            assert!(try_unpack(&longer, &Limits::default()).is_err(), "{form}");
        }
    }
}

#[test]
fn whatever_the_bytes_no_reader_falls_over() {
    let seeds = [
        with_end(&[
            extended(&["path=a/b", "mtime=1.5", "size=3", "SCHILY.xattr.user.a=b"]),
            file("short", b"abc"),
            link("l", EntryType::Symlink, "a/b"),
            link("h", EntryType::Link, "a/b"),
        ]),
        with_end(&[
            extended(&[
                "GNU.sparse.major=1",
                "GNU.sparse.minor=0",
                "GNU.sparse.realsize=99",
            ]),
            file("s", &[b"1\n4\n2\n".as_slice(), &[0; 506], b"xy"].concat()),
        ]),
    ];
    let choices = noise(1 << 18);
    let mut choices = choices.chunks_exact(4);
    let mut taken = 0;
    for round in 0..4000 {
        let mut bytes = seeds[round % seeds.len()].clone();
        for _ in 0..=round % 3 {
            let choice = choices.next().unwrap_or(&[1, 2, 3, 4]);
            let at = usize::from(u16::from_le_bytes([choice[0], choice[1]])) % bytes.len();
            bytes[at] = choice[2];
        }
        // The checksum of each header is mended, or nothing behind it would be reached.
        for block in bytes
            .chunks_exact_mut(512)
            .filter(|block| block[257..262] == *b"ustar")
        {
            let mut header = Header::new_old();
            header.as_mut_bytes().copy_from_slice(block);
            header.set_cksum();
            block.copy_from_slice(header.as_bytes());
        }
        let mut reader = reader::Reader::new(&bytes[..]);
        let mut data = [0; 700];
        while let Ok(Some(entry)) = reader.next_entry() {
            taken += 1;
            assert!(
                entry
                    .path
                    .components()
                    .all(|part| matches!(part, std::path::Component::Normal(_)))
            );
            while reader.data(&mut data).is_ok_and(|count| count > 0) {}
        }
    }
    // It is no use if all of them fail at their first byte.
    assert!(taken > 2000, "{taken}");
}
