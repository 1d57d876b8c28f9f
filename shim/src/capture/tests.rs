//! A whole capture, with this test in the place of the shim and of CRIU.

use std::fs::{self, File};
use std::io::{self, PipeReader};
use std::thread;

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
fn take(images: &std::path::Path, memory: u64, files: &[Vec<u8>]) -> Answer {
    let (input, mut orders) = io::pipe().expect("a pipe");
    let (answers, output) = io::pipe().expect("a pipe");
    let mut answers = BufReader::new(answers);
    thread::scope(|scope| {
        let _worker = scope.spawn(move || run(input, output));
        let plan = Plan {
            images: images.to_owned(),
            files: 5,
            memory,
        };
        writeln!(orders, "{}", serde_json::to_string(&plan).expect("a plan")).expect("told");
        assert_eq!(heard(&mut answers), Answer::Ready);
        let mut open: Vec<File> = (1..=files.len())
            .map(|number| images.join(format!("pages-{number}.img")))
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
        heard(&mut answers)
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
