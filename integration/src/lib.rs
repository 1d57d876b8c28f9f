//! Black-box tests and developer tasks: sees only the binaries.
pub mod attached;
pub mod bench;
pub mod testbed;

// The harness of the black-box tests, from what it runs to what it proves.
pub mod workload;
pub mod host;
pub mod daemon;
pub mod container;
pub mod spoken;
pub mod by_ctr;
pub mod stdio;
pub mod events;
pub mod leftovers;
pub mod metrics;
pub mod stalled;
pub mod need;
pub mod engine;
pub mod docker;
pub mod task_api;
pub mod shim_api;
pub mod messages;
