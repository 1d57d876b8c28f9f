//! An ordered list of steps, each of which knows how to take itself back.
//!
//! ```text
//!   act 1 -> act 2 -> act 3 | commit | after 1 -> after 2
//!                       X fails
//!   undo 1 <- undo 2 <- undo 3         nothing is undone after the commit
//! ```
//!
//! Invariants:
//! - a phase that failed is undone too, before those that came earlier: it may have done half of its work, so an undo
//!   is written to cope with whatever it finds;
//! - unwinding goes on to its end, whatever fails on the way, and every error of it is returned;
//! - a phase after the commit runs even when the one before it failed: by then the result exists, and each of them only
//!   puts something away.
//!
//! The engine knows nothing of containers. Timings are kept for the log and the manifest.

use std::fmt;
use std::pin::Pin;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What an act or undo returns: a future over the context it was given.
pub type Step<'a, E> = Pin<Box<dyn Future<Output = Result<(), E>> + Send + 'a>>;

/// An act or undo, over the context `C`.
pub type Action<C, E> = for<'a> fn(&'a mut C) -> Step<'a, E>;

/// One step.
pub struct Phase<C, E> {
    /// Its name, as it appears in errors, logs and timings.
    pub name: &'static str,
    /// What it does.
    pub act: Action<C, E>,
    /// How it is taken back, if there is anything to take back.
    pub undo: Option<Action<C, E>>,
}

impl<C, E> fmt::Debug for Phase<C, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Phase")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// A whole operation.
pub struct Plan<'p, C, E> {
    /// The steps up to the commit: any failure takes back all of them.
    pub before: &'p [Phase<C, E>],
    /// The steps after it; their `undo` is never called.
    pub after: &'p [Phase<C, E>],
}

impl<C, E> fmt::Debug for Plan<'_, C, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Plan")
            .field("before", &self.before)
            .field("after", &self.after)
            .finish()
    }
}

/// How long a phase took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// The phase.
    pub phase: &'static str,
    /// From its call to its return.
    pub took: Duration,
}

/// When each phase began, for who wants to know it before the plan has come to its end.
#[derive(Debug, Default)]
pub struct Stopwatch(Mutex<Vec<(&'static str, Instant)>>);

impl Stopwatch {
    /// A phase begins.
    pub fn begins(&self, phase: &'static str) {
        let mut began = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        began.push((phase, Instant::now()));
    }

    /// The phases so far, the last one up to now.
    pub fn timings(&self) -> Vec<Timing> {
        let began = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let ends = began.iter().skip(1).map(|(_, at)| *at).chain([Instant::now()]);
        let both = began.iter().zip(ends);
        both.map(|((phase, from), to)| Timing {
            phase,
            took: to.saturating_duration_since(*from),
        })
        .collect()
    }
}

/// A plan that reached its commit.
#[derive(Debug)]
pub struct Completed<E> {
    /// Every phase in order.
    pub timings: Vec<Timing>,
    /// What failed after the commit.
    pub late: Vec<(&'static str, E)>,
}

/// A plan that failed and was taken back.
#[derive(Debug)]
pub struct Failed<E> {
    /// The phase that failed.
    pub phase: &'static str,
    /// Why.
    pub cause: E,
    /// What could not be taken back, in the order it was tried.
    pub unwinding: Vec<(&'static str, E)>,
}

impl<C, E> Plan<'_, C, E> {
    /// Runs the plan to its end, or takes back all of it. `follow` is told of each phase before it begins; up to the commit
    /// its error is the phase's.
    ///
    /// # Errors
    /// The phase that failed, its error, and every error of the unwinding.
    pub async fn run(
        &self,
        context: &mut C,
        follow: &(dyn Fn(&'static str) -> Result<(), E> + Sync),
    ) -> Result<Completed<E>, Failed<E>> {
        let mut timings = Vec::with_capacity(self.before.len() + self.after.len());
        for (index, phase) in self.before.iter().enumerate() {
            let acted = match follow(phase.name) {
                Ok(()) => timed(phase, context, &mut timings).await,
                Err(stopped) => Err(stopped),
            };
            if let Err(cause) = acted {
                let acted = self.before.get(..=index).unwrap_or(self.before);
                return Err(Failed {
                    phase: phase.name,
                    cause,
                    unwinding: unwind(acted, context).await,
                });
            }
        }
        let mut late = Vec::new();
        for phase in self.after {
            // Too late to stop anything.
            let _ = follow(phase.name);
            if let Err(error) = timed(phase, context, &mut timings).await {
                late.push((phase.name, error));
            }
        }
        Ok(Completed { timings, late })
    }
}

/// All timings in one line, for the log: `freeze 2.1 ms, save 58.0 ms`.
pub fn summary(timings: &[Timing]) -> String {
    let each = |timing: &Timing| format!("{} {:.1} ms", timing.phase, timing.took.as_secs_f64() * 1000.0);
    timings.iter().map(each).collect::<Vec<_>>().join(", ")
}

async fn timed<C, E>(phase: &Phase<C, E>, context: &mut C, timings: &mut Vec<Timing>) -> Result<(), E> {
    let start = Instant::now();
    let result = (phase.act)(context).await;
    timings.push(Timing {
        phase: phase.name,
        took: start.elapsed(),
    });
    result
}

async fn unwind<C, E>(acted: &[Phase<C, E>], context: &mut C) -> Vec<(&'static str, E)> {
    let mut errors = Vec::new();
    for phase in acted.iter().rev() {
        if let Some(undo) = phase.undo
            && let Err(error) = undo(context).await
        {
            errors.push((phase.name, error));
        }
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Records what ran, and fails where it is told to.
    #[derive(Default)]
    struct Tape {
        ran: Vec<&'static str>,
        failing: &'static [&'static str],
    }

    impl Tape {
        fn record(&mut self, what: &'static str) -> Step<'_, &'static str> {
            self.ran.push(what);
            let result = if self.failing.contains(&what) {
                Err(what)
            } else {
                Ok(())
            };
            Box::pin(async move { result })
        }
    }

    const BEFORE: &[Phase<Tape, &str>] = &[
        Phase {
            name: "a",
            act: |tape| tape.record("a"),
            undo: Some(|tape| tape.record("-a")),
        },
        Phase {
            name: "b",
            act: |tape| tape.record("b"),
            undo: None,
        },
        Phase {
            name: "c",
            act: |tape| tape.record("c"),
            undo: Some(|tape| tape.record("-c")),
        },
    ];
    const AFTER: &[Phase<Tape, &str>] = &[
        Phase {
            name: "x",
            act: |tape| tape.record("x"),
            undo: Some(|tape| tape.record("-x")),
        },
        Phase {
            name: "y",
            act: |tape| tape.record("y"),
            undo: None,
        },
    ];

    async fn check(failing: &'static [&'static str], ran: &[&str], failed: Option<&str>, leftover: &[&str]) {
        let mut tape = Tape {
            ran: Vec::new(),
            failing,
        };
        let result = Plan {
            before: BEFORE,
            after: AFTER,
        }
        .run(&mut tape, &|_| Ok(()))
        .await;
        assert_eq!(tape.ran, ran, "failing {failing:?}");
        let (phase, errors) = match result {
            Ok(completed) => (None, completed.late),
            Err(failure) => (Some(failure.phase), failure.unwinding),
        };
        assert_eq!(phase, failed, "failing {failing:?}");
        assert_eq!(
            errors.iter().map(|(_, error)| *error).collect::<Vec<_>>(),
            leftover,
            "failing {failing:?}"
        );
    }

    #[tokio::test]
    async fn each_failure_takes_back_what_acted_in_reverse_and_itself_first() {
        check(&[], &["a", "b", "c", "x", "y"], None, &[]).await;
        check(&["a"], &["a", "-a"], Some("a"), &[]).await;
        check(&["b"], &["a", "b", "-a"], Some("b"), &[]).await;
        check(&["c"], &["a", "b", "c", "-c", "-a"], Some("c"), &[]).await;
    }

    #[tokio::test]
    async fn unwinding_goes_on_past_its_own_failures_and_reports_them_all() {
        check(
            &["c", "-c", "-a"],
            &["a", "b", "c", "-c", "-a"],
            Some("c"),
            &["-c", "-a"],
        )
        .await;
    }

    #[tokio::test]
    async fn nothing_is_taken_back_after_the_commit_and_everything_is_put_away() {
        check(&["x"], &["a", "b", "c", "x", "y"], None, &["x"]).await;
        check(&["x", "y"], &["a", "b", "c", "x", "y"], None, &["x", "y"]).await;
    }

    #[tokio::test]
    async fn every_phase_that_ran_is_timed_under_its_name() {
        let completed = Plan {
            before: BEFORE,
            after: AFTER,
        }
        .run(&mut Tape::default(), &|_| Ok(()))
        .await
        .expect("no failure");
        let names: Vec<&str> = completed.timings.iter().map(|timing| timing.phase).collect();
        assert_eq!(names, ["a", "b", "c", "x", "y"]);
    }

    #[test]
    fn a_stopwatch_tells_phases_before_the_end() {
        let watch = Stopwatch::default();
        assert_eq!(watch.timings(), []);
        watch.begins("a");
        watch.begins("b");
        let phases: Vec<&str> = watch.timings().iter().map(|timing| timing.phase).collect();
        assert_eq!(phases, ["a", "b"]);
    }

    #[tokio::test]
    async fn who_follows_may_stop_it_before_the_commit_and_not_after() {
        let plan = Plan {
            before: BEFORE,
            after: AFTER,
        };
        for (at, ran) in [("b", &["a", "-a"] as &[_]), ("y", &["a", "b", "c", "x", "y"])] {
            let mut tape = Tape::default();
            let stop = |phase| if phase == at { Err("stopped") } else { Ok(()) };
            let _ = plan.run(&mut tape, &stop).await;
            assert_eq!(tape.ran, ran, "stopped at {at}");
        }
    }
}
