//! The figures of `make bench`: our shim against containerd's own, run in turn on one containerd.
//!
//! A [`measure::Measure`] yields one sample of one or more figures for one side; [`sampling`] asks both sides for it
//! in alternating order, so that what drifts on the machine (caches, clocks, neighbours) hits both alike; [`report`]
//! makes the table and the JSON from the medians. [`profile`] tells where the time of one `ctr run` goes.
//!
//! Runs inside a testbed instance, alone: the containers of others would be measured with it.

pub mod beside;
pub mod ctr;
pub mod dump;
pub mod figure;
pub mod fill;
pub mod floor;
pub mod hog;
pub mod jobs;
pub mod measure;
pub mod profile;
pub mod report;
pub mod restore;
pub mod sampling;
pub mod shm;
pub mod worker;
