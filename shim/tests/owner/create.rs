//! `Create`: all of it, or nothing.

use std::fs;
use std::pin::pin;

use shim::error::Error;

use crate::bed::{BOX, Bed, meanwhile, within};

#[tokio::test]
async fn a_create_that_runc_fails_leaves_nothing_and_can_be_repeated() {
    let bed = Bed::new();
    bed.fail("create", "no such rootfs");
    let error = bed.create().await.unwrap_err();
    assert!(error.to_string().ends_with("no such rootfs"), "{error}");
    assert!(matches!(bed.shim.container(BOX), Err(Error::NotFound(_))));
    assert_eq!(bed.calls("delete --force"), 1);
    assert!(!bed.runc(BOX).exists());
    assert!(bed.story().is_empty());
    bed.mend("create");
    assert!(bed.create().await.is_ok());
    assert_eq!(bed.story(), ["create"]);
}

#[tokio::test]
async fn a_create_that_fails_after_runc_leaves_no_process() {
    let bed = Bed::new();
    fs::write(bed.runc("garble"), "").unwrap();
    let undone = bed.hold("delete");
    let creating = bed.creating();
    bed.called("delete --force", 1).await;
    let pid = fs::read_to_string(bed.runc(BOX).join("pid.init")).unwrap();
    undone.release(1);
    assert!(matches!(within(creating).await.unwrap(), Err(Error::Internal(_))));
    // The fake runc waits until the process has been reaped.
    assert!(!fs::exists(format!("/proc/{}", pid.trim())).unwrap());
    fs::remove_file(bed.runc("garble")).unwrap();
    assert!(bed.create().await.is_ok());
}

#[tokio::test]
async fn a_create_without_a_bundle_leaves_nothing() {
    let bed = Bed::new();
    let config = bed.bundle().join("config.json");
    fs::rename(&config, bed.path("aside")).unwrap();
    assert!(matches!(bed.create().await, Err(Error::Internal(_))));
    assert_eq!(bed.calls("create"), 0);
    fs::rename(bed.path("aside"), &config).unwrap();
    assert!(bed.create().await.is_ok());
}

#[tokio::test]
async fn an_id_is_taken_from_the_moment_it_is_asked_for() {
    let bed = Bed::new();
    let held = bed.hold("create");
    let creating = bed.creating();
    bed.called("create", 1).await;
    assert!(matches!(bed.create().await, Err(Error::AlreadyExists(_))));
    assert!(
        matches!(bed.shim.container(BOX), Err(Error::NotFound(_))),
        "nobody can use it yet"
    );
    held.release(1);
    assert!(within(creating).await.unwrap().is_ok());
    assert!(matches!(bed.create().await, Err(Error::AlreadyExists(_))));
    assert_eq!(bed.calls("create"), 1);
}

#[tokio::test]
async fn a_shutdown_during_a_create_leaves_nothing_of_it() {
    let bed = Bed::new();
    let held = bed.hold("create");
    let creating = bed.creating();
    bed.called("create", 1).await;
    bed.shim.shut_down();
    held.release(1);
    assert!(matches!(
        within(creating).await.unwrap(),
        Err(Error::Unavailable(_))
    ));
    within(bed.shim.done()).await;
    assert_eq!(bed.calls("delete --force"), 1);
    assert!(!bed.runc(BOX).exists());
    assert_eq!(bed.story(), ["create", "exit box 137", "delete 137"]);
}

#[tokio::test]
async fn a_shutdown_during_a_create_that_fails_ends_the_shim() {
    let bed = Bed::new();
    let held = bed.hold("create");
    bed.fail("create", "no");
    let creating = bed.creating();
    bed.called("create", 1).await;
    bed.shim.shut_down();
    held.release(1);
    assert!(matches!(within(creating).await.unwrap(), Err(Error::Internal(_))));
    within(bed.shim.done()).await;
}

#[tokio::test]
async fn a_shutdown_with_a_container_is_not_heard() {
    let (bed, _container) = Bed::created().await;
    bed.shim.shut_down();
    assert!(bed.shim.container(BOX).is_ok());
    let mut done = pin!(bed.shim.done());
    meanwhile(&mut done, async { assert!(bed.delete().await.is_ok()) }).await;
    bed.shim.shut_down();
    within(done).await;
}
