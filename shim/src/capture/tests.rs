//! A whole capture, with this test in the place of the shim and of CRIU.

use std::fs::{self, File};
use std::io::{self, PipeReader};
use std::path::Path;
use std::thread;

use oci_bundles::archive::{Limits, unpack};

use super::*;

/// Bytes that differ from page to page and from file to file.
fn pages(seed: u8, count: usize) -> Vec<u8> {
    let page = |number: usize| {
        let mut page = vec![seed; 4096];
        page[..8].copy_from_slice(&number.to_le_bytes());
        page
    };
    (0..count).flat_map(page).collect()
}

fn heard(answers: &mut BufReader<PipeReader>) -> Answer {
    let mut line = String::new();
    let _bytes = answers.read_line(&mut line).expect("an answer");
    serde_json::from_str(&line).expect("an answer")
}

/// Lets a worker with so much memory take these files, a stretch of each in turn, and returns what it says of them.
fn take(images: &Path, memory: u64, files: &[Vec<u8>]) -> Answer {
    take_and((images, images), (memory, false), files, |answer, _, _| answer)
}

/// The same, and goes on with what it says first once all is in memory. The fifos may have a directory of their own.
fn take_and(
    (fifos, images): (&Path, &Path),
    (memory, keeps): (u64, bool),
    files: &[Vec<u8>],
    go_on: impl FnOnce(Answer, &mut io::PipeWriter, &mut BufReader<PipeReader>) -> Answer,
) -> Answer {
    let (input, mut orders) = io::pipe().expect("a pipe");
    let (answers, output) = io::pipe().expect("a pipe");
    let mut answers = BufReader::new(answers);
    thread::scope(|scope| {
        let _worker = scope.spawn(move || run(input, output));
        let plan = Plan {
            images: images.to_owned(),
            fifos: fifos.to_owned(),
            files: 5,
            memory,
            keeps,
        };
        writeln!(orders, "{}", serde_json::to_string(&plan).expect("a plan")).expect("told");
        assert_eq!(heard(&mut answers), Answer::Ready);
        let mut open: Vec<File> = (1..=files.len())
            .map(|number| fifos.join(format!("pages-{number}.img")))
            .map(|path| File::options().write(true).open(path).expect("a fifo"))
            .collect();
        let longest = files.iter().map(Vec::len).max().unwrap_or_default();
        for start in (0..longest).step_by(300 * 4096) {
            for (fifo, bytes) in open.iter_mut().zip(files) {
                let stretch = bytes.get(start..bytes.len().min(start + 300 * 4096));
                fifo.write_all(stretch.unwrap_or_default()).expect("written");
            }
        }
        drop(open);
        writeln!(orders, "\"finish\"").expect("told");
        let bytes = files.iter().map(|file| file.len() as u64).sum();
        assert_eq!(heard(&mut answers), Answer::Drained { bytes });
        let answer = heard(&mut answers);
        go_on(answer, &mut orders, &mut answers)
    })
}

#[test]
fn files_come_whole_whether_they_fit_into_memory_or_not() {
    let files = [pages(1, 2500), pages(2, 3), pages(3, 1500)];
    for memory in [1 << 20, 8 << 20, 64 << 20] {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let Answer::Written { files: parts } = take(dir.path(), memory, &files) else {
            panic!("a failure");
        };
        assert_eq!(parts.len(), files.len());
        for (part, bytes) in parts.iter().zip(&files) {
            assert_eq!(part.size, bytes.len() as u64, "{}", part.name);
            assert_eq!(part.digest, blake3::hash(bytes).to_hex().to_string());
            assert!(fs::read(dir.path().join(&part.name)).expect("read") == *bytes);
        }
        assert_eq!(fs::read_dir(dir.path()).expect("listed").count(), files.len());
    }
}

#[test]
fn fifos_in_a_directory_of_their_own_leave_nothing_there() {
    let (fifos, dir) = (
        tempfile::tempdir().expect("a directory"),
        tempfile::tempdir().expect("a directory"),
    );
    let files = [pages(1, 2500), pages(2, 3)];
    let said = take_and(
        (fifos.path(), dir.path()),
        (64 << 20, false),
        &files,
        |answer, _, _| answer,
    );
    assert!(matches!(said, Answer::Written { .. }), "{said:?}");
    for (number, bytes) in (1..).zip(&files) {
        let path = dir.path().join(format!("pages-{number}.img"));
        assert!(fs::read(path).expect("read") == *bytes);
    }
    assert_eq!(fs::read_dir(dir.path()).expect("listed").count(), files.len());
    assert_eq!(fs::read_dir(fifos.path()).expect("listed").count(), 0);
}

#[test]
fn a_file_that_cannot_be_written_is_said() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    fs::write(dir.path().join("unfinished-0"), "somebody's").expect("written");
    for memory in [1 << 20, 64 << 20] {
        let files = [pages(1, 600)];
        let said = take(dir.path(), memory, &files);
        assert!(
            matches!(&said, Answer::Failed { error } if error.contains("unfinished-0")),
            "{said:?}"
        );
        for number in 1..=5 {
            // Those of the first round are in the way of the second.
            fs::remove_file(dir.path().join(format!("pages-{number}.img"))).expect("removed");
        }
    }
}

#[test]
fn what_fits_into_memory_is_packed_from_there() {
    let files = [pages(1, 2500), pages(2, 3), pages(3, 1500)];
    let home = tempfile::tempdir().expect("a temporary directory");
    let (root, into) = (home.path().join("dump"), home.path().join("packed"));
    let images = root.join("checkpoint");
    fs::create_dir_all(&images).expect("made");
    let said = take_and(
        (&images, &images),
        (64 << 20, true),
        &files,
        |answer, orders, answers| {
            let Answer::Kept { files: parts } = answer else {
                panic!("{answer:?}");
            };
            assert_eq!(
                fs::read_dir(&images).expect("listed").count(),
                0,
                "nothing is written"
            );
            for (part, bytes) in parts.iter().zip(&files) {
                assert_eq!(part.digest, blake3::hash(bytes).to_hex().to_string());
            }
            fs::write(root.join("cedana.json"), "{}").expect("written");
            let order = Order::Pack {
                root: root.clone(),
                into: into.clone(),
                form: "zstd".to_owned(),
            };
            writeln!(orders, "{}", serde_json::to_string(&order).expect("an order")).expect("told");
            heard(answers)
        },
    );
    let bytes = fs::metadata(&into).expect("packed").len();
    assert_eq!(said, Answer::Packed { bytes });
    let dest = home.path().join("again");
    let quiet = &mut |_| std::ops::ControlFlow::Continue(());
    let _unpacked = unpack(&into, &dest, &Limits::default(), quiet).expect("unpacked");
    for (number, bytes) in (1..).zip(&files) {
        let path = dest.join(format!("checkpoint/pages-{number}.img"));
        assert!(fs::read(path).expect("read") == *bytes);
    }
}

#[test]
fn what_does_not_fit_into_memory_is_written_even_if_it_was_to_be_packed() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let files = [pages(1, 2500)];
    let said = take_and(
        (dir.path(), dir.path()),
        (1 << 20, true),
        &files,
        |answer, _, _| answer,
    );
    assert!(matches!(said, Answer::Written { .. }), "{said:?}");
    assert!(fs::read(dir.path().join("pages-1.img")).expect("read") == files[0]);
}
