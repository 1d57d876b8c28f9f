//! Black-box tests and developer tasks: sees only the binaries.
pub mod attached;
pub mod bench;
pub mod testbed;

// The harness of the black-box tests, from what it runs to what it proves.
pub mod actors;
pub mod block;
pub mod by_ctr;
pub mod calls;
pub mod cedana;
pub mod cedana_counter;
pub mod cedana_records;
pub mod container;
pub mod daemon;
pub mod docker;
pub mod dump_bed;
pub mod engine;
pub mod events;
pub mod host;
pub mod leftovers;
pub mod messages;
pub mod metrics;
pub mod need;
pub mod on_terminal;
pub mod registry;
pub mod shim_api;
pub mod spoken;
pub mod stalled;
pub mod stdio;
pub mod task_api;
pub mod tripwire;
pub mod workload;
