//! `preflight -pid N`: what stands in the way of dumping a container now, found by looking at `/proc`.
//!
//! ```text
//!  init's pid --tree--> the processes a dump takes      (and those it does not: execs)
//!                          |
//!        +-----------------+------------------+--------------------+
//!        v                 v                  v                    v
//!    descriptors       mappings            standing             sockets, unix          mounts
//!    fd, fdinfo         maps        namespaces, tracers     /proc/PID/net, sock_diag   mountinfo, config.json
//!        +-----------------+------------------+--------------------+----------------------+
//!                                             v
//!                             Findings: bounded, sorted --> JSON on stdout
//! ```
//!
//! Nothing is frozen, traced or written, and a process that goes away meanwhile is passed over. So the answer is about a
//! moment: what comes a millisecond later, CRIU finds. It is also an opinion about CRIU 4: it is asked for by people and
//! forbids no dump, since a newer CRIU may have learned to save one of these things.
//!
//! It runs as a process of its own, for a shim must not grow by what is looked at once in a while, and enters the
//! container's network namespace to ask for its sockets.

mod descriptors;
mod findings;
mod mappings;
mod mounts;
mod read;
mod sockets;
mod standing;
mod tree;
mod unix;

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use config::Settings;
use jobs::preflight::{Report, Severity};
use oci_bundles::spec::{SpecError, SpecView};
use thiserror::Error;

use crate::criu::proc;
use crate::options::Options;
use findings::Findings;
use mounts::Mounts;

/// Why nothing could be looked at.
#[derive(Debug, Error)]
pub enum PreflightError {
    /// There is no such process, or it has ended.
    #[error("look at process {0}: it does not run")]
    Gone(i32),
    /// It cannot be looked at.
    #[error("look at process {pid}: {source}")]
    Unreadable {
        /// The container's init.
        pid: i32,
        /// What the kernel says.
        source: io::Error,
    },
    /// The bundle that was named has no configuration that can be read.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// What is said of dumps is not valid, so a dump would be refused as well.
    #[error(transparent)]
    Config(#[from] config::ConfigError),
    /// The report cannot be written down.
    #[error("write the report: {0}")]
    Json(#[from] serde_json::Error),
}

/// The report on a container as JSON, by the pid of its init and, if it has one, its bundle: the settings in the
/// annotations and the mounts come from there.
///
/// # Errors
/// [`PreflightError`]. What only cannot be seen in part is listed in the report.
pub fn preflight(pid: i32, bundle: Option<&Path>) -> Result<Vec<u8>, PreflightError> {
    let report = look(pid, bundle)?;
    let mut json = serde_json::to_vec(&report)?;
    json.push(b'\n');
    Ok(json)
}

/// Looks at a container. See [`preflight`].
///
/// # Errors
/// As [`preflight`].
pub fn look(pid: i32, bundle: Option<&Path>) -> Result<Report, PreflightError> {
    if !proc::is_running(pid) {
        return Err(PreflightError::Gone(pid));
    }
    let settings = settings(bundle)?;
    let mut findings = Findings::default();
    let tree = tree::of(pid, &mut findings).map_err(|source| PreflightError::Unreadable { pid, source })?;
    mounts::look(pid, bundle, &mut findings);
    let mounts = Mounts::of(&tree.processes);
    standing::look_at_init(pid, &mut findings);
    let mut held = BTreeMap::new();
    for process in &tree.processes {
        standing::look(process, pid, &mut findings);
        held.extend(descriptors::look(
            process,
            &descriptors::Around {
                settings: &settings.dump,
                mounts: &mounts,
                namespaces: &tree.namespaces,
            },
            &mut findings,
        ));
        // After the descriptors: what is open and mapped is told once.
        mappings::look(process, &settings.dump, &mut findings);
    }
    let network_sockets = sockets::look(pid, &tree, &held, &settings.dump, &mut findings);
    // Last, because from here on this process is in the container's network namespace.
    unix::look(pid, &held, &settings.dump, &mut findings);
    if proc::is_launching(pid) {
        findings.add(
            "not-started",
            Severity::Blocks,
            "the container's program has not been started yet",
            "start the container",
        );
    }
    let pids: Vec<i32> = tree.processes.iter().map(|process| process.pid).collect();
    let (findings, unseen) = findings.into_sorted();
    Ok(Report {
        pid,
        processes: pids.len(),
        memory: proc::resident_bytes(&pids),
        network_sockets,
        findings,
        unseen,
    })
}

/// The settings a dump of the container would have.
fn settings(bundle: Option<&Path>) -> Result<Settings, PreflightError> {
    let (annotations, options) = match bundle {
        // Without its options the container is looked at as if there were none: `delete` is who tells of damage.
        Some(bundle) => (
            SpecView::read(bundle)?.annotations,
            Options::load(bundle).unwrap_or_default(),
        ),
        None => (BTreeMap::new(), Options::default()),
    };
    // What is wrong with the host's layers does not hold for a dump either.
    Ok(config::for_container(&annotations, &options.settings)?.0)
}

/// Sockets that datagram sockets of these processes are connected to and that others hold, by name, in the network namespace of this
/// process; nothing if the kernel does not tell.
pub fn datagrams_to_others(pids: &[i32]) -> Vec<String> {
    unix::datagrams_to_others(pids).unwrap_or_default()
}

/// What `/proc` tells of a container, of any bytes: the names in it are the container's own.
#[cfg(any(test, fuzzing))]
pub(crate) fn read_any(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    for line in text.lines() {
        mounts::read_any(line);
        mappings::read_any(line);
        descriptors::read_any(line);
    }
    unix::read_any(bytes);
}
