//! What depends on cgroup v2, systemd and a distribution's kernel, in one program: the suite `vm` is slow to start.

mod freeze;
#[path = "lifecycle_options.rs"]
mod options;
#[path = "lifecycle_resources.rs"]
mod resources;
