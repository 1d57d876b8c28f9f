//! Execs: side by side, and each by itself.

use nix::libc::SIGKILL;
use shim::error::Error;
use shim::state::Status;

use crate::bed::{Bed, EXECS, add_exec, is_refused, kill, pause, run_exec, start, starting};

#[tokio::test]
async fn execs_start_side_by_side() {
    let (bed, container) = Bed::running().await;
    let held = bed.hold("exec");
    let mut started = Vec::new();
    for id in EXECS {
        add_exec(&container, id).await.unwrap();
        started.push(starting(&container, Some(id)));
    }
    bed.called("exec", EXECS.len()).await;
    held.release(EXECS.len());
    for (id, started) in EXECS.into_iter().zip(started) {
        let pid = started.await.unwrap().unwrap();
        assert_eq!(pid, container.view().execs[id].pid);
    }
    for (id, status) in EXECS.into_iter().zip(1..) {
        bed.end(id, status);
        bed.told(&format!("exit {id} {status}")).await;
    }
    assert_eq!(container.view().init.status, Status::Running);
}

#[tokio::test]
async fn an_exec_that_fails_to_start_can_be_started_again_or_deleted() {
    let (bed, container) = Bed::running().await;
    bed.fail("exec", "executable file not found");
    for id in ["one", "two"] {
        add_exec(&container, id).await.unwrap();
        let error = start(&container, Some(id)).await.unwrap_err();
        assert!(
            error.to_string().ends_with("executable file not found"),
            "{error}"
        );
    }
    bed.mend("exec");
    assert!(start(&container, Some("one")).await.is_ok());
    assert_eq!(bed.delete_exec("two").await, Ok(0));
    assert!(matches!(bed.delete_exec("two").await, Err(Error::NotFound(_))));
    assert!(add_exec(&container, "two").await.is_ok(), "its id is free again");
    let story = [
        "exec added one",
        "exec added two",
        "exec started one",
        "exec added two",
    ];
    assert_eq!(bed.story().split_off(2), story);
}

#[tokio::test]
async fn an_exec_that_ends_before_its_start_has_returned_is_told_after_its_start() {
    let (bed, container) = Bed::running().await;
    // Its status waits for it in the fifo.
    bed.end("one", 5);
    let _ = run_exec(&container, "one").await;
    bed.told("exit one 5").await;
    assert_eq!(
        bed.story().split_off(2),
        ["exec added one", "exec started one", "exit one 5"]
    );
}

#[tokio::test]
async fn an_exec_that_starts_while_the_init_ends_is_told_before_it() {
    let (bed, container) = Bed::running().await;
    add_exec(&container, "one").await.unwrap();
    let held = bed.hold("exec");
    let started = starting(&container, Some("one"));
    bed.called("exec", 1).await;
    bed.end_and_reap("init", container.view().init.pid, 7).await;
    held.release(1);
    assert!(started.await.unwrap().is_ok());
    bed.end("one", 1);
    bed.told("exit box 7").await;
    assert_eq!(
        bed.story().split_off(3),
        ["exec started one", "exit one 1", "exit box 7"]
    );
}

#[tokio::test]
async fn an_exec_is_started_once_and_not_deleted_meanwhile_nor_while_it_runs() {
    let (bed, container) = Bed::running().await;
    add_exec(&container, "one").await.unwrap();
    assert!(matches!(
        add_exec(&container, "one").await,
        Err(Error::AlreadyExists(_))
    ));
    let held = bed.hold("exec");
    let started = starting(&container, Some("one"));
    bed.called("exec", 1).await;
    assert!(is_refused(&start(&container, Some("one")).await));
    assert!(is_refused(&bed.delete_exec("one").await));
    assert!(
        is_refused(&kill(&container, Some("one"), SIGKILL).await),
        "it has no process yet"
    );
    held.release(1);
    assert!(started.await.unwrap().is_ok());
    assert!(is_refused(&start(&container, Some("one")).await));
    assert!(is_refused(&bed.delete_exec("one").await));
    kill(&container, Some("one"), SIGKILL).await.unwrap();
    bed.told("exit one 137").await;
    assert!(matches!(
        kill(&container, Some("one"), SIGKILL).await,
        Err(Error::NotFound(_))
    ));
    assert_eq!(bed.delete_exec("one").await, Ok(137));
}

#[tokio::test]
async fn an_exec_waits_with_its_start_until_nothing_is_frozen() {
    let (bed, container) = Bed::running().await;
    pause(&container).await.unwrap();
    assert!(add_exec(&container, "one").await.is_ok());
    assert!(is_refused(&start(&container, Some("one")).await));
    assert_eq!(bed.calls("exec"), 0);
}

#[tokio::test]
async fn there_is_no_exec_in_a_container_that_has_ended() {
    let (bed, container) = Bed::running().await;
    add_exec(&container, "one").await.unwrap();
    bed.end("init", 0);
    bed.told("exit box 0").await;
    assert!(is_refused(&add_exec(&container, "two").await));
    assert!(is_refused(&start(&container, Some("one")).await));
    assert!(matches!(
        start(&container, Some("none")).await,
        Err(Error::NotFound(_))
    ));
    assert_eq!(bed.calls("exec"), 0);
}
