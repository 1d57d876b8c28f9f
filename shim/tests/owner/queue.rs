//! What waits for what, and for how many.

use shim::container::Command;
use shim::error::Error;
use shim::state::Status;

use crate::bed::{Bed, add_exec, is_refused, kill, meanwhile, pause, pausing, starting, within};

/// As many as the owner lets wait (`QUEUE_MAX`).
const WAITING_MAX: usize = 128;

#[tokio::test]
async fn a_pause_waits_for_an_exec_that_is_being_started() {
    let (bed, container) = Bed::running().await;
    add_exec(&container, "one").await.unwrap();
    let held = bed.hold("exec");
    let started = starting(&container, Some("one"));
    bed.called("exec", 1).await;
    let mut paused = pausing(&container);
    // The reply comes when what was asked before it has been looked at.
    meanwhile(&mut paused, async { assert!(pids(&container).await > 0) }).await;
    assert_eq!(bed.calls("pause"), 0);
    assert_eq!(container.view().init.status, Status::Running);
    held.release(1);
    assert!(started.await.unwrap().is_ok());
    assert!(paused.await.unwrap().is_ok());
    let story = ["exec added one", "exec started one", "paused"];
    assert_eq!(bed.story().split_off(2), story);
}

#[tokio::test]
async fn an_exec_waits_behind_a_pause_that_waits() {
    let (bed, container) = Bed::running().await;
    for id in ["one", "two"] {
        add_exec(&container, id).await.unwrap();
    }
    let held = bed.hold("exec");
    let first = starting(&container, Some("one"));
    bed.called("exec", 1).await;
    let mut paused = pausing(&container);
    meanwhile(&mut paused, async { assert!(pids(&container).await > 0) }).await;
    let second = starting(&container, Some("two"));
    held.release(1);
    assert!(first.await.unwrap().is_ok());
    assert!(paused.await.unwrap().is_ok());
    assert!(
        is_refused(&second.await.unwrap()),
        "it found the container paused"
    );
    assert_eq!(bed.calls("exec"), 1);
}

#[tokio::test]
async fn a_kill_and_a_question_never_wait() {
    let (bed, container) = Bed::running().await;
    let held = bed.hold("update");
    let updating = tokio::spawn({
        let container = container.clone();
        async move {
            container
                .ask(|reply| Command::Update {
                    resources: b"{}".to_vec(),
                    reply,
                })
                .await
        }
    });
    bed.called("update", 1).await;
    assert!(pids(&container).await > 0);
    kill(&container, None, nix::libc::SIGKILL).await.unwrap();
    bed.told("exit box 137").await;
    held.release(1);
    assert!(within(updating).await.unwrap().is_ok());
}

#[tokio::test]
async fn a_client_that_goes_away_interrupts_nothing() {
    let (bed, container) = Bed::running().await;
    let held = bed.hold("pause");
    meanwhile(pause(&container), bed.called("pause", 1)).await;
    held.release(1);
    bed.told("paused").await;
    assert!(is_refused(&pause(&container).await));
    assert_eq!(container.view().init.status, Status::Paused);
}

#[tokio::test]
async fn a_client_gone_mad_gets_an_error_and_everyone_else_an_answer() {
    let (bed, container) = Bed::running().await;
    let held = bed.hold("pause");
    let first = pausing(&container);
    bed.called("pause", 1).await;
    let mut waiting: Vec<_> = (0..WAITING_MAX).map(|_| pausing(&container)).collect();
    let surplus = within(pausing(&container)).await.unwrap();
    assert!(matches!(surplus, Err(Error::Unavailable(_))), "{surplus:?}");
    assert!(waiting.iter().all(|task| !task.is_finished()));
    held.release(1);
    assert!(within(first).await.unwrap().is_ok());
    for task in waiting.drain(..) {
        assert!(
            is_refused(&within(task).await.unwrap()),
            "a pause of what is paused by then"
        );
    }
    assert_eq!(bed.calls("pause"), 1);
}

async fn pids(container: &shim::container::Container) -> usize {
    within(container.ask(|reply| Command::Pids { reply }))
        .await
        .unwrap()
        .len()
}
