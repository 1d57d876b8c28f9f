//! The life of the init, and in which order it is told.

use nix::libc::{SIGKILL, SIGTERM};
use shim::container::Command;
use shim::error::Error;
use shim::state::Status;

use crate::bed::{
    BOX, Bed, add_exec, is_refused, kill, meanwhile, pause, pausing, resume, run_exec, start, starting,
    within,
};

#[tokio::test]
async fn a_life_is_told_in_order_and_each_event_once() {
    let (bed, container) = Bed::created().await;
    assert_eq!(container.view().init.status, Status::Created);
    let pid = start(&container, None).await.unwrap();
    assert_eq!(pid, container.view().init.pid);
    assert_eq!(container.view().init.status, Status::Running);
    let _ = run_exec(&container, "one").await;
    bed.end("one", 3);
    bed.told("exit one 3").await;
    pause(&container).await.unwrap();
    assert_eq!(container.view().init.status, Status::Paused);
    resume(&container).await.unwrap();
    assert_eq!(bed.delete_exec("one").await, Ok(3));
    bed.end("init", 7);
    bed.told("exit box 7").await;
    assert_eq!(bed.delete().await, Ok(7));
    let story = [
        "create",
        "start",
        "exec added one",
        "exec started one",
        "exit one 3",
        "paused",
        "resumed",
        "exit box 7",
        "delete 7",
    ];
    assert_eq!(bed.story(), story);
    assert!(matches!(bed.shim.container(BOX), Err(Error::NotFound(_))));
    assert!(!bed.runc(BOX).exists());
}

#[tokio::test]
async fn an_init_that_ends_before_its_start_has_returned_is_told_after_its_start() {
    let (bed, container) = Bed::created().await;
    let held = bed.hold("start");
    let started = starting(&container, None);
    bed.called("start", 1).await;
    bed.end_and_reap("init", container.view().init.pid, 7).await;
    held.release(1);
    assert!(started.await.unwrap().is_ok());
    bed.told("exit box 7").await;
    assert_eq!(bed.story(), ["create", "start", "exit box 7"]);
}

#[tokio::test]
async fn an_init_that_ends_as_soon_as_it_is_there_is_told_after_its_creation() {
    let bed = Bed::new();
    // Its status waits for it in the fifo.
    bed.end("init", 5);
    let _ = bed.create().await.unwrap();
    bed.told("exit box 5").await;
    assert_eq!(bed.story(), ["create", "exit box 5"]);
}

#[tokio::test]
async fn an_init_that_ends_before_its_start_cannot_be_started() {
    let (bed, container) = Bed::created().await;
    bed.end("init", 7);
    bed.told("exit box 7").await;
    assert!(is_refused(&start(&container, None).await));
    assert_eq!(bed.calls("start"), 0);
    assert_eq!(bed.delete().await, Ok(7));
    assert_eq!(bed.story(), ["create", "exit box 7", "delete 7"]);
}

#[tokio::test]
async fn the_end_of_the_init_is_held_until_its_execs_have_ended() {
    let (bed, container) = Bed::running().await;
    let _ = run_exec(&container, "one").await;
    let _ = run_exec(&container, "two").await;
    bed.end_and_reap("init", container.view().init.pid, 7).await;
    bed.end("two", 2);
    bed.told("exit two 2").await;
    bed.end("one", 1);
    bed.told("exit box 7").await;
    assert_eq!(
        bed.story().split_off(6),
        ["exit two 2", "exit one 1", "exit box 7"]
    );
}

#[tokio::test]
async fn a_second_start_is_refused_also_while_the_first_is_under_way() {
    let (bed, container) = Bed::created().await;
    let held = bed.hold("start");
    let first = starting(&container, None);
    bed.called("start", 1).await;
    let second = starting(&container, None);
    held.release(1);
    assert!(first.await.unwrap().is_ok());
    assert!(is_refused(&second.await.unwrap()));
    assert!(is_refused(&start(&container, None).await));
    assert_eq!(bed.calls("start"), 1);
}

#[tokio::test]
async fn a_start_that_fails_says_why_and_can_be_tried_again() {
    let (bed, container) = Bed::created().await;
    bed.fail("start", "no start today");
    let error = start(&container, None).await.unwrap_err();
    assert!(error.to_string().ends_with("no start today"), "{error}");
    assert_eq!(container.view().init.status, Status::Created);
    bed.mend("start");
    assert!(start(&container, None).await.is_ok());
    assert_eq!(bed.story(), ["create", "start"]);
}

#[tokio::test]
async fn a_running_or_paused_container_is_not_deleted() {
    let (bed, container) = Bed::running().await;
    assert!(is_refused(&bed.delete().await));
    pause(&container).await.unwrap();
    assert!(is_refused(&bed.delete().await));
    assert_eq!(bed.calls("delete"), 0);
    assert!(bed.shim.container(BOX).is_ok());
}

#[tokio::test]
async fn a_container_that_was_never_started_is_deleted_by_force_and_its_end_is_told_first() {
    let (bed, _container) = Bed::created().await;
    assert_eq!(bed.delete().await, Ok(137));
    assert_eq!(bed.calls("delete --force"), 1);
    assert_eq!(bed.story(), ["create", "exit box 137", "delete 137"]);
}

#[tokio::test]
async fn an_exec_of_a_deleted_container_that_was_never_started_is_told_first() {
    let (bed, container) = Bed::created().await;
    let _ = run_exec(&container, "one").await;
    let waiter = container.view().execs["one"].clone();
    assert_eq!(bed.delete().await, Ok(137));
    assert_eq!(
        bed.story().split_off(3),
        ["exit one 137", "exit box 137", "delete 137"]
    );
    assert_eq!(within(waiter.wait()).await.map(|exit| exit.status), Some(137));
}

#[tokio::test]
async fn a_delete_that_fails_leaves_a_container_that_can_be_deleted() {
    let (bed, container) = Bed::running().await;
    bed.end("init", 0);
    bed.told("exit box 0").await;
    bed.fail("delete", "device or resource busy");
    assert!(matches!(bed.delete().await, Err(Error::Internal(_))));
    assert_eq!(container.view().init.status, Status::Stopped);
    bed.mend("delete");
    assert_eq!(bed.delete().await, Ok(0));
    assert_eq!(bed.story(), ["create", "start", "exit box 0", "delete 0"]);
}

#[tokio::test]
async fn a_signal_reaches_the_init_and_later_finds_nobody() {
    let (bed, container) = Bed::running().await;
    assert!(matches!(
        kill(&container, None, 4096).await,
        Err(Error::InvalidArgument(_))
    ));
    kill(&container, None, SIGTERM).await.unwrap();
    bed.told("exit box 143").await;
    assert!(matches!(
        kill(&container, None, SIGKILL).await,
        Err(Error::NotFound(_))
    ));
}

#[tokio::test]
async fn an_init_whose_end_is_held_back_is_not_signalled() {
    let (bed, container) = Bed::running().await;
    let _ = run_exec(&container, "one").await;
    bed.end_and_reap("init", container.view().init.pid, 7).await;
    assert!(matches!(
        kill(&container, None, SIGKILL).await,
        Err(Error::NotFound(_))
    ));
    kill(&container, Some("one"), SIGKILL).await.unwrap();
    bed.told("exit box 7").await;
}

#[tokio::test]
async fn a_signal_for_all_of_a_container_without_a_cgroup_of_its_own_spares_the_others() {
    let (bed, container) = Bed::running().await;
    bed.end_and_reap("init", container.view().init.pid, 7).await;
    // Signal 0 asks whether there is anybody to be signalled: the test itself is, in the same cgroup.
    let all = within(container.ask(|reply| Command::Kill {
        exec: None,
        signal: 0,
        all: true,
        reply,
    }));
    let nobody = all.await;
    assert!(matches!(nobody, Err(Error::NotFound(_))), "{nobody:?}");
}

#[tokio::test]
async fn everyone_who_waits_learns_the_same_end() {
    let (bed, container) = Bed::running().await;
    add_exec(&container, "one").await.unwrap();
    let view = container.view();
    let (mut early, never) = (tokio::spawn(view.init.clone().wait()), view.execs["one"].clone());
    meanwhile(&mut early, bed.called("start", 1)).await;
    bed.end("init", 9);
    let early = within(early).await.unwrap();
    assert_eq!(early.map(|exit| exit.status), Some(9));
    assert_eq!(
        within(container.view().init.wait()).await,
        early,
        "asked when it had ended"
    );
    // An exec that is deleted without having run has no end.
    assert!(bed.delete_exec("one").await.is_ok());
    assert_eq!(within(never.wait()).await, None);
    assert!(bed.delete().await.is_ok());
    assert_eq!(
        within(view.init.wait()).await,
        early,
        "asked of a container that is gone"
    );
    let gone = container.ask(|reply| Command::Pids { reply }).await;
    assert!(matches!(gone, Err(Error::NotFound(_))));
}

#[tokio::test]
async fn a_pause_that_ends_after_its_container_is_not_told() {
    let (bed, container) = Bed::running().await;
    let held = bed.hold("pause");
    let paused = pausing(&container);
    bed.called("pause", 1).await;
    assert_eq!(container.view().init.status, Status::Pausing);
    bed.end("init", 7);
    bed.told("exit box 7").await;
    held.release(1);
    assert!(is_refused(&paused.await.unwrap()));
    assert_eq!(container.view().init.status, Status::Stopped);
    assert_eq!(bed.delete().await, Ok(7));
    assert_eq!(bed.story(), ["create", "start", "exit box 7", "delete 7"]);
}

#[tokio::test]
async fn a_pause_or_resume_that_fails_leaves_the_state_as_it_was() {
    let (bed, container) = Bed::running().await;
    bed.fail("pause", "no freezer");
    assert!(matches!(pause(&container).await, Err(Error::Internal(_))));
    assert_eq!(container.view().init.status, Status::Running);
    bed.mend("pause");
    pause(&container).await.unwrap();
    bed.fail("resume", "no freezer");
    assert!(matches!(resume(&container).await, Err(Error::Internal(_))));
    assert_eq!(container.view().init.status, Status::Paused);
    assert_eq!(bed.story(), ["create", "start", "paused"]);
}
