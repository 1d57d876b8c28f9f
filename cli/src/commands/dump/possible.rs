//! What is not dumped: a container that nobody could bring back afterwards.

use jobs::registry::Job;

use crate::commands::restore::{sandbox, starts_afresh};
use crate::error::Error;

/// Says no before anything is written.
///
/// # Errors
/// It is the pause container of a pod, or it would end although its engine can only start it afresh.
pub fn refuse(job: &Job, leave_running: bool) -> Result<(), Error> {
    if job.record.sandbox {
        return Err(sandbox(&job.name));
    }
    if starts_afresh(job.engine, job.managed) && !leave_running {
        return Err(Error::unsupported(format!(
            "{} would end, and {} could only start it afresh: it was created for another runtime",
            job.name, job.engine
        ))
        .hint("--leave-running saves it and lets it go on")
        .hint(
            "a container that is created with --runtime io.containerd.cedana.v1 is restored by its engine",
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use jobs::registry::EngineKind;

    use super::*;

    #[test]
    fn only_engines_that_start_by_themselves_start_afresh() {
        use EngineKind::{Containerd, Cri, Docker, Nerdctl};
        for (engine, managed, expected) in [
            (Docker, true, true),
            (Nerdctl, true, true),
            (Cri, true, true),
            (Docker, false, false),
            (Containerd, true, false),
        ] {
            assert_eq!(starts_afresh(engine, managed), expected, "{engine} {managed}");
        }
    }
}
