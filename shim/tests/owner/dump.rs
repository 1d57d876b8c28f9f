//! A dump that cannot be done, seen from the owner: nothing has happened.
//!
//! The processes here live in the cgroup of the test, which the shim refuses to freeze, or there is no CRIU; so every
//! dump fails, before it has saved anything. The dump that succeeds needs root and is `integration`'s.

use std::fs;

use shim::container::{Command, Container};
use shim::dump::CheckpointOptions;
use shim::error::Result;
use shim::state::Status;

use crate::bed::{Bed, is_refused, pause, resume, run_exec, within};

async fn checkpoint(bed: &Bed, container: &Container) -> Result<()> {
    let options = CheckpointOptions {
        said: true,
        image_path: bed.path("images"),
        ..CheckpointOptions::default()
    };
    within(container.ask(|reply| Command::Checkpoint {
        options: Box::new(options),
        settings: None,
        reply,
    }))
    .await
    .map(drop)
}

#[tokio::test]
async fn a_dump_that_fails_leaves_the_container_as_it_was() {
    let (bed, container) = Bed::running().await;
    let failed = checkpoint(&bed, &container).await.unwrap_err();
    assert!(failed.to_string().ends_with("the container goes on"), "{failed}");
    assert_eq!(container.view().init.status, Status::Running);
    pause(&container).await.unwrap();
    let failed = checkpoint(&bed, &container).await.unwrap_err();
    assert!(failed.to_string().ends_with("the container goes on"), "{failed}");
    assert_eq!(container.view().init.status, Status::Paused);
    resume(&container).await.unwrap();
    let _ = run_exec(&container, "one").await;
    assert!(!bed.path("images").exists());
    assert_eq!(bed.calls("checkpoint"), 0);
    assert_eq!(
        bed.story().split_off(2),
        ["paused", "resumed", "exec added one", "exec started one"]
    );
}

#[tokio::test]
async fn a_dump_that_fails_keeps_the_images_of_an_earlier_one() {
    let (bed, container) = Bed::running().await;
    fs::create_dir(bed.path("images")).unwrap();
    fs::write(bed.path("images/core-1.img"), "earlier").unwrap();
    assert!(checkpoint(&bed, &container).await.is_err());
    let left: Vec<_> = fs::read_dir(bed.path("images"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(left, ["core-1.img"]);
}

#[tokio::test]
async fn only_what_runs_is_dumped() {
    let (bed, container) = Bed::created().await;
    assert!(is_refused(&checkpoint(&bed, &container).await));
    bed.end("init", 0);
    bed.told("exit box 0").await;
    assert!(is_refused(&checkpoint(&bed, &container).await));
    assert!(!bed.path("images").exists());
}
